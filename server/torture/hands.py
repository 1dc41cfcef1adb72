"""Users who change their documents: seen, unseen, deleted, restored, all seen. One hand for each user, so that it is
known in which state a document must be."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence

from server.torture.clients import ClientV2, Refused
from server.torture.judging import Finding
from server.torture.ledger import DELETED, RESTORED, SEEN, UNSEEN, Changes, State
from server.torture.lines import LineEnded

ANSWER_WITHIN_S = 10.0

VERBS: Mapping[str, Mapping[State, State]] = {
    "seen": SEEN,
    "unseen": UNSEEN,
    "delete": DELETED,
    "restore": RESTORED,
}

ALL_SEEN = 0.04
"""How often everything is marked seen at once."""


class Hand:
    """Of the user of this client. `verbs`: what it does."""

    def __init__(self, client: ClientV2, changes: Changes, verbs: Sequence[str], seed: str) -> None:
        self.findings: list[Finding] = []
        self._client = client
        self._changes = changes
        self._verbs = verbs
        self._rng = random.Random(f"{seed} hand of {client.user}")  # noqa: S311  # repeats a run, keeps no secret

    async def run(self, pause_s: float) -> None:
        """Until cancelled. `pause_s`: on average between two changes."""
        while True:
            await self._client.is_here.wait()
            await asyncio.sleep(self._rng.uniform(0, 2 * pause_s))
            try:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    if self._rng.random() < ALL_SEEN:
                        await self._mark_all_seen()
                    else:
                        await self._change(self._rng.choice(self._verbs))
            except (LineEnded, Refused, TimeoutError):
                continue  # whether it was made nobody knows

    async def _mark_all_seen(self) -> None:
        user = self._client.user
        self._changes.ask_all_seen(user)
        answer = await self._client.ask("seen", {"all": True})
        self._changes.settle_all_seen(user, answer["upto"])

    async def _change(self, verb: str) -> None:
        user, changes = self._client.user, self._changes
        chosen = self._choose(verb)
        if not chosen:
            return
        after = VERBS[verb]
        # Those that are for sure in a state that this changes: the answer has to name them.
        surely = {id_ for id_ in chosen if changes.states(user, id_) <= after.keys()}
        for id_, key in chosen.items():
            changes.ask(user, id_, key, after)
        answer = await self._client.ask(verb, {"ids": list(chosen)})
        for id_ in chosen:
            changes.settle(user, id_, after)
        left_out = surely - set(answer["ids"])
        if left_out:
            what = f"{verb} by {self._client.name} was answered without {', '.join(sorted(left_out))}"
            self.findings.append(Finding("changed", what))

    def _choose(self, verb: str) -> dict[str, str]:
        """Some documents that this can be done to, with their keys, of which all changes were answered."""
        documents, user = self._client.model.documents, self._client.user
        free = [
            id_
            for id_, document in documents.items()
            if document["delete"] is (verb == "restore") and not self._changes.is_open(user, id_)
        ]
        chosen = self._rng.sample(free, min(len(free), self._rng.choice((1, 1, 2, 8))))
        return {id_: str(documents[id_]["title"]) for id_ in chosen}
