"""Tests of server/ids.py."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bson import ObjectId
from hypothesis import example, given
from hypothesis import strategies as st

from server import ids
from server.ids import is_id, new_id

ROOT = Path(__file__).resolve().parents[1]


def test_new_ids_are_distinct_and_sort_in_the_order_they_were_made() -> None:
    """Ids made later in one process sort later: paging by (created_at, id) keeps the order of arrival."""
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert ids == sorted(ids)


def test_a_new_id_is_an_object_id_in_lower_case() -> None:
    """24 lower-case hexadecimal digits, the same in both stores."""
    id_ = new_id()
    assert is_id(id_)
    assert id_ == id_.lower() == str(ObjectId(id_))


def chance_and_counter(id_: str) -> tuple[str, int]:
    """What of an id is not the time."""
    return id_[8:18], int(id_[18:], 16)


def test_a_tenants_ids_tell_nothing_of_others() -> None:
    """Between two ids of a tenant its counter rises by one, whatever others do; and others' are not like them."""
    first = new_id("acme")
    others = [new_id("other") for _ in range(100)] + [new_id(f"tenant {n}") for n in range(100)] + [new_id()]
    second = new_id("acme")
    chance, counter = chance_and_counter(first)
    assert chance_and_counter(second) == (chance, (counter + 1) % (1 << 24))
    assert chance not in {chance_and_counter(other)[0] for other in others}
    assert len({chance_and_counter(other)[0] for other in others}) == 102


def test_the_counter_goes_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its last number it starts anew: the id keeps its length."""
    monkeypatch.setattr(ids.secrets, "randbelow", lambda _: (1 << 24) - 2)
    counters = [chance_and_counter(new_id("goes round"))[1] for _ in range(4)]
    assert counters == [(1 << 24) - 2, (1 << 24) - 1, 0, 1]


def test_any_number_of_tenants_takes_bounded_memory() -> None:
    """The series of those not heard of for long are forgotten; a tenant that comes back begins a new one."""
    before = new_id("acme")
    for number in range(ids.MAX_SERIES):
        new_id(f"tenant {number}")
    assert ids._series.cache_info().currsize == ids.MAX_SERIES
    assert chance_and_counter(new_id("acme"))[0] != chance_and_counter(before)[0]


def test_threads_share_no_id() -> None:
    """Documents get theirs in the store's thread, notifications on the loop."""
    with ThreadPoolExecutor(4) as threads:
        made = threads.map(lambda _: [new_id("acme") for _ in range(5000)], range(4))
        assert len({id_ for some in made for id_ in some}) == 20_000


FORK = """
import os
from server.ids import new_id
new_id("acme")
child = os.fork()
os.write(1, new_id("acme").encode() + b" ")
if child:
    os.waitpid(child, 0)
"""


def test_a_forked_process_goes_its_own_way() -> None:
    """Parent and child make no id twice."""
    # In a process of its own: this one may have threads, which do not fork.
    lines = subprocess.run([sys.executable, "-c", FORK], cwd=ROOT, check=True, capture_output=True, text=True)
    parents, childs = lines.stdout.split()
    assert is_id(parents) and is_id(childs)
    assert chance_and_counter(parents)[0] != chance_and_counter(childs)[0]


@pytest.mark.parametrize(
    "value", ["", "0" * 23, "0" * 25, "g" * 24, " " * 24, "٣" * 24, b"0" * 12, None, 7, ["0" * 24]]
)
def test_anything_else_is_no_id(value: object) -> None:
    """Only texts of 24 hexadecimal digits have the form of an id."""
    assert not is_id(value)


@given(st.text(min_size=24, max_size=24))
@example("ab cd ef ab cd ef ab cd ")
@example("0x" * 12)
@example("F" * 24)
def test_what_has_the_form_of_an_id_can_be_one(text: str) -> None:
    """What is_id lets through, both stores can turn into 12 bytes."""
    if is_id(text):
        assert len(bytes.fromhex(text)) == 12
        assert str(ObjectId(text)) == text.lower()
