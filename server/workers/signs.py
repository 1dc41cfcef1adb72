"""Signs of life: workers are asked for them, and who gives none hangs and is killed. Who follows is up to those who see
it end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from server.workers.child import Child

logger = logging.getLogger(__name__)

SIGN_S = 3.0
"""So often each worker is asked."""

MAX_UNANSWERED = 6
"""Who has given none for so many times hangs: some of all connections would wait for it."""

MAX_UNANSWERED_AT_FIRST = 20
"""As `MAX_UNANSWERED`, of who does not serve yet: it has much to read on what may be a busy machine, and nobody waits
for it alone."""


async def watch_for(children: Collection[Child]) -> None:
    """Go on for ever, with whoever is among them at the time."""
    # By counting, not by the clock: after a time in which all processes stood still, nobody is to blame.
    while True:
        await asyncio.sleep(SIGN_S)
        for child in children:
            serves = child.is_ready.is_set()
            patience = MAX_UNANSWERED if serves else MAX_UNANSWERED_AT_FIRST
            if child.unanswered == patience:
                logger.error(
                    "%s has given no sign of life for %g s%s, so it is killed",
                    child,
                    SIGN_S * patience,
                    "" if serves else " and does not serve yet",
                )
                child.kill()
            child.ask_for_sign()
