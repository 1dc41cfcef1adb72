"""A mail server that takes everything and writes down what it took: `python -m server.torture.sink PORT FILE`.

A mail is a line of the file, written before the mail is acknowledged: what is acknowledged stands there, and what
stands there twice was sent twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from email import message_from_bytes
from email.policy import default

from aiosmtpd.smtp import SMTP, Envelope, Session

MAX_BYTES = 2**20


class Taking:
    """The handler of aiosmtpd."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Write it down in one piece, then say so."""
        content = envelope.content
        message = message_from_bytes(
            content if isinstance(content, bytes) else str(content).encode(), policy=default
        )
        taken = {
            "at": time.time(),
            "id": str(message["Message-ID"]),
            "subject": str(message["Subject"]),
            "to": envelope.rcpt_tos,
        }
        os.write(self._file, json.dumps(taken).encode() + b"\n")
        return "250 2.0.0 taken"


async def main(port: int, path: str) -> None:
    handler, loop = Taking(path), asyncio.get_running_loop()
    listening = await loop.create_server(
        lambda: SMTP(handler, hostname="sink.invalid", data_size_limit=MAX_BYTES, enable_SMTPUTF8=True),
        "127.0.0.1",
        port,
    )
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    async with listening:
        await stopping.wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
