"""The services that a SockJS protocol test asks for, on our own door: echo, close, and their variants.

python -m tests.support.sockjs_services [port]
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from server.callers import Caller, CallerPolicy
from server.config.schema import Limits as LimitSettings
from server.limits import Limits
from server.rooms import Connection
from server.transports.connections import ClientSession
from server.transports.registry import ConnectionOptions, Connections
from server.transports.sockjs import SockJSDoor, SockJSOptions
from server.transports.websocket import text_frame_bytes
from server.wire import CloseReason, Frame

GO_AWAY = CloseReason(3000, "Go away!")

OPTIONS = SockJSOptions(client_url="/client/sockjs.min.js", response_limit_bytes=4096)
"""As the protocol wants its test server: streaming responses of 4 KiB. All else is the default."""


class StringFrame(Frame):
    """A string as a message; over raw WebSocket the string itself."""

    __slots__ = ()

    def __init__(self, string: str) -> None:
        super().__init__(json.dumps(string))

    def encoded(self, encode: Callable[[str], bytes]) -> bytes:
        if encode is text_frame_bytes:
            return encode(json.loads(self.text))
        return super().encoded(encode)


class EchoSession:
    """Sends every message back."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def receive(self, text: str) -> None:
        self.connection.send(StringFrame(text))

    def closed(self) -> None:
        pass

    is_joined = True


class CloseSession(EchoSession):
    """Says goodbye at once."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        connection.close(GO_AWAY)


def identify(remote_ip: str, headers: Mapping[str, str]) -> Caller:
    return CallerPolicy().identify(remote_ip, headers)


def protocol_doors() -> list[SockJSDoor]:
    """The doors of the four services."""
    services: list[tuple[Callable[[Connection], ClientSession], SockJSOptions]] = [
        (EchoSession, replace(OPTIONS, prefix="/echo")),
        (EchoSession, replace(OPTIONS, prefix="/disabled_websocket_echo", websocket=False)),
        (EchoSession, replace(OPTIONS, prefix="/cookie_needed_echo", cookie_needed=True)),
        (CloseSession, replace(OPTIONS, prefix="/close")),
    ]
    connections = Connections(ConnectionOptions(), Limits(LimitSettings()))
    return [SockJSDoor(session, identify, connections, options) for session, options in services]


async def serve(port: int) -> None:
    """Serve the four services on loopback until cancelled; print the URL when they are there."""
    doors = protocol_doors()
    server = HTTPServer(Application([route for door in doors for route in door.routes]))
    sockets = bind_sockets(port, "127.0.0.1", socket.AF_INET)
    server.add_sockets(sockets)
    print(f"http://127.0.0.1:{sockets[0].getsockname()[1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
