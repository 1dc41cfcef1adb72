"""One request of the publishing port, while it comes and while a door works on it. Knows no socket."""

from __future__ import annotations

import asyncio
import time

from server.errors import ServerError, TooLarge, UnsupportedMediaType
from server.ingest.door import Door
from server.ingest.lane.head import MAX_LENGTH_DIGITS, Headers, target_of
from server.ingest.visits import Answer, check_coding

UNWANTED_BYTES = 16 * 1024 * 1024
"""Of a body that are read after its request has been refused, so that the answer arrives; then the connection ends."""


class Request:
    """`fault`: what it is answered, whatever it asks for; None: nothing is wrong with its form."""

    __slots__ = (
        "_arrival",
        "body",
        "door",
        "fault",
        "has_all",
        "headers",
        "is_kept",
        "method",
        "path",
        "query",
        "received_at",
        "refusal",
        "unwanted",
        "url",
        "version",
    )

    def __init__(self) -> None:
        self.url = b""
        self.headers = Headers()
        self.body: bytes | bytearray = bytearray()
        self.method = self.path = self.version = ""
        self.query = b""
        self.door: Door | None = None
        self.fault: Answer | None = None
        self.refusal: ServerError | None = None
        """Why its body is not taken; None: it is."""
        self.has_all = False
        self.is_kept = False
        """Whether its connection goes on after it."""
        self.unwanted: int | None = None
        """How much of its body may still come, once it is refused; None: it is not."""
        self.received_at = time.monotonic()
        self._arrival: asyncio.Future[None] | None = None

    def again(self, body: bytes) -> Request:
        """One with the same head but for the length of its body, which is this and has come as a whole."""
        request = Request.__new__(Request)
        request.url, request.headers, request.body = self.url, self.headers, body
        request.method, request.path, request.version = self.method, self.path, self.version
        request.query, request.door, request.is_kept = self.query, self.door, self.is_kept
        request.has_all = True
        request.fault = request.refusal = request.unwanted = request._arrival = None
        request.received_at = time.monotonic()
        return request

    @property
    def is_plain(self) -> bool:
        """Whether nothing about it is unusual, so that one with the same head is carried out in the same way."""
        return (
            self.has_all
            and self.is_kept
            and self.fault is None
            and self.refusal is None
            and self.door is not None
            and self.version == "1.1"
            and "Expect" not in self.headers
            and "Transfer-Encoding" not in self.headers
        )

    def read_target(self) -> None:
        """Find path and query in the url."""
        self.path, self.query = target_of(self.url)

    @property
    def expects_continue(self) -> bool:
        """Whether the caller waits to be told to send the body."""
        return self.version == "1.1" and self.headers.get("Expect", "").lower() == "100-continue"

    def take(self, chunk: bytes) -> bool:
        """Take in a part of the body; False if this one is not worth reading on for."""
        if self.unwanted is not None:
            self.unwanted -= len(chunk)
            return self.unwanted >= 0
        if self.door is None or self.fault is not None or self.refusal is not None:
            return True  # it is about to be refused
        self._check_size(len(self.body) + len(chunk))
        if self.refusal is None:
            self.body += chunk
        return True

    def check_head(self) -> None:
        """Refuse such a body as the head says will come, if its door does not take it."""
        self._check_size(self._declared_bytes)
        if self.door is None or self.refusal is not None:
            return
        try:
            check_coding(self.headers)
        except UnsupportedMediaType as error:
            self._refuse_body(error)

    def _check_size(self, size: int) -> None:
        if self.door is not None and size > self.door.max_body_bytes:
            reason = f"the body is over the {self.door.max_body_bytes} bytes allowed"
            self._refuse_body(TooLarge("", reason, "body_bytes"))

    @property
    def _declared_bytes(self) -> int:
        """How long the body is to be; 0: the request does not say."""
        declared = self.headers.get("Content-Length", "0").lstrip("0")
        # The parser lets digits through, and no number that it cannot count to.
        return int(declared) if declared.isdigit() and len(declared) < MAX_LENGTH_DIGITS else 0

    def _refuse_body(self, error: ServerError) -> None:
        self.refusal = error
        self.body = bytearray()
        self.arrive()

    def end(self) -> None:
        """All of it has come."""
        self.has_all = True
        self.arrive()

    def drop_body(self) -> None:
        """What is still to come is read, and dropped."""
        self.body = bytearray()
        self.unwanted = UNWANTED_BYTES

    async def arrival(self) -> None:
        """Return when all of it has come, or it is known that it will be refused."""
        if not (self.has_all or self.refusal or self.fault):
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival

    async def passed(self) -> None:
        """Return when all of it has come."""
        while not self.has_all:
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival

    def arrive(self) -> None:
        """Let who waits look again."""
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
