"""Tests of server/request_id.py."""

from __future__ import annotations

import asyncio

import pytest

from server import request_id


@pytest.mark.parametrize("chosen", ["a", "7f3c-11", "req_A.b:c/d+e=", "x" * 128])
async def test_the_callers_own_id_is_taken(chosen: str) -> None:
    """So that both logs can be laid side by side."""
    assert request_id.begin(chosen) == chosen == request_id.current()


@pytest.mark.parametrize("chosen", [None, "", "a b", "a\nb", "ü", "x" * 129, '"', "a;b"])
async def test_others_get_a_fresh_one(chosen: str | None) -> None:
    """What could spoil a line of the log is not repeated."""
    first, second = request_id.begin(chosen), request_id.begin(chosen)
    assert first != second
    assert len(first) == 16


async def test_it_belongs_to_its_task() -> None:
    """And to those that are started from it."""

    async def child() -> str:
        return request_id.current()

    async def request(id_: str) -> str:
        request_id.begin(id_)
        await asyncio.sleep(0)
        return await asyncio.create_task(child())

    assert await asyncio.gather(*map(request, "abc")) == ["a", "b", "c"]
    assert request_id.current() == ""
