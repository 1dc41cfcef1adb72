"""XhrPolling: /*/*/xhr, /*/*/xhr_send; JsonpPolling: /*/*/jsonp, /*/*/jsonp_send."""

from __future__ import annotations

import json
import sys

import pytest

from tests.sockjs_protocol.client import FORM, Service, assert_allows, assert_never_cached, assert_preflight

ORIGIN = {"Origin": "http://page.example"}

# -- XhrPolling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/xhr", "/xhr_send"])
def test_xhr_options(echo: Service, path: str) -> None:
    """Receiving and sending answer preflights."""
    assert_preflight(echo, "/abc/abc" + path, "OPTIONS POST")


def test_xhr_transport(echo: Service) -> None:
    """Answers are scripts that no cache keeps and other origins may read; sending is answered by an empty text."""
    session = echo.new_session()
    answer = echo.post(session + "/xhr", headers=ORIGIN)
    assert (answer.status, answer.body) == (200, "o\n")
    assert answer.content_type == "application/javascript;charset=UTF-8"
    assert_allows(answer, ORIGIN["Origin"])
    assert_never_cached(answer)

    answer = echo.post(session + "/xhr_send", '["x"]', ORIGIN)
    assert (answer.status, answer.body) == (204, "")
    assert answer.content_type == "text/plain;charset=UTF-8"
    assert_allows(answer, ORIGIN["Origin"])
    assert_never_cached(answer)

    answer = echo.post(session + "/xhr")
    assert (answer.status, answer.body) == (200, 'a["x"]\n')


def test_xhr_invalid_json(echo: Service) -> None:
    """Broken or missing JSON is refused, and the session lives on."""
    session = echo.new_session()
    assert echo.post(session + "/xhr").body == "o\n"
    answer = echo.post(session + "/xhr_send", '["x')
    assert answer.status == 500
    assert "Broken JSON encoding." in answer.body
    answer = echo.post(session + "/xhr_send", "")
    assert answer.status == 500
    assert "Payload expected." in answer.body
    assert echo.post(session + "/xhr_send", '["a"]').status == 204
    assert echo.post(session + "/xhr").body == 'a["a"]\n'


def test_xhr_content_types(echo: Service) -> None:
    """Messages are taken whatever the content type says."""
    session = echo.new_session()
    assert echo.post(session + "/xhr").body == "o\n"
    plain = ["text/plain", "T", "application/json", "application/xml", "", "text/xml"]
    with_charset = ["application/json; charset=utf-8", "text/xml; charset=utf-8"]
    for content_type in plain + with_charset:
        answer = echo.post(session + "/xhr_send", '["a"]', {"Content-Type": content_type})
        assert (answer.status, answer.body) == (204, "")
    assert echo.post(session + "/xhr").body == 'a["a","a","a","a","a","a","a","a"]\n'


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ({"Access-Control-Request-Headers": "a, b, c"}, "a, b, c"),
        ({"Access-Control-Request-Headers": ""}, None),
        ({}, None),
    ],
)
def test_xhr_request_headers(echo: Service, asked: dict[str, str], allowed: str | None) -> None:
    """A preflight that asks for headers gets them."""
    answer = echo.options(echo.new_session() + "/xhr", ORIGIN["Origin"], asked)
    assert_allows(answer, ORIGIN["Origin"])
    assert answer.headers["Access-Control-Allow-Headers"] == allowed


def test_xhr_empty_frame(echo: Service) -> None:
    """A frame with no messages is a client's heartbeat."""
    session = echo.new_session()
    assert echo.post(session + "/xhr").body == "o\n"
    assert echo.post(session + "/xhr_send", "[]").status == 204
    assert echo.post(session + "/xhr_send", '["a"]').status == 204
    assert echo.post(session + "/xhr").body == 'a["a"]\n'


# -- JsonpPolling --------------------------------------------------------------------------------------------


def test_jsonp_transport(echo: Service) -> None:
    """A frame is a script that calls back with it; sending is a form, answered by `ok`."""
    session = echo.new_session()
    answer = echo.get(session + "/jsonp?c=%63allback")
    assert (answer.status, answer.body) == (200, '/**/callback("o");\r\n')
    assert answer.content_type == "application/javascript;charset=UTF-8"
    assert_never_cached(answer)

    answer = echo.post(session + "/jsonp_send", "d=%5B%22x%22%5D", FORM)
    assert (answer.status, answer.body) == (200, "ok")
    assert answer.content_type == "text/plain;charset=UTF-8"
    assert_never_cached(answer)

    answer = echo.get(session + "/jsonp?c=%63allback")
    assert (answer.status, answer.body) == (200, '/**/callback("a[\\"x\\"]");\r\n')


def test_jsonp_no_callback(echo: Service) -> None:
    """Without the name of a callback there is no answer."""
    answer = echo.get(echo.new_session() + "/jsonp")
    assert answer.status == 500
    assert '"callback" parameter required' in answer.body


@pytest.mark.parametrize("callback", ["%20", "*", "abc(", "abc%28"])
def test_jsonp_invalid_callback(echo: Service, callback: str) -> None:
    """The name may hold letters, digits, `-`, `_` and `.`."""
    answer = echo.get(f"{echo.new_session()}/jsonp?c={callback}")
    assert answer.status == 500
    assert 'invalid "callback" parameter' in answer.body


def test_jsonp_invalid_json(echo: Service) -> None:
    """Broken or missing JSON is refused, and the session lives on."""
    session = echo.new_session()
    assert echo.get(session + "/jsonp?c=x").body == '/**/x("o");\r\n'
    answer = echo.post(session + "/jsonp_send", "d=%5B%22x", FORM)
    assert answer.status == 500
    assert "Broken JSON encoding." in answer.body
    for body in ("", "d=", "p=p"):
        answer = echo.post(session + "/jsonp_send", body, FORM)
        assert answer.status == 500
        assert "Payload expected." in answer.body
    assert echo.post(session + "/jsonp_send", "d=%5B%22b%22%5D", FORM).body == "ok"
    assert echo.get(session + "/jsonp?c=x").body == '/**/x("a[\\"b\\"]");\r\n'


def test_jsonp_content_types(echo: Service) -> None:
    """Only a form is decoded as one."""
    session = echo.new_session()
    assert echo.get(session + "/jsonp?c=x").body == '/**/x("o");\r\n'
    assert echo.post(session + "/jsonp_send", "d=%5B%22abc%22%5D", FORM).body == "ok"
    assert echo.post(session + "/jsonp_send", '["%61bc"]', {"Content-Type": "text/plain"}).body == "ok"
    assert echo.get(session + "/jsonp?c=x").body == '/**/x("a[\\"abc\\",\\"%61bc\\"]");\r\n'


def test_jsonp_close(closing: Service) -> None:
    """A closed session says so, as often as it is asked."""
    session = closing.new_session()
    assert closing.get(session + "/jsonp?c=x").body == '/**/x("o");\r\n'
    for _ in range(2):
        assert closing.get(session + "/jsonp?c=x").body == '/**/x("c[3000,\\"Go away!\\"]");\r\n'


def test_jsonp_empty_frame(echo: Service) -> None:
    """A frame with no messages is a client's heartbeat."""
    session = echo.new_session()
    assert echo.get(session + "/jsonp?c=x").body == '/**/x("o");\r\n'
    assert echo.post(session + "/jsonp_send", "d=%5B%5D", FORM).body == "ok"
    assert echo.post(session + "/jsonp_send", "d=%5B%22x%22%5D", FORM).body == "ok"
    assert echo.get(session + "/jsonp?c=x").body == '/**/x("a[\\"x\\"]");\r\n'


# -- JSON Unicode Encoding -----------------------------------------------------------------------------------

# What some browser or transport garbles unless the server escapes it.
GARBLED = [*range(0x200C, 0x2010), *range(0x2028, 0x2030), *range(0x2060, 0x2070), *range(0xFFF0, 0x10000)]


def test_server_encodes(echo: Service) -> None:
    """The server escapes at least what would be garbled on the way."""
    session = echo.new_session()
    echo.post(session + "/xhr")
    sent = "".join(map(chr, GARBLED))
    assert echo.post(session + "/xhr_send", f'["{sent}"]').status == 204
    escaped = "".join(f"\\u{code:04x}" for code in GARBLED)
    assert echo.post(session + "/xhr").body == f'a["{escaped}"]\n'


def test_server_decodes(echo: Service) -> None:
    """The server takes any character escaped by the client, surrogates without a partner too."""
    session = echo.new_session()
    echo.post(session + "/xhr")
    escaped = "".join(f"\\u{code:04x}" for code in range(0x10000))
    assert echo.post(session + "/xhr_send", f'["{escaped}"]').status == 204
    assert json.loads(echo.post(session + "/xhr").body[1:]) == json.loads(f'["{escaped}"]')


def test_any_character_as_it_is(echo: Service) -> None:
    """Characters beyond 16 bits come back as they went in, unescaped UTF-8 on the way in."""
    session = echo.new_session()
    echo.post(session + "/xhr")
    sent = "".join(map(chr, range(0x10000, sys.maxunicode, 0x101)))
    assert echo.post(session + "/xhr_send", f'["{sent}"]').status == 204
    assert json.loads(echo.post(session + "/xhr").body[1:]) == [sent]
