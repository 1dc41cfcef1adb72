"""The mail transport of a server without a mail server: each mail becomes an `.eml` file, for people to look at.

Nobody but the envelope knows the recipients, so the file begins with it: `X-Envelope-From`, and one `X-Envelope-To` for
each recipient. What follows is the message as it would have gone out.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

from server.mail_message import MailMessage
from server.mail_transport import Handover, Outage, Refusal

KEEP_FILES = 1_000
"""The newest mails; older ones are removed."""

_OUR_FILES = "????????T??????.???Z-*.eml"
"""What may be listed and removed: other files in the folder are somebody else's."""

_FROM = b"X-Envelope-From: "
_TO = b"X-Envelope-To: "


class MailFolder:
    """The `MailTransport` into a folder, which is made when the first mail comes.

    A message has one file, named by its time and its notification: when it is sent to further recipients, or repeated,
    its list of recipients grows.
    """

    def __init__(self, folder: Path, keep: int = KEEP_FILES) -> None:
        self.name = f"files in {folder} (no mail server is configured)"
        self._folder = folder
        self._keep = keep

    async def close(self) -> None:
        """See `MailTransport`: nothing is kept."""

    async def send(self, message: MailMessage, addresses: Sequence[str], within_s: float) -> Handover:
        """See `MailTransport`; a file takes no `within_s` worth watching."""
        try:
            await asyncio.to_thread(self._write, message, addresses)
        except OSError as exc:
            outage = Outage(f"cannot write to {self._folder}: {exc.strerror or exc}", needs_operator=True)
            return Handover(
                dict.fromkeys(addresses, Refusal(0, outage.reason, True, is_untried=True)), outage
            )
        return Handover({})

    async def list_newest(self, limit: int) -> list[dict[str, Any]]:
        """Up to `limit` mails, newest first, fit for JSON: `file` (its name), `from`, `to` (list of addresses),
        `subject`, `date` (ISO 8601, UTC), `content_type`, `text` (the body, as it was published)."""
        return await asyncio.to_thread(self._list_newest, limit)

    def _write(self, message: MailMessage, addresses: Sequence[str]) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone_in(self._folder):
            path = self._folder / _file_name(message)
            recipients = dict.fromkeys([*_envelope_to(path), *(address.encode() for address in addresses)])
            head = [_FROM + message.sender.encode(), *(_TO + recipient for recipient in recipients)]
            _write_whole(path, b"\r\n".join([*head, message.content]))
            for old in self._newest_first()[self._keep :]:
                old.unlink(missing_ok=True)

    def _newest_first(self) -> list[Path]:
        return sorted(self._folder.glob(_OUR_FILES), reverse=True)

    def _list_newest(self, limit: int) -> list[dict[str, Any]]:
        mails = []
        for path in self._newest_first()[:limit]:
            try:
                mails.append(_describe(path.name, path.read_bytes()))
            except FileNotFoundError:
                continue  # removed meanwhile
        return mails


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two jobs may hold parts of one message, in two threads, or in two workers that share the folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _file_name(message: MailMessage) -> str:
    """Sorts by time. Nothing in it can lead out of the folder."""
    date = message.date.astimezone(UTC)
    nid = re.sub(r"[^0-9A-Za-z_-]", "_", message.message_id.partition("@")[0])
    return f"{date:%Y%m%dT%H%M%S}.{date.microsecond // 1000:03d}Z-{nid}.eml"


def _envelope_to(path: Path) -> Collection[bytes]:
    """The recipients that stand in a file; none if there is no such file."""
    if not path.exists():
        return []
    head = path.read_bytes().partition(b"\r\nFrom: ")[0]
    return [line.removeprefix(_TO) for line in head.split(b"\r\n") if line.startswith(_TO)]


def _write_whole(path: Path, content: bytes) -> None:
    """Nobody ever sees half a file."""
    unfinished = path.with_suffix(".tmp")
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    unfinished.replace(path)


def _describe(name: str, content: bytes) -> dict[str, Any]:
    parsed = message_from_bytes(content, policy=policy.default)
    date = parsed["Date"].datetime.astimezone(UTC)
    return {
        "file": name,
        "from": str(parsed["From"]),
        "to": [str(recipient) for recipient in parsed.get_all("X-Envelope-To", [])],
        "subject": str(parsed["Subject"]),
        "date": date.isoformat().replace("+00:00", "Z"),
        "content_type": parsed.get_content_type(),
        "text": parsed.get_content().replace("\r\n", "\n"),
    }
