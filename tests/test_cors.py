"""Tests of server/transports/cors.py at the doors that use it: what pages of other origins may read when a request is
refused by Tornado, or fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from server.affinity import ALONE
from server.callers import Caller
from server.limits import Limits
from server.transports import events, inbox, socketio
from server.transports.feeds import FeedDoors
from server.transports.origins import Origins
from server.transports.registry import Connections
from tests.support.sockjs_door import CONNECTION_OPTIONS, NO_LIMITS, RawClient

FRIEND = "https://friend.example"

REQUESTS = {
    "events": ("GET", "/events"),
    "ticket": ("POST", "/events/ticket"),
    "inbox": ("GET", "/api/v2/inbox"),
    "socket.io": ("GET", "/socket.io/?EIO=4&transport=polling"),
}


def _fail(remote_ip: str, headers: Mapping[str, str]) -> Caller:
    raise RuntimeError("no such luck")


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Of doors at which whatever is looked at fails."""
    connections = Connections(CONNECTION_OPTIONS, Limits(NO_LIMITS))
    nothing = cast(Any, None)
    doors = FeedDoors(connections, nothing, nothing, nothing, _fail, Origins((FRIEND,)), ALONE)
    door = socketio.SocketIODoor(doors)
    server = HTTPServer(Application([*events.routes(doors), *inbox.routes(doors), *socketio.routes(door)]))
    [listening] = bind_sockets(0, "127.0.0.1")
    server.add_sockets([listening])
    yield listening.getsockname()[1]
    connections.stop()
    server.stop()
    await server.close_all_connections()


async def _head(port: int, method: str, path: str, origin: str) -> tuple[int, dict[str, str]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = RawClient(reader, writer, "")
    try:
        await client.write_request(method, path, headers={"Origin": origin})
        return await client.read_head()
    finally:
        writer.close()


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("status", [405, 500])
async def test_a_page_may_read_why_a_request_came_to_nothing(
    port: int, name: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """That there is no such method, or that something failed, of which the log says what."""
    method, path = REQUESTS[name]
    answered, headers = await _head(port, "PUT" if status == 405 else method, path, FRIEND)
    assert answered == status
    assert headers["access-control-allow-origin"] == FRIEND
    assert headers["access-control-allow-credentials"] == "true"
    assert headers["vary"] == "Origin"
    assert ("no such luck" in caplog.text) == (status == 500)
    assert any(record.levelname == "ERROR" for record in caplog.records) == (status == 500)


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_page_that_may_not_come_in_reads_nothing(port: int, name: str) -> None:
    status, headers = await _head(port, "PUT", REQUESTS[name][1], "https://foe.example")
    assert status == 405
    assert "access-control-allow-origin" not in headers
