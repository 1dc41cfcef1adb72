"""Session URLs; protocol and framing; handling close: by xhr-polling and xhr-streaming, as the protocol does."""

from __future__ import annotations

import uuid

import pytest

from tests.sockjs_protocol.client import Service

STILL_OPEN = 'c[2010,"Another connection still open"]\n'
GO_AWAY = 'c[3000,"Go away!"]\n'
PRELUDE = "h" * 2048 + "\n"

# -- Session URLs: /<server>/<session> -----------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["/a/{}", "/_/_{}", "/1/{}", "/abcdefgh_i-j%20/abcdefg_i-j%20{}"])
def test_any_ids(echo: Service, pattern: str) -> None:
    """Server and session ids may be anything."""
    answer = echo.post(pattern.format(uuid.uuid4()) + "/xhr")
    assert (answer.status, answer.body) == (200, "o\n")


@pytest.mark.parametrize("path", ["//", "/a./a", "/a/a.", "/./.", "/", "///"])
def test_invalid_paths(echo: Service, path: str) -> None:
    """Not empty ones though, nor with a dot, nor more or fewer than two."""
    assert echo.get(path + "/xhr").status == 404
    assert echo.post(path + "/xhr").status == 404


def test_server_id_is_ignored(echo: Service) -> None:
    """A session is known by its own id; the server's is for load balancers."""
    session = uuid.uuid4()
    assert echo.post(f"/000/{session}/xhr").body == "o\n"
    assert echo.post(f"/000/{session}/xhr_send", '["a"]').status == 204
    assert echo.post(f"/999/{session}/xhr").body == 'a["a"]\n'


# -- Protocol and framing ------------------------------------------------------------------------------------


def test_simple_session(echo: Service) -> None:
    """An unknown id opens a session with `o`; messages come back in an `a` frame."""
    session = echo.new_session()
    answer = echo.post(session + "/xhr")
    assert (answer.status, answer.body) == (200, "o\n")
    answer = echo.post(session + "/xhr_send", '["a"]')
    assert (answer.status, answer.body) == (204, "")
    answer = echo.post(session + "/xhr")
    assert (answer.status, answer.body) == (200, 'a["a"]\n')


def test_unknown_session(echo: Service) -> None:
    """Nothing can be sent to a session that is not there."""
    assert echo.post(echo.new_session() + "/xhr_send", '["a"]').status == 404


def test_messages_are_batched_in_order(echo: Service) -> None:
    """What came while nobody received is sent as one frame, in order."""
    session = echo.new_session()
    echo.post(session + "/xhr")
    echo.post(session + "/xhr_send", '["a","b"]')
    echo.post(session + "/xhr_send", '["c"]')
    assert echo.post(session + "/xhr").body == 'a["a","b","c"]\n'


def test_one_receiver_at_a_time(echo: Service) -> None:
    """A second receiver is told so and sent away."""
    session = echo.new_session()
    with echo.stream("POST", session + "/xhr_streaming") as first:
        assert first.lines(2) == PRELUDE + "o\n"
        answer = echo.post(session + "/xhr")
        assert (answer.status, answer.body) == (200, STILL_OPEN)


def test_close_session(closing: Service) -> None:
    """A closed session says so, as often as it is asked."""
    session = closing.new_session()
    assert closing.post(session + "/xhr").body == "o\n"
    for _ in range(2):
        answer = closing.post(session + "/xhr")
        assert (answer.status, answer.body) == (200, GO_AWAY)


# -- Handling close ------------------------------------------------------------------------------------------


def test_close_frame(closing: Service) -> None:
    """Closing ends the response that is there, and a new one gets the close frame at once."""
    session = closing.new_session()
    assert closing.post(session + "/xhr_streaming").body == PRELUDE + "o\n" + GO_AWAY
    assert closing.post(session + "/xhr_streaming").body == PRELUDE + GO_AWAY


def test_close_request(echo: Service) -> None:
    """The response of a second receiver ends after the close frame; the first one goes on."""
    session = echo.new_session()
    with echo.stream("POST", session + "/xhr_streaming") as first:
        assert first.lines(2) == PRELUDE + "o\n"
        assert echo.post(session + "/xhr_streaming").body == PRELUDE + STILL_OPEN
        echo.post(session + "/xhr_send", '["a"]')
        assert first.line() == 'a["a"]\n'


def test_abort_streaming(echo: Service) -> None:
    """A response cut by the network ends the session: what was lost is not known."""
    session = echo.new_session()
    with echo.stream("POST", session + "/xhr_streaming") as first:
        assert first.lines(2) == PRELUDE + "o\n"
    _assert_interrupted(echo, session)


def test_abort_polling(echo: Service) -> None:
    """The same for a poll."""
    session = echo.new_session()
    assert echo.post(session + "/xhr").body == "o\n"
    with echo.waiting("POST", session + "/xhr"):
        echo.post(session + "/xhr_send", "[]")  # its answer comes after the poll was seen
    _assert_interrupted(echo, session)


def _assert_interrupted(service: Service, session: str) -> None:
    """A server may also forget the session at once; that it is still open can only be old news."""
    while (body := service.post(session + "/xhr").body) == STILL_OPEN:
        pass
    assert body in ("o\n", 'c[1002,"Connection interrupted"]\n')
