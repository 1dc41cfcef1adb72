"""Tests of server/metrics.py."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import bus
from server import metrics as module
from server.backplane import LocalBackplane
from server.errors import StoreUnavailable
from server.ids import new_id
from server.messages import Document, MailRecipient, Notification, Publication, Recipient, now
from server.metrics import MAX_TENANTS, MAX_VALUES, OTHER, Metrics, Sources
from server.rooms import Rooms
from server.store import MailCounts, MailOutcome, RefusedMail
from server.store.sqlite import SQLiteStore
from server.wire import SLOW
from tests.support.clock import Clock

AT = now()


class Speaker:
    """A part of the server that says something over the bus."""


@pytest.fixture
def speaker() -> Speaker:
    return Speaker()


@pytest.fixture
def metrics(speaker: Speaker) -> Iterator[Metrics]:
    made = Metrics({"version": "1.2.3"})
    made.hear(speaker)
    yield made
    made.close()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """Of one sample; None if there is none."""
    return metrics.registry.get_sample_value(f"notification_{name}", labels)


def publication(tenant: str = "acme", door: str = "notify", users: int = 1) -> Publication:
    notification = Notification(new_id(), tenant, AT, "text")
    return Publication(notification, tuple(Recipient(str(user)) for user in range(users)), door=door)


def documents(of: Publication) -> list[Document]:
    return [
        Document(new_id(), recipient.user_id, of.notification, AT, AT, rev=1) for recipient in of.recipients
    ]


def stored(speaker: Speaker, what: Publication, store_s: float = 0.003) -> None:
    bus.tell(
        bus.NOTIFICATION_STORED,
        speaker,
        publication=what,
        documents=documents(what),
        duty=None,
        store_s=store_s,
    )


# -- what is heard -------------------------------------------------------------------------------------------
def test_notifications_and_documents_are_counted_by_door_and_tenant(
    metrics: Metrics, speaker: Speaker
) -> None:
    """One notification for many users is one, and a document each; how long the store took is kept."""
    stored(speaker, publication("acme", users=3))
    stored(speaker, publication("acme", users=2))
    stored(speaker, publication("globex", door="internal"))
    assert value(metrics, "published_total", door="notify", tenant="acme") == 2
    assert value(metrics, "documents_stored_total", door="notify", tenant="acme") == 5
    assert value(metrics, "published_total", door="internal", tenant="globex") == 1
    assert value(metrics, "store_write_duration_seconds_count") == 3
    assert value(metrics, "store_write_duration_seconds_sum") == pytest.approx(0.009)


def test_what_was_handed_to_connections_is_counted(metrics: Metrics, speaker: Speaker) -> None:
    """Each connection once; the end-to-end time only where it is known when the request came in."""
    for total_s in (0.5, None):
        bus.tell(
            bus.NOTIFICATION_PUSHED,
            speaker,
            publication=publication(),
            connections=7,
            push_s=0.25,
            total_s=total_s,
        )
    assert value(metrics, "pushed_total", door="notify", tenant="acme") == 14
    assert value(metrics, "push_duration_seconds_sum") == 0.5
    assert value(metrics, "delivery_duration_seconds_count") == 1
    assert value(metrics, "delivery_duration_seconds_sum") == 0.5


def test_failures_are_counted_by_their_code(metrics: Metrics, speaker: Speaker) -> None:
    """Of storing, of callers, of signing in; who is not known has no tenant."""
    bus.tell(bus.NOTIFICATION_FAILED, speaker, publication=publication(), code="store_unavailable")
    bus.tell(bus.REFUSED, speaker, door="notify", code="bad_credentials", tenant=None)
    bus.tell(bus.REFUSED, speaker, door="notify", code="invalid", tenant="acme")
    bus.tell(bus.SIGN_IN_FAILED, speaker, code="token_expired", took_s=0.25)
    bus.tell(bus.THROTTLED, speaker, limit="requests_per_key")
    bus.tell(bus.NOTIFICATION_REPLAYED, speaker, publication=publication())
    assert value(metrics, "replayed_total", door="notify", tenant="acme") == 1
    assert value(metrics, "failed_total", door="notify", tenant="acme", code="store_unavailable") == 1
    assert value(metrics, "requests_refused_total", door="notify", code="bad_credentials", tenant="") == 1
    assert value(metrics, "requests_refused_total", door="notify", code="invalid", tenant="acme") == 1
    assert value(metrics, "sign_in_failures_total", code="token_expired") == 1
    assert value(metrics, "sign_in_duration_seconds_sum", outcome="failed") == 0.25
    assert value(metrics, "throttled_total", limit="requests_per_key") == 1


def test_sign_ins_are_counted_by_method(metrics: Metrics, speaker: Speaker) -> None:
    """With how long they took."""
    bus.tell(bus.SIGNED_IN, speaker, method="jwt", tenant="acme", took_s=0.125)
    assert value(metrics, "sign_ins_total", method="jwt", tenant="acme") == 1
    assert value(metrics, "sign_in_duration_seconds_sum", outcome="succeeded") == 0.125


def test_mail_is_counted_by_what_became_of_it(metrics: Metrics, speaker: Speaker) -> None:
    """Each recipient, at each attempt."""
    someone = MailRecipient("1", "a@example.test", AT)
    outcome = MailOutcome(
        sent=(someone, someone, someone),
        dropped=(someone,),
        refused=(RefusedMail("1", "a@example.test", 550, "no such user"),) * 2,
    )
    bus.tell(bus.MAIL_SETTLED, speaker, tenant="acme", outcome=outcome)
    found = {
        name: value(metrics, "mails_total", tenant="acme", outcome=name)
        for name in ("sent", "dropped", "refused", "retry")
    }
    assert found == {"sent": 3, "dropped": 1, "refused": 2, "retry": None}


def test_connections_are_counted_by_why_they_ended(metrics: Metrics, speaker: Speaker) -> None:
    """By the client, or by us and why."""
    bus.tell(bus.CONNECTION_OPENED, speaker, transport="websocket")
    for reason in (SLOW, None):
        bus.tell(bus.CONNECTION_CLOSED, speaker, transport="websocket", reason=reason)
    assert value(metrics, "connections_opened_total", transport="websocket") == 1
    assert value(metrics, "connections_closed_total", transport="websocket", reason="slow") == 1
    assert value(metrics, "connections_closed_total", transport="websocket", reason="by_client") == 1


def test_two_servers_in_one_process_keep_apart(metrics: Metrics, speaker: Speaker) -> None:
    """Each hears its own parts, and none when it has been closed."""
    other_speaker, other = Speaker(), Metrics({})
    other.hear(other_speaker)
    stored(other_speaker, publication())
    assert value(metrics, "published_total", door="notify", tenant="acme") is None
    assert value(other, "published_total", door="notify", tenant="acme") == 1
    other.close()
    other.close()
    stored(other_speaker, publication())
    assert value(other, "published_total", door="notify", tenant="acme") == 1


def test_requests_are_timed_by_door_and_class_of_status(metrics: Metrics) -> None:
    """A clock that was set back while one was answered does no harm."""
    metrics.note_request("notify", 200, 0.25)
    metrics.note_request("notify", 204, 0.25)
    metrics.note_request("notify", 503, -3.0)
    assert value(metrics, "http_request_duration_seconds_sum", door="notify", status="2xx") == 0.5
    assert value(metrics, "http_request_duration_seconds_count", door="notify", status="5xx") == 1
    assert value(metrics, "http_request_duration_seconds_sum", door="notify", status="5xx") == 0


# -- bounds --------------------------------------------------------------------------------------------------
def test_tenants_beyond_the_bound_share_a_name(metrics: Metrics, speaker: Speaker) -> None:
    """Those that were there first keep theirs; no tenant can be called like the rest."""
    for number in range(MAX_TENANTS + 5):
        bus.tell(bus.SIGNED_IN, speaker, method="jwt", tenant=f"t{number}", took_s=0)
    bus.tell(bus.SIGNED_IN, speaker, method="jwt", tenant="t0", took_s=0)
    assert value(metrics, "sign_ins_total", method="jwt", tenant="t0") == 2
    assert value(metrics, "sign_ins_total", method="jwt", tenant=OTHER) == 5


def test_no_label_grows_without_bound(metrics: Metrics, speaker: Speaker) -> None:
    """Whatever the parts of the server say."""
    for number in range(MAX_VALUES + 5):
        bus.tell(bus.REFUSED, speaker, door="notify", code=f"code{number}", tenant=None)
    assert value(metrics, "requests_refused_total", door="notify", code=OTHER, tenant="") == 5


# -- what is asked -------------------------------------------------------------------------------------------
class Store:
    """Counts how often it is asked for its mail counts."""

    def __init__(self) -> None:
        self.asked = 0
        self.failure: Exception | None = None

    async def mail_counts(self) -> MailCounts:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return MailCounts(due=4, refused=2)


def watched(store: Store, clock: Clock) -> Metrics:
    made = Metrics({"version": "1.2.3"}, clock)
    made.watch(
        Sources(
            connections=lambda: {"websocket": 3, "xhr": 1},
            joined=lambda: {"acme": 3, "globex": 0},
            users=lambda: {"acme": 2, "globex": 0},
            queues={"fan_out": lambda: 9},
            mail_counts=store.mail_counts,
        )
    )
    return made


async def test_gauges_are_asked_when_somebody_looks() -> None:
    """As things are then."""
    clock = Clock()
    metrics = watched(Store(), clock)
    clock.now += 12.5
    await metrics.refresh()
    metrics.note_check("store", False, 0.25)
    assert value(metrics, "connections", transport="websocket") == 3
    assert value(metrics, "connections_joined", tenant="acme") == 3
    assert value(metrics, "users_online", tenant="acme") == 2
    assert value(metrics, "users_online", tenant="globex") == 0
    assert value(metrics, "queue_depth", queue="fan_out") == 9
    assert value(metrics, "mail_recipients", state="due") == 4
    assert value(metrics, "mail_recipients", state="refused") == 2
    assert value(metrics, "build_info", version="1.2.3") == 1
    assert value(metrics, "uptime_seconds") == 12.5
    assert value(metrics, "tls_certificate_expiry_timestamp_seconds") is None
    assert value(metrics, "dependency_up", dependency="store") == 0
    assert value(metrics, "dependency_check_duration_seconds_sum", dependency="store") == 0.25
    assert metrics.registry.get_sample_value("process_resident_memory_bytes")
    assert metrics.registry.get_sample_value("python_gc_collections_total", {"generation": "0"})


async def test_the_store_is_asked_at_most_so_often() -> None:
    """However many look; while it is away there is no figure instead of an old one."""
    clock, store = Clock(), Store()
    metrics = watched(store, clock)
    for _ in range(10):
        await metrics.refresh()
    assert store.asked == 1
    store.failure = StoreUnavailable()
    clock.now += module.MAIL_COUNTS_EVERY_S
    await metrics.refresh()
    assert store.asked == 2
    assert value(metrics, "mail_recipients", state="due") is None


async def test_a_store_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """For longer than a moment."""
    monkeypatch.setattr(module, "MAIL_COUNTS_TIMEOUT_S", 0.01)
    store, never = Store(), asyncio.Event()

    async def hang() -> MailCounts:
        await never.wait()
        raise AssertionError

    store.mail_counts = hang  # type: ignore[method-assign]
    metrics = watched(store, Clock())
    await metrics.refresh()
    assert value(metrics, "mail_recipients", state="due") is None


async def test_before_it_watches_anything_there_are_no_such_gauges() -> None:
    """And looking does no harm."""
    metrics = Metrics({})
    await metrics.refresh()
    assert value(metrics, "connections", transport="websocket") is None


async def test_a_late_loop_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """By how much later than asked for its tasks get their turn: here 2 seconds each time."""
    monkeypatch.setattr(module, "LAG_EVERY_S", 0.0)
    seconds = itertools.count(step=2)
    metrics = Metrics({}, lambda: next(seconds))
    watching = asyncio.ensure_future(metrics.run())
    for _ in range(10):
        await asyncio.sleep(0)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    looks = value(metrics, "event_loop_lag_seconds_count")
    assert looks
    assert value(metrics, "event_loop_lag_seconds_sum") == 2 * looks


async def test_the_real_parts_fit(tmp_path: Path) -> None:
    """Rooms, backplane and store have what is asked of them."""
    store, rooms = SQLiteStore(tmp_path / "store.sqlite3"), Rooms()
    backplane = LocalBackplane(rooms)
    await store.open()
    metrics = Metrics({})
    metrics.watch(
        Sources(
            connections=dict,
            joined=lambda: rooms.joined_by_tenant,
            users=lambda: rooms.users_by_tenant,
            queues={"fan_out": lambda: backplane.waiting},
            mail_counts=store.mail_counts,
        )
    )
    await metrics.refresh()
    await store.close()
    assert value(metrics, "queue_depth", queue="fan_out") == 0
    assert value(metrics, "mail_recipients", state="due") == 0
