"""What every store promises about leases (`server.store.Leases`), over all kinds of store. Its clock is the real
one."""

from __future__ import annotations

import asyncio

import pytest

from server.errors import StoreUnavailable
from server.store import Leases, Store
from tests.support.stores import Place

LONG_S = 600.0
"""A lease that does not run out during a test."""


@pytest.fixture
def leases(store: Store) -> Leases:
    return store.leases


async def test_what_is_not_open_yet_is_unavailable(place: Place) -> None:
    """Whether it is taken or given back."""
    leases = place.store().leases
    for verb in (leases.take("hub", "a", LONG_S), leases.give_back("hub", "a")):
        with pytest.raises(StoreUnavailable):
            await verb


async def test_one_has_it(leases: Leases) -> None:
    """Who has it may take it again; nobody else; another name is another lease."""
    assert await leases.take("hub", "a", LONG_S)
    assert not await leases.take("hub", "b", LONG_S)
    assert await leases.take("hub", "a", LONG_S)
    assert not await leases.take("hub", "b", LONG_S)
    assert await leases.take("queue", "b", LONG_S)
    assert not await leases.take("queue", "a", LONG_S)


async def test_of_many_at_once_one_gets_it(leases: Leases) -> None:
    """Whoever asks first."""
    for name in ("first", "second"):
        taken = await asyncio.gather(*(leases.take(name, str(number), LONG_S) for number in range(10)))
        assert sum(taken) == 1


async def test_given_back_it_is_free_at_once(leases: Leases) -> None:
    """But only by who has it; more than once is once."""
    assert await leases.take("hub", "a", LONG_S)
    await leases.give_back("hub", "b")
    await leases.give_back("queue", "a")
    assert not await leases.take("hub", "b", LONG_S)
    await leases.give_back("hub", "a")
    await leases.give_back("hub", "a")
    assert await leases.take("hub", "b", LONG_S)
    await leases.give_back("hub", "a")
    assert not await leases.take("hub", "a", LONG_S)


async def test_one_that_has_run_out_is_free(leases: Leases) -> None:
    """For anybody; who had it does not get it back before that one's has run out, too."""
    assert await leases.take("hub", "a", 0.0)
    assert await leases.take("hub", "b", LONG_S)
    assert not await leases.take("hub", "a", LONG_S)
    assert await leases.take("hub", "b", 0.0)
    assert await leases.take("hub", "a", LONG_S)


@pytest.mark.parametrize("text", ["$holder", "$$NOW", "é 😀", "a.b", '{"$gt": ""}'])
async def test_names_are_only_names(text: str, leases: Leases) -> None:
    """Whatever they look like."""
    assert await leases.take(text, text, LONG_S)
    assert not await leases.take(text, "other", LONG_S)
    assert await leases.take(text, text, LONG_S)
    await leases.give_back(text, text)
    assert await leases.take(text, "other", LONG_S)


async def test_another_process(place: Place) -> None:
    """Where several have the store open, a lease holds for all of them; where only one can, it ends with that one."""
    first, second = place.store(), place.store()
    await first.open()
    assert await first.leases.take("hub", "first", LONG_S)
    if not place.is_shared:
        await first.close()
    await second.open()
    assert await second.leases.take("hub", "second", LONG_S) != place.is_shared
    await second.close()
    await first.close()
