"""A process that changes inboxes back and forth as fast as it can and prints each change that was acknowledged, until
it is killed.

`python -m tests.support.change_load <place>`. A line is the user, the verb, the rev (0: nothing changed), and the ids
that are as the verb says since then.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys

from server.store import Change, Store
from tests.support.stores import TENANT, place_of, put_many

USERS = [f"user-{number}" for number in range(4)]
DOCUMENTS = 20
TIMEOUT_S = 20.0
"""What is given up could still be done later, and take back what was acknowledged since. So nothing is."""

VERBS = ("mark_seen", "mark_unseen", "delete", "restore")


async def change(store: Store, user_id: str, ids: list[str]) -> tuple[str, Change]:
    if random.random() < 0.1:
        return "mark_seen", await store.mark_all_seen(TENANT, user_id, limit=5, up_to=await store.position())
    verb = random.choice(VERBS)
    return verb, await getattr(store, verb)(TENANT, user_id, random.sample(ids, 6))


async def change_for_ever(store: Store, user_id: str) -> None:
    found = await store.changes(TENANT, user_id, after=(0, ""), limit=2 * DOCUMENTS)
    ids = [each.id for each in found or await put_many(store, DOCUMENTS, user_id)]
    while True:
        verb, changed = await change(store, user_id, ids)
        line = f"{user_id} {verb} {changed.rev or 0} {','.join(changed.ids)}\n"
        os.write(1, line.encode())  # short enough for a pipe to take it as a whole


async def main() -> None:
    store = place_of(sys.argv[1:]).store(timeout_s=TIMEOUT_S)
    await store.open()
    async with asyncio.TaskGroup() as tasks:
        for user_id in USERS:
            tasks.create_task(change_for_ever(store, user_id))


if __name__ == "__main__":
    asyncio.run(main())
