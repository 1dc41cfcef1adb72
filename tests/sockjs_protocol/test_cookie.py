"""JSESSIONID cookie: all transports but WebSocket help load balancers that stick to it."""

from __future__ import annotations

import json

import pytest

from tests.sockjs_protocol.client import FORM, Answer, Service, Stream


def cookie(answer: Answer | Stream) -> list[str]:
    """The cookie of an answer and its path."""
    return [part.strip() for part in answer.headers["Set-Cookie"].split(";")][:2]


def test_info(echo_with_cookie: Service) -> None:
    """Info says that the cookie is needed, and does not set it."""
    answer = echo_with_cookie.get("/info")
    assert json.loads(answer.body)["cookie_needed"] is True
    assert answer.headers["Set-Cookie"] is None


def test_xhr(echo_with_cookie: Service) -> None:
    """A poll sets the cookie, or sends back the one it came with."""
    answer = echo_with_cookie.post(echo_with_cookie.new_session() + "/xhr")
    assert answer.body == "o\n"
    assert [part.lower() for part in cookie(answer)] == ["jsessionid=dummy", "path=/"]
    session = echo_with_cookie.new_session()
    answer = echo_with_cookie.post(session + "/xhr", headers={"Cookie": "JSESSIONID=abcdef"})
    assert cookie(answer)[0] == "JSESSIONID=abcdef"


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/xhr_streaming"), ("GET", "/eventsource"), ("GET", "/htmlfile?c=%63allback")],
)
def test_streaming(echo_with_cookie: Service, method: str, path: str) -> None:
    """So does a stream."""
    with echo_with_cookie.stream(method, echo_with_cookie.new_session() + path) as stream:
        assert stream.status == 200
        assert cookie(stream)[0] == "JSESSIONID=dummy"


def test_jsonp(echo_with_cookie: Service) -> None:
    """So do both halves of jsonp."""
    session = echo_with_cookie.new_session()
    answer = echo_with_cookie.get(session + "/jsonp?c=%63allback")
    assert answer.body == '/**/callback("o");\r\n'
    assert cookie(answer)[0] == "JSESSIONID=dummy"
    answer = echo_with_cookie.post(session + "/jsonp_send", "d=%5B%22x%22%5D", FORM)
    assert answer.body == "ok"
    assert cookie(answer)[0] == "JSESSIONID=dummy"


def test_not_by_default(echo: Service) -> None:
    """A service that does not need it sets no cookie."""
    assert echo.post(echo.new_session() + "/xhr").headers["Set-Cookie"] is None
