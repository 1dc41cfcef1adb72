"""A process that carries out the same requests with idempotency keys each time it is started, and prints each that was
acknowledged.

`python -m tests.support.once_load <place>`. A line is the number of the request, the nid and, for each document,
`user:id`. It ends by itself when all are done.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator

from server.errors import InProgress, StoreUnavailable
from server.messages import EmailDuty, Mail, MailRecipient, Recipient, now
from server.store import Once, Store
from tests.support.stores import make_notification, place_of

REQUESTS = 150
USERS = 7
TASKS = 8
TIMEOUT_S = 2.0


def users_of(number: int) -> list[str]:
    """Of a request: one user, several, or all."""
    return [f"user-{(number + each) % USERS}" for each in range((1, 3, USERS)[number % 3])]


async def add(store: Store, number: int) -> None:
    """Until it is acknowledged."""
    recipients = [Recipient(user, f"{user}@example.test") for user in users_of(number)]
    owed = tuple(MailRecipient(each.user_id, str(each.email), now()) for each in recipients)
    duty, once = EmailDuty(Mail("subject", "content"), owed), Once(f"key {number}", b"f" * 32, 3600.0)
    while True:
        try:
            stored = await store.add(make_notification(content=str(number)), recipients, duty, once)
        except (StoreUnavailable, InProgress):
            await asyncio.sleep(0.05)
            continue
        pairs = (f"{each.user_id}:{each.id}" for each in stored.documents)
        os.write(1, f"{number} {stored.notification.nid} {' '.join(pairs)}\n".encode())
        return


async def add_all(store: Store, numbers: Iterator[int]) -> None:
    for number in numbers:
        await add(store, number)


async def main() -> None:
    store = place_of(sys.argv[1:]).store(timeout_s=TIMEOUT_S)
    await store.open()
    numbers = iter(range(REQUESTS))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(TASKS):
            tasks.create_task(add_all(store, numbers))
    await store.close()


if __name__ == "__main__":
    asyncio.run(main())
