"""The requests over plain HTTP: those that wait for packets, and those that bring some."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tornado.concurrent import future_add_done_callback
from tornado.web import stream_request_body

from server.transports import connections, cors
from server.transports.connections import STRANGER_MESSAGE_BYTES, tune_socket
from server.transports.socketio.connection import OVERLAPPING, Poll, SocketIOConnection
from server.transports.socketio.handlers import BadRequest, Refusal, SocketIORequest
from server.transports.socketio.packets import split

if TYPE_CHECKING:
    from tornado.http1connection import HTTP1Connection
    from tornado.iostream import IOStream


@stream_request_body
class PollingHandler(SocketIORequest, Poll):
    """Reads its body itself, and no more of it than is allowed: nothing where there is no session."""

    _client: SocketIOConnection | None = None
    _over: asyncio.Future[None]

    async def prepare(self) -> None:
        self._http: HTTP1Connection = self.request.connection  # type: ignore[assignment]  # what HTTPServer gives us
        self._stream: IOStream = self._http.stream
        self._body = bytearray()
        self._max_bytes = STRANGER_MESSAGE_BYTES
        # Tornado answers 400 to what is over its own limit; we count ourselves, and answer 413.
        self._http.set_max_body_size(sys.maxsize)
        try:
            if self.request.method == "POST":
                self._prepare_post()
            elif self.request.headers.get("Content-Length", "0") != "0":
                raise BadRequest(Refusal.BAD_REQUEST)
        except BadRequest as bad:
            self._drop_body(bad.refusal)

    def _prepare_post(self) -> None:
        sid = self.check("polling")
        if sid is None:
            raise BadRequest(Refusal.BAD_METHOD)
        self._max_bytes = self._find(sid).max_message_bytes
        with contextlib.suppress(ValueError):  # no number, which the server will answer
            self._check_size(int(self.request.headers.get("Content-Length", "0")))

    def _find(self, sid: str) -> SocketIOConnection:
        client = self.door.find(sid)
        if client is None:
            raise BadRequest(Refusal.UNKNOWN_SESSION)
        return client

    def data_received(self, chunk: bytes) -> None:
        if self._finished:
            return
        self._body += chunk
        try:
            self._check_size(len(self._body))
        except BadRequest as bad:
            self._drop_body(bad.refusal)

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise BadRequest(Refusal.TOO_LARGE)

    def _drop_body(self, refusal: Refusal) -> None:
        """Refuse before the body has been read; the rest of it is nobody's."""
        self._body.clear()
        self.set_header("Connection", "close")
        self.refuse(refusal)

    def options(self) -> None:
        if self.door.origins.allows(self.request):
            wanted = self.request.headers.get("Access-Control-Request-Headers", "Content-Type")
            cors.answer_preflight(self, "GET, POST, OPTIONS", wanted)
        else:
            self.refuse(Refusal.FORBIDDEN)

    # -- waiting for packets ---------------------------------------------------------------------------------
    async def get(self) -> None:
        try:
            sid = self.check("polling")
            client = None if sid is None else self._find(sid)
        except BadRequest as bad:
            self.refuse(bad.refusal)
            return
        if client is not None:
            await self._wait(client)
        elif await self.admit():
            self._finish_text(self.door.open_over_http(self.caller))

    async def _wait(self, client: SocketIOConnection) -> None:
        tune_socket(self._stream, self.door.connections.give_up_after_s)
        self._over = asyncio.get_running_loop().create_future()
        self._client = client
        client.attach(self)
        await self._over

    def answer(self, body: bytes) -> None:
        future_add_done_callback(self._finish_text(body), self._on_complete)
        self._note_over()

    def _finish_text(self, text: str | bytes) -> asyncio.Future[None]:
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        return self.finish(text)

    def _on_complete(self, future: asyncio.Future[None]) -> None:
        """The whole response has left, or cannot. (Tornado's future knows no difference.)"""
        if self._client is None:
            return
        if self.unsent_bytes:
            self._client.interrupted(self)
        else:
            self._client.answered(self)

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if self._client is not None:
            self._note_over()
            self._client.interrupted(self)

    def _note_over(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def drop(self) -> None:
        self._stream.close()

    @property
    def unsent_bytes(self) -> int:
        return connections.unwritten_bytes(self._stream)

    @property
    def written_bytes(self) -> int:
        return connections.written_bytes(self._stream)

    @property
    def in_flight_bytes(self) -> int:
        return connections.unconfirmed_bytes(self._stream)

    # -- bringing packets ------------------------------------------------------------------------------------
    async def post(self) -> None:
        try:
            client = self._find(self.get_query_argument("sid"))
            if client.is_closed:
                raise BadRequest(Refusal.UNKNOWN_SESSION)
            packets = split(self._body.decode())
        except (BadRequest, UnicodeDecodeError) as error:
            self.refuse(error.refusal if isinstance(error, BadRequest) else Refusal.BAD_REQUEST)
            return
        self._body.clear()
        if client.is_posting:
            client.close(OVERLAPPING)
        if client.is_closed:
            self.refuse(Refusal.BAD_REQUEST)
            return
        client.is_posting = True
        try:
            await self._hand_over(client, packets)
        finally:
            client.is_posting = False
        self._finish_text("ok")

    async def _hand_over(self, client: SocketIOConnection, packets: Iterable[str]) -> None:
        for packet in packets:
            if client.is_closed:
                return
            pause_s = client.note_frame()
            if pause_s is not None:
                await asyncio.sleep(pause_s)
            await client.take(packet)
