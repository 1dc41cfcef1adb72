"""A process that adds to a store as fast as it can and prints each add that was acknowledged, until it is killed.

`python -m tests.support.store_load <place>`. A line is the nid and, for each document, `user:id`. A store that is
unavailable for a while is tried again.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys

from server.errors import StoreUnavailable
from server.messages import Document, EmailDuty, Mail, MailRecipient, Recipient, now
from server.store import Store
from tests.support.stores import make_notification, place_of

TASKS = 16
USERS = 10
TIMEOUT_S = 2.0


def users_of(content: str) -> list[str]:
    """The recipients of a notification of this load. Its content names them, so that a reader knows who must have
    it."""
    return content.split()


async def add(store: Store, number: int) -> list[Document]:
    """One user, several, or all; with a duty to mail or without."""
    count = (1, 1, 3, USERS)[number % 4]
    users = [f"user-{(number + each) % USERS}" for each in range(count)]
    recipients = [Recipient(user, f"{user}@example.test") for user in users]
    duty = None
    if number % 3 == 0:
        owed = tuple(MailRecipient(user, f"{user}@example.test", now()) for user in users)
        duty = EmailDuty(Mail("subject", "content"), owed)
    notification = make_notification(content=" ".join(users), data={"owed": duty is not None})
    return (await store.add(notification, recipients, duty)).documents


async def add_for_ever(store: Store, numbers: itertools.count[int]) -> None:
    while True:
        try:
            documents = await add(store, next(numbers))
        except StoreUnavailable:
            await asyncio.sleep(0.05)
            continue
        words = [documents[0].notification.nid, *(f"{each.user_id}:{each.id}" for each in documents)]
        os.write(1, (" ".join(words) + "\n").encode())  # short enough for a pipe to take it as a whole


async def main() -> None:
    store = place_of(sys.argv[1:]).store(timeout_s=TIMEOUT_S)
    await store.open()
    numbers = itertools.count()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(TASKS):
            tasks.create_task(add_for_ever(store, numbers))


if __name__ == "__main__":
    asyncio.run(main())
