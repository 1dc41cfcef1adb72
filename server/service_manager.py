"""What the service manager that started this process is told, if it wants to know: sd_notify(3), in a unit of
`Type=notify`."""

from __future__ import annotations

import logging
import os
import socket

logger = logging.getLogger(__name__)

VARIABLE = "NOTIFY_SOCKET"
"""Where it listens."""


def tell_manager(state: str) -> None:
    """Say `READY=1` or the like; a manager that cannot be told stands in the log."""
    address = os.environ.get(VARIABLE, "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            # An @ stands for the zero byte of an abstract address (unix(7)).
            manager.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            manager.sendall(state.encode())
    except OSError as exc:
        logger.warning("the service manager could not be told %s: %s", state, exc.strerror or exc)
