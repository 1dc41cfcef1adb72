"""Which web pages may use the SockJS door: all, or those of the configured origins and its own."""

from __future__ import annotations

import asyncio

import pytest
from websockets.exceptions import InvalidStatus

from tests.support.sockjs_door import POLLING, STREAMING, WAIT_S, WEBSOCKETS, DoorService, serving

FRIEND = "https://friend.example"
LISTED = {"origins": (FRIEND,)}

REQUESTS = {
    "info": ("GET", "/info"),
    "preflight": ("OPTIONS", "/000/a/xhr"),
    "xhr_send": ("POST", "/000/a/xhr_send"),
    "jsonp_send": ("POST", "/000/a/jsonp_send"),
    **{name: (method, "/000/a" + path) for name, (method, path) in {**STREAMING, **POLLING}.items()},
}


async def _head(service: DoorService, name: str, headers: dict[str, str]) -> tuple[int, dict[str, str]]:
    method, path = REQUESTS[name]
    async with service.client() as client:
        await client.write_request(
            method, path.replace("/a/", f"/{name}-{len(service.all_sessions)}/"), headers=headers
        )
        return await client.read_head()


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize(
    "origin", ["https://foe.example", "null", "https://friend.example.foe.example", "http://friend.example"]
)
async def test_foreign_origins_are_refused(name: str, origin: str) -> None:
    """A page of an origin that is not listed gets 403, may not read that either, and opens no session."""
    async with serving(**LISTED) as service:
        status, headers = await _head(service, name, {"Origin": origin})
        assert status == 403
        assert "access-control-allow-origin" not in headers
        assert not service.all_sessions


@pytest.mark.parametrize("transport", WEBSOCKETS)
async def test_foreign_origins_are_refused_over_websocket(transport: str) -> None:
    """The same for WebSocket, which browsers leave to the server alone."""
    async with serving(**LISTED) as service:
        with pytest.raises(InvalidStatus) as refused:
            async with service.websocket(transport, origin="https://foe.example"):
                pass
        assert refused.value.response.status_code == 403
        assert not service.all_sessions


@pytest.mark.parametrize("transport", WEBSOCKETS)
@pytest.mark.parametrize("origin", [FRIEND, FRIEND.upper(), "http://127.0.0.1:{port}", None])
async def test_allowed_origins_over_websocket(transport: str, origin: str | None) -> None:
    """Listed origins, the server's own, and clients that are no pages come in."""
    async with serving(**LISTED) as service:
        text = origin and origin.replace("{port}", str(service.port))
        async with service.websocket(transport, origin=text):
            await asyncio.wait_for(service.next_session(), WAIT_S)


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("origin", [FRIEND, "http://127.0.0.1"])
async def test_allowed_origins(name: str, origin: str) -> None:
    """Listed origins and the server's own come in; a listed one may read the answer, which names it for caches."""
    async with serving(**LISTED) as service:
        status, headers = await _head(service, name, {"Origin": origin})
        assert status in (200, 204, 404)
        if name != "jsonp":  # a script needs no leave
            assert headers.get("access-control-allow-origin", origin) == origin
            assert headers["vary"] == "Origin"


@pytest.mark.parametrize("name", ["jsonp", "htmlfile"])
async def test_scripts_and_frames_of_foreign_pages(name: str) -> None:
    """Browsers fetch scripts and frames without `Origin`: then the page that asks is known by other headers."""
    async with serving(**LISTED) as service:
        for headers, expected in [
            ({"Referer": "https://foe.example/page"}, 403),
            ({"Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "same-site"}, 403),
            ({"Referer": f"{FRIEND}/page", "Sec-Fetch-Site": "cross-site"}, 200),
            ({"Referer": "http://127.0.0.1/page"}, 200),
            ({"Sec-Fetch-Site": "same-origin"}, 200),
            ({}, 200),
        ]:
            assert (headers, (await _head(service, name, headers))[0]) == (headers, expected)


async def test_the_iframe_stays_among_friends() -> None:
    """The iframe's requests come from our own origin, so it is the browser that must keep foreign pages from it."""
    async with serving(**LISTED) as service:
        _, headers, _ = await service.request("GET", "/iframe.html")
        assert headers["content-security-policy"] == f"frame-ancestors 'self' {FRIEND}"
    async with serving() as service:
        _, headers, _ = await service.request("GET", "/iframe.html")
        assert "content-security-policy" not in headers


@pytest.mark.parametrize("path", ["/iframe.html", "/000/a/htmlfile?c=x"])
async def test_open_to_all_but_not_in_frames(path: str) -> None:
    """While all pages may come in, those that may put ours into a frame can be limited; listed origins go before."""

    async def policy(**options: object) -> str | None:
        async with serving(**options) as service, service.client() as client:
            await client.write_request("GET", path)
            return (await client.read_head())[1].get("content-security-policy")

    pages = ("'self'", "http://localhost:*")
    assert await policy(frame_ancestors=pages) == "frame-ancestors 'self' http://localhost:*"
    assert await policy(frame_ancestors=()) == "frame-ancestors 'none'"
    assert await policy() is None
    assert await policy(frame_ancestors=pages, **LISTED) == f"frame-ancestors 'self' {FRIEND}"


async def test_what_a_form_is_answered_may_be_framed_by_those_who_may_come_in() -> None:
    """JSONP clients send by a form, into a frame of their page. The answer can do nothing there, and is no script."""

    async def headers(**options: object) -> dict[str, str]:
        async with serving(**options) as service:
            path = service.new_session_path()
            await service.request("GET", path + "/jsonp?c=x")
            status, headers, body = await service.request("POST", path + "/jsonp_send", b'["a"]')
            assert (status, body) == (200, b"ok")
            return headers

    for options, policy in (({}, "default-src 'none'"), (LISTED, f"frame-ancestors 'self' {FRIEND}")):
        answered = await headers(**options)
        assert answered["content-security-policy"] == policy
        assert answered["x-content-type-options"] == "nosniff"


async def test_a_script_of_a_foreign_page_gains_nothing() -> None:
    """A page's script is fetched without saying from where, and looks like one of this machine; what the page then
    sends says it, and is not taken in that session. A page of another port of this machine is no foreigner."""
    async with serving() as service:
        path = service.new_session_path()
        await service.request("GET", path + "/jsonp?c=x")
        session = await service.next_session()
        assert session.connection.caller.is_loopback
        for origin in ("https://foe.example", "null"):
            for send in ("/xhr_send", "/jsonp_send"):
                answer = await service.request("POST", path + send, b'["a"]', {"Origin": origin})
                assert answer[0] == 404
        assert session.received.empty()
        local = {"Origin": "http://localhost:3000"}
        assert (await service.request("POST", path + "/jsonp_send", b'["b"]', local))[0] == 200
        assert session.received.get_nowait() == "b"


async def test_open_to_all() -> None:
    """With `*` any page comes in; who has no origin is answered `*`, but never together with credentials."""
    async with serving() as service:
        for origin in ("https://foe.example", "null"):
            status, headers = await _head(service, "xhr", {"Origin": origin})
            assert (status, headers["access-control-allow-origin"]) == (200, origin)
            assert headers["access-control-allow-credentials"] == "true"
            assert headers["vary"] == "Origin"
        status, headers = await _head(service, "info", {})
        assert (status, headers["access-control-allow-origin"]) == (200, "*")
        assert "access-control-allow-credentials" not in headers


async def test_a_page_may_read_that_there_is_no_such_method() -> None:
    """If it may come in."""
    async with serving(**LISTED) as service:
        for origin, status, allowed in ((FRIEND, 405, FRIEND), ("https://foe.example", 403, None)):
            for path in ("/info", "/000/a/xhr", "/000/a/xhr_send"):
                async with service.client() as client:
                    await client.write_request("PUT", path, headers={"Origin": origin})
                    answered, headers = await client.read_head()
                assert (answered, headers.get("access-control-allow-origin")) == (status, allowed)
