"""What a supervisor and a worker say to each other: JSON, an object a line, over a pair of sockets that nobody else can
reach; and what a worker is given at its start.

    worker -> supervisor   hello           it takes orders now; `signs`: and answers who asks for signs of life
                           ready           it serves; `store`, `mail`: their names; `drain_s`
                           sign            of life, when asked
                           closed          it takes in nobody any more
                           ask             for the figures of all; `packed`: its own
                           figures         `packed`: its own, when asked
                           last            `packed`: what it has counted until its end
    supervisor -> worker   end             `replaced`: whether another one has its sockets now
                           reload          the configuration
                           sign            of life is asked for
                           ask             for its figures
                           all             `packed`: the figures of the others, added up

Words that one side does not know are ignored: it may be of an older version.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

logger = logging.getLogger(__name__)

VARIABLE = "NOTIFICATION_WORKER"
"""The variable of the environment by which a process knows that it is a worker."""

MAX_LINE_BYTES = 64 * 1024 * 1024
"""The figures of a thousand tenants take some megabytes."""

LONG_BYTES = 64 * 1024
"""Longer lines are read in a thread."""

Message = dict[str, Any]
"""Any: JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a worker is given. `channel`, `main`, `publishing`: numbers of files. `lifeline`: the reading end of a pipe
    of which the supervisor has the other. `inbox`, `posts`: see `handoff.Handoff`; an older supervisor knows of none.
    `is_early`, `lease_holder`: see `seat.Seat`."""

    number: int
    channel: int
    lifeline: int
    main: list[int]
    publishing: list[int]
    is_early: bool
    lease_holder: str
    inbox: int | None = None
    posts: list[int] = field(default_factory=list)

    @property
    def workers(self) -> int | None:
        """How many there are; None: an older supervisor does not say."""
        return len(self.posts) or None

    @property
    def files(self) -> list[int]:
        inbox = [] if self.inbox is None else [self.inbox]
        return [self.channel, self.lifeline, *self.main, *self.publishing, *inbox, *self.posts]

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def take(cls) -> Self | None:
        """What this process was given, which none that it starts will be; None: it is no worker."""
        text = os.environ.pop(VARIABLE, "")
        if not text:
            return None
        known = {each.name for each in fields(cls)}
        given = cls(**{name: value for name, value in json.loads(text).items() if name in known})
        for number in given.files:
            os.set_inheritable(number, False)
        return given


def line(word: str, **more: Any) -> bytes:
    """One message."""
    return json.dumps({"is": word, **more}).encode() + b"\n"


class Channel:
    """One end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, connected: socket.socket) -> Self:
        return cls(*await asyncio.open_unix_connection(sock=connected, limit=MAX_LINE_BYTES))

    def say(self, message: bytes) -> None:
        """Never waits; nothing is said to who is gone."""
        if not self._writer.is_closing():
            self._writer.write(message)

    async def hear(self) -> Message | None:
        """The next message; None: the other is gone."""
        try:
            text = await self._reader.readline()
            if not text.endswith(b"\n"):
                return None
            message = (
                await asyncio.to_thread(json.loads, text) if len(text) > LONG_BYTES else json.loads(text)
            )
        except (OSError, ValueError) as exc:
            logger.warning("what workers and supervisor say to each other came to an end: %s", exc)
            return None
        return message if isinstance(message, dict) else {}

    async def close(self) -> None:
        """When all that was said is on its way. Does not raise."""
        try:
            await self._writer.drain()
            self._writer.close()
            await self._writer.wait_closed()
        except OSError:
            pass  # the other is gone
