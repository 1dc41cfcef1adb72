"""A process that adds broadcasts to a store and stores their documents, several at once, until it is killed; users who
join are given theirs meanwhile.

`python -m tests.support.broadcast_load <place>`. It prints the nid of each broadcast that was acknowledged, before it
stores documents. A store that is unavailable for a while is tried again."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta

from server.errors import StoreUnavailable
from server.messages import now
from server.store import Broadcast, Store
from tests.support.stores import TENANT, make_notification, place_of

TASKS = 4
TIMEOUT_S = 2.0
LEASE_S = 0.3
PORTION = 7
"""Users at a time."""


async def expand(store: Store, broadcast: Broadcast) -> None:
    """Store what is left of it, as long as the lease is ours."""
    after = broadcast.after
    while users := await store.directory.users(TENANT, after=after, limit=PORTION):
        await store.broadcasts.expand(broadcast.notification, [user.user_id for user in users])
        after = users[-1].user_id
        if not await store.broadcasts.advance(broadcast, after, LEASE_S):
            return
    await store.broadcasts.finish(broadcast)


async def expand_all(store: Store) -> None:
    """All that nobody holds."""
    while broadcast := await store.broadcasts.claim(LEASE_S):
        await expand(store, broadcast)


async def go_on_for_ever(store: Store) -> None:
    while True:
        try:
            notification = make_notification()
            await store.broadcasts.add(notification)
            os.write(1, f"{notification.nid}\n".encode())
            await expand_all(store)
        except StoreUnavailable:
            await asyncio.sleep(0.05)


async def give_to_who_joins(store: Store) -> None:
    """To one user after the other what is open."""
    since = now() - timedelta(hours=1)
    while True:
        try:
            for user in await store.directory.users(TENANT, after=None, limit=1000):
                while owed := await store.broadcasts.open_of(
                    TENANT, user.user_id, since=since, after=None, limit=PORTION
                ):
                    await store.broadcasts.give(user.user_id, owed)
                await asyncio.sleep(0.01)
        except StoreUnavailable:
            await asyncio.sleep(0.05)


async def main() -> None:
    store = place_of(sys.argv[1:]).store(timeout_s=TIMEOUT_S)
    await store.open()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(TASKS):
            tasks.create_task(go_on_for_ever(store))
        tasks.create_task(give_to_who_joins(store))


if __name__ == "__main__":
    asyncio.run(main())
