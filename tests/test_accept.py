"""Tests of server/accept.py."""

from __future__ import annotations

import pytest

from server.accept import best_offer

JSON, PLAIN, OPENMETRICS = "application/json", "text/plain", "application/openmetrics-text"
OFFERS = (JSON, PLAIN, OPENMETRICS)

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
OLD_PROMETHEUS = "application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "best"),
    [
        ("", JSON),
        ("*/*", JSON),
        (BROWSER, JSON),
        ("application/json", JSON),
        ("application/*", JSON),
        ("text/plain", PLAIN),
        ("text/plain;version=0.0.4", PLAIN),
        ("Text/Plain ; Q=0.5 , application/json;q=0.4", PLAIN),
        ("text/*", PLAIN),
        ("text/plain;q=0.4, application/json;q=0.5", JSON),
        ("text/plain, */*", PLAIN),
        ("*/*, text/plain", PLAIN),
        ("application/json, text/plain, */*", JSON),
        ("text/plain;q=0", JSON),
        ("application/json;q=0, */*;q=0.1", PLAIN),
        ("*/*, application/json;q=0.1", PLAIN),
        (PROMETHEUS, OPENMETRICS),
        (OLD_PROMETHEUS, OPENMETRICS),
        ("text/plain;version=0.0.4;q=1,*/*;q=0.1", PLAIN),
    ],
)
def test_the_one_that_is_liked_best_is_chosen(accept: str, best: str) -> None:
    """By quality; the range that speaks of a type most exactly decides."""
    assert best_offer(accept, OFFERS) == best


@pytest.mark.parametrize(
    "accept",
    [
        "image/png",
        ",",
        ";;",
        "text/plain;q=",
        "text/plain;q=nan",
        "text/plain;q=-1",
        "text/plain;q=1e3",
        "q=1",
    ],
)
def test_who_can_take_none_or_talks_nonsense_gets_the_first(accept: str) -> None:
    """An answer in the wrong form says more than none."""
    assert best_offer(accept, OFFERS) == JSON


def test_a_long_header_costs_little() -> None:
    """Only so many ranges are looked at."""
    assert best_offer("a/b," * 100_000 + "text/plain", OFFERS) == JSON
