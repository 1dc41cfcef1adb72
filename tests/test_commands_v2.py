"""Tests of server/commands_v2.py and server/since.py: what clients ask in dialect 2, and where they say they are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.commands import Join, JoinByToken, Leave, MarkSeen
from server.commands_v2 import (
    COMMANDS,
    MAX_SAFE_INTEGER,
    Acknowledge,
    Content,
    Count,
    Enter,
    JoinByTicket,
    MarkAllSeen,
    MarkUnseen,
    Remove,
    Request,
    Restore,
    Sync,
    parse_request,
    request_id,
)
from server.errors import InvalidCommand
from server.since import Since, parse_since

ID = "6740c0ffee0123456789abcd"

json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fields = [
    "login",
    "password",
    "token",
    "ticket",
    "since",
    "before",
    "limit",
    "type",
    "seen",
    "ids",
    "all",
    "upto",
]


@pytest.mark.parametrize(
    ("name", "data", "command"),
    [
        ("join", {"login": "a", "password": "b"}, Enter(Join("a", "b"))),
        ("join", {"token": "t", "v": 2, "since": "s"}, Enter(JoinByToken("t"), "s")),
        ("join", {"ticket": "t", "since": None}, Enter(JoinByTicket("t"))),
        ("sync", {"since": "s"}, Sync("s")),
        ("content", None, Content()),
        (
            "content",
            {"before": ID.upper(), "limit": 500, "type": "", "seen": False},
            Content(ID, 100, "", False),
        ),
        ("seen", {"ids": [ID, ID.upper(), "x"]}, MarkSeen((ID,))),
        ("seen", {"all": True}, MarkAllSeen(None)),
        ("seen", {"all": True, "upto": "00000000000000ff"}, MarkAllSeen(255)),
        ("unseen", {"ids": [ID]}, MarkUnseen((ID,))),
        ("delete", {"ids": [ID]}, Remove((ID,))),
        ("restore", {"ids": [ID]}, Restore((ID,))),
        ("ack", {"ids": []}, Acknowledge(())),
        ("counts", {}, Count()),
        ("leave", None, Leave()),
    ],
    ids=str,
)
def test_each_command(name: str, data: Any, command: Any) -> None:
    """As the protocol has it; texts that are no ids are nobody's."""
    assert parse_request({"name": name, "id": 1, "data": data}) == Request(1, name, command)


@pytest.mark.parametrize(
    ("name", "data", "field"),
    [
        ("join", {}, "data.login"),
        ("join", {"ticket": "t", "token": "t"}, "data.ticket"),
        ("join", {"ticket": ""}, "data.ticket"),
        ("join", {"token": "t", "since": 1}, "data.since"),
        ("join", {"token": "t", "since": "x" * 257}, "data.since"),
        ("sync", {}, "data.since"),
        ("content", {"limit": 0}, "data.limit"),
        ("content", {"limit": True}, "data.limit"),
        ("content", {"limit": "5"}, "data.limit"),
        ("content", {"before": 1}, "data.before"),
        ("content", {"type": "\ud800"}, "data.type"),
        ("content", {"type": "x" * 3000}, "data.type"),
        ("content", {"seen": "true"}, "data.seen"),
        ("seen", {}, "data.ids"),
        ("seen", {"all": False}, "data.all"),
        ("seen", {"all": True, "ids": []}, "data.all"),
        ("seen", {"all": True, "upto": "FF" * 8}, "data.upto"),
        ("unseen", {"ids": [1]}, "data.ids[0]"),
        ("delete", {"all": True}, "data.ids"),
        ("restore", "x", "data"),
        ("shout", {}, "name"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(name: str, data: Any, field: str) -> None:
    """By its path."""
    with pytest.raises(InvalidCommand) as refused:
        parse_request({"name": name, "data": data})
    assert refused.value.field == field


@given(st.sampled_from(sorted(COMMANDS)), st.dictionaries(st.sampled_from(fields), json_value) | json_value)
def test_anything_is_a_command_or_is_refused(name: str, data: Any) -> None:
    """Nothing else ever happens, whatever a client sends."""
    try:
        assert parse_request({"name": name, "data": data}).name == name
    except InvalidCommand as refused:
        assert str(refused)


@given(json_value)
def test_an_id_comes_back_or_is_refused(id_: Any) -> None:
    """Texts of some length, and integers that JavaScript can hold."""
    message = {"name": "counts", "id": id_}
    is_good = (isinstance(id_, str) and 0 < len(id_) <= 64) or (
        type(id_) is int and abs(id_) <= MAX_SAFE_INTEGER
    )
    assert request_id(message) == (id_ if is_good else None)
    if is_good or id_ is None:
        assert parse_request(message).id == id_
    else:
        with pytest.raises(InvalidCommand) as refused:
            parse_request(message)
        assert refused.value.field == "id"


def test_no_secret_is_in_the_repr() -> None:
    """Of whichever proof."""
    for proof in ({"ticket": "s3cret"}, {"token": "s3cret"}, {"login": "a", "password": "s3cret"}):
        assert "s3cret" not in repr(parse_request({"name": "join", "data": proof}))


# -- since ---------------------------------------------------------------------------------------------------

revs = st.integers(0, 2**64 - 1)


@given(st.text(max_size=30), revs)
def test_a_since_comes_back(epoch: str, rev: int) -> None:
    """Whatever the epoch is, unless it looks like a part of one itself."""
    assert parse_since(str(Since(epoch, rev))) == Since(epoch, rev)


@given(revs, st.from_regex(r"[0-9a-f]{24}", fullmatch=True), revs)
def test_one_from_the_middle_of_a_sync_comes_back(rev: int, id_: str, upto: int) -> None:
    """With its exact place, and where it leads."""
    since = Since("6740c0ffee0123456789abcd", rev, id_, upto)
    assert parse_since(str(since)) == since


@given(st.text(max_size=300))
def test_any_other_text_is_none(text: str) -> None:
    """Or one that is written the same."""
    since = parse_since(text)
    assert since is None or str(since) == text
