"""docs/monitoring.md, the alert rules and the dashboard, held against the metrics that there are."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server import bus
from server.affinity import Affinity
from server.messages import MailRecipient
from server.metrics import Metrics, Sources
from server.store import MailCounts, MailOutcome
from server.wire import SLOW
from server.workers.handoff import Handoff
from tests.support.mongod import MongoDatabase
from tests.support.workers import WorkersServer
from tests.test_metrics import AT, Speaker, publication, stored

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "monitoring.md").read_text()
RULES = (DOCS / "monitoring" / "alerts.yml").read_text()
DASHBOARD = json.loads((DOCS / "monitoring" / "dashboard.json").read_text())

OF_PROMETHEUS = {"up", "job", "instance"}
"""A metric and labels that Prometheus itself adds."""

PREFIXES = ("notification_", "process_", "python_")

_METRIC = re.compile(r"\b(?:notification|process|python)_\w+")
_SELECTOR = re.compile(r"\b(\w+)\{([^}]*)\}")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
_ROW = re.compile(r"^\| `(\w+)` \| (counter|gauge|histogram) \|([^|]*)\|", re.MULTILINE)

Families = dict[str, tuple[str, frozenset[str]]]
"""The name of a family as the docs have it (a counter's ends in `_total`) -> its kind and its labels."""


async def _mail_counts() -> MailCounts:
    return MailCounts(1, 1)


@pytest.fixture
async def families() -> Families:
    """Those of a node on which everything has happened once."""
    metrics, speaker = Metrics({"version": "1", "store": "embedded"}), Speaker()
    metrics.hear(speaker)
    metrics.watch(
        Sources(
            connections=lambda: {"websocket": 1},
            joined=lambda: {"acme": 1},
            users=lambda: {"acme": 1},
            queues={"fan_out": lambda: 0},
            mail_counts=_mail_counts,
            certificate_until=lambda: AT,
        )
    )
    what, mail = publication(), MailOutcome(sent=(MailRecipient("1", "a@example.test", AT),))
    stored(speaker, what)
    bus.tell(bus.NOTIFICATION_FAILED, speaker, publication=what, code="store_unavailable")
    bus.tell(bus.NOTIFICATION_REPLAYED, speaker, publication=what)
    bus.tell(bus.NOTIFICATION_PUSHED, speaker, publication=what, connections=1, push_s=0.1, total_s=0.1)
    bus.tell(bus.REFUSED, speaker, door="notify", code="invalid", tenant=None)
    bus.tell(bus.THROTTLED, speaker, limit="requests_per_key")
    bus.tell(bus.SIGNED_IN, speaker, method="jwt", tenant="acme", took_s=0.1)
    bus.tell(bus.SIGN_IN_FAILED, speaker, code="busy", took_s=0.1)
    bus.tell(bus.MAIL_SETTLED, speaker, tenant="acme", outcome=mail)
    bus.tell(bus.DOCUMENTS_REMOVED, speaker, tenant="acme", documents=1, tombstones=1)
    bus.tell(bus.MESSAGE_RECEIVED, speaker, door="redis")
    bus.tell(bus.CONSUMER_CHANGED, speaker, door="redis", is_up=True)
    bus.tell(bus.CONNECTION_OPENED, speaker, transport="websocket")
    bus.tell(bus.CONNECTION_CLOSED, speaker, transport="websocket", reason=SLOW)
    metrics.note_request("notify", 200, 0.1)
    metrics.note_check("store", True, 0.1)
    await metrics.refresh()
    metrics.close()
    with socket.socket() as inbox:
        metrics.registry.register(Handoff(Affinity(), inbox, []).figures)
    found: Families = {}
    for family in metrics.registry.collect():
        samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        assert samples, f"nothing has happened that {family.name} counts: let it happen above"
        labels = frozenset(label for sample in samples for label in sample.labels) - {"le"}
        found[family.name + ("_total" if family.type == "counter" else "")] = family.type, labels
    return found


def _unsuffixed(name: str, families: Families) -> str:
    """The family that a name in a query is of."""
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    return base if families.get(base, ("",))[0] == "histogram" else name


def _queries(panels: list[dict[str, Any]]) -> Iterator[str]:
    for panel in panels:
        yield from _queries(panel.get("panels", []))
        for target in panel.get("targets", []):
            yield target["expr"]


def _expressions() -> list[str]:
    """Of the rules: what follows `expr:`, on its line or indented below it."""
    found = re.findall(r"^( +)expr: (?:\|\n((?:\1 +.*\n)+)|(.*)\n)", RULES, re.MULTILINE)
    return [block or line for _, block, line in found]


DASHBOARD_QUERIES = list(_queries(DASHBOARD["panels"]))
QUERIES = _expressions() + DASHBOARD_QUERIES


async def test_every_metric_is_documented_as_it_is(families: Families) -> None:
    """With its kind and its labels; and none is that does not exist."""
    documented = {
        name: (kind, frozenset(label.strip() for label in labels.split(",") if label.strip()))
        for name, kind, labels in _ROW.findall(PAGE)
    }
    assert documented == families


def test_what_waits_and_what_is_depended_on_is_named(tmp_path: Path, mongo_database: MongoDatabase) -> None:
    """Every queue and every dependency of a server that has all brokers, whether they are there or not, a way to other
    nodes, and workers."""
    settings = {
        "NOTIFY_REDIS_HUB_URL": "redis://127.0.0.1:9/0",
        "NOTIFY_RABBITMQ_URL": "amqp://127.0.0.1:9/",
        "NOTIFY_MONGODB_URL": mongo_database.url,
        "NOTIFY_MONGODB_DB": mongo_database.name,
        "NOTIFY_CLUSTER_BACKPLANE": "mongodb",
    }
    with WorkersServer(tmp_path, **settings) as server:
        figures = server.request("GET", "/metrics", headers={"Accept": "text/plain"}).body.decode()
        dependencies = set(server.get("/readyz").json()["dependencies"])
    queues = set(re.findall(r'^notification_queue_depth\{queue="(\w+)"', figures, re.MULTILINE))
    [row] = re.findall(r"^\| `notification_queue_depth` .*$", PAGE, re.MULTILINE)
    [sentence] = re.findall(r"^The dependencies are [^.]*\.", PAGE, re.MULTILINE)
    assert {"fan_out", "redis", "rabbitmq"} <= queues
    assert queues == set(re.findall(r"`(\w+)`", row)) - {"notification_queue_depth"}
    assert dependencies == set(re.findall(r"`(\w+)`", sentence))


@pytest.mark.parametrize("query", QUERIES)
async def test_queries_name_what_there_is(families: Families, query: str) -> None:
    """Metrics, and labels that they have."""
    names = set(_METRIC.findall(query)) - {"process_"}
    assert names or query.startswith("up{")
    assert {_unsuffixed(name, families) for name in names} <= set(families)
    for name, matchers in _SELECTOR.findall(query):
        _, labels = families.get(_unsuffixed(name, families), ("", frozenset()))
        assert set(_MATCHER.findall(matchers)) <= labels | OF_PROMETHEUS, name
    known = frozenset().union(*(labels for _, labels in families.values())) | OF_PROMETHEUS | {"le"}
    for grouping in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
        assert {label.strip() for label in grouping.split(",")} <= known


@pytest.mark.parametrize("query", QUERIES)
async def test_rates_are_of_counters_only(families: Families, query: str) -> None:
    """The rate of a gauge, or a sum over counters themselves, says nothing."""
    for name in _METRIC.findall(query):
        is_counted = families[_unsuffixed(name, families)][0] != "gauge"
        assert bool(re.search(rf"rate\({name}[\[{{]", query)) == is_counted, name


def test_the_rules_can_be_told_apart_and_are_explained() -> None:
    """Each has its own name, an expression, a severity and a summary, and a row of its own in the docs."""
    alerts = re.findall(r"^ +- alert: (\w+)$", RULES, re.MULTILINE)
    assert len(alerts) == len(set(alerts)) == len(_expressions())
    assert len(re.findall(r"^ +severity: (?:critical|warning|info)$", RULES, re.MULTILINE)) == len(alerts)
    assert len(re.findall(r'^ +summary: ".+"$', RULES, re.MULTILINE)) == len(alerts)
    assert re.findall(r"^\| `(Notification\w+)` \|", PAGE, re.MULTILINE) == alerts


def test_the_rules_are_indented_as_yaml_has_it() -> None:
    """By blanks, two a level."""
    assert "\t" not in RULES
    assert all((len(line) - len(line.lstrip(" "))) % 2 == 0 for line in RULES.splitlines())


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    """Each has an id of its own, and a place within the 24 columns."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_the_dashboard_asks_for_the_chosen_job_only() -> None:
    """Each selector of each query, so that two installations on one Prometheus keep apart."""
    for query in DASHBOARD_QUERIES:
        selectors = [matchers for name, matchers in _SELECTOR.findall(query) if name.startswith(PREFIXES)]
        assert len(selectors) == len(_METRIC.findall(query))
        assert all('job="$job"' in matchers for matchers in selectors)
