"""What the person who started the server is told once it serves."""

from __future__ import annotations

import logging
import os
import sys

from server import __version__
from server.config import Config
from server.tls import expired

logger = logging.getLogger(__name__)


def announce(
    config: Config, port: int, store: str, mail: str, publish_port: int | None = None, workers: int = 1
) -> None:
    """On standard output, and the warnings of the configuration in the log. `port`, `publish_port`: those that it got;
    `store`, `mail`: their names; `workers`: how many processes serve."""
    scheme = "http" if config.tls is None else "https"
    address = f"{scheme}://{_url_host(config.application.address)}:{port}/"
    lines = [
        f"notification-server {__version__} ({'RELEASE' if config.release else 'DEBUG'})",
        f"  {'address' if config.release else 'page   '}  {address}",
        f"  data     {config.application.data}",
        f"  store    {store}",
        f"  mail     {mail}",
    ]
    if publish_port is not None:
        lines.append(f"  publish  http://{_url_host(config.application.publish_address)}:{publish_port}/")
    if workers > 1:
        lines.append(f"  workers  {workers}")
    try:
        print("\n".join(lines), flush=True)
    except OSError:
        # Nobody reads it, which is no reason not to serve. What is left in the buffer would make the end fail.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    for warning in (*config.warnings, *expired(config.tls)):
        logger.warning("%s", warning)


def _url_host(address: str) -> str:
    if address in ("", "0.0.0.0", "::"):  # noqa: S104  # compared, not bound
        return "127.0.0.1"
    return f"[{address}]" if ":" in address else address
