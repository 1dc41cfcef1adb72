"""Static URLs: greeting, iframe page, info."""

from __future__ import annotations

import json
import re

import pytest

from tests.sockjs_protocol.client import (
    Service,
    assert_allows,
    assert_cached,
    assert_never_cached,
    assert_preflight,
)

# -- Greeting url: / -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/"])
def test_greeting(echo: Service, path: str) -> None:
    """The base URL greets, with and without a slash at its end, and sets no cookie."""
    answer = echo.get(path)
    assert (answer.status, answer.body) == (200, "Welcome to SockJS!\n")
    assert answer.content_type == "text/plain;charset=UTF-8"
    assert answer.headers["Set-Cookie"] is None


@pytest.mark.parametrize("path", ["/a", "/a.html", "//", "///", "/a/a", "/a/a/", "/a/"])
def test_unknown_urls(echo: Service, path: str) -> None:
    """Anything else near the base URL is not found."""
    assert echo.get(path).status == 404


# -- IFrame page: /iframe*.html ------------------------------------------------------------------------------

IFRAME_PAGE = re.compile(
    r"<!DOCTYPE html>\s*<html>\s*<head>\s*"
    r'<meta http-equiv="X-UA-Compatible" content="IE=edge" />\s*'
    r'<meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />\s*'
    r'<script src="(?P<client>(/|http)[^"]*)"></script>\s*'
    r"<script>\s*document\.domain = document\.domain;\s*SockJS\.bootstrap_iframe\(\);\s*</script>\s*"
    r"</head>\s*<body>\s*<h2>Don't panic!</h2>\s*"
    r"<p>This is a SockJS hidden iframe\. It's used for cross domain magic\.</p>\s*</body>\s*</html>\s*"
)


@pytest.mark.parametrize(
    "path",
    [
        "/iframe.html",
        # by version
        "/iframe-a.html",
        "/iframe-.html",
        "/iframe-0.1.2.html",
        "/iframe-0.1.2abc-dirty.2144.html",
        # with a query that keeps it out of caches
        "/iframe-a.html?t=1234",
        "/iframe-0.1.2.html?t=123414",
        "/iframe-0.1.2abc-dirty.2144.html?t=qweqweq123",
    ],
)
def test_iframe_page(echo: Service, path: str) -> None:
    """The iframe page loads the client and starts it, for any version; it is cached, and sets no cookie."""
    answer = echo.get(path)
    assert answer.status == 200
    assert answer.content_type == "text/html;charset=UTF-8"
    assert IFRAME_PAGE.fullmatch(answer.body)
    assert answer.headers["ETag"]
    assert_cached(answer)
    assert answer.headers["Set-Cookie"] is None


@pytest.mark.parametrize(
    "path",
    ["/iframe.htm", "/iframe", "/IFRAME.HTML", "/IFRAME", "/iframe.HTML", "/iframe.xml", "/iframe-/.html"],
)
def test_no_iframe_page(echo: Service, path: str) -> None:
    """Names that only resemble it are not found."""
    assert echo.get(path).status == 404


def test_iframe_cacheability(echo: Service) -> None:
    """Its ETag stays, and who has the page is told so and no more."""
    etag = echo.get("/iframe.html").headers["ETag"]
    assert etag
    assert echo.get("/iframe.html").headers["ETag"] == etag
    answer = echo.get("/iframe.html", {"If-None-Match": etag})
    assert (answer.status, answer.body, answer.content_type) == (304, "", None)


# -- Info test: /info ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["http://page.example", None])
def test_info(echo: Service, origin: str | None) -> None:
    """Info tells what the server can, is never cached, and may be read by pages of any origin."""
    answer = echo.get("/info", {"Origin": origin} if origin else {})
    assert answer.status == 200
    assert answer.content_type == "application/json;charset=UTF-8"
    assert answer.headers["Set-Cookie"] is None
    assert_never_cached(answer)
    assert_allows(answer, origin)
    info = json.loads(answer.body)
    assert info["websocket"] is True
    assert info["cookie_needed"] in (True, False)
    assert info["origins"] == ["*:*"]
    assert type(info["entropy"]) is int


def test_info_entropy(echo: Service) -> None:
    """Its random number differs each time, and has at most 32 bits."""
    entropies = {json.loads(echo.get("/info").body)["entropy"] for _ in range(8)}
    assert len(entropies) > 1
    assert all(0 <= entropy < 2**32 for entropy in entropies)


def test_info_options(echo: Service) -> None:
    """Info answers preflights, those of pages without an origin too."""
    assert_preflight(echo, "/info", "OPTIONS GET")


def test_info_without_websocket(echo_without_websocket: Service) -> None:
    """A service without WebSocket says so, and has none."""
    assert json.loads(echo_without_websocket.get("/info").body)["websocket"] is False
    assert echo_without_websocket.get("/000/a/websocket").status == 404
    assert echo_without_websocket.get("/websocket").status == 404
