"""XhrStreaming, EventSource, HtmlFile: frames in one long response; HTTP 1.0 and 1.1."""

from __future__ import annotations

import pytest

from tests.sockjs_protocol.client import (
    Service,
    assert_allows,
    assert_never_cached,
    assert_preflight,
    read_head,
)

ORIGIN = {"Origin": "http://page.example"}
PRELUDE = "h" * 2048 + "\n"

# -- XhrStreaming: /*/*/xhr_streaming ------------------------------------------------------------------------


def test_xhr_options(echo: Service) -> None:
    """It answers preflights."""
    assert_preflight(echo, "/abc/abc/xhr_streaming", "OPTIONS POST")


def test_xhr_transport(echo: Service) -> None:
    """After 2 KiB for the browser's buffer, a line per frame."""
    session = echo.new_session()
    with echo.stream("POST", session + "/xhr_streaming", headers=ORIGIN) as stream:
        assert stream.status == 200
        assert stream.content_type == "application/javascript;charset=UTF-8"
        assert_allows(stream, ORIGIN["Origin"])
        assert_never_cached(stream)
        assert stream.lines(2) == PRELUDE + "o\n"
        assert echo.post(session + "/xhr_send", '["x"]').status == 204
        assert stream.line() == 'a["x"]\n'


def test_xhr_response_limit(echo: Service) -> None:
    """The response ends after 4 KiB, so that the browser can forget it; the session goes on in the next one."""
    session = echo.new_session()
    message = f'["{"x" * 128}"]'
    with echo.stream("POST", session + "/xhr_streaming") as stream:
        assert stream.lines(2) == PRELUDE + "o\n"
        for _ in range(31):
            assert echo.post(session + "/xhr_send", message).status == 204
            assert stream.line() == f"a{message}\n"
        assert stream.line() == ""
    assert echo.post(session + "/xhr_send", '["next"]').status == 204
    with echo.stream("POST", session + "/xhr_streaming") as stream:
        assert stream.lines(2) == PRELUDE + 'a["next"]\n'


# -- EventSource: /*/*/eventsource ---------------------------------------------------------------------------


def test_eventsource_transport(echo: Service) -> None:
    """After an empty line for Opera, an event per frame. Leading spaces and control characters arrive."""
    session = echo.new_session()
    with echo.stream("GET", session + "/eventsource") as stream:
        assert stream.status == 200
        assert stream.content_type == "text/event-stream"
        assert_never_cached(stream)
        assert stream.lines(3) == "\r\ndata: o\r\n\r\n"
        assert echo.post(session + "/xhr_send", '["x"]').status == 204
        assert stream.lines(2) == 'data: a["x"]\r\n\r\n'
        assert echo.post(session + "/xhr_send", r'["  \u0000\n\r "]').status == 204
        assert stream.lines(2) == 'data: a["  \\u0000\\n\\r "]\r\n\r\n'


def test_eventsource_response_limit(echo: Service) -> None:
    """The response ends after 4 KiB."""
    session = echo.new_session()
    message = f'["{"x" * 4096}"]'
    with echo.stream("GET", session + "/eventsource") as stream:
        assert stream.lines(3) == "\r\ndata: o\r\n\r\n"
        assert echo.post(session + "/xhr_send", message).status == 204
        assert stream.read_to_end() == f"data: a{message}\r\n\r\n"


# -- HtmlFile: /*/*/htmlfile ---------------------------------------------------------------------------------

HTMLFILE_HEAD = """<!doctype html>
<html><head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
</head><body><h2>Don't panic!</h2>
  <script>
    document.domain = document.domain;
    var c = parent.{callback};
    c.start();
    function p(d) {{c.message(d);}};
    window.onload = function() {{c.stop();}};
  </script>"""


def test_htmlfile_transport(echo: Service) -> None:
    """A page of over 1 KiB, then a script per frame. The name of the callback stands in it unchanged."""
    session = echo.new_session()
    with echo.stream("GET", session + "/htmlfile?c=%63all_b.ack") as stream:
        assert stream.status == 200
        assert stream.content_type == "text/html;charset=UTF-8"
        assert_never_cached(stream)
        head = HTMLFILE_HEAD.format(callback="call_b.ack")
        start = stream.lines(head.count("\n") + 2)
        assert start.strip() == head
        assert len(start) > 1024
        assert stream.lines(3) == '<script>\np("o");\n</script>\r\n'
        assert echo.post(session + "/xhr_send", '["x"]').status == 204
        assert stream.lines(3) == '<script>\np("a[\\"x\\"]");\n</script>\r\n'


def test_htmlfile_no_callback(echo: Service) -> None:
    """Without the name of a callback there is no page."""
    answer = echo.get(echo.new_session() + "/htmlfile")
    assert answer.status == 500
    assert '"callback" parameter required' in answer.body


@pytest.mark.parametrize("callback", ["%20", "*", "abc(", "abc%28"])
def test_htmlfile_invalid_callback(echo: Service, callback: str) -> None:
    """The name may hold letters, digits, `-`, `_` and `.`."""
    answer = echo.get(f"{echo.new_session()}/htmlfile?c={callback}")
    assert answer.status == 500
    assert 'invalid "callback" parameter' in answer.body


def test_htmlfile_response_limit(echo: Service) -> None:
    """The response ends after 4 KiB."""
    session = echo.new_session()
    with echo.stream("GET", session + "/htmlfile?c=callback") as stream:
        while "o" not in (line := stream.line()) or not line.startswith("p("):
            pass
        assert stream.line() == "</script>\r\n"
        assert echo.post(session + "/xhr_send", f'["{"x" * 4096}"]').status == 204
        assert stream.read_to_end() == f'<script>\np("a[\\"{"x" * 4096}\\"]");\n</script>\r\n'


# -- HTTP 1.0 and 1.1 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_http_synchronous(echo: Service, version: str) -> None:
    """A short response has a length, and a connection that is kept alive takes the next request."""
    request = f"GET {{path}} HTTP/{version}\r\nHost: {{host}}\r\nConnection: Keep-Alive\r\n\r\n"
    with echo.raw(request * 2) as reader:
        for _ in range(2):
            status, headers = read_head(reader)
            assert status == 200
            assert headers["Transfer-Encoding"] is None
            assert headers["Content-Length"] == "19"
            assert headers.get("Connection", "keep-alive").lower() == "keep-alive"
            assert reader.read(19) == b"Welcome to SockJS!\n"


def test_http_10_streaming(closing: Service) -> None:
    """In HTTP 1.0 a stream ends with its connection."""
    with closing.raw(_streaming_request(closing, "1.0")) as reader:
        status, headers = read_head(reader)
        assert status == 200
        assert headers["Transfer-Encoding"] is None
        assert headers["Content-Length"] is None
        assert _read_to_end(reader) == PRELUDE + 'o\nc[3000,"Go away!"]\n'


def test_http_11_streaming(closing: Service) -> None:
    """In HTTP 1.1 a stream is chunked, a frame a chunk."""
    with closing.raw(_streaming_request(closing, "1.1")) as reader:
        status, headers = read_head(reader)
        assert status == 200
        assert headers["Transfer-Encoding"].lower() == "chunked"
        assert headers["Content-Length"] is None
        for chunk in (PRELUDE, "o\n", 'c[3000,"Go away!"]\n', ""):
            expected = f"{len(chunk):x}\r\n{chunk}\r\n".encode()
            received = b""
            while len(received) < len(expected):
                received += reader.read(len(expected) - len(received)) or b"?"
            assert received == expected


def _streaming_request(service: Service, version: str) -> str:
    return (
        f"POST {{path}}{service.new_session()}/xhr_streaming HTTP/{version}\r\n"
        "Host: {host}\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n"
    )


def _read_to_end(reader: object) -> str:
    parts = []
    while part := reader.read(65536):  # type: ignore[attr-defined]
        parts.append(part)
    return b"".join(parts).decode()
