"""Tests of `read_head` in server/transports/upgrades.py: what goes the short way, what is left to the common one."""

from __future__ import annotations

import pytest

from server.transports.upgrades import MAX_HEAD_BYTES, read_head

PLAIN = {
    "Host": "127.0.0.1:8587",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def head(
    fields: dict[str, str | None] | None = None, *, line: str = "GET /ws/v2 HTTP/1.1", more: str = ""
) -> bytes:
    """A plain head with these fields instead; None: without it."""
    said = {**PLAIN, **(fields or {})}
    lines = [line, *(f"{name}: {value}" for name, value in said.items() if value is not None)]
    return ("\r\n".join(lines) + "\r\n" + more + "\r\n").encode("latin-1")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(head(), id="least"),
        pytest.param(head({"Connection": "keep-alive, Upgrade"}), id="connection-list"),
        pytest.param(head({"Upgrade": "WebSocket", "Connection": "upgrade"}), id="letter-case"),
        pytest.param(head({"Host": "[::1]:8587"}), id="ipv6-host"),
        pytest.param(head({"Origin": "https://example.org:8443"}), id="origin"),
        pytest.param(head({"Origin": "null"}), id="opaque-origin"),
        pytest.param(head({"Origin": "http://a.example", "Sec-Fetch-Site": "cross-site"}), id="cross-site"),
        pytest.param(head({"X-Forwarded-For": "192.0.2.1, 10.0.0.1"}), id="by-a-proxy"),
        pytest.param(head({"Sec-WebSocket-Extensions": "permessage-deflate"}), id="extensions"),
        pytest.param(head({"Cookie": "a=b; c=d"}), id="cookie"),
        pytest.param(head({"Content-Length": "0"}), id="length-0"),
        pytest.param(head(more="".join(f"X-{n}: y\r\n" for n in range(95))), id="100-fields"),
    ],
)
def test_a_plain_request_goes_the_short_way(data: bytes) -> None:
    """Whatever follows it is not part of it."""
    found = read_head(data + b"\x81\x80\0\0\0\0")
    assert found is not None
    read, size = found
    assert size == len(data)
    assert (read.path, read.get("upgrade", "").lower()) == ("/ws/v2", "websocket")


def test_names_are_found_in_any_letter_case() -> None:
    """And are quoted as the common way does."""
    found = read_head(head({"x-FORWARDED-for": "192.0.2.1"}, line="GET /ws/v2?a=b HTTP/1.1"))
    assert found is not None
    read, _ = found
    assert read.get("X-Forwarded-For") == read.get("x-forwarded-for") == "192.0.2.1"
    assert "X-Forwarded-For" in list(read)
    assert (read.path, read.uri, read.host) == ("/ws/v2", "/ws/v2?a=b", PLAIN["Host"])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(head()[:-1], id="unfinished"),
        pytest.param(head(line="POST /ws/v2 HTTP/1.1"), id="method"),
        pytest.param(head(line="GET /ws/v2 HTTP/1.0"), id="version-1.0"),
        pytest.param(head(line="GET /ws/v2  HTTP/1.1"), id="two-spaces"),
        pytest.param(head(line="GET http://a/ws/v2 HTTP/1.1"), id="absolute-form"),
        pytest.param(head(line="GET /ws/%762 HTTP/1.1"), id="escaped-path"),
        pytest.param(b"\r\n" + head(), id="empty-line-first"),
        pytest.param(head().replace(b"\r\n", b"\n"), id="bare-line-feeds"),
        pytest.param(head(more=" folded\r\n"), id="folded"),
        pytest.param(head(more="no colon\r\n"), id="no-colon"),
        pytest.param(head(more="Spaced : x\r\n"), id="space-before-colon"),
        pytest.param(head(more="X: \x00\r\n"), id="zero-byte"),
        pytest.param(head(more="X: \xe9\r\n"), id="not-ascii"),
        pytest.param(head(more="host: other\r\n"), id="two-hosts"),
        pytest.param(head(more="X: 1\r\nx: 2\r\n"), id="a-field-twice"),
        pytest.param(head(more="".join(f"X-{n}: y\r\n" for n in range(96))), id="many-fields"),
        pytest.param(head({"Host": None}), id="no-host"),
        pytest.param(head({"Host": "a b"}), id="broken-host"),
        pytest.param(head({"Upgrade": None}), id="no-upgrade"),
        pytest.param(head({"Upgrade": "h2c"}), id="other-upgrade"),
        pytest.param(head({"Connection": "keep-alive"}), id="no-connection-option"),
        pytest.param(head({"Sec-WebSocket-Version": "8"}), id="old-version"),
        pytest.param(head({"Sec-WebSocket-Key": None}), id="no-key"),
        pytest.param(head({"Sec-WebSocket-Key": "short"}), id="broken-key"),
        pytest.param(head({"Content-Length": "1"}), id="with-a-body"),
        pytest.param(head({"Transfer-Encoding": "chunked"}), id="with-chunks"),
        pytest.param(head({"Expect": "100-continue"}), id="expects"),
        pytest.param(head({"Origin": "http://["}), id="broken-origin"),
        pytest.param(head({"Origin": ""}), id="empty-origin"),
        pytest.param(head({"Sec-Fetch-Site": "cross-site"}), id="cross-site-without-origin"),
    ],
)
def test_whatever_is_not_plain_goes_the_common_way(data: bytes) -> None:
    """Where it is looked at closely, and refused in words."""
    assert read_head(data) is None


def test_a_head_longer_than_is_looked_at_goes_the_common_way() -> None:
    """Its end is not among what was looked at."""
    assert read_head(head({"Cookie": "x" * MAX_HEAD_BYTES})[:MAX_HEAD_BYTES]) is None
