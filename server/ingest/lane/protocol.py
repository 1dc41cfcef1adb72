"""One connection of the publishing port: HTTP/1.1 (RFC 9112) by httptools, requests carried out one after the other.

A client may send the next request before it has its answer (pipelining). What is bounded: heads, bodies, requests and
bytes that wait, and each time in which the client has to go on; reading pauses while enough waits.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import httptools

from server import request_id
from server.errors import NotFound, ServerError, TooLarge
from server.ingest.door import Door
from server.ingest.lane.answers import CONTINUE, encode, plain_refusal
from server.ingest.lane.head import HeadError, query_of, split
from server.ingest.lane.requests import Request
from server.ingest.visits import Answer, Gate, Incoming, Visit, brings_body, problem_of, refusal
from server.tasks import Tasks

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
ENOUGH_REQUESTS, ENOUGH_BYTES = 16, 64 * 1024
"""While so much waits behind a request, reading pauses."""
MAX_REQUESTS = 1000
"""More at once, and the connection ends with the last of these: others are not begun, and can be sent again."""

MAX_KNOWN_HEADS, MAX_KNOWN_BYTES = 4, 4 * 1024
"""Of a connection, and of one of them: what the last heads said, for when they come again."""

IDLE_TIMEOUT_S = 75.0
"""For the head of a request, and so between two: above the 60 s for which common proxies keep connections."""
BODY_TIMEOUT_S = 60.0
"""For a body, and for taking an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What all connections share. `doors`: by path; `common`: the headers of all answers of a door (None: of none), as
    bytes; `note`: told the name of the door, the status and the seconds of each answer; `is_stopping`: whether
    connections are to end with the request that they have."""

    gate: Gate
    doors: Mapping[str, Door]
    common: Mapping[Door | None, bytes]
    note: Callable[[str, int, float], None]
    is_stopping: Callable[[], bool]
    tasks: Tasks


class LaneConnection(asyncio.Protocol):
    """`closed` is called once, at the end of the connection."""

    def __init__(self, serving: Serving, closed: Callable[[LaneConnection], None]) -> None:
        self._serving = serving
        self._closed = closed
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._remote_ip = ""
        self._coming: Request | None = None  # whose head or body is being read
        self._has_head = True  # of that one
        self._head_bytes = 0
        self._waiting: deque[Request] = deque()
        self._known: dict[bytes, Request] = {}  # by their heads but for how long the body is
        self._visit: Visit | None = None
        self._more: asyncio.Future[None] | None = None  # while there is nothing to do
        self._is_reading = True
        self._takes_more = True
        self._may_write = asyncio.Event()
        self._may_write.set()
        self.ends_at = time.monotonic() + IDLE_TIMEOUT_S
        """When it is cut off if nothing happens until then (`time.monotonic`)."""

    # -- the connection --------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._remote_ip = peer[0] if peer else ""
        # One task for all requests of a connection: one for each would cost more than most steps of its walk.
        self._serving.tasks.start(self._work(), "publishing")

    def connection_lost(self, error: Exception | None) -> None:
        self._takes_more = False
        self._transport = None
        if self._visit is not None:
            self._visit.left()
        self._may_write.set()
        # What has come as a whole is carried out, though nobody is answered; the rest never comes.
        for request in self._waiting:
            if not request.has_all:
                request.fault = _BROKEN_OFF
                request.end()
        self._wake()
        self._closed(self)

    def eof_received(self) -> bool:
        """A client that will send no more still gets its answers."""
        self._takes_more = False
        if self._coming is not None and self._waiting and self._waiting[-1] is self._coming:
            self._coming.fault = _BROKEN_OFF
            self._coming.end()
        return bool(self._waiting)

    def pause_writing(self) -> None:
        self._may_write.clear()
        self.ends_at = time.monotonic() + BODY_TIMEOUT_S

    def resume_writing(self) -> None:
        self._may_write.set()
        self.ends_at = math.inf

    def time_out(self) -> None:
        """It took too long to go on: what of it is not begun never is."""
        while len(self._waiting) > 1:
            self._waiting.pop()
        if self._transport is not None:
            self._transport.abort()

    # -- reading ---------------------------------------------------------------------------------------------
    def data_received(self, data: bytes) -> None:
        if not self._takes_more:
            return
        # Mostly a request comes alone and as a whole, and its head is that of the one before.
        is_first = not self._waiting and self._coming is None
        found = split(data) if is_first else None
        if found is not None and (request := self._known_again(*found)) is not None:
            self._waiting.append(request)
            self.ends_at = request.received_at + BODY_TIMEOUT_S
            self._wake()
            return
        if not self._has_head:
            self._head_bytes += len(data)
        self._feed(data)
        if found is not None:
            self._remember(*found)
        self._pace()
        if self._waiting:
            self._wake()

    def _known_again(self, head: bytes, body: bytes) -> Request | None:
        known = self._known.get(head)
        if known is None or known.door is None or len(body) > known.door.max_body_bytes:
            return None
        return known.again(body)

    def _remember(self, head: bytes, body: bytes) -> None:
        """What has come is a request of these two: the parser says the same, if it is a plain one."""
        if len(self._waiting) != 1 or len(head) > MAX_KNOWN_BYTES or self._coming is not None:
            return
        [request] = self._waiting
        if request.is_plain and request.body == body:
            if len(self._known) >= MAX_KNOWN_HEADS:
                del self._known[next(iter(self._known))]
            self._known[head] = request.again(b"")

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # its request has been refused
        except httptools.HttpParserError as exc:
            self._break_off(_refusal_of(exc))
        if not self._has_head and self._head_bytes > MAX_HEAD_BYTES:
            self._break_off(_HEAD_TOO_LARGE)

    def on_message_begin(self) -> None:
        self._coming = Request()
        self._has_head = False
        self._head_bytes = 0
        if not self._waiting:
            self.ends_at = time.monotonic() + IDLE_TIMEOUT_S

    def on_url(self, url: bytes) -> None:
        if self._coming is not None:
            self._coming.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._coming is not None:
            self._coming.headers.add(name, value)

    def on_headers_complete(self) -> None:
        request = self._coming
        if request is None or not self._takes_more:
            return
        self._has_head = True
        request.method = self._parser.get_method().decode("latin-1")
        request.version = self._parser.get_http_version()
        request.is_kept = self._parser.should_keep_alive()
        request.read_target()
        request.door = self._serving.doors.get(request.path)
        request.fault = self._fault_of(request)
        if request.fault is not None:
            request.is_kept = False
        else:
            request.check_head()
        self._waiting.append(request)
        if len(self._waiting) >= MAX_REQUESTS:
            request.is_kept = False
        if len(self._waiting) == 1:
            self.ends_at = time.monotonic() + BODY_TIMEOUT_S

    def _fault_of(self, request: Request) -> Answer | None:
        if self._parser.should_upgrade():
            return plain_refusal(400, "bad_request", "this port speaks HTTP/1.1 and upgrades to nothing else")
        if sum(map(len, request.headers.values())) + len(request.url) > MAX_HEAD_BYTES:
            return _HEAD_TOO_LARGE
        # What is packed is not unpacked here (RFC 9112 section 6.1).
        if request.headers.get("Transfer-Encoding", "chunked").lower() != "chunked":
            return plain_refusal(
                400, "bad_request", "the only Transfer-Encoding that is understood is chunked"
            )
        host = request.headers.get("Host")
        if (host is None and request.version != "1.0") or (host is not None and "," in host):
            return plain_refusal(400, "bad_request", "there is to be one header Host (RFC 9112 section 3.2)")
        return None

    def on_body(self, chunk: bytes) -> None:
        if self._coming is not None and not self._coming.take(chunk):
            self._break_off(None)

    def on_message_complete(self) -> None:
        request, self._coming = self._coming, None
        if request is None:
            return
        request.end()
        if not request.is_kept:
            self._takes_more = False

    def _break_off(self, answer: Answer | None) -> None:
        """Read no further; `answer`: to what is being read now."""
        if not self._takes_more:
            return
        self._takes_more = False
        request = self._coming or Request()
        if request not in self._waiting:
            self._waiting.append(request)
        request.fault = answer or _BROKEN_OFF
        request.is_kept = False
        self._has_head = True
        request.end()

    def _pace(self) -> None:
        """Read on, or not, by what waits."""
        if self._transport is None or self._transport.is_closing():
            return
        behind = len(self._waiting) - 1
        has_enough = behind >= ENOUGH_REQUESTS or (
            behind > 0 and sum(len(each.body) for each in self._waiting) > ENOUGH_BYTES
        )
        if has_enough and self._is_reading:
            self._transport.pause_reading()
        elif not has_enough and not self._is_reading:
            self._transport.resume_reading()
        self._is_reading = not has_enough

    # -- answering -------------------------------------------------------------------------------------------
    async def _work(self) -> None:
        """Carry out what comes, in its order."""
        while await self._has_work():
            await self._serve(self._waiting[0])
            self._visit = None
            request = self._waiting.popleft()
            if not request.is_kept or self._serving.is_stopping():
                break
            self.ends_at = time.monotonic() + (BODY_TIMEOUT_S if self._waiting else IDLE_TIMEOUT_S)
            self._pace()
        self._end()

    async def _has_work(self) -> bool:
        """Return when there is something to do; False: there will be nothing any more."""
        while not self._waiting and self._takes_more:
            self._more = asyncio.get_running_loop().create_future()
            await self._more
        return bool(self._waiting)

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    def _end(self) -> None:
        """Close, when all that was written has left."""
        self._takes_more = False
        self._waiting.clear()
        if self._transport is not None:
            self._transport.close()

    async def _serve(self, request: Request) -> None:
        headers = {request_id.HEADER: request_id.begin(request.headers.get(request_id.HEADER))}
        door = request.door.name if request.door is not None else "unknown"
        try:
            visit = self._visit = self._visit_of(request, door, headers)
            answer = await self._answer(request, visit)
            door = visit.door
        except HeadError as error:
            answer = plain_refusal(400, "bad_request", str(error))
        except Exception:
            logger.exception("a request to %s failed", door)
            answer = plain_refusal(500, "internal", "Internal Server Error")
        if not request.has_all and (brings_body(request.headers) and "Expect" not in request.headers):
            request.drop_body()
        elif not request.has_all:
            request.is_kept = False  # who asks first will not send it
        await self._write(request, answer, headers)
        took_s = time.monotonic() - request.received_at
        self._serving.note(door, answer.status, took_s)
        logger.debug(
            "%d %s %s (%s) %.2fms",
            answer.status,
            request.method,
            request.path,
            self._remote_ip,
            took_s * 1000,
        )
        if request.unwanted is not None and not request.has_all:
            self.ends_at = time.monotonic() + BODY_TIMEOUT_S
            await request.passed()

    def _visit_of(self, request: Request, door: str, headers: dict[str, str]) -> Visit:
        incoming = Incoming(
            method=request.method,
            headers=request.headers,
            remote_ip=self._remote_ip,
            query=query_of(request.query),
            keys=request.headers.keys_given,
            certificate=None,
            received_at=request.received_at,
        )
        return Visit(self._serving.gate, incoming, door, headers.__setitem__)

    async def _answer(self, request: Request, visit: Visit) -> Answer:
        door = request.door
        if request.fault is not None:
            return request.fault
        if door is None:
            error = NotFound("there is nothing at this address of the publishing port")
            visit.note_refusal(error)
            return refusal(error, error.http_status, problem_of(error, error.http_status))
        if request.method not in door.methods:
            allowed = {"Allow": ", ".join(door.methods)}
            return plain_refusal(405, "method_not_allowed", "Method Not Allowed", **allowed)
        if request.method == "OPTIONS":
            return Answer(204)
        try:
            if request.refusal is not None:
                raise request.refusal
            if not (request.has_all and door.checks_all):
                await door.check_early(visit)
            if not request.has_all and request.expects_continue and self._transport is not None:
                self._transport.write(CONTINUE)
            if not request.has_all:
                await request.arrival()
            if request.fault is not None:
                return request.fault
            if request.refusal is not None:
                raise request.refusal
            self.ends_at = math.inf  # it is our turn
            return await door.carry_out(visit, bytes(request.body))
        except ServerError as error:
            return door.refuse(visit, error)

    async def _write(self, request: Request, answer: Answer, headers: Mapping[str, str]) -> None:
        if self._transport is None:
            return
        if not request.is_kept or self._serving.is_stopping():
            connection = "close"
        else:
            connection = "keep-alive" if request.version == "1.0" else ""
        common, has_body = self._serving.common[request.door], request.method != "HEAD"
        self._transport.write(encode(answer, headers, common, connection, has_body=has_body))
        if not self._may_write.is_set():
            await self._may_write.wait()


_HEAD_TOO_LARGE = plain_refusal(431, "head_too_large", f"the head is over the {MAX_HEAD_BYTES} bytes allowed")
_BROKEN_OFF = plain_refusal(400, "bad_request", "the request ends in its midst")


def _refusal_of(error: Exception) -> Answer:
    reason = str(error)[:100]
    if "Content-Length overflow" in reason:
        too_large = TooLarge("", "the body is over the bytes allowed", "body_bytes")
        return refusal(too_large, 413, problem_of(too_large, 413))
    return plain_refusal(400, "bad_request", f"this is not HTTP/1.1: {reason}")
