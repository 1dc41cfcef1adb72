"""Clients that only listen, under TLS: what is written is not what is sent there, so it goes another way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import CertificateAuthority
from tests.support.event_streams import event_stream
from tests.support.feeds import SETTINGS, hub_path, internal, service_path, user_token
from tests.support.processes import wait_until
from tests.support.realtime import figure, stock_client
from tests.support.secure_server import SecureServer

TRANSPORTS = {
    "as-it-comes": {},
    "polling": {"transports": ["polling"]},
    "websocket": {"transports": ["websocket"]},
}

each_transport = pytest.mark.parametrize("options", TRANSPORTS.values(), ids=TRANSPORTS)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, authority: CertificateAuthority
) -> Iterator[SecureServer]:
    with SecureServer(tmp_path_factory.mktemp("secure"), authority, **SETTINGS) as running:
        yield running


def fill(server: SecureServer, user: str, count: int) -> None:
    for number in range(count):
        internal(server, [user], {"n": number, "filler": "x" * 20_000})


# -- Socket.IO -----------------------------------------------------------------------------------------------
@each_transport
async def test_socketio_over_https_and_wss(
    server: SecureServer, user: str, node_modules: Path, options: dict[str, Any]
) -> None:
    """The stock client, which believes our authority alone: what it missed, what comes, and why it ends."""
    await asyncio.to_thread(fill, server, user, 20)
    ca = server.authority.ca_file.read_text()
    async with stock_client(server, user_token(user), ca=ca, **options) as client:
        heard = [(await client.payload())["n"] for _ in range(20)]
        await asyncio.to_thread(fill, server, user, 20)
        heard += [(await client.payload())["n"] for _ in range(20)]
        assert heard == [*range(20), *range(20)]
        assert (await asyncio.to_thread(server.run, "user", "sign-out", user)).returncode == 0
        assert await client.until("event") == ["event", "close", {"code": 3501, "reason": "signed_out"}]
        assert await client.until("disconnect") == ["disconnect", "io server disconnect", False]


async def test_a_socketio_client_goes_over_to_wss(
    server: SecureServer, user: str, node_modules: Path
) -> None:
    """And hears there what comes, in order."""
    ca = server.authority.ca_file.read_text()
    async with stock_client(server, user_token(user), ca=ca) as client:
        assert await client.until("upgrade") == ["upgrade", "websocket"]
        await asyncio.to_thread(fill, server, user, 20)
        assert [(await client.payload())["n"] for _ in range(20)] == list(range(20))


async def test_who_believes_another_authority_does_not_come(
    server: SecureServer, user: str, node_modules: Path, tmp_path: Path
) -> None:
    ca = CertificateAuthority(tmp_path).ca_file.read_text()
    async with stock_client(server, user_token(user), ca=ca, transports=["websocket"]) as client:
        assert (await client.until("connect", "connect_error"))[0] == "connect_error"


# -- Server-Sent Events --------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_events_over_https(server: SecureServer, user: str, version: str) -> None:
    """What was missed, what comes, and why it ends."""
    await asyncio.to_thread(server.must_notify, user, content="missed")
    tls = server.authority.client_context()
    async with event_stream(server, user, version=version, tls=tls) as stream:
        missed, _ = await stream.caught_up()
        assert missed.data["content"] == "missed"
        await asyncio.to_thread(server.must_notify, user, content="grüße " + "x" * 50_000)
        assert (await stream.next("notification")).data["content"] == "grüße " + "x" * 50_000
        await stream.next("count")
        assert (await asyncio.to_thread(server.run, "user", "sign-out", user)).returncode == 0
        assert (await stream.next("close")).data == {"code": 3501, "reason": "signed_out"}
        assert await stream.event() is None


async def test_a_client_that_reads_no_more_is_closed_as_slow(
    tmp_path: Path, authority: CertificateAuthority, user: str
) -> None:
    """At its bound: TLS holds no more of what it did not take than plain TCP does."""
    tls = authority.client_context()
    with SecureServer(tmp_path, authority, **SETTINGS) as server:
        async with event_stream(server, user, tls=tls, receive_buffer_bytes=4096) as stream:
            await stream.caught_up()
            stream.writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a socket it has that
            await asyncio.to_thread(fill, server, user, 60)
            slow = 'notification_connections_closed_total{reason="slow",transport="events"}'
            await asyncio.to_thread(wait_until, lambda: figure(server, slow) == 1, "the slow client's end")


async def test_heartbeats_keep_a_quiet_stream(
    tmp_path: Path, authority: CertificateAuthority, user: str
) -> None:
    """Longer than silence is borne."""
    tls = authority.client_context()
    with SecureServer(tmp_path, authority, **SETTINGS, NOTIFY_CONNECTIONS_HEARTBEAT_S="0.4") as server:
        async with event_stream(server, user, tls=tls) as stream:
            await stream.caught_up()
            for _ in range(5):
                await stream.comment()


# -- WebSockets ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path_of", [hub_path, service_path], ids=["hub", "service"])
async def test_the_other_sockets_over_wss(server: SecureServer, user: str, path_of: Any) -> None:
    """Frames of all sizes, in order."""
    async with server.place().client(path_of(user)) as client:
        await asyncio.to_thread(fill, server, user, 20)
        frames = [json.loads(await client.socket.recv()) for _ in range(20)]
    assert [(frame.get("payload") or frame["value"])["n"] for frame in frames] == list(range(20))
