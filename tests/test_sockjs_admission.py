"""Who may have how many connections at the SockJS door, until when they have to join, and how fast they may send."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest
from pydispatch import dispatcher
from websockets.asyncio.client import ClientConnection

from server.bus import THROTTLED
from server.rates import Rate
from server.transports.connections import STRANGER_MESSAGE_BYTES
from server.wire import NOT_JOINED, TIMED_OUT, CloseReason
from tests.support.sockjs_door import (
    NO_LIMITS,
    POLLING,
    STREAMING,
    WAIT_S,
    WEBSOCKETS,
    DoorService,
    RawClient,
    RecordingSession,
    frame,
    serving,
)

AFAR = {"Via": "1.1 proxy"}
"""Who comes through a proxy is not surely this machine, and is counted."""

HTTP = STREAMING | POLLING
TRANSPORTS = [*WEBSOCKETS, *HTTP]
DONE = CloseReason(3000, "done")
FEW = replace(NO_LIMITS, connections_per_address=2)
HEARTBEAT_S = 0.1
JOIN_WITHIN_S = 0.3


async def connect(service: DoorService, client: RawClient, transport: str) -> RecordingSession:
    """Open a connection from afar; its session."""
    if transport in WEBSOCKETS:
        await client.upgrade(WEBSOCKETS[transport], AFAR)
    else:
        method, suffix = HTTP[transport]
        await client.write_request(method, service.new_session_path() + suffix, headers=AFAR)
    return await service.next_session()


async def try_to_connect(service: DoorService, transport: str) -> tuple[int, dict[str, str], bytes]:
    """The answer to who was not let in."""
    if transport in WEBSOCKETS:
        async with service.client() as client:
            await client.ask_for_upgrade(WEBSOCKETS[transport], AFAR)
            return await client.read_answer()
    method, suffix = HTTP[transport]
    return await service.request(method, service.new_session_path() + suffix, headers=AFAR)


def as_stranger(session: RecordingSession, *_: str) -> None:
    session.is_joined = False


async def is_over(session: RecordingSession) -> None:
    await asyncio.wait_for(session.over.wait(), WAIT_S)


# -- how many ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_address_has_so_many_connections(transport: str) -> None:
    """Over all transports. The next is refused before any session is opened, and told when to try again."""
    async with serving(limits=FEW) as service, service.client() as first, service.client() as second:
        await connect(service, first, "websocket")
        session = await connect(service, second, "xhr_streaming")
        status, headers, body = await try_to_connect(service, transport)
        assert (status, headers["retry-after"]) == (429, "10")
        assert body == b"this address has 2 connections already, which is as many as may be\n"
        assert len(service.all_sessions) == 2
        session.connection.close(DONE)
        async with service.client() as third:
            await connect(service, third, transport)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_address_connects_so_often(transport: str) -> None:
    """However short each connection is."""
    async with serving(limits=replace(NO_LIMITS, connects_per_address=Rate(2, 3600))) as service:
        for _ in range(2):
            async with service.client() as client:
                session = await connect(service, client, transport)
                session.connection.close(DONE)
        status, headers, _ = await try_to_connect(service, transport)
        assert status == 429
        assert 1700 < int(headers["retry-after"]) <= 1800


@pytest.mark.parametrize("transport", HTTP)
async def test_a_session_over_http_is_one_connection(transport: str) -> None:
    """Only its first request connects; those that receive and send after it do not."""
    limits = replace(NO_LIMITS, connects_per_address=Rate(1, 3600), connections_per_address=1)
    method, suffix = HTTP[transport]
    async with serving(limits=limits, response_limit_bytes=1) as service:
        path = service.new_session_path()
        for _ in range(3):
            status, _, _ = await service.request(method, path + suffix, headers=AFAR)
            assert status == 200
            assert (await service.request("POST", path + "/xhr_send", b'["a"]', AFAR))[0] == 204
            service.all_sessions[0].connection.send(frame(1))
        assert len(service.all_sessions) == 1


async def test_callers_on_this_machine_are_not_counted() -> None:
    """They come and go as they like."""
    limits = replace(NO_LIMITS, connects_per_address=Rate(1, 3600), connections_per_address=1)
    async with serving(limits=limits) as service, contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(service.websocket("websocket"))
            await service.next_session()


async def close_by_server(session: RecordingSession, client: RawClient) -> None:
    session.connection.close(DONE)


async def cut_by_client(session: RecordingSession, client: RawClient) -> None:
    await client.reset()


@pytest.mark.parametrize("end", [close_by_server, cut_by_client])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_every_connection_is_counted_until_its_end(
    transport: str, end: Callable[[RecordingSession, RawClient], Awaitable[None]]
) -> None:
    """Once, whoever ends it."""
    async with serving(limits=FEW, disconnect_delay_s=0.2) as service, service.client() as client:
        session = await connect(service, client, transport)
        assert service.limits._by_address == {"127.0.0.1": 1}
        await end(session, client)
        await is_over(session)
        assert not service.limits._by_address


async def test_a_connection_whose_session_cannot_be_opened_does_not_stay_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is over."""

    def fail(session: RecordingSession) -> None:
        raise RuntimeError("broken")

    async with serving(limits=FEW) as service, service.client() as client:
        service.on_open = fail
        await client.upgrade(WEBSOCKETS["websocket"], AFAR)
        await client.read_to_end()
        assert not service.limits._by_address
    assert "could not be opened" in caplog.text
    caplog.clear()


# -- until when ----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def waiting_for_a_join(join_within_s: float = JOIN_WITHIN_S) -> AsyncIterator[DoorService]:
    limits = replace(NO_LIMITS, join_within_s=join_within_s)
    async with serving(limits=limits, heartbeat_s=5 * JOIN_WITHIN_S) as service:
        yield service


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_whoever_does_not_join_in_time_is_sent_away(transport: str) -> None:
    """With the reason."""
    async with waiting_for_a_join() as service, service.client() as client:
        service.on_open = as_stranger
        session = await connect(service, client, transport)
        await is_over(session)
        assert service.ends == [(transport, NOT_JOINED)]


async def test_whoever_has_joined_stays() -> None:
    """While strangers who came before and after are sent away."""
    async with waiting_for_a_join() as service, contextlib.AsyncExitStack() as stack:
        for is_joined in (False, True, False):
            await stack.enter_async_context(service.websocket("rawwebsocket"))
            (await service.next_session()).is_joined = is_joined
        before, joined, after = service.all_sessions
        await is_over(before)
        await is_over(after)
        assert not joined.connection.is_closed


async def test_whoever_leaves_has_that_time_again() -> None:
    """A page may sign its user out and in again, on one connection; nobody stays for ever without a user."""
    async with waiting_for_a_join() as service, service.websocket("rawwebsocket"):
        session = await service.next_session()
        await asyncio.sleep(2 * JOIN_WITHIN_S)
        assert not session.connection.is_closed
        session.is_joined = False
        await is_over(session)
        assert service.ends == [("rawwebsocket", NOT_JOINED)]


async def test_another_time_to_join_counts_at_once() -> None:
    """Also for those who are there."""
    async with waiting_for_a_join(join_within_s=3600) as service, service.websocket("rawwebsocket"):
        session = await service.next_session()
        session.is_joined = False
        service.limits.apply(replace(NO_LIMITS, join_within_s=JOIN_WITHIN_S))
        await is_over(session)


# -- how much, how fast --------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", WEBSOCKETS)
async def test_a_stranger_sends_only_short_messages(transport: str) -> None:
    """A join is short; what is not is not kept for nobody. After it messages may be as large as configured."""
    long = f'"{"x" * STRANGER_MESSAGE_BYTES}"'

    async def say(client: ClientConnection, text: str) -> None:
        await client.send(text)
        await asyncio.wait_for(session.received.get(), WAIT_S)

    async with serving() as service:
        service.on_open = as_stranger
        async with service.websocket(transport) as client:
            session = await service.next_session()
            service.on_message = lambda session, text: setattr(session, "is_joined", True)
            await say(client, '"join"')
            await say(client, long)
            service.on_message = as_stranger
            await say(client, '"leave"')
            await is_refused(client, long)
        async with service.websocket(transport) as client:
            await is_refused(client, long)


@pytest.mark.parametrize("transport", WEBSOCKETS)
async def test_who_has_just_joined_may_send_long_messages(transport: str) -> None:
    """Also as the first one after the join, which is carried out some time after it was read."""
    long = f'"{"x" * STRANGER_MESSAGE_BYTES}"'
    async with serving() as service:
        service.on_open = as_stranger
        async with service.websocket(transport) as client:
            session = await service.next_session()
            await client.send('"join"')
            await asyncio.wait_for(session.received.get(), WAIT_S)
            session.is_joined = True
            await client.send(long)
            await asyncio.wait_for(session.received.get(), WAIT_S)


async def is_refused(client: ClientConnection, text: str) -> None:
    await client.send(text)
    await asyncio.wait_for(client.wait_closed(), WAIT_S)
    assert client.close_code == 1009


@pytest.mark.parametrize("send", ["/xhr_send", "/jsonp_send"])
async def test_a_stranger_sends_only_short_bodies(send: str) -> None:
    """As over WebSocket."""
    body = b'["' + b"x" * STRANGER_MESSAGE_BYTES + b'"]'
    async with serving() as service:
        path = service.new_session_path()
        await service.request("POST", path + "/xhr")
        session = await service.next_session()
        session.is_joined = False
        assert (await service.request("POST", path + send, body))[0] == 413
        session.is_joined = True
        assert (await service.request("POST", path + send, body))[0] in (200, 204)


async def test_a_body_for_no_session_is_not_read() -> None:
    """The answer comes before it."""
    async with serving() as service, service.client() as client:
        head = f"POST /socket{service.new_session_path()}/xhr_send HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        client.writer.write(head.encode() + b"Content-Length: 100000\r\n\r\n")
        status, _, body = await client.read_answer()
        assert (status, body) == (404, b"No such session.")


async def test_a_body_with_another_method_is_refused() -> None:
    """Whatever its size."""
    async with serving() as service:
        assert (await service.request("PUT", "/000/a/xhr_send", b"x" * 10))[0] == 405


PING, PONG, CONTINUATION, TEXT = 0x9, 0xA, 0x0, 0x1


@pytest.mark.parametrize("transport", WEBSOCKETS)
async def test_pings_are_answered_no_faster_than_frames_may_come(transport: str) -> None:
    """The rest waits unread, and others notice nothing."""
    limits = replace(NO_LIMITS, commands_per_connection=Rate(2, 3600))
    held_up = asyncio.Event()

    def note(limit: str) -> None:
        assert limit == "commands_per_connection"
        held_up.set()

    async with serving(limits=limits) as service, service.client() as client:
        dispatcher.connect(note, THROTTLED, sender=service.limits)
        await client.upgrade(WEBSOCKETS[transport])
        await service.next_session()
        for number in range(10):
            client.write_frame(PING, bytes([number]))
        await asyncio.wait_for(held_up.wait(), WAIT_S)
        client.write_frame(PING, b"x")  # by itself, so that the socket has something new
        async with service.websocket(transport) as other:
            session = await service.next_session()
            await other.send('"a"')
            await asyncio.wait_for(session.received.get(), WAIT_S)
        pongs = b"".join(
            bytes([0x8A, 1, number]) for number in range(5)
        )  # four at once, and the one that waits
        received = await client.read_until(pongs)
        session.connection.close(DONE)
        assert len(received) == len(pongs) + (0 if transport == "rawwebsocket" else len(b"\x81\x01o"))
        service.all_sessions[0].connection.close(DONE)
        assert (await client.read_until(b"done")).count(b"\x8a") == 0


@pytest.mark.parametrize("transport", WEBSOCKETS)
async def test_messages_that_take_a_while_come_no_faster_than_frames_may(transport: str) -> None:
    """They are counted as those are that are done at once."""
    held_up = asyncio.Event()
    handled: list[str] = []

    def note(limit: str) -> None:
        held_up.set()

    async def handle(text: str) -> None:
        await asyncio.sleep(0)
        handled.append(text)

    async with serving(limits=replace(NO_LIMITS, commands_per_connection=Rate(2, 3600))) as service:
        dispatcher.connect(note, THROTTLED, sender=service.limits)
        service.on_message = lambda session, text: handle(text)
        async with service.websocket(transport, close_timeout=0.1) as client:  # its goodbye waits, too
            for number in range(10):
                await client.send(f'"{number}"')
            await asyncio.wait_for(held_up.wait(), WAIT_S)
            async with service.websocket("websocket") as other:
                await other.send('"other"')
                while "other" not in handled:  # noqa: ASYNC110  # nobody is told
                    await asyncio.sleep(0.01)
            assert len(handled) == 5 + len(["other"])


@pytest.mark.parametrize("transport", WEBSOCKETS)
async def test_a_frame_that_drips_in_is_given_up(transport: str) -> None:
    """No pong can come before its end, so it is found dead."""
    async with serving(heartbeat_s=HEARTBEAT_S) as service, service.client() as client:
        await client.upgrade(WEBSOCKETS[transport])
        session = await service.next_session()
        client.writer.write(b"\x81\xfe\x10\x00" + bytes(4))  # a text of 4096 bytes begins
        await drip(client, session, lambda: client.writer.write(b"x"))
        assert service.ends == [(transport, TIMED_OUT)]


@pytest.mark.parametrize("transport", WEBSOCKETS)
async def test_a_message_in_endless_fragments_is_given_up(transport: str) -> None:
    """Though pings are answered in between."""
    async with serving(heartbeat_s=HEARTBEAT_S) as service, service.client() as client:
        await client.upgrade(WEBSOCKETS[transport])
        session = await service.next_session()
        client.write_frame(TEXT, b'"', first_bits=0)

        def go_on() -> None:
            client.write_frame(CONTINUATION, b"", first_bits=0)
            client.write_frame(PONG, b"")

        await drip(client, session, go_on)
        assert service.ends == [(transport, TIMED_OUT)]


async def drip(client: RawClient, session: RecordingSession, write: Callable[[], None]) -> None:
    """Write now and then until the session is over."""
    async with asyncio.timeout(WAIT_S):
        while not session.over.is_set():
            write()
            with contextlib.suppress(ConnectionError):
                await client.writer.drain()
            await asyncio.sleep(HEARTBEAT_S / 10)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_refusal_comes_late(transport: str) -> None:
    """Who was refused waits, and the others do not; who goes away meanwhile is no news."""
    async with serving(limits=FEW, refusal_delay_s=0.5) as service, contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await connect(service, await stack.enter_async_context(service.client()), "websocket")
        async with service.client() as impatient:
            await impatient.ask_for_upgrade(WEBSOCKETS["websocket"], AFAR)
            await impatient.reset()
        refused = asyncio.create_task(try_to_connect(service, transport))
        for _ in range(3):
            async with service.websocket("websocket"):
                await service.next_session()
        assert not refused.done()
        assert (await refused)[0] == 429
