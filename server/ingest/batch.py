"""`POST /api/v2/notifications`: many notifications in one request, as NDJSON or a JSON array, answered item by item in
their order and in the same form. One that is wrong holds up none of the others."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from server import idempotency
from server.errors import InvalidNotification, ServerError, TooLarge
from server.grants import Grant
from server.ingest.door import Door
from server.ingest.visits import JSON, Answer, Visit, problem_of
from server.messages import Publication
from server.parsers import parse_item, parse_plain
from server.requests_plain import read_array, read_plain
from server.store import Stored

logger = logging.getLogger(__name__)

NDJSON = "application/x-ndjson"
NDJSON_TYPES = (NDJSON, "application/ndjson", "application/jsonl")

MAX_ITEMS = 20_000
"""Of a request: each has its line in the answer, and some are shorter than that."""

GROUP_ITEMS, GROUP_RECIPIENTS = 1000, 1000
"""Items are stored together until there are so many, or they have so many recipients: enough that most of the cost is
that of the documents, and little enough that others get their turn at the store."""

SLICE_S = 0.005
"""How long reading items may hold the loop."""

Item = Publication | ServerError
"""As it was read, or why it is refused."""


class BatchDoor(Door):
    name = "batch"
    paths = ("/api/v2/notifications",)

    async def carry_out(self, visit: Visit, body: bytes) -> Answer:
        """Publish them group by group; each good answer means that its item is stored."""
        grant = await visit.gate.publishers.identify(visit.presented(), visit.caller)
        if visit.incoming.keys:
            raise InvalidNotification(idempotency.HEADER, "not for a batch: each item has an idempotency_key")
        media_type = visit.incoming.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        is_lines = media_type in NDJSON_TYPES
        items = _lines(body) if is_lines else _array(body)
        answers = _Answers(visit)
        publishing = _Group(self, visit, grant)
        for item in items:
            publishing.read(item)
            if publishing.is_full:
                answers.add(await publishing.publish())
            elif publishing.has_had_its_turn:
                await asyncio.sleep(0)
                publishing.begin_turn()
        answers.add(await publishing.publish())
        return answers.as_lines() if is_lines else answers.as_array()

    def status_of(self, error: ServerError) -> int:
        """401 without a credential: this door is our own, and has no old callers who know but 403."""
        return error.http_status

    async def notify(self, publications: Sequence[Publication]) -> Sequence[Stored | Exception]:
        """See `Notifier.notify_many`."""
        return await self._publishing.notifier.notify_many(publications)

    def parse(self, item: bytes | Any, grant: Grant, received_at: float) -> Publication:
        """See `parse_item`; `item`: the text of JSON, or its values. Raises `InvalidNotification`, `TooLarge`."""
        limits = self._publishing.limits
        if isinstance(item, bytes):
            plain = read_plain(item)
            if plain is not None and plain.users:
                key = idempotency.field_key({idempotency.FIELD: plain.idempotency_key})
                return parse_plain(plain, grant.tenant, limits, self.name, received_at, key)
            item = _value(item)
        return parse_item(item, grant.tenant, limits, self.name, received_at)


class _Group:
    """The items that are stored together next."""

    def __init__(self, door: BatchDoor, visit: Visit, grant: Grant) -> None:
        self._door = door
        self._visit = visit
        self._grant = grant
        self._caller = visit.caller
        self._is_first = True
        self._items: list[Item] = []
        self._recipients = 0
        # why nothing more is stored of this request
        self._over: ServerError | None = None
        self.begin_turn()

    def begin_turn(self) -> None:
        self._turn_ends_at = time.monotonic() + SLICE_S

    @property
    def has_had_its_turn(self) -> bool:
        return time.monotonic() >= self._turn_ends_at

    @property
    def is_full(self) -> bool:
        return self._recipients >= GROUP_RECIPIENTS or len(self._items) >= GROUP_ITEMS

    def read(self, item: bytes | Any) -> None:
        """Take in an item: the text of JSON, or its values."""
        try:
            self._items.append(self._publication(item))
        except ServerError as error:
            self._items.append(error)

    def _publication(self, item: bytes | Any) -> Publication:
        publication = self._door.parse(item, self._grant, self._visit.incoming.received_at)
        # Each is as a request of its own; the first one was counted when the request came in.
        if not self._is_first:
            self._visit.gate.limits.check_request(self._grant, self._caller)
        self._is_first = False
        self._recipients += len(publication.recipients)
        return publication

    async def publish(self) -> Sequence[Stored | ServerError]:
        """Store these; what became of each. The group is empty then."""
        items, self._items, self._recipients = self._items, [], 0
        publications = [item for item in items if isinstance(item, Publication)]
        outcomes = iter(await self._publish(publications))
        self.begin_turn()
        return [next(outcomes) if isinstance(item, Publication) else item for item in items]

    async def _publish(self, publications: Sequence[Publication]) -> Sequence[Stored | ServerError]:
        if self._over is None and publications:
            try:
                await self._door.still_admitted(self._visit)
                return [_known(outcome) for outcome in await self._door.notify(publications)]
            except ServerError as error:
                # The key was revoked, the store is away, or the server stops: trying with each group would only take
                # long.
                self._over = error
        return [self._over or ServerError()] * len(publications)


def _known(outcome: Stored | Exception) -> Stored | ServerError:
    if isinstance(outcome, Stored | ServerError):
        return outcome
    logger.error("an item of a batch could not be stored", exc_info=outcome)
    return ServerError("this one could not be stored")


class _Answers:
    """What the items of a request are answered."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._answers: list[str] = []
        self._refused: Counter[str] = Counter()

    def add(self, outcomes: Sequence[Stored | ServerError]) -> None:
        """Of the next items."""
        for index, outcome in enumerate(outcomes, start=len(self._answers)):
            if isinstance(outcome, Stored):
                repeat = ', "replayed": true' if outcome.is_repeat else ""
                nid = outcome.notification.nid
                self._answers.append(f'{{"index": {index}, "status": 200, "id": "{nid}"{repeat}}}')
            else:
                self._answers.append(self._refusal(index, outcome))

    def _refusal(self, index: int, error: ServerError) -> str:
        self._refused[error.code] += 1
        self._visit.count_refusal(error)
        problem = problem_of(error, error.http_status)
        return json.dumps({"index": index, "status": error.http_status, "problem": problem})

    def as_lines(self) -> Answer:
        self._log()
        return Answer(200, "".join(f"{answer}\n" for answer in self._answers).encode(), NDJSON)

    def as_array(self) -> Answer:
        self._log()
        return Answer(200, f"[{', '.join(self._answers)}]".encode(), JSON)

    def _log(self) -> None:
        if self._refused:
            codes = ", ".join(f"{count} {code}" for code, count in self._refused.items())
            logger.info("refused of %d at %s: %s", len(self._answers), self._visit.door, codes)


# -- reading the body ----------------------------------------------------------------------------------------


_LINE = re.compile(rb"\S[^\n]*")
"""With something in it. Found one by one: a body that holds nothing but ends of lines has millions of them."""


def _lines(body: bytes) -> Iterator[bytes]:
    """The lines that are not empty. Raises `TooLarge`."""
    _check_count(sum(1 for _ in islice(_LINE.finditer(body), MAX_ITEMS + 1)))
    return (match[0] for match in _LINE.finditer(body))


def _value(text: bytes) -> Any:
    """Raises `InvalidNotification`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidNotification("", "not JSON") from exc


def _array(body: bytes) -> Sequence[bytes | Any]:
    """The texts of the items, or their values where the text is of an unusual kind. Raises `InvalidNotification`,
    `TooLarge`."""
    texts = read_array(body)
    if texts is not None:
        _check_count(len(texts))
        return texts
    try:
        items = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise InvalidNotification(
            "", "the body is not JSON; NDJSON has the type application/x-ndjson"
        ) from exc
    if not isinstance(items, list):
        raise InvalidNotification("", "the body is not a JSON array")
    _check_count(len(items))
    return items


def _check_count(count: int) -> None:
    if count > MAX_ITEMS:
        raise TooLarge("", f"more than the {MAX_ITEMS} items allowed in one request")
