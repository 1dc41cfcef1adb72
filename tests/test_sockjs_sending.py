"""The requests by which clients send over HTTP: how much of a body is taken, and what is read out of it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.support.sockjs_door import WAIT_S, DoorService, RawClient, RecordingSession, serving

LIMIT_BYTES = 100_000
SEND = ["/xhr_send", "/jsonp_send"]


PAGE = "https://page.example"


async def _open_session(service: DoorService, **headers: str) -> tuple[RecordingSession, str]:
    path = service.new_session_path()
    await service.request("POST", path + "/xhr", headers=headers)
    return await service.next_session(), path


async def _begin(client: RawClient, path: str, *headers: str) -> None:
    """Send the head of a request, and nothing of its body."""
    lines = [f"POST /socket{path} HTTP/1.1", "Host: 127.0.0.1", *headers]
    client.writer.write("\r\n".join([*lines, "", ""]).encode())
    await client.writer.drain()


@pytest.mark.parametrize("send", SEND)
async def test_a_body_of_the_limit_is_taken(send: str) -> None:
    """The limit itself is allowed."""
    body = b'["' + b"x" * (LIMIT_BYTES - 4) + b'"]'
    async with serving(max_message_bytes=LIMIT_BYTES) as service:
        session, path = await _open_session(service)
        assert (await service.request("POST", path + send, body))[0] in (200, 204)
        assert session.received.get_nowait() == "x" * (LIMIT_BYTES - 4)


@pytest.mark.parametrize(
    ("has_session", "headers", "status"),
    [
        (False, ("Content-Length: 5",), 404),
        (False, ("Content-Length: 0",), 404),
        (True, (f"Content-Length: {LIMIT_BYTES + 1}",), 413),
    ],
    ids=["no session", "no session, no body", "too large"],
)
@pytest.mark.parametrize("send", SEND)
async def test_what_is_refused_unread_says_that_the_connection_ends(
    send: str, has_session: bool, headers: tuple[str, ...], status: int
) -> None:
    """A proxy, or a client, would send its next request over it, and hear nothing."""
    async with serving(max_message_bytes=LIMIT_BYTES) as service:
        path = (await _open_session(service))[1] if has_session else service.new_session_path()
        async with service.client() as client:
            await _begin(client, path + send, *headers)
            answered, answer, _ = await client.read_answer()
            assert (answered, answer["connection"]) == (status, "close")
            assert await client.read_to_end() == b""


@pytest.mark.parametrize("send", SEND)
async def test_what_is_refused_when_it_has_been_read_leaves_the_connection_open(send: str) -> None:
    """As what is taken does: the next request goes over it."""
    async with serving(max_message_bytes=LIMIT_BYTES) as service:
        _, path = await _open_session(service)
        async with service.client() as client:
            for _ in range(2):
                await _begin(client, path + send, "Content-Length: 1")
                client.writer.write(b"x")
                status, answer, _ = await client.read_answer()
                assert status == 500 and "connection" not in answer


@pytest.mark.parametrize("size", [LIMIT_BYTES + 1, 10**12])
@pytest.mark.parametrize("send", SEND)
async def test_a_declared_body_over_the_limit_is_refused_unread(
    send: str, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer comes before the body; it is no news above info, a page may read it, and the session lives on."""
    caplog.set_level(logging.INFO)
    async with serving(max_message_bytes=LIMIT_BYTES) as service:
        session, path = await _open_session(service, Origin=PAGE)
        async with service.client() as client:
            await _begin(client, path + send, f"Content-Length: {size}", f"Origin: {PAGE}")
            status, headers, body = await client.read_answer()
            assert (status, body) == (413, b"Payload too big.")
            assert headers["access-control-allow-origin"] == PAGE
            assert await client.read_to_end() == b""
        assert not session.connection.is_closed
        await _wait_for_no_request()
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("send", SEND)
async def test_a_chunked_body_over_the_limit_is_refused(send: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where no length was declared the answer comes as soon as the limit is passed, whatever would follow."""
    caplog.set_level(logging.INFO)
    async with serving(max_message_bytes=LIMIT_BYTES) as service:
        _, path = await _open_session(service)
        async with service.client() as client:
            await _begin(client, path + send, "Transfer-Encoding: chunked")
            client.writer.write(b"%x\r\n" % (LIMIT_BYTES + 1) + b"x" * (LIMIT_BYTES + 1))
            assert (await client.read_answer())[0] == 413
        await _wait_for_no_request()
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_chunked_body_within_the_limit_is_taken() -> None:
    """How a body is cut makes no difference."""
    async with serving(max_message_bytes=LIMIT_BYTES) as service:
        session, path = await _open_session(service)
        async with service.client() as client:
            await _begin(client, path + "/xhr_send", "Transfer-Encoding: chunked")
            client.writer.write(b'2\r\n["\r\n3\r\na"]\r\n0\r\n\r\n')
            assert (await client.read_head())[0] == 204
        assert session.received.get_nowait() == "a"


@pytest.mark.parametrize("length", ["-1", "many", "9" * 5000])
async def test_a_length_that_is_none(length: str, caplog: pytest.LogCaptureFixture) -> None:
    """A length that is no number is refused, and no news above info."""
    caplog.set_level(logging.INFO)
    async with serving(max_message_bytes=LIMIT_BYTES) as service, service.client() as client:
        _, path = await _open_session(service)
        await _begin(client, path + "/xhr_send", f"Content-Length: {length}")
        assert b" 400 " in await client.read_to_end()
        await _wait_for_no_request()
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_a_client_that_goes_away_amid_its_message() -> None:
    """Nothing waits for the rest, and nothing is handled."""
    async with serving() as service:
        session, path = await _open_session(service)
        async with service.client() as client:
            await _begin(client, path + "/xhr_send", "Content-Length: 100")
            client.writer.write(b'["a"]')
            await client.writer.drain()
            await service.request("GET", "/info")
        await _wait_for_no_request()
        assert session.received.empty()


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",
        "application/x-www-form-urlencoded; charset=UTF-8",
        "Application/X-WWW-Form-URLencoded ;charset=utf-8",
    ],
)
async def test_forms(content_type: str) -> None:
    """A form is known by its media type, whatever its parameters and letter case (RFC 9110 section 8.3.1)."""
    async with serving() as service:
        session, path = await _open_session(service)
        headers = {"Content-Type": content_type}
        answer = await service.request("POST", path + "/jsonp_send", b"d=%5B%22a+b%22%5D", headers)
        assert (answer[0], answer[2]) == (200, b"ok")
        assert session.received.get_nowait() == "a b"


async def _wait_for_no_request() -> None:
    """Until no request is being handled any more."""
    async with asyncio.timeout(WAIT_S):
        while any("_execute" in repr(task.get_coro()) for task in asyncio.all_tasks()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
