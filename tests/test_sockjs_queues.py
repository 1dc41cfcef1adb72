"""Slow clients, on every transport: their queue is bounded, and costs nobody else; and what a patient reader gets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from server.transports import connections
from server.transports.sockjs.frames import array_frame
from server.transports.sockjs.http import HttpConnection, Receiver
from server.wire import SLOW
from tests.support.smtp_sink import CertificateAuthority
from tests.support.sockjs_door import (
    POLLING,
    STREAMING,
    WAIT_S,
    WEBSOCKETS,
    DoorService,
    RecordingSession,
    frame,
    serving,
)

CONNECTED = {**{name: ("GET", path) for name, path in WEBSOCKETS.items()}, **STREAMING}
SMALL_BUFFER_BYTES = 4096


@contextlib.asynccontextmanager
async def one_that_never_reads(
    service: DoorService, transport: str
) -> AsyncIterator[tuple[RecordingSession, str]]:
    """The session of a client that reads no more after it has connected, and its path."""
    path = service.new_session_path()
    async with service.client(SMALL_BUFFER_BYTES) as client:
        if transport in WEBSOCKETS:
            await client.upgrade(WEBSOCKETS[transport])
        else:
            method, suffix = STREAMING[transport]
            await client.write_request(method, path + suffix)
        yield await service.next_session(), path


@pytest.mark.parametrize("transport", CONNECTED)
async def test_a_full_queue_closes_its_own_connection_only(transport: str) -> None:
    """A client that does not read is closed as slow when its queue is full; others get everything, in order."""
    async with serving() as service, service.websocket("rawwebsocket") as healthy:
        good = await service.next_session()
        async with one_that_never_reads(service, transport) as (slow, path):
            count = 0
            while not slow.over.is_set():
                count += 1
                message = frame(count, filler=8192)
                slow.connection.send(message)
                good.connection.send(message)
                received = json.loads(await asyncio.wait_for(healthy.recv(), WAIT_S))
                assert received["number"] == count
            assert slow.connection.is_closed
            assert slow.closed_count == 1
            assert service.ends == [(transport, SLOW)]
            # the bound, and what the kernels of both sides hold
            assert service.connections.options.max_queue_bytes <= count * 8192 <= 4 * 256 * 1024
            if transport in STREAMING:
                assert (await service.request("POST", path + "/xhr"))[2] == b'c[3008,"slow"]\n'
        good.connection.send(frame(-1))
        assert json.loads(await asyncio.wait_for(healthy.recv(), WAIT_S))["number"] == -1


@pytest.mark.parametrize("transport", POLLING)
async def test_a_client_that_stops_polling_is_slow_when_its_queue_is_full(transport: str) -> None:
    """The queue of a polling client is bounded as well; the next poll is told why the connection is closed."""
    method, suffix = POLLING[transport]
    async with serving(max_queue_bytes=10_000) as service:
        path = service.new_session_path()
        await service.request(method, path + suffix)
        session = await service.next_session()
        for number in range(10):
            session.connection.send(frame(number, filler=1000))
        assert not session.connection.is_closed
        for number in range(2):
            session.connection.send(frame(number, filler=1000))
        assert session.connection.is_closed
        assert service.ends == [(transport, SLOW)]
        assert b"c[3008," in (await service.request(method, path + suffix))[2]


@pytest.mark.parametrize("transport", CONNECTED)
async def test_no_progress_closes_as_slow(transport: str) -> None:
    """A client that takes nothing of what is queued for it is closed as slow after a while."""
    async with serving(slow_after_s=0.2) as service:
        async with one_that_never_reads(service, transport) as (session, _):
            session.connection.send(frame(1, filler=5_000_000))
            session.connection.send(frame(2))
            assert not session.connection.is_closed
            await asyncio.wait_for(session.over.wait(), WAIT_S)
            assert service.ends == [(transport, SLOW)]


@contextlib.asynccontextmanager
async def one_that_reads_slowly(
    service: DoorService, transport: str
) -> AsyncIterator[tuple[RecordingSession, Callable[[], Awaitable[bytes]]]]:
    """The session of a client that answers no heartbeats, and a function by which it reads a bit more."""
    async with service.client(SMALL_BUFFER_BYTES) as client:
        if transport in WEBSOCKETS:
            await client.upgrade(WEBSOCKETS[transport])
        else:
            method, suffix = STREAMING[transport]
            await client.write_request(method, service.new_session_path() + suffix)

        async def read() -> bytes:
            await asyncio.sleep(0.002)
            return await asyncio.wait_for(client.reader.read(32768), WAIT_S)

        yield await service.next_session(), read


@pytest.mark.parametrize("transport", CONNECTED)
async def test_slow_but_steady_is_not_closed(transport: str) -> None:
    """A client that takes a large frame bit by bit, for longer than it has for the least of it, is not closed, nor
    asked for a heartbeat that would have to wait; but that our kernel takes it is no sign of life of the client."""
    async with serving(slow_after_s=0.4, heartbeat_s=0.1) as service:
        async with one_that_reads_slowly(service, transport) as (session, read):
            session.connection.send(frame(1, filler=20_000_000))
            alive_at, until = session.connection.last_alive_at, time.monotonic() + 3 * 0.4
            while time.monotonic() < until:
                assert await read()
            assert not session.connection.is_closed
            assert session.connection.last_alive_at == alive_at


@pytest.mark.parametrize("transport", CONNECTED)
async def test_too_slow_is_closed(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that takes something all the time, but less than the least, is closed as slow."""
    monkeypatch.setattr(connections, "MIN_BYTES_PER_S", 50_000_000)
    async with serving(slow_after_s=0.4) as service:
        async with one_that_reads_slowly(service, transport) as (session, read):
            session.connection.send(frame(1, filler=20_000_000))
            read_bytes = 0
            while not session.over.is_set() and read_bytes < 5_000_000:
                read_bytes += len(await read())
            assert read_bytes
            assert service.ends == [(transport, SLOW)]


@pytest.mark.parametrize("transport", WEBSOCKETS)
async def test_pings_of_one_that_never_reads(transport: str) -> None:
    """A client that floods the server with pings and reads no answer makes no queue grow, and is closed as slow."""
    async with serving(slow_after_s=0.4, heartbeat_s=0.1) as service:
        async with service.client(SMALL_BUFFER_BYTES) as client:
            await client.upgrade(WEBSOCKETS[transport])
            session = await service.next_session()
            most_queued = 0
            with contextlib.suppress(ConnectionError):
                while not session.over.is_set():
                    for _ in range(100):
                        client.write_frame(0x9, b"p" * 125)
                    await asyncio.wait_for(client.writer.drain(), WAIT_S)
                    await asyncio.sleep(0)
                    most_queued = max(most_queued, session.connection._queued_bytes())  # type: ignore[attr-defined]
            await asyncio.wait_for(session.over.wait(), WAIT_S)
        assert 0 < most_queued < 4096
        assert service.ends == [(transport, SLOW)]


@pytest.mark.parametrize("transport", WEBSOCKETS)
async def test_any_frame_may_follow_a_queued_pong(transport: str) -> None:
    """What is queued without having been sent takes nothing of a connection's bound."""
    async with serving(max_queue_bytes=10_000) as service:
        async with service.client(SMALL_BUFFER_BYTES) as client:
            await client.upgrade(WEBSOCKETS[transport])
            session = await service.next_session()
            while not session.connection._queued_bytes():  # type: ignore[attr-defined]
                for _ in range(100):
                    client.write_frame(0x9, b"p" * 125)
                await asyncio.wait_for(client.writer.drain(), WAIT_S)
                await asyncio.sleep(0)
            session.connection.send(frame(1, filler=5000))
            assert not session.connection.is_closed


async def test_a_poll_whose_answer_is_not_read_is_slow() -> None:
    """The same for a poll: its answer counts as queued until it has left."""
    async with serving(slow_after_s=0.2) as service:
        path = service.new_session_path()
        await service.request("POST", path + "/xhr")
        session = await service.next_session()
        async with service.client(SMALL_BUFFER_BYTES) as client:
            session.connection.send(frame(1, filler=5_000_000))
            await client.write_request("POST", path + "/xhr")
            await asyncio.wait_for(session.over.wait(), WAIT_S)
            assert service.ends == [("xhr", SLOW)]


@pytest.mark.parametrize("transport", [*CONNECTED, *POLLING])
async def test_answers_larger_than_the_queue(transport: str) -> None:
    """An empty queue takes any one frame, and drained() waits until it has left: who reads gets any amount, in order,
    while pushes go on."""
    filler, count = 400_000, 12

    async def answer(session: RecordingSession) -> None:
        for number in range(count):
            session.connection.send(frame(number, filler=filler))
            session.connection.send(frame(-1))  # a push on top
            await session.connection.drained()

    async with serving() as service:
        async with _reader(service, transport) as (session, read_all):
            answering = asyncio.create_task(answer(session))
            text = await asyncio.wait_for(read_all(count * (filler + 20)), WAIT_S)
            await asyncio.wait_for(answering, WAIT_S)
        positions = [text.index(_number(transport, number)) for number in range(count)]
        assert positions == sorted(positions)
        assert text.count(_number(transport, -1)) == count
        assert all(reason is None for _, reason in service.ends)


def _number(transport: str, number: int) -> str:
    quote = '\\"' if transport in ("htmlfile", "jsonp") else '"'
    return f"{quote}number{quote}: {number}}}"


@contextlib.asynccontextmanager
async def _reader(
    service: DoorService, transport: str
) -> AsyncIterator[tuple[RecordingSession, Callable[[int], Awaitable[str]]]]:
    """A client that reads: its session, and a function that reads until so many bytes and the last number came."""
    path = service.new_session_path()
    last = _number(transport, -1)

    async def read_responses(size: int) -> str:
        method, suffix = {**STREAMING, **POLLING}[transport]
        parts: list[str] = []
        while sum(map(len, parts)) < size or "".join(parts).count(last) < 12:
            parts.append((await service.request(method, path + suffix))[2].decode())
        return "".join(parts)

    if transport in WEBSOCKETS:
        async with service.websocket(transport) as client:

            async def read_messages(size: int) -> str:
                parts: list[str] = []
                while sum(map(len, parts)) < size or "".join(parts).count(last) < 12:
                    parts.append(str(await client.recv()))
                return "".join(parts)

            yield await service.next_session(), read_messages
        return
    await service.request("POST", path + "/xhr")  # opens the session, which goes on over any transport
    yield await service.next_session(), read_responses


@pytest.mark.parametrize("transport", STREAMING)
async def test_what_waits_behind_a_large_frame_follows_it(transport: str) -> None:
    """In the same response, as soon as it has left."""
    method, suffix = STREAMING[transport]
    async with serving(response_limit_bytes=1_000_000_000) as service, service.client() as client:
        await client.write_request(method, service.new_session_path() + suffix)
        session = await service.next_session()
        session.connection.send(frame(1, filler=5_000_000))
        session.connection.send(frame(2))
        got = b""
        while _number(transport, 2).encode() not in got:
            got = got[-1000:] + await asyncio.wait_for(client.reader.read(1 << 20), WAIT_S)


class Held(Receiver):
    """A request whose stream is busy until the test says otherwise."""

    is_ready = is_answered = False
    is_acknowledged = True
    unsent_bytes = written_bytes = 0

    def __init__(self) -> None:
        self.frames: list[str] = []

    def send_frame(self, frame: str) -> None:
        self.frames.append(frame)

    def send_bytes(self, data: bytes) -> None:
        raise NotImplementedError

    def end(self) -> None: ...

    def drop(self) -> None: ...


async def test_nothing_overtakes_what_waits() -> None:
    """Though the stream is free again already, which nobody has been told."""
    async with serving() as service:
        await service.request("POST", service.new_session_path() + "/xhr")
        connection = (await service.next_session()).connection
        assert isinstance(connection, HttpConnection)
        receiver = Held()
        assert connection.attach(receiver, connection.caller)
        connection.send(frame(1))
        receiver.is_ready = True
        connection.send(frame(2))
        connection.flush()
        assert receiver.frames == [array_frame([frame(number).text for number in (1, 2)])]


async def test_pushes_behind_a_large_frame_are_bounded() -> None:
    """Behind one large frame may wait what a queue holds, and no more."""
    async with serving(max_queue_bytes=10_000) as service:
        async with one_that_never_reads(service, "websocket") as (session, _):
            session.connection.send(frame(0, filler=5_000_000))
            for number in range(9):
                session.connection.send(frame(number, filler=1000))
            assert not session.connection.is_closed
            for number in range(3):
                session.connection.send(frame(number, filler=1000))
            assert session.connection.is_closed


@pytest.mark.parametrize("transport", [*STREAMING, *POLLING])
async def test_what_waited_for_a_request_is_one_frame_to_it(transport: str) -> None:
    """Behind which may wait what a queue holds."""
    method, suffix = {**STREAMING, **POLLING}[transport]
    async with serving(max_queue_bytes=1_000_000, response_limit_bytes=10_000_000) as service:
        path = service.new_session_path()
        await service.request("POST", path + "/xhr")
        session = await service.next_session()
        for number in range(90):
            session.connection.send(frame(number, filler=10_000))
        async with service.client(SMALL_BUFFER_BYTES) as client:
            await client.write_request(method, path + suffix)
            while session.connection._texts:  # noqa: ASYNC110  # nobody is told
                await asyncio.sleep(0.01)
            for number in range(90):
                session.connection.send(frame(number, filler=10_000))
            assert not session.connection.is_closed


@pytest.mark.parametrize("transport", STREAMING)
async def test_drained_returns_when_a_stream_has_taken_all(transport: str) -> None:
    """Though the response goes on."""
    method, suffix = STREAMING[transport]
    async with serving(response_limit_bytes=100_000_000) as service, service.client() as client:
        await client.write_request(method, service.new_session_path() + suffix)
        session = await service.next_session()
        session.connection.send(frame(1, filler=5_000_000))
        waiting = asyncio.create_task(session.connection.drained())
        await asyncio.sleep(0)
        assert not waiting.done()
        got = 0
        while got < 5_000_000:
            got += len(await asyncio.wait_for(client.reader.read(65536), WAIT_S))
        await asyncio.wait_for(waiting, WAIT_S)
        assert not session.connection.is_closed


@pytest.mark.parametrize("transport", [*STREAMING, *POLLING])
async def test_who_does_not_take_what_it_is_told_is_cut_off(transport: str) -> None:
    """When its connection is closed, what it never took is kept no longer."""
    method, suffix = {**STREAMING, **POLLING}[transport]
    async with serving() as service:
        path = service.new_session_path()
        await service.request("POST", path + "/xhr")
        session = await service.next_session()
        session.connection.send(frame(1, filler=5_000_000))
        async with service.client(SMALL_BUFFER_BYTES) as client:
            await client.write_request(method, path + suffix)
            await client.read_head()
            session.connection.close(SLOW)
            assert len(await client.read_to_end()) < 5_000_000


@pytest.mark.parametrize("transport", [*STREAMING, *POLLING])
async def test_what_is_sent_while_a_request_breaks_is_not_lost_in_silence(transport: str) -> None:
    """It is not known to have come, so the session ends."""
    method, suffix = {**STREAMING, **POLLING}[transport]
    async with serving() as service, service.client() as client:
        path = service.new_session_path()
        await service.request("POST", path + "/xhr")
        session = await service.next_session()
        await client.write_request(method, path + suffix)
        while (receiver := session.connection._receiver) is None:  # noqa: ASYNC110  # nobody is told
            await asyncio.sleep(0.01)
        receiver.drop()
        session.connection.send(frame(1))
        await asyncio.wait_for(session.over.wait(), WAIT_S)
        assert service.ends == [(session.connection.transport, None)]


@pytest.mark.parametrize("transport", CONNECTED)
async def test_drained_returns_when_the_connection_is_closed(transport: str) -> None:
    """Who waits for a queue to drain is not left waiting by a client that goes away."""
    async with serving() as service:
        async with one_that_never_reads(service, transport) as (session, _):
            session.connection.send(frame(1, filler=5_000_000))
            waiting = asyncio.create_task(session.connection.drained())
            await asyncio.sleep(0)
            assert not waiting.done()
        await asyncio.wait_for(waiting, WAIT_S)
        assert session.connection.is_closed or await asyncio.wait_for(session.over.wait(), WAIT_S)


@pytest.mark.parametrize("transport", WEBSOCKETS)
async def test_frames_under_tls(transport: str, tmp_path: Path) -> None:
    """Under TLS, where nothing may be sent past the stream, frames of any size arrive in order."""
    authority = CertificateAuthority(tmp_path)
    client_context = ssl.create_default_context(cafile=str(authority.ca_file))
    async with serving(tls=authority.server_context()) as service:
        async with service.websocket(transport, ssl=client_context) as client:
            session = await service.next_session()
            for number in range(20):
                session.connection.send(frame(number, filler=10 * 4 ** (number % 7)))
                if number % 7 == 6:
                    await session.connection.drained()
            if transport == "websocket":
                assert await client.recv() == "o"
            for number in range(20):
                message = str(await asyncio.wait_for(client.recv(), WAIT_S)).removeprefix("a")
                received = json.loads(message)
                assert (received[0] if transport == "websocket" else received)["number"] == number
