"""Tests of server/bus.py."""

from __future__ import annotations

import pytest
from pydispatch import dispatcher

from server.bus import tell, telling


def test_receivers_get_what_they_ask_for() -> None:
    """By the names of their parameters; the others of the signal are left out."""
    heard: list[object] = []

    def hear(rooms: list[str]) -> None:
        heard.append(rooms)

    dispatcher.connect(hear, "test.signal")
    tell("test.signal", object(), rooms=["a"], more=1)
    assert heard == [["a"]]


def test_a_receiver_may_ask_for_all() -> None:
    """Whatever the signal brings."""
    heard: list[object] = []

    def hear(**what: object) -> None:
        heard.append(what)

    dispatcher.connect(hear, "test.signal")
    tell("test.signal", object(), rooms=["a"], more=1)
    assert heard == [{"rooms": ["a"], "more": 1}]


def test_a_receiver_may_be_an_object() -> None:
    """Or its method."""

    class Ear:
        def __init__(self) -> None:
            self.heard: list[object] = []

        def __call__(self, rooms: list[str]) -> None:
            self.heard.append(rooms)

        def hear(self, more: int) -> None:
            self.heard.append(more)

    ear = Ear()
    dispatcher.connect(ear, "test.signal")
    dispatcher.connect(ear.hear, "test.signal")
    tell("test.signal", object(), rooms=["a"], more=1)
    assert ear.heard == [["a"], 1]


def test_a_receiver_of_one_sender_hears_no_other() -> None:
    """So two servers in one process keep apart."""
    heard: list[object] = []

    def hear(what: int) -> None:
        heard.append(what)

    first, second = object(), object()
    dispatcher.connect(hear, "test.signal", sender=first)
    tell("test.signal", first, what=1)
    tell("test.signal", second, what=2)
    assert heard == [1]


def test_a_receiver_without_parameters_is_told_that_it_happened() -> None:
    """And another everything, whatever it is."""
    heard: list[object] = []

    def hear() -> None:
        heard.append(None)

    def hear_all(**what: object) -> None:
        heard.append(what)

    for receiver in (hear, hear_all):
        dispatcher.connect(receiver, "test.another")
    tell("test.another", None, what=1, more=2)
    assert heard == [None, {"what": 1, "more": 2}]


def test_a_receiver_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The sender goes on, and so do the other receivers."""
    heard: list[int] = []

    def fail() -> None:
        raise RuntimeError("broken")

    def hear() -> None:
        heard.append(1)

    for receiver in (fail, hear):
        dispatcher.connect(receiver, "test.signal")
    tell("test.signal", None)
    assert heard == [1]
    [record] = caplog.records
    assert "test.signal" in record.getMessage() and record.exc_info is not None


def test_who_says_the_same_in_a_row_is_heard_each_time() -> None:
    """As by `tell`."""
    heard: list[int] = []

    def hear(what: int) -> None:
        heard.append(what)

    dispatcher.connect(hear, "test.signal")
    say = telling("test.signal", object())
    say(what=1)
    say(what=2)
    assert heard == [1, 2]
