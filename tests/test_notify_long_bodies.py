"""Tests of server/ingest/notify.py: whose long bodies are read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from server.callers import CallerPolicy
from server.config.schema import Limits as LimitSettings
from server.errors import InvalidNotification, Refused
from server.ingest import notify
from server.ingest.door import Publishing
from server.ingest.notify import LONG_BODY_BYTES, MAX_KEYS, NotifyDoor
from server.ingest.visits import Gate, Incoming, Visit
from server.limits import Limits
from server.parsers import FieldLimits
from server.publishers import PublisherRules, Publishers
from server.store.sqlite import SQLiteStore
from server.tenants import Tenants

APIKEY = 'the "one" of config.ini-é'
FORM, JSON = "application/x-www-form-urlencoded", "application/json"
PADDING = "x" * LONG_BODY_BYTES


class Desk:
    """A door at which nobody comes by but by `APIKEY`. `was_read`: whether a body has been read by it."""

    def __init__(self, publishers: Publishers, patch: pytest.MonkeyPatch) -> None:
        self._gate = Gate(CallerPolicy().identify, publishers, Limits(LimitSettings()))
        # Nothing gets as far as the notifier: what is read is refused for its fields.
        self._door = NotifyDoor(Publishing(None, None, 1 << 22, FieldLimits()))  # type: ignore[arg-type]
        self.was_read = False
        for name in ("json_object", "parse_body_arguments", "read_plain"):
            patch.setattr(notify, name, self._noted(getattr(notify, name)))

    def _noted(self, read: Any) -> Any:
        def noted(*given: Any) -> Any:
            self.was_read = True
            return read(*given)

        return noted

    async def post(self, body: str, media_type: str, headers: dict[str, str], **query: str) -> None:
        incoming = Incoming(
            method="POST",
            headers={"Host": "localhost", "Content-Type": media_type, **headers},
            remote_ip="127.0.0.1",
            query={name: [value.encode()] for name, value in query.items()},
            keys=[],
            certificate=None,
            received_at=0.0,
        )
        await self._door.carry_out(Visit(self._gate, incoming, "notify", lambda *_: None), body.encode())


@pytest.fixture
async def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    store = SQLiteStore(tmp_path / "data" / "notifications.sqlite3")
    await store.open()
    tenants = Tenants(lambda: store.directory)
    await tenants.open()
    yield Desk(Publishers(tenants, PublisherRules(apikey=APIKEY)), monkeypatch)
    await store.close()


WRONG = [
    {},
    {"apikey": ""},
    {"apikey": "wrong"},
    {f"{number} apikey": "wrong" for number in range(2 * MAX_KEYS)},
    {"data": {"apikey": "wrong"}},
]


@pytest.mark.parametrize("fields", WRONG)
@pytest.mark.parametrize("media_type", [FORM, JSON, "application/JSON; charset=utf-8"])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Api-Key wrong"}])
async def test_a_long_body_is_not_read_for_who_shows_no_key(
    desk: Desk, fields: dict[str, Any], media_type: str, headers: dict[str, str]
) -> None:
    """To read one can take half a second, in which nobody else is served."""
    given = {"content": "x", "padding": PADDING} | fields
    with pytest.raises(Refused):
        await desk.post(urlencode(given) if media_type == FORM else json.dumps(given), media_type, headers)
    assert not desk.was_read


@pytest.mark.parametrize(
    "body",
    [
        *(
            json.dumps({"apikey": APIKEY, "padding": PADDING}, ensure_ascii=is_ascii)
            for is_ascii in (True, False)
        ),
        json.dumps({"padding": PADDING, "data": {"apikey": "another"}, "apikey": f" {APIKEY} "}, indent=4),
        urlencode({"apikey": APIKEY, "padding": PADDING}),
        urlencode({"padding": PADDING, "apikey": APIKEY}),
    ],
    ids=["escaped", "not escaped", "behind another", "form", "form, at the end"],
)
async def test_a_key_is_found_in_a_long_body(desk: Desk, body: str) -> None:
    """However it is written."""
    with pytest.raises(InvalidNotification, match="content"):
        await desk.post(body, JSON if body.startswith("{") else FORM, {})
    assert desk.was_read


@pytest.mark.parametrize(
    ("headers", "query"),
    [({"Internal-Api-Key": APIKEY}, {}), ({}, {"apikey": APIKEY})],
    ids=["header", "query"],
)
async def test_a_key_beside_a_long_body(desk: Desk, headers: dict[str, str], query: dict[str, str]) -> None:
    """Counts as well."""
    with pytest.raises(InvalidNotification, match="content"):
        await desk.post(json.dumps({"padding": PADDING}), JSON, headers, **query)
    assert desk.was_read


async def test_the_key_that_counts_is_that_of_the_field(desk: Desk) -> None:
    """And not what looks like one elsewhere."""
    body = json.dumps({"content": "x", "padding": PADDING, "data": {"apikey": APIKEY}, "apikey": "wrong"})
    with pytest.raises(Refused):
        await desk.post(body, JSON, {})
    assert desk.was_read
