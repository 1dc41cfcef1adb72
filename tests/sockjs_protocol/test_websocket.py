"""WebSocket: /*/*/websocket with SockJS frames, and raw at /websocket."""

from __future__ import annotations

import pytest
from websockets.exceptions import ConnectionClosed

from tests.sockjs_protocol.client import TIMEOUT_S, Service, read_head

# -- WebSocket protocols: /*/*/websocket ---------------------------------------------------------------------


def test_http_method(echo: Service) -> None:
    """A plain GET is refused."""
    assert echo.get("/0/0/websocket").status == 400


def test_invalid_connection_header(echo: Service) -> None:
    """So is one whose Connection header a proxy has rewritten."""
    answer = echo.get("/0/0/websocket", {"Upgrade": "WebSocket", "Connection": "close"})
    assert answer.status == 400


@pytest.mark.parametrize("headers", [{"Upgrade": "WebSocket", "Connection": "Upgrade"}, {}])
def test_invalid_method(echo: Service, headers: dict[str, str]) -> None:
    """Any other method is not allowed, and the answer says which one is."""
    answer = echo.post("/0/0/websocket", headers=headers)
    assert (answer.status, answer.body, answer.content_type) == (405, "", None)
    assert answer.headers["Allow"]


@pytest.mark.parametrize("connection", ["Upgrade", "keep-alive, Upgrade"])
def test_headers(echo: Service, connection: str) -> None:
    """The handshake is that of RFC 6455; Firefox wants to keep the connection alive as well."""
    request = (
        f"GET {{path}}{echo.new_session()}/websocket HTTP/1.1\r\nHost: {{host}}\r\n"
        f"Upgrade: websocket\r\nConnection: {connection}\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with echo.raw(request) as reader:
        status, headers = read_head(reader)
        assert status == 101
        assert headers["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3
        assert headers["Connection"].lower() == "upgrade"
        assert headers["Upgrade"].lower() == "websocket"
        assert headers["Content-Length"] is None


def test_transport(echo: Service) -> None:
    """It opens with `o`, and answers in `a` frames."""
    with echo.websocket(echo.new_session() + "/websocket") as websocket:
        assert websocket.recv(TIMEOUT_S) == "o"
        websocket.send('["a"]')
        assert websocket.recv(TIMEOUT_S) == 'a["a"]'


def test_single_message(echo: Service) -> None:
    """A message may also come without an array around it."""
    with echo.websocket(echo.new_session() + "/websocket") as websocket:
        assert websocket.recv(TIMEOUT_S) == "o"
        websocket.send('"a"')
        assert websocket.recv(TIMEOUT_S) == 'a["a"]'


def test_close(closing: Service) -> None:
    """After the close frame the socket closes, with the same code and reason."""
    with closing.websocket(closing.new_session() + "/websocket") as websocket:
        assert websocket.recv(TIMEOUT_S) == "o"
        assert websocket.recv(TIMEOUT_S) == 'c[3000,"Go away!"]'
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(TIMEOUT_S)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (3000, "Go away!")


def test_empty_frames(echo: Service) -> None:
    """Empty messages, and frames with no messages, are ignored."""
    with echo.websocket(echo.new_session() + "/websocket") as websocket:
        assert websocket.recv(TIMEOUT_S) == "o"
        websocket.send("")
        websocket.send("[]")
        websocket.send('["a"]')
        assert websocket.recv(TIMEOUT_S) == 'a["a"]'


def test_reused_session_id(echo: Service) -> None:
    """Two sockets may have the same session id, at the same time or one after the other."""
    path = echo.new_session() + "/websocket"
    with echo.websocket(path) as first, echo.websocket(path) as second:
        for websocket, message in ((first, "a"), (second, "b")):
            assert websocket.recv(TIMEOUT_S) == "o"
            websocket.send(f'["{message}"]')
            assert websocket.recv(TIMEOUT_S) == f'a["{message}"]'
    with echo.websocket(path) as third:
        assert third.recv(TIMEOUT_S) == "o"


def test_broken_json(echo: Service) -> None:
    """Broken JSON ends the connection abruptly."""
    with echo.websocket(echo.new_session() + "/websocket") as websocket:
        assert websocket.recv(TIMEOUT_S) == "o"
        websocket.send('["a')
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(TIMEOUT_S)
    assert closed.value.rcvd is None


# The official suite also has the handshake of draft Hixie-76 through haproxy, which browsers left behind in 2011.


# -- Raw WebSocket url: /websocket ---------------------------------------------------------------------------


def test_raw_transport(echo: Service) -> None:
    """A message is what the frame holds, both ways."""
    with echo.websocket("/websocket") as websocket:
        websocket.send("Hello world!\uffff")
        assert websocket.recv(TIMEOUT_S) == "Hello world!\uffff"


def test_raw_close(closing: Service) -> None:
    """Closing shows in the WebSocket close frame only."""
    with closing.websocket("/websocket") as websocket:
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(TIMEOUT_S)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (3000, "Go away!")
