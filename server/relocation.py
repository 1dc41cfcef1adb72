"""Requests that belong to another worker: their connections go there before anything else is read of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from socket import socket

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPConnection, HTTPHeaders, RequestStartLine

from server.streams import PlainStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Relocation:
    """`session_in`: the name in the path and query of a request that says where it belongs; None: anywhere. `owner_of`:
    the number of the worker to which a request of this name belongs; None: this one. `give`: hands a copy of a socket,
    and what was read of it, to the worker of this number."""

    session_in: Callable[[str], str | None]
    owner_of: Callable[[str | None], int | None]
    give: Callable[[int, socket, bytes], None]

    def takes(self, start_line: RequestStartLine, headers: HTTPHeaders, http: HTTPConnection) -> bool:
        """Whether this request, of which only the head has been read, has gone elsewhere. Under TLS none can: what two
        ends have agreed on is in the memory of this process."""
        owner = self.owner_of(self.session_in(start_line.path))
        if owner is None:
            return False
        if not isinstance(http, HTTP1Connection) or not isinstance(http.stream, PlainStream):
            return False
        stream = http.stream
        http.detach()
        if not stream.closed():
            try:
                self.give(owner, stream.socket, _head(start_line, headers) + stream.unread)
            finally:
                stream.close()  # the copy stays open
        return True


def _head(start_line: RequestStartLine, headers: HTTPHeaders) -> bytes:
    lines = [f"{start_line.method} {start_line.path} {start_line.version}"]
    # Without a space, so that it does not get longer than a head may be.
    lines += [f"{name}:{value}" for name, value in headers.get_all()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")  # as Tornado has read it
