"""Tests of server/exposition.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from server import bus
from server.exposition import EVERYTHING, TOTALS, Exposition, Summary, TextFormat, View
from server.metrics import Metrics, Sources
from server.store import MailCounts
from server.wire import SLOW
from tests.support.clock import Clock
from tests.test_metrics import Speaker, publication, stored

ACME = View(by_tenant=True, tenant="acme")
ACME_ALONE = View(by_tenant=True, tenant="acme", has_node=False)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def no_mail() -> MailCounts:
    return MailCounts(0, 0)


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    speaker, made = Speaker(), Metrics({"version": "1"})
    made.hear(speaker)
    made.watch(
        Sources(
            connections=lambda: {"websocket": 5, "xhr": 2},
            joined=lambda: {"acme": 4, "globex": 2},
            users=lambda: {"acme": 3, "globex": 2},
            queues={},
            mail_counts=no_mail,
        )
    )
    for tenant, count in (("acme", 2), ("globex", 3)):
        for _ in range(count):
            stored(speaker, publication(tenant, users=2))
        bus.tell(
            bus.NOTIFICATION_PUSHED,
            speaker,
            publication=publication(tenant),
            connections=10 * count,
            push_s=0.1,
            total_s=None,
        )
        bus.tell(bus.NOTIFICATION_FAILED, speaker, publication=publication(tenant), code="store_unavailable")
    for reason in (SLOW, None):
        bus.tell(bus.CONNECTION_CLOSED, speaker, transport="xhr", reason=reason)
    yield made
    made.close()


@pytest.fixture
def exposition(metrics: Metrics) -> Exposition:
    return Exposition(metrics)


def samples(text: bytes) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_plain(text.decode())
        for sample in family.samples
    }


def published(found: Samples) -> dict[str | None, float]:
    """By tenant; None: without the label."""
    return {
        dict(labels).get("tenant"): count
        for (name, labels), count in found.items()
        if name == "notification_published_total"
    }


async def test_who_may_see_all_sees_it_by_tenant(exposition: Exposition) -> None:
    """And the figures that are no tenant's."""
    found = samples(await exposition.text(EVERYTHING, TextFormat.PLAIN))
    assert published(found) == {"acme": 2, "globex": 3}
    assert found["notification_connections", frozenset({("transport", "websocket")})] == 5


async def test_everybody_else_sees_the_sums(exposition: Exposition) -> None:
    """The same families, and no word of any tenant."""
    text = await exposition.text(TOTALS, TextFormat.PLAIN)
    assert published(samples(text)) == {None: 5}
    assert b"acme" not in text and b"globex" not in text and b"tenant=" not in text
    families = {line for line in text.splitlines() if line.startswith(b"# TYPE")}
    everything = (await exposition.text(EVERYTHING, TextFormat.PLAIN)).splitlines()
    assert families == {line for line in everything if line.startswith(b"# TYPE")}


@pytest.mark.parametrize("view", [ACME, ACME_ALONE])
async def test_a_tenant_sees_its_own(exposition: Exposition, view: View) -> None:
    """And of the node what anybody may see, if anybody may."""
    text = await exposition.text(view, TextFormat.PLAIN)
    assert published(samples(text)) == {"acme": 2}
    assert b"globex" not in text
    assert (b"process_open_fds" in text) == view.has_node
    assert (b"notification_connections{" in text) == view.has_node


async def test_a_tenant_alone_sees_no_empty_family(exposition: Exposition) -> None:
    """That one is empty no more would tell it of others."""
    text = (await exposition.text(ACME_ALONE, TextFormat.PLAIN)).decode()
    families = list(parse_plain(text))
    assert families
    for family in families:
        assert family.samples, family.name
        assert {sample.labels.get("tenant") for sample in family.samples} == {"acme"}


@pytest.mark.parametrize("view", [EVERYTHING, TOTALS, ACME, ACME_ALONE])
async def test_both_formats_can_be_read_and_say_the_same(exposition: Exposition, view: View) -> None:
    """By Prometheus's own parsers, the strict one included; without the instants at which counters were made."""
    plain = samples(await exposition.text(view, TextFormat.PLAIN))
    strict = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_openmetrics((await exposition.text(view, TextFormat.OPENMETRICS)).decode())
        for sample in family.samples
    }
    assert strict.keys() == plain.keys()
    assert not [name for name, _ in plain if name.endswith("_created")]


async def test_histograms_keep_their_buckets(exposition: Exposition) -> None:
    """In whatever view."""
    found = samples(await exposition.text(TOTALS, TextFormat.PLAIN))
    assert found["notification_push_duration_seconds_bucket", frozenset({("le", "+Inf")})] == 2
    assert found["notification_push_duration_seconds_sum", frozenset()] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("view", "summary"),
    [
        (TOTALS, Summary(connections=7, users=5, sent=50, failed=3, fetched=0)),
        (EVERYTHING, Summary(connections=7, users=5, sent=50, failed=3, fetched=0)),
        (ACME, Summary(connections=4, users=3, sent=20, failed=1, fetched=0)),
        (ACME_ALONE, Summary(connections=4, users=3, sent=20, failed=1, fetched=0)),
    ],
)
async def test_the_summary_is_of_what_the_view_shows(
    exposition: Exposition, view: View, summary: Summary
) -> None:
    """A tenant's connections are those with one of its users; failed are what was not stored, and who was slow."""
    assert await exposition.summary(view) == summary


async def test_before_anything_happened_the_summary_is_zero() -> None:
    """And needs nothing to be watched."""
    assert await Exposition(Metrics({})).summary(TOTALS) == Summary(0, 0, 0, 0, 0)


async def test_a_flood_of_questions_is_answered_from_memory(metrics: Metrics) -> None:
    """Within a second the same answer; then it is collected anew."""
    clock = Clock()
    exposition = Exposition(metrics, kept_s=1.0, clock=clock)
    text = await exposition.text(TOTALS, TextFormat.PLAIN)
    metrics.note_request("notify", 200, 1.0)
    clock.now += 0.9
    assert await exposition.text(TOTALS, TextFormat.PLAIN) is text
    clock.now += 0.2
    assert await exposition.text(TOTALS, TextFormat.PLAIN) != text


async def test_questions_at_the_same_time_share_the_work(metrics: Metrics) -> None:
    """It is done once, however many wait for it."""
    exposition = Exposition(metrics)
    asking = (exposition.text(TOTALS, TextFormat.PLAIN) for _ in range(50))
    texts = await asyncio.gather(*asking, exposition.text(TOTALS, TextFormat.PLAIN))
    assert all(text is texts[0] for text in texts)
