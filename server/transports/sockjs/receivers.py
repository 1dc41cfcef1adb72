"""The requests of the HTTP transports: those that receive (polling and streaming) and those that send."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

from tornado.concurrent import future_add_done_callback
from tornado.web import stream_request_body

from server.errors import Busy
from server.transports import connections
from server.transports.connections import LOG, STRANGER_MESSAGE_BYTES, tune_socket
from server.transports.sockjs.frames import (
    Encode,
    array_frame,
    eventsource_bytes,
    htmlfile_bytes,
    jsonp_bytes,
    parse_messages,
    xhr_bytes,
)
from server.transports.sockjs.handlers import Handler
from server.transports.sockjs.http import HttpConnection, Receiver
from server.transports.sockjs.stock import HTMLFILE_HEAD

if TYPE_CHECKING:
    from tornado.http1connection import HTTP1Connection
    from tornado.iostream import IOStream

CALLBACK = re.compile(r"[a-zA-Z0-9_.-]{1,128}")


class ReceivingHandler(Handler, Receiver):
    """A request that waits for frames."""

    transport = ""
    _connection: HttpConnection | None = None

    def prepare(self) -> None:
        super().prepare()
        self._http: HTTP1Connection = self.request.connection  # type: ignore[assignment]  # what HTTPServer gives us
        self._stream: IOStream = self._http.stream
        self._over = asyncio.get_running_loop().create_future()

    async def _receive(self, session_id: str, prelude: bytes = b"") -> None:
        """Take part in the session until the response is complete or the client is gone."""
        caller = self.server.identify(self.request)
        try:
            connection = self.server.http_connection(session_id, self.transport, caller)
        except Busy as error:
            await self.refuse(error)
            return
        tune_socket(self._stream, self.server.connections.give_up_after_s)
        if prelude:
            self.write(prelude)
            self.flush()
        self._connection = connection
        connection.attach(self, caller)
        await self._over

    def drop(self) -> None:
        self._stream.close()

    def _note_over(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def on_connection_close(self) -> None:
        self._note_over()
        if self._connection is not None:
            self._connection.interrupted(self)

    def _on_complete(self, future: asyncio.Future[None]) -> None:
        """The whole response has left, or cannot. (Tornado's future knows no difference.)"""
        if self._connection is None:
            return
        if self.unsent_bytes:
            self._connection.interrupted(self)
        else:
            self._connection.detach(self)

    @property
    def unsent_bytes(self) -> int:
        return connections.unwritten_bytes(self._stream)

    @property
    def written_bytes(self) -> int:
        return connections.written_bytes(self._stream)

    def _callback(self) -> str | None:
        """The parameter `c`; None if it is missing or no name, which was answered then."""
        name = self.get_query_argument("c", "", strip=False)
        if CALLBACK.fullmatch(name):
            return name
        self.finish_text('invalid "callback" parameter' if name else '"callback" parameter required', 500)
        return None


# -- polling: one frame per request --------------------------------------------------------------------------


class PollingHandler(ReceivingHandler):
    """A request that is answered by the first frame."""

    is_acknowledged = False  # that the poll came is the sign of life

    @property
    def is_ready(self) -> bool:
        return not self._finished and not self._stream.closed()

    @property
    def is_answered(self) -> bool:
        return self._finished and not self.unsent_bytes

    def send_frame(self, frame: str) -> None:
        self.set_header("Content-Type", "application/javascript; charset=UTF-8")
        future_add_done_callback(self.finish(self._body(frame)), self._on_complete)
        self._note_over()

    def _body(self, frame: str) -> bytes:
        raise NotImplementedError

    def send_bytes(self, data: bytes) -> None:
        raise NotImplementedError  # never called: `encode` is None

    def end(self) -> None:
        """Its one frame did that."""


class XhrPolling(PollingHandler):
    transport = "xhr"

    async def post(self, session_id: str) -> None:
        self.preflight()
        self.handle_session_cookie()
        self.disable_cache()
        await self._receive(session_id)

    def _body(self, frame: str) -> bytes:
        return xhr_bytes(frame)


class JsonpPolling(PollingHandler):
    transport = "jsonp"
    access_methods = "GET"

    async def get(self, session_id: str) -> None:
        self.handle_session_cookie()
        self.disable_cache()
        callback = self._callback()
        if callback is not None:
            self._name = callback
            await self._receive(session_id)

    def _body(self, frame: str) -> bytes:
        return jsonp_bytes(self._name, frame)


# -- streaming: frames in one long response ------------------------------------------------------------------


class StreamingHandler(ReceivingHandler):
    """A response that goes on until `response_limit_bytes` were sent: browsers keep all of it in memory."""

    _ended = False
    _wire: Encode
    """From a frame to its bytes, as `encode` is from a message."""

    async def _stream_frames(self, session_id: str, content_type: str, prelude: bytes) -> None:
        self.preflight()
        self.handle_session_cookie()
        self.disable_cache()
        self.set_header("Content-Type", content_type)
        self._left_bytes = self.server.options.response_limit_bytes
        await self._receive(session_id, prelude)

    @property
    def is_ready(self) -> bool:
        return not self._ended and not self._stream.closed() and not self._stream.writing()

    @property
    def is_answered(self) -> bool:
        return self._ended and not self.unsent_bytes

    @property
    def is_acknowledged(self) -> bool:
        return connections.is_acknowledged(self._stream)

    def send_frame(self, frame: str) -> None:
        self.send_bytes(type(self)._wire(frame))

    def send_bytes(self, data: bytes) -> None:
        self._left_bytes -= len(data)
        self.write(data)
        if self._left_bytes <= 0:
            self.end()
            return
        sent = self.flush()
        if not sent.done():
            future_add_done_callback(sent, self._on_sent)

    def _on_sent(self, future: asyncio.Future[None]) -> None:
        if self._connection is not None:
            self._connection.flush()

    def end(self) -> None:
        if self._ended:
            return
        self._ended = True
        future_add_done_callback(self.finish(), self._on_complete)
        self._note_over()

    def _on_complete(self, future: asyncio.Future[None]) -> None:
        super()._on_complete(future)
        if self.request.version != "HTTP/1.1":
            self._http.close()  # there the end of the connection is the end of the response


def _xhr_message(text: str) -> bytes:
    return xhr_bytes(array_frame([text]))


def _eventsource_message(text: str) -> bytes:
    return eventsource_bytes(array_frame([text]))


def _htmlfile_message(text: str) -> bytes:
    return htmlfile_bytes(array_frame([text]))


class XhrStreaming(StreamingHandler):
    transport = "xhr_streaming"
    encode = staticmethod(_xhr_message)
    _wire = staticmethod(xhr_bytes)

    async def post(self, session_id: str) -> None:
        await self._stream_frames(session_id, "application/javascript; charset=UTF-8", b"h" * 2048 + b"\n")


class EventSource(StreamingHandler):
    transport = "eventsource"
    access_methods = "GET"
    encode = staticmethod(_eventsource_message)
    _wire = staticmethod(eventsource_bytes)

    async def get(self, session_id: str) -> None:
        await self._stream_frames(session_id, "text/event-stream", b"\r\n")


class HtmlFile(StreamingHandler):
    transport = "htmlfile"
    access_methods = "GET"
    encode = staticmethod(_htmlfile_message)
    _wire = staticmethod(htmlfile_bytes)

    async def get(self, session_id: str) -> None:
        self.disable_cache()
        callback = self._callback()
        if callback is not None:
            self.limit_frames()
            await self._stream_frames(
                session_id, "text/html; charset=UTF-8", (HTMLFILE_HEAD % callback).encode()
            )


# -- sending -------------------------------------------------------------------------------------------------


@stream_request_body
class SendingHandler(Handler):
    """A request that brings messages of the client. Reads its body itself, and no more of it than is allowed: nothing
    where there is no session."""

    _is_read = False

    def prepare(self) -> None:
        super().prepare()
        self._body = bytearray()
        self._max_bytes = STRANGER_MESSAGE_BYTES
        if self.request.method != "POST":
            return
        connection = self._find()
        if connection is None:
            self._say_no_session()
            return
        self._max_bytes = connection.max_message_bytes
        # Tornado answers 400 to what is over its own limit; we count ourselves, and answer 413.
        self.request.connection.set_max_body_size(sys.maxsize)  # type: ignore[union-attr]  # HTTP/1 always has it
        with contextlib.suppress(ValueError):  # no number, which the server will answer
            self._check_size(int(self.request.headers.get("Content-Length", "0")))

    def data_received(self, chunk: bytes) -> None:
        self._body += chunk
        self._check_size(len(self._body))

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            self.preflight()
            self.finish_text("Payload too big.", 413)

    def finish_text(self, text: str, status_code: int | None = None) -> None:
        if self.request.method == "POST" and not self._is_read:
            # Tornado ends the connection then, which a client that sends its next request over it has to know.
            self.set_header("Connection", "close")
        super().finish_text(text, status_code)

    def _find(self) -> HttpConnection | None:
        return self.server.open_http_connection(
            self.path_kwargs["session_id"], self.server.identify(self.request)
        )

    def _say_no_session(self) -> None:
        self.preflight()
        self.disable_cache()
        self.finish_text("No such session.", 404)

    async def post(self, session_id: str) -> None:
        self._is_read = True
        connection = self._find()
        if connection is None:  # any more
            self._say_no_session()
            return
        self.preflight()
        self.handle_session_cookie()
        self.disable_cache()
        texts = self._texts()
        if texts is not None:
            async with connection.receiving:
                await connection.receive(texts)
            self._acknowledge()

    def _texts(self) -> list[str] | None:
        """The messages in the body; None if it holds none, which was answered then."""
        try:
            payload = self._payload()
            texts = parse_messages(payload) if payload else None
        except ValueError:
            LOG.info("broken JSON over HTTP from %s", self.server.identify(self.request).address)
            self.finish_text("Broken JSON encoding.", 500)
            return None
        if texts is None:
            self.finish_text("Payload expected.", 500)
        return texts

    def _payload(self) -> str:
        """The JSON in the body. Raises ValueError if it is no text."""
        return self._body.decode()

    def _acknowledge(self) -> None:
        raise NotImplementedError


class XhrSend(SendingHandler):
    def _acknowledge(self) -> None:
        self.set_status(204)
        # Else Firefox takes the type for XML, and shouts. Flushed by hand: finish() would take it off a 204.
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        self.flush()
        self.finish()


class JsonpSend(SendingHandler):
    def _payload(self) -> str:
        body = super()._payload()
        media_type = self.request.headers.get("Content-Type", "").partition(";")[0]
        if media_type.strip().lower() != "application/x-www-form-urlencoded":
            return body
        return unquote_plus(body[2:]) if body.startswith("d=") else ""

    def _acknowledge(self) -> None:
        # Clients post from a form into a hidden frame of the page, wherever that comes from.
        self.set_header(
            "Content-Security-Policy", self.server.origins.frame_ancestors or "default-src 'none'"
        )
        self.finish_text("ok")
