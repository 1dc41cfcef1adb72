"""An echo service, on our door or on sockjs-tornado as it comes, that tells how much memory it takes.

python -m tests.support.sockjs_memory ours|stock
"""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
import warnings
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler


class PeakMemory(RequestHandler):
    """The most memory that this process ever had; the unit is the system's."""

    def get(self) -> None:
        self.finish(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def our_routes() -> list[Any]:
    from tests.support.sockjs_services import protocol_doors

    return list(protocol_doors()[0].routes)


def stock_routes() -> list[Any]:
    warnings.simplefilter("ignore")
    from sockjs.tornado import SockJSConnection, SockJSRouter

    class Echo(SockJSConnection):  # type: ignore[misc]
        def on_message(self, message: str) -> None:
            self.send(message)

    return list(SockJSRouter(Echo, "/echo").urls)


async def serve(routes: list[Any]) -> None:
    server = HTTPServer(Application([("/memory", PeakMemory), *routes]))
    sockets = bind_sockets(0, "127.0.0.1", socket.AF_INET)
    server.add_sockets(sockets)
    print(sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


async def main(kind: str) -> None:
    await serve(our_routes() if kind == "ours" else stock_routes())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
