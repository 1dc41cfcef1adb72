"""A process that sends the mail owed by a store, until it is killed.

`python -m tests.support.mail_load <port of the mail server> <lease_s> <place>`. It says `running` when it has begun.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection
from datetime import datetime

from server.config import Email
from server.outbox import OutboxWorker
from server.smtp import SMTPTransport
from tests.support.stores import place_of


class Nobody:
    """No user is there."""

    async def alive_since(
        self, tenant: str, user_ids: Collection[str], instant: datetime, ago_s: float | None
    ) -> set[str]:
        return set()


async def main() -> None:
    port, lease_s, *place = sys.argv[1:]
    email = Email(
        host="127.0.0.1",
        port=int(port),
        security="none",
        sender="notify@example.org",
        lease_s=float(lease_s),
        recipients_per_message=5,
        retry_first_s=0.2,
        retry_max_s=0.2,
    )
    store = place_of(place).store()
    await store.open()
    worker = OutboxWorker(store, SMTPTransport(email), Nobody(), email)
    print("running", flush=True)
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main())
