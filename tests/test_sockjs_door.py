"""The SockJS door, defect by defect of sockjs-tornado 1.0.7. Protocol conformance: tests/sockjs_protocol."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydispatch import dispatcher
from websockets.exceptions import ConnectionClosed

from server import bus
from server.config.schema import Limits as LimitSettings
from server.limits import Limits
from server.rooms import Connection
from server.transports import polling
from server.transports.connections import ClientConnection
from server.transports.registry import ConnectionOptions, Connections
from server.transports.sockjs import SockJSDoor
from server.wire import GOING_AWAY, TOO_BIG, CloseReason
from tests.support.sockjs_door import (
    OPTIONS,
    POLLING,
    STREAMING,
    UPGRADE,
    WAIT_S,
    WEBSOCKETS,
    RecordingSession,
    frame,
    serving,
)
from tests.support.sockjs_services import EchoSession, identify

DONE = CloseReason(3000, "done")


@pytest.mark.parametrize("transport", WEBSOCKETS)
async def test_a_dying_peer_costs_the_others_nothing(transport: str) -> None:
    """A connection that was reset without the server having noticed does not disturb sending to the others."""
    async with serving() as service, service.client() as client, service.websocket(transport) as other:
        await service.next_session()
        await client.upgrade(WEBSOCKETS[transport])
        dying = await service.next_session()
        sessions = [dying, service.all_sessions[0]]
        await client.reset()
        assert not dying.connection.is_closed
        for number in range(3):
            for session in sessions:
                session.connection.send(frame(number))
        if transport == "websocket":
            assert await other.recv() == "o"
        for number in range(3):
            assert f'"number": {number}' in str(await asyncio.wait_for(other.recv(), WAIT_S))
        await asyncio.wait_for(dying.over.wait(), WAIT_S)
        assert dying.closed_count == 1


@pytest.mark.parametrize("transport", POLLING)
async def test_closing_while_opening_over_polling(transport: str) -> None:
    """A session that closes while it is opened does not leave the poll without an answer."""
    method, path = POLLING[transport]
    async with serving() as service:
        service.on_open = lambda session: session.connection.close(DONE)
        session_path = service.new_session_path()
        _, _, body = await service.request(method, session_path + path)
        assert b"o" in body
        _, _, body = await service.request(method, session_path + path)
        assert b"c[3000," in body
        assert (await service.next_session()).closed_count == 1


@pytest.mark.parametrize("transport", STREAMING)
async def test_closing_while_opening_over_streaming(transport: str) -> None:
    """The same over a stream, which ends."""
    method, path = STREAMING[transport]
    async with serving() as service:
        service.on_open = lambda session: session.connection.close(DONE)
        _, _, body = await service.request(method, service.new_session_path() + path)
        assert b"c[3000," in body
        assert (await service.next_session()).closed_count == 1


async def test_a_session_that_cannot_be_opened(caplog: pytest.LogCaptureFixture) -> None:
    """What opening a session raises is logged, and closes the connection with an internal error."""

    def fail(connection: Connection) -> RecordingSession:
        raise RuntimeError("no such luck")

    async with serving() as service:
        service.door.open_session = fail
        async with service.websocket("websocket") as client:
            assert await client.recv() == "o"
            assert await client.recv() == 'c[1011, "internal error"]'.replace(" ", "", 1)
    assert "no such luck" in caplog.text


@pytest.mark.parametrize("transport", STREAMING)
async def test_streams_have_heartbeats(transport: str) -> None:
    """A stream on which nothing happens gets `h` frames."""
    method, path = STREAMING[transport]
    async with serving(heartbeat_s=0.1) as service, service.client() as client:
        await client.write_request(method, service.new_session_path() + path)
        await client.read_head()
        heartbeat = {"xhr_streaming": b"h\n", "eventsource": b"data: h\r\n\r\n"}
        expected = heartbeat.get(transport, b'<script>\np("h");\n</script>\r\n')
        for _ in range(2):
            while await client.read_chunk() != expected:
                pass


async def test_htmlfile_keeps_the_name_of_its_callback() -> None:
    """The client's callback has `_` and `.` in its name."""
    async with serving() as service, service.client() as client:
        await client.write_request("GET", service.new_session_path() + "/htmlfile?c=_jp.abc_D-1")
        await client.read_head()
        assert b"var c = parent._jp.abc_D-1;" in await client.read_chunk()


async def test_htmlfile_frames_cannot_end_their_script() -> None:
    """A message with markup in it stays a string."""
    async with serving() as service, service.client() as client:
        await client.write_request("GET", service.new_session_path() + "/htmlfile?c=x")
        await client.read_head()
        await client.read_chunk()
        await client.read_chunk()
        session = await service.next_session()
        session.connection.send(_text_frame("</script><script>alert(1)</script><!--"))
        chunk = await client.read_chunk()
        assert chunk.count(b"<") == 2  # those of the frame itself
        assert chunk.count(b"\\u003c") == 4


def _text_frame(text: str) -> object:
    made = frame(0)
    made.text = json.dumps({"name": text})
    return made


@pytest.mark.parametrize("callback", ["alert(1)//", "a%0a", "%3Cscript%3E", "a" * 129])
async def test_callbacks_are_names(callback: str) -> None:
    """A callback that is no name is refused, and not repeated."""
    async with serving() as service:
        for path in ("/jsonp", "/htmlfile"):
            status, headers, body = await service.request(
                "GET", f"{service.new_session_path()}{path}?c={callback}"
            )
            assert (status, body) == (500, b'invalid "callback" parameter')
            assert headers["content-type"].startswith("text/plain")
        assert service.connections.count == 0


@pytest.mark.parametrize("transport", WEBSOCKETS)
async def test_receiving_is_awaited(transport: str) -> None:
    """The next message is handled when the one before is done."""
    async with serving() as service:
        gate = asyncio.Event()
        order: list[str] = []

        async def handle(text: str) -> None:
            if text == "1":
                await gate.wait()
            order.append(text)

        service.on_message = lambda session, text: handle(text)
        async with service.websocket(transport) as client:
            session = await service.next_session()
            for text in "123":
                await client.send(text if transport == "rawwebsocket" else f'["{text}"]')
            assert await asyncio.wait_for(session.received.get(), WAIT_S) == "1"
            assert session.received.empty()
            gate.set()
            for text in "23":
                assert await asyncio.wait_for(session.received.get(), WAIT_S) == text
        assert order[:2] == ["1", "2"]


async def test_requests_that_send_wait_for_each_other() -> None:
    """Over HTTP too: what comes in a second request is handled after the first, which is answered when it is done."""
    async with serving() as service:
        gate = asyncio.Event()

        async def handle(text: str) -> None:
            if text == "1":
                await gate.wait()

        service.on_message = lambda session, text: handle(text)
        path = service.new_session_path()
        await service.request("POST", path + "/xhr")
        session = await service.next_session()
        first = asyncio.create_task(service.request("POST", path + "/xhr_send", b'["1"]'))
        assert await asyncio.wait_for(session.received.get(), WAIT_S) == "1"
        async with service.client() as client:
            await client.write_request("POST", path + "/xhr_send", b'["2"]')
            await service.request("GET", "/info")
            assert session.received.empty()
            assert not first.done()
            gate.set()
            assert (await client.read_head())[0] == 204
        assert (await first)[0] == 204
        assert await session.received.get() == "2"


@pytest.mark.parametrize("transport", ["websocket", "rawwebsocket", "xhr"])
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_failing_session(transport: str, is_async: bool, caplog: pytest.LogCaptureFixture) -> None:
    """What a session raises is logged once, closes its own connection with an internal error, and no other."""

    async def fail() -> None:
        raise RuntimeError("broken")

    def on_message(session: RecordingSession, text: str) -> object:
        if is_async:
            return fail()
        raise RuntimeError("broken")

    async with serving() as service, service.websocket("rawwebsocket") as other:
        await service.next_session()
        service.on_message = on_message  # type: ignore[assignment]
        if transport == "xhr":
            path = service.new_session_path()
            await service.request("POST", path + "/xhr")
            await service.request("POST", path + "/xhr_send", b'["a"]')
            assert (await service.request("POST", path + "/xhr"))[2] == b'c[1011,"internal error"]\n'
        else:
            async with service.websocket(transport) as client:
                await client.send('["a"]')
                with pytest.raises(ConnectionClosed) as closed:
                    while True:
                        await asyncio.wait_for(client.recv(), WAIT_S)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1011
        assert [record.levelname for record in caplog.records if "broken" in str(record.exc_info)] == [
            "ERROR"
        ]
        service.on_message = lambda session, text: session.connection.send(frame(7))
        await other.send("a")
        assert '"number": 7' in str(await asyncio.wait_for(other.recv(), WAIT_S))


@pytest.mark.parametrize("body", [b'"text"', b'{"0": "a"}', b"1", b"null", b"true"])
@pytest.mark.parametrize("path", ["/xhr_send", "/jsonp_send"])
async def test_only_lists_are_sent(path: str, body: bytes) -> None:
    """A body that is JSON but no list of messages is refused; the session gets nothing of it, and lives on."""
    async with serving() as service:
        session_path = service.new_session_path()
        await service.request("POST", session_path + "/xhr")
        session = await service.next_session()
        status, _, answer = await service.request("POST", session_path + path, body)
        assert (status, answer) == (500, b"Payload expected.")
        await service.request("POST", session_path + path, b'["a"]')
        assert await session.received.get() == "a"
        assert session.received.empty()


@pytest.mark.parametrize("transport", WEBSOCKETS)
async def test_close_codes_reach_websockets(transport: str) -> None:
    """A WebSocket closes with the code and the reason of the connection."""
    async with serving() as service, service.websocket(transport) as client:
        (await service.next_session()).connection.close(CloseReason(3456, "a reason"))
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await asyncio.wait_for(client.recv(), WAIT_S)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (3456, "a reason")
        assert service.ends == [(transport, CloseReason(3456, "a reason"))]


@pytest.mark.parametrize("transport", [*WEBSOCKETS, *STREAMING, *POLLING])
async def test_nothing_outlives_a_connection(transport: str) -> None:
    """A connection that is over is forgotten: nothing holds it, no timer, no table."""
    async with serving(heartbeat_s=0.1, disconnect_delay_s=0.1) as service:
        if transport in WEBSOCKETS:
            async with service.client() as client:
                await client.upgrade(WEBSOCKETS[transport])
                session = await service.next_session()
        else:
            method, path = {**STREAMING, **POLLING}[transport]
            async with service.client() as client:
                await client.write_request(method, service.new_session_path() + path)
                session = await service.next_session()
        await asyncio.wait_for(session.over.wait(), WAIT_S)
        assert session.closed_count == 1
        assert service.connections.count == 0
        assert service.ends == [(transport, None)]
        del session
        service.all_sessions.clear()
        async with asyncio.timeout(WAIT_S):
            while _connections_in_memory():  # noqa: ASYNC110  # nobody announces it
                await asyncio.sleep(0.01)


def _connections_in_memory() -> int:
    gc.collect()
    return sum(isinstance(thing, ClientConnection) for thing in gc.get_objects())


@pytest.mark.parametrize("method", ["BREW", "PUT", "HEAD", "DELETE"])
async def test_unknown_methods(method: str) -> None:
    """A method that a URL does not have is not allowed, and nothing breaks."""
    async with serving() as service:
        paths = ["", "/info", "/iframe.html", "/websocket"]
        paths += [f"/0/0/{name}" for name in ("websocket", "xhr", "xhr_streaming", "eventsource", "jsonp")]
        paths += [f"/0/0/{name}" for name in ("htmlfile", "xhr_send", "jsonp_send")]
        for path in paths:
            async with service.client() as client:
                await client.write_request(method, path)
                status, headers = await client.read_head()
                assert (path, status) == (path, 405)
                assert headers["allow"]


async def test_the_iframe_loads_our_own_client() -> None:
    """The page of the iframe transports names the file that this server has, and no other machine."""
    async with serving() as service:
        _, _, body = await service.request("GET", "/iframe.html")
        assert b'<script src="/our/own/sockjs.js"></script>' in body
        assert b"://" not in body


@pytest.mark.parametrize("transport", STREAMING)
async def test_http_1_0_streams_end(transport: str) -> None:
    """An HTTP/1.0 response is over when its connection is, also when it reached its limit."""
    method, path = STREAMING[transport]
    async with serving(response_limit_bytes=1000) as service, service.client() as client:
        headers = {"Connection": "Keep-Alive"}
        await client.write_request(method, service.new_session_path() + path, headers=headers, version="1.0")
        session = await service.next_session()
        session.connection.send(frame(1, filler=2000))
        assert b"x" * 2000 in await client.read_to_end()
        assert not session.connection.is_closed


@pytest.mark.parametrize("transport", WEBSOCKETS)
async def test_http_1_0_knows_no_websocket(transport: str) -> None:
    """A proxy may speak it unless told otherwise. The answer says so, and nobody has come."""
    async with serving() as service, service.client() as client:
        await client.write_request("GET", WEBSOCKETS[transport], headers=UPGRADE, version="1.0")
        status, _, body = await client.read_answer()
        assert (status, b"HTTP/1.1" in body) == (400, True)
        assert not service.all_sessions


async def test_a_stopped_door_has_no_timers() -> None:
    """Stopping ends everything periodic, sockjs-tornado's own timers too; twice is as good as once."""
    loop = asyncio.get_running_loop()
    connections = Connections(ConnectionOptions(), Limits(LimitSettings()))
    SockJSDoor(EchoSession, identify, connections, OPTIONS)
    connections.stop()
    connections.stop()
    await asyncio.sleep(0)
    scheduled = getattr(loop, "_scheduled")  # noqa: B009  # asyncio has no public list of its timers
    assert not [timer for timer in scheduled if not timer.cancelled()]


async def test_messages_beyond_ascii_arrive_whole_over_polling() -> None:
    """The length of an answer is that of its bytes."""
    text = "Grüße, 世界 🔔"
    async with serving() as service:
        path = service.new_session_path()
        await service.request("POST", path + "/xhr")
        session = await service.next_session()
        await service.request("POST", path + "/xhr_send", json.dumps([text], ensure_ascii=False).encode())
        assert await session.received.get() == text
        session.connection.send(_text_frame(text))  # type: ignore[arg-type]
        _, headers, body = await service.request("POST", path + "/xhr")
        assert json.loads(body[1:])[0]["name"] == text
        assert int(headers["content-length"]) == len(body)


def test_importing_warns_of_nothing(tmp_path: Path) -> None:
    """Importing the door compiles and loads sockjs-tornado without a warning getting out."""
    # A fresh cache of bytecode: some warnings come from compiling only.
    command = [sys.executable, "-W", "error", "-X", f"pycache_prefix={tmp_path}"]
    done = subprocess.run(
        [*command, "-c", "import server.transports.sockjs"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


# -- what is over, and for whom ------------------------------------------------------------------------------


async def test_close_all() -> None:
    """When the server stops, every client is told that it is going away, over whatever transport it came."""
    async with (
        serving() as service,
        service.websocket("websocket") as first,
        service.websocket("rawwebsocket") as second,
    ):
        path = service.new_session_path()
        stream, poll = service.new_session_path(), service.new_session_path()
        async with service.client() as streaming, service.client() as polling:
            await streaming.write_request("POST", stream + "/xhr_streaming")
            await service.request("POST", poll + "/xhr")
            await polling.write_request("POST", poll + "/xhr")
            await service.request("POST", path + "/xhr")  # between two polls
            for _ in range(5):
                await service.next_session()
            assert service.connections.counts == {
                "websocket": 1,
                "rawwebsocket": 1,
                "xhr_streaming": 1,
                "xhr": 2,
            }
            service.connections.close_all(GOING_AWAY)
            assert service.connections.count == 0
            assert (await streaming.read_answer())[2].endswith(b'c[1001,"going away"]\n')
            assert (await polling.read_answer())[2] == b'c[1001,"going away"]\n'
        assert (await service.request("POST", path + "/xhr"))[2] == b'c[1001,"going away"]\n'
        for client in (first, second):
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    await asyncio.wait_for(client.recv(), WAIT_S)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001


async def test_a_client_that_stops_polling() -> None:
    """Who has no request waiting for a while is gone; until it is forgotten, a late poll is told so."""
    async with serving(disconnect_delay_s=0.5) as service:
        path = service.new_session_path()
        await service.request("POST", path + "/xhr")
        session = await service.next_session()
        await asyncio.wait_for(session.over.wait(), WAIT_S)
        assert session.connection.is_closed
        assert service.ends == [("xhr", None)]
        assert (await service.request("POST", path + "/xhr_send", b'["a"]'))[0] == 404


async def test_of_a_client_whose_request_waits_no_other_is_expected() -> None:
    """However long it waits."""
    async with serving() as service, service.client() as client:
        path = service.new_session_path()
        await service.request("POST", path + "/xhr")
        session = await service.next_session()
        await client.write_request("POST", path + "/xhr_streaming")
        await client.read_head()
        for look in service.connections.on_tick:
            look(time.monotonic() + 10 * WAIT_S)
        assert not session.connection.is_closed


async def test_a_closed_connection_takes_no_more() -> None:
    """Sending and closing do nothing once it is closed; the session hears of the end once."""
    async with serving() as service, service.websocket("rawwebsocket"):
        session = await service.next_session()
        for _ in range(2):
            session.connection.close(DONE)
            session.connection.send(frame(1))
            await session.connection.drained()
        assert session.closed_count == 1


@pytest.mark.parametrize("transport", POLLING)
async def test_a_waiting_poll_is_answered_by_the_next_message(transport: str) -> None:
    """What is sent while a poll waits goes out at once."""
    method, suffix = POLLING[transport]
    async with serving() as service, service.client() as client:
        path = service.new_session_path()
        await service.request(method, path + suffix)
        session = await service.next_session()
        before = session.connection.last_alive_at
        await client.write_request(method, path + suffix)
        async with asyncio.timeout(WAIT_S):
            while session.connection.last_alive_at == before:  # noqa: ASYNC110  # the poll has not arrived
                await asyncio.sleep(0)
        session.connection.send(frame(5))
        assert b"number" in (await client.read_answer())[2]


async def test_a_session_that_fails_when_it_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    """That is logged, and the connection is over all the same."""

    def fail() -> None:
        raise RuntimeError("clumsy")

    async with serving() as service, service.websocket("rawwebsocket") as client:
        session = await service.next_session()
        session.closed = fail  # type: ignore[method-assign]
        session.connection.close(DONE)
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(client.recv(), WAIT_S)
        assert service.ends == [("rawwebsocket", DONE)]
    assert "clumsy" in caplog.text


async def test_the_caller_and_its_signs_of_life() -> None:
    """A connection knows where it comes from, and when its client was last heard of."""
    async with serving() as service, service.websocket("rawwebsocket") as client:
        session = await service.next_session()
        assert session.connection.caller.address == "127.0.0.1"
        before = session.connection.last_alive_at
        await client.send("hello")
        await asyncio.wait_for(session.received.get(), WAIT_S)
        assert session.connection.last_alive_at > before


async def test_a_session_belongs_to_one_address() -> None:
    """Whoever learns the id of a session but calls from elsewhere neither receives nor sends in it."""
    async with serving() as service:
        service.door._identify = lambda remote_ip, headers: identify(headers.get("X-From", "10.0.0.1"), {})
        path, thief = service.new_session_path(), {"X-From": "10.0.0.2"}
        await service.request("POST", path + "/xhr")
        session = await service.next_session()
        session.connection.send(frame(1))
        assert (await service.request("POST", path + "/xhr", headers=thief))[2].startswith(b"c[2010,")
        assert (await service.request("POST", path + "/xhr_send", b'["a"]', thief))[0] == 404
        assert b'"number": 1' in (await service.request("POST", path + "/xhr"))[2]
        session.connection.close(CloseReason(3000, "Go away!"))
        assert (await service.request("POST", path + "/xhr", headers=thief))[2].startswith(b"c[2010,")
        assert (await service.request("POST", path + "/xhr"))[2] == b'c[3000,"Go away!"]\n'


async def test_who_has_asked_again_keeps_nobody_who_has_not() -> None:
    """Of several sessions without a request those end whose clients have been silent for long enough, and no others."""
    async with serving(disconnect_delay_s=60.0) as service:
        paths = [service.new_session_path() for _ in range(2)]
        for path in paths:
            await service.request("POST", path + "/xhr")
        first, second = [await service.next_session() for _ in paths]
        await asyncio.sleep(0.01)
        between = time.monotonic()
        first.connection.close(CloseReason(3000, "Go away!"))
        for look in service.connections.on_tick:
            look(between + 60.0)
        assert second.connection.is_closed
        assert (await service.request("POST", paths[0] + "/xhr"))[2] == b'c[3000,"Go away!"]\n'


@pytest.mark.parametrize("transport", [*STREAMING, *POLLING])
async def test_sessions_without_a_request_are_bounded(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over one TCP connection any number of sessions could be opened: beyond a bound new ones are refused until others
    are forgotten, while the old ones go on."""
    monkeypatch.setattr(polling, "MAX_WITHOUT_REQUEST", 3)
    method, suffix = {**STREAMING, **POLLING}[transport]
    async with serving(disconnect_delay_s=1.0) as service, service.client() as client:
        paths = [service.new_session_path() for _ in range(3)]
        for path in paths:
            await client.write_request("POST", path + "/xhr")
            assert (await client.read_answer())[0] == 200
        await client.write_request(method, service.new_session_path() + suffix)
        status, _, body = await client.read_answer()
        assert (status, body) == (503, b"too many sessions; try again\n")
        await client.write_request("POST", paths[0] + "/xhr_send", b'["a"]')
        assert (await client.read_head())[0] == 204
        assert len(service.all_sessions) == 3
        for session in service.all_sessions:
            await asyncio.wait_for(session.over.wait(), WAIT_S)
        await client.write_request(method, service.new_session_path() + suffix)
        assert (await client.read_head())[0] == 200


async def test_the_bus_hears_of_connections() -> None:
    """Of each that opens, and of each that is over, with its transport."""
    opened: list[str] = []

    def note(transport: str) -> None:
        opened.append(transport)

    dispatcher.connect(note, signal=bus.CONNECTION_OPENED)
    async with serving() as service:
        async with service.websocket("rawwebsocket"):
            session = await service.next_session()
            assert opened == ["rawwebsocket"]
            assert service.connections.counts == {"rawwebsocket": 1}
        await asyncio.wait_for(session.over.wait(), WAIT_S)
        assert service.ends == [("rawwebsocket", None)]
        assert service.connections.counts == {}


# -- garbage, huge and rapid input ---------------------------------------------------------------------------

GARBAGE = {
    "binary": (0x2, b'["a"]', 0x80),
    "not UTF-8": (0x1, b'["\xff"]', 0x80),
    "broken JSON": (0x1, b'["a', 0x80),
    "deep JSON": (0x1, b"[" * 100_000, 0x80),
    "huge number": (0x1, b"[" + b"9" * 100_000 + b"]", 0x80),
    "reserved opcode": (0x3, b"a", 0x80),
    "reserved bits": (0x1, b"a", 0xF0),
    "continuation of nothing": (0x0, b"a", 0x80),
    "long ping": (0x9, b"a" * 126, 0x80),
    "too big": (0x1, b" " * 1_000_001, 0x80),
}


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_garbage_over_websocket(garbage: str, caplog: pytest.LogCaptureFixture) -> None:
    """Garbage ends its own connection, is no news above info, and leaves the others alone."""
    caplog.set_level(logging.INFO)
    opcode, payload, bits = GARBAGE[garbage]
    async with serving(max_message_bytes=1_000_000) as service, service.websocket("rawwebsocket") as other:
        other_session = await service.next_session()
        async with service.client() as client:
            await client.upgrade(WEBSOCKETS["websocket"])
            session = await service.next_session()
            client.write_frame(opcode, payload, bits)
            await asyncio.wait_for(session.over.wait(), WAIT_S)
            assert session.received.empty()
        await other.send("still here")
        assert await asyncio.wait_for(other_session.received.get(), WAIT_S) == "still here"
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_message_too_big_for_websocket() -> None:
    """A message over the limit closes the connection with 1009."""
    async with serving(max_message_bytes=1000) as service, service.websocket("rawwebsocket") as client:
        await client.send("x" * 1000)
        session = await service.next_session()
        assert len(await asyncio.wait_for(session.received.get(), WAIT_S)) == 1000
        await client.send("x" * 1001)
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(client.recv(), WAIT_S)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1009, "message too big")
        assert service.ends == [("rawwebsocket", TOO_BIG)]


@pytest.mark.parametrize("body", [b"[" * 100_000, b'["\xff"]', b"\x00"])
@pytest.mark.parametrize("path", ["/xhr_send", "/jsonp_send"])
async def test_garbage_over_http(path: str, body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Garbage is refused, is no news above info, and the session lives on. A body too large: test_sockjs_sending."""
    caplog.set_level(logging.INFO)
    async with serving() as service:
        session_path = service.new_session_path()
        await service.request("POST", session_path + "/xhr")
        session = await service.next_session()
        assert (await service.request("POST", session_path + path, body))[0] == 500
        assert session.received.empty()
        assert not session.connection.is_closed
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_values_that_are_no_strings_are_their_json() -> None:
    """Clients written by hand send objects where SockJS clients send strings."""
    async with serving() as service, service.websocket("websocket") as client:
        session = await service.next_session()
        await client.send('[{"name": "join"}, 1]')
        await client.send('{"name": "leave"}')
        received = [await asyncio.wait_for(session.received.get(), WAIT_S) for _ in range(3)]
        assert received == ['{"name": "join"}', "1", '{"name": "leave"}']


async def test_rapid_input_leaves_turns_to_others() -> None:
    """While thousands of messages of one client are handled, those of another are too."""
    async with serving() as service:
        async with service.websocket("websocket") as busy, service.websocket("rawwebsocket") as other:
            sessions = [await service.next_session(), await service.next_session()]
            rapid, calm = sorted(sessions, key=lambda s: s.connection.transport, reverse=True)  # type: ignore[attr-defined]
            await busy.send(json.dumps(["x" * 16] * 50_000))
            await asyncio.wait_for(rapid.received.get(), WAIT_S)
            await other.send("y")
            assert await asyncio.wait_for(calm.received.get(), WAIT_S) == "y"
            assert rapid.received.qsize() < 49_999
            for _ in range(49_999):
                await asyncio.wait_for(rapid.received.get(), WAIT_S)
