"""Free loopback ports for services that must be told their port before they start.

A server of our own is better started on port 0.
"""

from __future__ import annotations

import os
import random
import socket

# Below the range (32768 and up on Linux, 49152 and up on macOS) from which the system takes the near ends of
# outgoing connections: otherwise a client that keeps reconnecting to a killed service could take that
# service's port, or even connect to itself.
_RANGE = range(20000, 32000)

# Of the processes that pytest-xdist runs side by side (gw0, gw1 …) each has ports of its own.
_SHARES = 8
_SHARE = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _SHARES

_given: set[int] = set()


def free_port() -> int:
    """A loopback TCP port that nothing listens on and that this test run has not been given before."""
    ports = _RANGE[_SHARE::_SHARES]
    for port in random.sample(ports, len(ports)):
        if port not in _given and _is_free(port):
            _given.add(port)
            return port
    raise RuntimeError(f"no free port in {_RANGE}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
