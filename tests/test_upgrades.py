"""WebSockets by the short way (server/transports/upgrades.py, upgraded.py) and by the common one: both do the same."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from server.config.schema import Limits as LimitSettings
from server.rates import Rate
from server.transports import upgraded, upgrades
from server.transports.connections import STRANGER_MESSAGE_BYTES
from server.transports.websocket import FRAMES_PER_TURN, TEXT_ONLY, WebSocketConnection, text_frame_bytes
from server.wire import TOO_BIG, CloseReason
from tests.support.feeds import SETTINGS
from tests.support.running_server import RunningServer
from tests.support.sockjs_door import WAIT_S, DoorService, RawClient, RecordingSession, serving
from tests.support.sockjs_door import frame as large_frame
from tests.test_frame_reader import frame, read

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 0x1, 0x2, 0x0, 0x8, 0x9, 0xA

each_way = pytest.mark.parametrize("is_short", [True, False], ids=["short", "common"])

HANDSHAKE = (
    b"GET /socket/websocket HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@contextlib.asynccontextmanager
async def door(*, is_short: bool, **options: object) -> AsyncIterator[DoorService]:
    """One whose WebSockets come in by this way."""
    async with serving(**options) as service:  # type: ignore[arg-type]  # whatever they are
        service.takes_the_short_way = is_short
        yield service


@contextlib.asynccontextmanager
async def connected(
    service: DoorService, then: bytes = b""
) -> AsyncIterator[tuple[RawClient, RecordingSession]]:
    """A client of bytes that has a WebSocket; `then` comes with the handshake."""
    async with service.client() as client:
        client.writer.write(HANDSHAKE + then)
        status, headers = await client.read_head()
        # That of RFC 6455 section 1.3.
        assert (status, headers["sec-websocket-accept"]) == (101, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        yield client, await service.next_session()


def goodbye(code: int | None = None, reason: str = "") -> bytes:
    """A close frame as the server sends it."""
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason.encode(), mask=None)


# -- what a client may send ----------------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize(
    ("sent", "messages", "answered"),
    [
        pytest.param(frame(TEXT, "ü".encode()), ["ü"], b"", id="masked"),
        pytest.param(frame(TEXT, b"a", mask=None), ["a"], b"", id="not-masked"),
        pytest.param(frame(TEXT, b"x" * 5000), ["x" * 5000], b"", id="long"),
        pytest.param(frame(TEXT, b""), [""], b"", id="empty"),
        pytest.param(frame(TEXT, b"a") + frame(TEXT, b"b"), ["a", "b"], b"", id="two"),
        pytest.param(
            frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b", fin=False) + frame(CONTINUATION, b"c"),
            ["abc"],
            b"",
            id="fragments",
        ),
        pytest.param(
            frame(TEXT, b"\xc3", fin=False) + frame(CONTINUATION, b"\xbc"), ["ü"], b"", id="a-cut-character"
        ),
        pytest.param(frame(PING, b"here?"), [], frame(PONG, b"here?", mask=None), id="ping"),
        pytest.param(
            frame(TEXT, b"a", fin=False) + frame(PING, b"p") + frame(CONTINUATION, b"b"),
            ["ab"],
            frame(PONG, b"p", mask=None),
            id="ping-amid-fragments",
        ),
        pytest.param(frame(PONG, b"unasked"), [], b"", id="pong"),
        pytest.param(
            b"".join(frame(TEXT, str(number).encode()) for number in range(100)),
            [str(number) for number in range(100)],
            b"",
            id="many",
        ),
    ],
)
async def test_messages_and_pings(sent: bytes, messages: list[str], answered: bytes, is_short: bool) -> None:
    """They are taken and answered, and a goodbye is answered with its code."""
    async with door(is_short=is_short) as service, connected(service) as (client, session):
        client.writer.write(sent + frame(CLOSE, struct.pack("!H", 1000) + b"done"))
        assert await client.read_to_end() == answered + goodbye(1000)
        await asyncio.wait_for(session.over.wait(), WAIT_S)
        await until(lambda: not service.sockets)
        assert [session.received.get_nowait() for _ in range(session.received.qsize())] == messages
        assert session.closed_count == 1


@each_way
@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        pytest.param(frame(CLOSE), goodbye(), id="goodbye-without-code"),
        pytest.param(frame(CLOSE, b"x"), goodbye(), id="goodbye-with-half-a-code"),
        pytest.param(frame(CLOSE, struct.pack("!H", 4321)), goodbye(4321), id="goodbye"),
        pytest.param(frame(BINARY, b"x"), goodbye(1003, "text frames only"), id="binary"),
        pytest.param(
            frame(TEXT, b"x" * (STRANGER_MESSAGE_BYTES + 1)), goodbye(1009, "message too big"), id="too-big"
        ),
        pytest.param(frame(TEXT, b"\xff"), b"", id="not-utf-8"),
        pytest.param(frame(TEXT, b"\xc3", fin=False) + frame(CONTINUATION), b"", id="half-a-character"),
        pytest.param(frame(TEXT, reserved=0x40), b"", id="reserved-bit"),
        pytest.param(frame(0x3, b"x"), b"", id="unknown-opcode"),
        pytest.param(frame(0xB, b"x"), b"", id="unknown-control-opcode"),
        pytest.param(frame(PING, b"x" * 126), b"", id="long-ping"),
        pytest.param(frame(PING, fin=False), b"", id="ping-in-parts"),
        pytest.param(frame(CONTINUATION, b"x"), b"", id="nothing-to-continue"),
        pytest.param(frame(TEXT, fin=False) + frame(TEXT), b"", id="message-in-message"),
    ],
)
async def test_what_ends_a_connection(
    sent: bytes, answered: bytes, is_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a word where there is one for it; what follows is not looked at, nor waited for after what is too big. What
    is counted is why the server has ended it."""
    monkeypatch.setattr(upgraded, "GOODBYE_S", 600.0)
    reason = {goodbye(each.code, each.reason): each for each in (TEXT_ONLY, TOO_BIG)}.get(answered)
    async with door(is_short=is_short) as service:
        service.on_open = lambda session: setattr(session, "is_joined", False)
        async with connected(service) as (client, session):
            client.writer.write(sent + frame(TEXT, b"after"))
            if reason is not TOO_BIG:
                client.writer.write(frame(CLOSE))  # to a goodbye of the server, which waits for it
            assert await client.read_to_end() == answered
            await asyncio.wait_for(session.over.wait(), WAIT_S)
            assert (session.closed_count, session.received.qsize()) == (1, 0)
        assert service.ends == [("rawwebsocket", reason)]


@each_way
async def test_what_comes_with_the_handshake_is_not_lost(is_short: bool) -> None:
    """Nor what comes byte by byte."""
    async with (
        door(is_short=is_short) as service,
        connected(service, frame(TEXT, b"a") + frame(TEXT, b"b")[:3]) as (client, session),
    ):
        assert await asyncio.wait_for(session.received.get(), WAIT_S) == "a"
        for byte in frame(TEXT, b"b")[3:]:
            client.writer.write(bytes([byte]))
            await client.writer.drain()
        assert await asyncio.wait_for(session.received.get(), WAIT_S) == "b"


@each_way
async def test_no_more_is_read_while_a_message_is_handled(is_short: bool) -> None:
    """The next one is handed over when it is done."""
    done = asyncio.Event()

    def on_message(session: RecordingSession, text: str) -> Awaitable[None] | None:
        return wait() if text == "slow" else None

    async def wait() -> None:
        await done.wait()

    async with door(is_short=is_short) as service:
        service.on_message = on_message
        async with connected(service, frame(TEXT, b"slow") + frame(TEXT, b"next")) as (client, session):
            assert await asyncio.wait_for(session.received.get(), WAIT_S) == "slow"
            client.writer.write(frame(TEXT, b"last") + frame(PING))
            await asyncio.sleep(0.05)
            assert session.received.empty()
            done.set()
            assert await client.read_until(frame(PONG, mask=None)) == frame(PONG, mask=None)
            assert [session.received.get_nowait() for _ in range(2)] == ["next", "last"]


async def test_a_connection_that_ends_while_its_message_is_handled(caplog: pytest.LogCaptureFixture) -> None:
    """As when what is sent meanwhile finds the client gone: there is nothing left to pause."""

    async def wait() -> None:
        await asyncio.sleep(0)

    async with door(is_short=True) as service:

        def on_message(session: RecordingSession, text: str) -> Awaitable[None]:
            [stream] = service.upgrades._streams
            stream.close()
            return wait()

        service.on_message = on_message
        async with connected(service, frame(TEXT, b"x")) as (client, session):
            assert await client.read_to_end() == b""
            await asyncio.wait_for(session.over.wait(), WAIT_S)
    assert not caplog.records


@each_way
async def test_who_sends_no_more_has_gone(is_short: bool) -> None:
    """What they said before is taken."""
    async with door(is_short=is_short) as service, connected(service) as (client, session):
        client.writer.write(frame(TEXT, b"a") + frame(TEXT, b"b"))
        client.writer.write_eof()
        assert await client.read_to_end() == b""
        await asyncio.wait_for(session.over.wait(), WAIT_S)
        assert [session.received.get_nowait() for _ in range(2)] == ["a", "b"]
        assert service.ends == [("rawwebsocket", None)]


@each_way
async def test_a_reset_ends_the_session(is_short: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Also in the middle of a frame; it is no news."""
    async with (
        door(is_short=is_short) as service,
        connected(service, frame(TEXT, b"abc")[:-1]) as (client, session),
    ):
        await client.reset()
        await asyncio.wait_for(session.over.wait(), WAIT_S)
        assert session.received.empty()
    assert not caplog.records


@each_way
async def test_the_server_says_goodbye(is_short: bool) -> None:
    """Its close frame waits for the client's, and nothing of the client is taken any more."""
    async with door(is_short=is_short) as service, connected(service) as (client, session):
        session.connection.close(CloseReason(3000, "enough"))
        said = goodbye(3000, "enough")
        assert await asyncio.wait_for(client.reader.readexactly(len(said)), WAIT_S) == said
        client.writer.write(frame(TEXT, b"a") + frame(PING) + frame(CLOSE, struct.pack("!H", 3000)))
        assert await client.read_to_end() == b""
        assert (session.received.qsize(), session.closed_count) == (0, 1)


@each_way
@pytest.mark.parametrize(
    ("sent", "in_flight"),
    [
        pytest.param(frame(CLOSE, struct.pack("!H", 1000)), 0, id="goodbye"),
        pytest.param(frame(CLOSE), 0, id="goodbye-without-code"),
        pytest.param(b"", sys.maxsize, id="no-goodbye"),
        pytest.param(frame(TEXT, reserved=0x40), sys.maxsize, id="nonsense"),
    ],
)
async def test_who_says_goodbye_has_read_what_came_before(
    sent: bytes, in_flight: int, is_short: bool
) -> None:
    """With or without a code, which browsers leave out; of who goes without a word nobody knows."""
    found: list[int] = []
    async with door(is_short=is_short) as service, connected(service) as (client, session):
        connection = session.connection
        assert isinstance(connection, WebSocketConnection)

        def closed() -> None:
            found.append(connection.in_flight_bytes)
            session.over.set()

        session.closed = closed  # type: ignore[method-assign]
        client.writer.write(sent)
        client.writer.write_eof()
        await client.read_to_end()
        await asyncio.wait_for(session.over.wait(), WAIT_S)
    assert found == [in_flight]


@each_way
async def test_what_was_on_its_way_at_a_goodbye_was_not_read(is_short: bool) -> None:
    """A page that is closing does not look at it."""
    found: list[int] = []
    async with door(is_short=is_short) as service, connected(service) as (client, session):
        connection = session.connection
        assert isinstance(connection, WebSocketConnection)

        def closed() -> None:
            found.append(connection.in_flight_bytes)
            session.over.set()

        session.closed = closed  # type: ignore[method-assign]
        connection.send(large_frame(0, 8_000_000))
        client.writer.write(frame(CLOSE))
        await asyncio.wait_for(session.over.wait(), WAIT_S)
    assert 0 < found[0] < 8_100_000


@each_way
async def test_who_does_not_answer_a_goodbye_is_cut_off(is_short: bool) -> None:
    """After some seconds."""
    async with door(is_short=is_short) as service, connected(service) as (client, session):
        session.connection.close(CloseReason(3000, "enough"))
        assert await client.read_to_end() == goodbye(3000, "enough")


@each_way
async def test_pings_of_who_reads_no_pongs_do_not_pile_up(is_short: bool) -> None:
    """Behind one that waits, the latest alone is answered."""
    async with door(is_short=is_short, max_queue_bytes=10_000_000) as service:
        async with service.client(4096) as client:
            client.writer.write(HANDSHAKE)
            await client.read_head()
            session = await service.next_session()
            session.connection.send(large_frame(0, 4_000_000))
            for number in range(1000):
                client.writer.write(frame(PING, str(number).encode()))
            client.writer.write(frame(TEXT, b"read"))
            assert await asyncio.wait_for(session.received.get(), WAIT_S) == "read"
            last, got = frame(PONG, b"999", mask=None), b""
            while not got.endswith(last):
                got += await asyncio.wait_for(client.reader.read(1 << 20), WAIT_S)
            pongs = [bytes([0x80 | PONG, size]) for size in (1, 2, 3)]
            assert sum(map(got.count, pongs)) <= 3
            session.connection.send(large_frame(0, 4_000_000))
            client.writer.write(frame(PING, b"again") + frame(TEXT, b"read"))
            assert await asyncio.wait_for(session.received.get(), WAIT_S) == "read"
            last, got = frame(PONG, b"again", mask=None), b""
            while not got.endswith(last):
                got += await asyncio.wait_for(client.reader.read(1 << 20), WAIT_S)
            client.writer.write(frame(CLOSE))
            assert await client.read_to_end() == goodbye()


@each_way
async def test_frames_of_one_client_leave_turns_to_others(is_short: bool) -> None:
    """Small ones come by the thousand at once."""
    turns: list[str] = []

    def on_message(session: RecordingSession, text: str) -> None:
        if not turns:
            asyncio.get_running_loop().call_soon(turns.append, "another's")
        turns.append(text)

    async with door(is_short=is_short) as service:
        service.on_message = on_message
        async with connected(service) as (client, _):
            client.writer.write(frame(TEXT, b"x") * 4 * FRAMES_PER_TURN)
            await until(lambda: turns.count("x") == 4 * FRAMES_PER_TURN)
    assert turns.index("another's") <= FRAMES_PER_TURN


@each_way
async def test_a_pong_amid_a_message_is_no_sign_of_life(is_short: bool) -> None:
    """Else one without an end would be kept for ever."""
    async with door(is_short=is_short) as service, connected(service) as (client, session):
        connection = session.connection
        assert isinstance(connection, WebSocketConnection)
        connection.last_alive_at = 0.0
        for sent, is_alive in ((frame(TEXT, fin=False), False), (frame(CONTINUATION), True)):
            client.writer.write(sent + frame(PONG) + frame(PING))
            await client.read_until(frame(PONG, mask=None))
            assert (connection.last_alive_at > 0.0) == is_alive
            connection.last_alive_at = 0.0
        client.writer.write(frame(PONG) + frame(PING))
        await client.read_until(frame(PONG, mask=None))
        assert connection.last_alive_at > 0.0


@pytest.mark.parametrize("size", [0, 125, 126, 127, 65535, 65536])
def test_a_text_of_any_size_is_a_frame(size: int) -> None:
    """Each form of the length (RFC 6455 section 5.2)."""
    assert read(text_frame_bytes("x" * size)) == [(TEXT, b"x" * size)]


async def until(condition: Callable[[], bool]) -> None:
    """Return when it is so."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.01)


# -- who comes in --------------------------------------------------------------------------------------------


async def test_a_head_in_pieces_goes_the_common_way() -> None:
    """And comes in."""
    async with door(is_short=True) as service, service.client() as client:
        client.writer.write(HANDSHAKE[:40])
        await client.writer.drain()
        await asyncio.sleep(0.05)
        client.writer.write(HANDSHAKE[40:])
        status, _ = await client.read_head()
        assert status == 101
        await service.next_session()


async def test_who_says_nothing_goes_the_common_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is known when a silent connection is to be closed; and may still ask."""
    monkeypatch.setattr(upgrades, "LOOK_FOR_S", 0.05)
    async with door(is_short=True) as service, service.client() as first, service.client() as second:
        await until(lambda: service.sockets == 2)
        await until(lambda: len(service.upgrades) == 0)
        for client in (first, second):
            client.writer.write(HANDSHAKE)
            assert (await client.read_head())[0] == 101


async def test_who_says_nothing_is_sent_on_at_the_end() -> None:
    """Nobody is left behind."""
    async with door(is_short=True) as service, service.client() as client:
        await until(lambda: len(service.upgrades) == 1)
        service.upgrades.close()
        assert len(service.upgrades) == 0
        client.writer.write(HANDSHAKE)
        assert (await client.read_head())[0] == 101


async def test_who_leaves_without_a_word_is_forgotten() -> None:
    """Its socket is closed."""
    async with door(is_short=True) as service:
        async with service.client() as client:
            client.writer.write_eof()
            assert await client.read_to_end() == b""
        assert len(service.upgrades) == 0


async def test_who_has_gone_when_its_turn_comes_gets_no_session() -> None:
    """There is nobody to open one for."""
    async with door(is_short=True) as service:
        arrivals = service.connections.arrivals
        turns: list[Callable[[], None]] = []
        arrivals.connect = turns.append  # type: ignore[method-assign]  # a crowd before this one
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            client.sendall(HANDSHAKE)
            await until(lambda: bool(turns))
        await asyncio.sleep(0.05)
        turns[0]()
        assert (service.all_sessions, service.sockets) == ([], 0)


async def test_who_has_gone_by_the_common_way_gets_no_session_either(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And what they said before they went is not taken."""
    async with door(is_short=False) as service:
        turn, waiting = asyncio.Event(), asyncio.Event()

        async def to_connect() -> None:
            waiting.set()
            await turn.wait()

        service.connections.arrivals.to_connect = to_connect  # type: ignore[method-assign]  # a crowd before
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            client.sendall(HANDSHAKE + frame(TEXT, b"x"))
            await asyncio.wait_for(waiting.wait(), WAIT_S)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        await asyncio.sleep(0.05)
        turn.set()
        await until(lambda: not service.sockets)
        assert service.all_sessions == []
    assert not caplog.records


@each_way
async def test_one_that_comes_too_often_is_told_so(is_short: bool) -> None:
    """Once, however it came."""
    limits = LimitSettings(connects_per_address=Rate(1, 1000.0), commands_per_connection=None)
    async with door(is_short=is_short, limits=limits) as service:
        far = HANDSHAKE.replace(b"Host: 127.0.0.1", b"Host: elsewhere.example")
        async with service.client() as first, service.client() as second:
            first.writer.write(far)
            assert (await first.read_head())[0] == 101
            second.writer.write(far)
            status, headers = await second.read_head()
            assert (status, "retry-after" in headers) == (429, True)


@each_way
async def test_a_foreign_page_is_kept_out(is_short: bool) -> None:
    """As the origins say."""
    async with door(is_short=is_short, origins=("https://friend.example",)) as service:
        for origin, expected in ((b"https://foe.example", 403), (b"https://friend.example", 101)):
            async with service.client() as client:
                client.writer.write(HANDSHAKE.replace(b"\r\n\r\n", b"\r\nOrigin: " + origin + b"\r\n\r\n"))
                assert (await client.read_head())[0] == expected


@each_way
@pytest.mark.parametrize("header", ["Referer: http://[", "Origin: http://[1.2]"], ids=["referer", "origin"])
async def test_a_page_that_cannot_be_read_is_foreign(is_short: bool, header: str) -> None:
    """Wherever it is said, and also by a head that comes after a while."""
    async with (
        door(is_short=is_short, origins=("https://friend.example",)) as service,
        service.client() as client,
    ):
        await asyncio.sleep(0.05)
        client.writer.write(HANDSHAKE.replace(b"\r\n\r\n", f"\r\n{header}\r\n\r\n".encode()))
        assert (await client.read_head())[0] == 403


async def test_one_that_cannot_be_looked_at_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    """And keeps no place."""
    async with door(is_short=True) as service, service.client() as client:
        await asyncio.sleep(0.05)
        service.connections.admission.would_admit = None  # type: ignore[assignment, method-assign]
        client.writer.write(HANDSHAKE)
        assert await client.read_to_end() == b""
        assert (len(service.upgrades), service.sockets) == (0, 0)
    assert [record.getMessage() for record in caplog.records] == ["a connection could not be looked at"]


async def test_one_that_cannot_be_opened_is_closed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would read from it."""
    monkeypatch.setattr(upgrades, "tune_socket", None)
    async with door(is_short=True) as service, service.client() as client:
        client.writer.write(HANDSHAKE)
        assert (await client.read_head())[0] == 101
        assert await client.read_to_end() == b""
        assert service.sockets == 0
    assert [record.getMessage() for record in caplog.records] == [
        "a WebSocket could not be opened for 127.0.0.1"
    ]


async def test_one_that_cannot_be_begun_is_closed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that cannot be opened."""
    monkeypatch.setattr(upgrades, "SocketStream", None)
    async with door(is_short=True) as service, service.client() as client:
        client.writer.write(HANDSHAKE)
        assert (await client.read_head())[0] == 101
        assert await client.read_to_end() == b""
        assert service.sockets == 0
    assert [record.getMessage() for record in caplog.records] == [
        "a WebSocket could not be begun for 127.0.0.1"
    ]


async def test_who_waits_for_their_turn_at_the_end_gets_no_session() -> None:
    """Their connection is closed: when their turn comes, or when all are cut off."""
    async with door(is_short=True) as service:
        turns: list[Callable[[], None]] = []
        service.connections.arrivals.connect = turns.append  # type: ignore[method-assign]  # a crowd before them
        async with service.client() as first, service.client() as second:
            for number, client in enumerate((first, second)):
                client.writer.write(HANDSHAKE)
                await until(lambda number=number: len(turns) > number)  # type: ignore[misc]
            service.upgrades.close()
            turns[0]()
            assert await first.read_to_end() == b""
            await service.upgrades.cut_off()
            assert await second.read_to_end() == b""
            turns[1]()
        assert (service.all_sessions, service.sockets) == ([], 0)


async def test_no_message_is_being_handled_any_more_when_all_are_cut_off() -> None:
    """However long its session would have had it wait."""
    async with door(is_short=True) as service:
        before, handled = asyncio.all_tasks(), []

        async def wait_for_ever() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                handled.append("x")

        service.on_message = lambda session, text: wait_for_ever()
        async with connected(service) as (client, session):
            client.writer.write(frame(TEXT, b"x"))
            await asyncio.wait_for(session.received.get(), WAIT_S)
            service.upgrades.close()
            await service.upgrades.cut_off()
            assert handled == ["x"]
            assert await client.read_to_end() == b""
        assert asyncio.all_tasks() <= before


async def test_a_session_that_cannot_be_opened_closes_its_own_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Others come in."""
    async with door(is_short=True) as service:

        def fail(session: RecordingSession) -> None:
            raise RuntimeError("broken")

        service.on_open = fail
        async with service.client() as client:
            client.writer.write(HANDSHAKE)
            await client.read_head()
            assert (await client.reader.readexactly(2))[0] == 0x80 | CLOSE
        service.on_open = lambda session: None
        async with connected(service):
            pass
    assert "a session could not be opened" in caplog.text


@each_way
async def test_a_session_that_cuts_its_client_off_while_it_is_opened(is_short: bool) -> None:
    """It is told that this is over, and no connection is left."""
    async with door(is_short=is_short) as service, service.client() as client:

        def cut_off(session: RecordingSession) -> None:
            connection = session.connection
            assert isinstance(connection, WebSocketConnection)
            connection.abort()

        service.on_open = cut_off
        client.writer.write(HANDSHAKE)
        session = await service.next_session()
        await asyncio.wait_for(session.over.wait(), WAIT_S)
        assert service.connections.count == 0


async def test_nothing_is_kept_of_what_was_written_and_of_who_has_gone() -> None:
    """The loop does not go on asking whether there is room, and no stream is left behind."""
    async with door(is_short=True) as service:
        async with connected(service) as (client, session):
            session.connection.send(large_frame(1, filler=5_000_000))
            got = 0
            while got < 5_000_000:
                got += len(await asyncio.wait_for(client.reader.read(65536), WAIT_S))
            await asyncio.wait_for(session.connection.drained(), WAIT_S)
            assert isinstance(session.connection, WebSocketConnection)
            [stream] = service.upgrades._streams
            assert stream is session.connection._stream
            assert not asyncio.get_running_loop().remove_writer(stream.fileno())
        await asyncio.wait_for(session.over.wait(), WAIT_S)
        assert not service.upgrades._streams


# -- on a running server -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("upgrades"), **SETTINGS) as running:
        yield running


def answer(server: RunningServer, path: str, more: bytes = b"") -> bytes:
    """The head with which a request for a WebSocket is answered, without the date."""
    address = ("127.0.0.1", server.port_of(path))
    with socket.create_connection(address, timeout=WAIT_S) as client:
        request = HANDSHAKE.replace(b"/socket/websocket", path.encode())
        client.sendall(request[:-2] + more + b"\r\n")
        got = b""
        while b"\r\n\r\n" not in got:
            part = client.recv(4096)
            assert part
            got += part
    return re.sub(rb"Date: [^\r]*\r\n", b"", got.partition(b"\r\n\r\n")[0])


@pytest.mark.parametrize(
    "path", ["/ws/v2", "/ws/v2?a=b", "/notification/websocket", "/notification/0/a1/websocket"]
)
def test_both_ways_answer_the_same(server: RunningServer, path: str) -> None:
    """To the letter."""
    common = answer(server, path, b"X-Twice: 1\r\nX-Twice: 2\r\n")
    assert common.startswith(b"HTTP/1.1 101 ")
    assert answer(server, path) == common
