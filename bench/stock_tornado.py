"""The yardstick of bench/connections: Tornado as it comes, with a WebSocket that answers each message with one text."""

from __future__ import annotations

import asyncio
import json
import sys

from tornado.httpserver import HTTPServer
from tornado.web import Application
from tornado.websocket import WebSocketHandler

WELCOME = "welcome " + "x" * 300


class Greeter(WebSocketHandler):
    def check_origin(self, origin: str) -> bool:
        return True

    async def on_message(self, message: str | bytes) -> None:
        await self.write_message(WELCOME)


async def main() -> None:
    server = HTTPServer(Application([("/", Greeter)], log_function=lambda handler: None))
    server.listen(int(sys.argv[1]), "127.0.0.1", backlog=4096)
    print(json.dumps({"ready": True}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
