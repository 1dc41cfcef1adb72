"""The figures of one node, for Prometheus: hears over the bus what happens, and asks for the rest when somebody looks.

Each node has a registry of its own. How many different label values there may be is bounded: what is over the bound is
counted as `_other`, which is nobody's name.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydispatch import dispatcher

from server import bus
from server.errors import StoreUnavailable
from server.messages import Document, Publication
from server.store import MailCounts, MailOutcome
from server.tallies import Durations, DurationsFamily, Tally, TallyFamily
from server.wire import CloseReason

logger = logging.getLogger(__name__)

MAX_TENANTS = 1000
"""Tenants with figures of their own."""

MAX_VALUES = 64
"""Different values of any other label: doors, codes, transports and the like. There are far fewer."""

OTHER = "_other"

MAIL_COUNTS_EVERY_S = 5.0
"""The store is asked how much mail is owed at most so often, however often somebody looks."""

MAIL_COUNTS_TIMEOUT_S = 2.0

LAG_EVERY_S = 0.25
"""Between two looks at how late the event loop is."""

# Where a notification is stored and pushed well, it takes milliseconds; the rest is for days when it is not.
FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# A password check takes 50 to 200 ms, and may wait for its turn.
SLOW = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2.5, 5, 10, 30)


Others = Callable[[list[Metric]], Awaitable[list[Metric]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Who is asked for what cannot be heard. `connections`: those open, by transport; `joined`: those that have a user,
    by tenant; `users`: users online, by tenant; `queues`: how much waits, by the name of the queue; `mail_counts`: the
    store's. `certificate_until`: as `tls.valid_until`."""

    connections: Callable[[], Mapping[str, int]]
    joined: Callable[[], Mapping[str, int]]
    users: Callable[[], Mapping[str, int]]
    queues: Mapping[str, Callable[[], int]]
    mail_counts: Callable[[], Awaitable[MailCounts]]
    certificate_until: Callable[[], datetime | None] = lambda: None


@dataclass(slots=True)
class _Values:
    """The values of one label: the first `limit` different ones stand for themselves."""

    limit: int = MAX_VALUES
    known: set[str] = field(default_factory=set)

    def __call__(self, value: str) -> str:
        if value in self.known:
            return value
        if len(self.known) >= self.limit:
            return OTHER
        self.known.add(value)
        return value


class Metrics(Collector):
    """`labels`: what `notification_build_info` says. `clock`: monotonic seconds."""

    def __init__(self, labels: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self.registry = CollectorRegistry()
        self.others: Others | None = None
        """Where several processes are one node: makes their figures of those of this one. Does not raise."""
        self._build = dict(labels)
        self._clock = clock
        self._began_at = clock()
        self._sources: Sources | None = None
        self._gauges: list[Metric] = []
        self._mail_counts: MailCounts | None = None
        self._mail_counts_at = -MAIL_COUNTS_EVERY_S
        self._up: dict[str, bool] = {}
        self._heard: list[object] = []
        self._tenant, self._door, self._code = _Values(MAX_TENANTS), _Values(), _Values()
        self._transport, self._reason, self._method = _Values(), _Values(), _Values()
        self._limit, self._dependency = _Values(), _Values()
        # At tens of thousands a second, finding them anew each time would be half of the cost of counting.
        self._stored_by = lru_cache(MAX_TENANTS)(self._counters_of)
        self._answered_by = lru_cache(MAX_VALUES)(self._duration_of)
        self._signed_in_by = lru_cache(MAX_TENANTS)(self._sign_ins_of)
        self._make_counters()
        self._make_histograms()
        self._opened_by: Callable[[str], Counter] = lru_cache(MAX_VALUES)(self._opened.labels)
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.registry.register(self)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"notification_{name}", what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str, *labels: str, buckets: Sequence[float] = FAST) -> Histogram:
        return Histogram(
            f"notification_{name}_seconds", what, labels, registry=self.registry, buckets=buckets
        )

    def _tally(self, name: str, what: str) -> TallyFamily:
        family = TallyFamily(f"notification_{name}", what, ("door", "tenant"))
        self.registry.register(family)
        return family

    def _durations(self, name: str, what: str, *labels: str) -> DurationsFamily:
        family = DurationsFamily(f"notification_{name}_seconds", what, labels, FAST)
        self.registry.register(family)
        return family

    def _make_counters(self) -> None:
        make = self._counter
        self._published = self._tally("published", "Notifications accepted and stored.")
        self._documents = self._tally("documents_stored", "Inbox documents stored.")
        self._failed = make("failed", "Notifications that could not be stored.", "door", "tenant", "code")
        self._replayed = make("replayed", "Requests that came again and changed nothing.", "door", "tenant")
        self._removed = make("documents_removed", "Documents that have had their time.", "tenant", "kind")
        self._pushed = self._tally("pushed", "Notifications handed to connections, once for each.")
        self._mails = make(
            "mails", "Recipients of mail, by what became of an attempt to mail them.", "tenant", "outcome"
        )
        self._refused = make("requests_refused", "Requests that a door refused.", "door", "code", "tenant")
        self._throttled = make("throttled", "Times that a limit held somebody up or refused them.", "limit")
        self._sign_ins = make("sign_ins", "Users who proved who they are.", "method", "tenant")
        self._sign_in_failures = make("sign_in_failures", "Attempts to sign in that failed.", "code")
        self._received = make("messages_received", "Messages fetched from a broker.", "door")
        self._opened = make("connections_opened", "Connections of clients that were opened.", "transport")
        self._closed = make("connections_closed", "Connections that ended, by why.", "transport", "reason")

    def _make_histograms(self) -> None:
        make, often = self._histogram, self._durations
        self._request_s = often(
            "http_request_duration",
            "From the headers of a request to the end of its answer.",
            "door",
            "status",
        )
        self._store_s = often(
            "store_write_duration", "Storing a notification with all of its documents."
        ).labels()
        self._push_s = often(
            "push_duration", "From a notification being stored to the last connection of this node having it."
        ).labels()
        self._delivery_s = often(
            "delivery_duration", "From a request coming in to the last connection of this node having it."
        ).labels()
        self._sign_in_s = make("sign_in_duration", "Finding out who somebody is.", "outcome", buckets=SLOW)
        self._check_s = make("dependency_check_duration", "Asking what the server depends on.", "dependency")
        self._lag_s = make("event_loop_lag", f"How late the event loop was; looked at every {LAG_EVERY_S} s.")

    # -- what is told ----------------------------------------------------------------------------------------
    def hear(self, *senders: object) -> None:
        """Count what these parts of the server say over the bus, and nobody else: another server in this process has
        figures of its own."""
        for sender in senders:
            self._heard.append(sender)
            for signal, receiver in self._receivers():
                dispatcher.connect(receiver, signal, sender=sender)

    def close(self) -> None:
        """Hear of nothing any more. Idempotent."""
        for sender in self._heard:
            for signal, receiver in self._receivers():
                dispatcher.disconnect(receiver, signal, sender=sender)
        self._heard.clear()

    def _receivers(self) -> Sequence[tuple[str, Callable[..., None]]]:
        return (
            (bus.NOTIFICATION_STORED, self._note_stored),
            (bus.NOTIFICATION_REPLAYED, self._note_replayed),
            (bus.NOTIFICATION_FAILED, self._note_failed),
            (bus.NOTIFICATION_PUSHED, self._note_pushed),
            (bus.REFUSED, self._note_refused),
            (bus.THROTTLED, self._note_throttled),
            (bus.SIGNED_IN, self._note_sign_in),
            (bus.SIGN_IN_FAILED, self._note_sign_in_failure),
            (bus.MAIL_SETTLED, self._note_mail),
            (bus.DOCUMENTS_REMOVED, self._note_removed),
            (bus.CONNECTION_OPENED, self._note_opened),
            (bus.CONNECTION_CLOSED, self._note_closed),
            (bus.MESSAGE_RECEIVED, self._note_received),
            (bus.CONSUMER_CHANGED, self._note_consumer),
        )

    def _whose(self, publication: Publication) -> tuple[str, str]:
        return self._door(publication.door), self._tenant(publication.notification.tenant)

    def _note_stored(self, publication: Publication, documents: list[Document], store_s: float) -> None:
        published, stored, _ = self._stored_by(publication.door, publication.notification.tenant)
        published.value += 1
        stored.value += len(documents)
        self._store_s.observe(store_s)

    def _counters_of(self, door: str, tenant: str) -> tuple[Tally, Tally, Tally]:
        whose = self._door(door), self._tenant(tenant)
        return self._published.labels(*whose), self._documents.labels(*whose), self._pushed.labels(*whose)

    def _note_replayed(self, publication: Publication) -> None:
        self._replayed.labels(*self._whose(publication)).inc()

    def _note_failed(self, publication: Publication, code: str) -> None:
        self._failed.labels(*self._whose(publication), self._code(code)).inc()

    def _note_pushed(
        self, publication: Publication, connections: int, push_s: float, total_s: float | None
    ) -> None:
        self._stored_by(publication.door, publication.notification.tenant)[2].value += connections
        self._push_s.observe(push_s)
        if total_s is not None:
            self._delivery_s.observe(total_s)

    def _note_refused(self, door: str, code: str, tenant: str | None) -> None:
        self._refused.labels(self._door(door), self._code(code), self._tenant(tenant) if tenant else "").inc()

    def _note_throttled(self, limit: str) -> None:
        self._throttled.labels(self._limit(limit)).inc()

    def _note_sign_in(self, method: str, tenant: str, took_s: float) -> None:
        sign_ins, sign_in_s = self._signed_in_by(self._method(method), self._tenant(tenant))
        sign_ins.inc()
        sign_in_s.observe(took_s)

    def _sign_ins_of(self, *whose: str) -> tuple[Counter, Histogram]:
        return self._sign_ins.labels(*whose), self._sign_in_s.labels("succeeded")

    def _note_sign_in_failure(self, code: str, took_s: float) -> None:
        self._sign_in_failures.labels(self._code(code)).inc()
        self._sign_in_s.labels("failed").observe(took_s)

    def _note_mail(self, tenant: str, outcome: MailOutcome) -> None:
        whose = self._tenant(tenant)
        for name in ("sent", "refused", "retry", "dropped"):
            count = len(getattr(outcome, name))
            if count:
                self._mails.labels(whose, name).inc(count)

    def _note_removed(self, tenant: str, documents: int, tombstones: int) -> None:
        for kind, count in (("kept", documents), ("deleted", tombstones)):
            self._removed.labels(self._tenant(tenant), kind).inc(count)

    def _note_opened(self, transport: str) -> None:
        self._opened_by(self._transport(transport)).inc()

    def _note_closed(self, transport: str, reason: CloseReason | None) -> None:
        why = reason.reason.replace(" ", "_") if reason else "by_client"
        self._closed.labels(self._transport(transport), self._reason(why)).inc()

    def note_request(self, door: str, status: int, took_s: float) -> None:
        """An HTTP request has been answered."""
        self._answered_by(door, status // 100).observe(max(0.0, took_s))

    def _duration_of(self, door: str, hundreds: int) -> Durations:
        return self._request_s.labels(self._door(door), f"{hundreds}xx")

    def _note_received(self, door: str) -> None:
        self._received.labels(self._door(door)).inc()

    def _note_consumer(self, door: str, is_up: bool) -> None:
        self._up[self._dependency(door)] = is_up

    def note_check(self, dependency: str, is_up: bool, took_s: float) -> None:
        """Something that the server depends on was asked how it is."""
        name = self._dependency(dependency)
        self._up[name] = is_up
        self._check_s.labels(name).observe(took_s)

    async def run(self) -> None:
        """Look at how late the event loop is, until cancelled."""
        while True:
            due_at = self._clock() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            self._lag_s.observe(max(0.0, self._clock() - due_at))

    # -- what is asked ---------------------------------------------------------------------------------------
    def watch(self, sources: Sources) -> None:
        """Ask these at each `refresh`."""
        self._sources = sources

    async def refresh(self) -> None:
        """Ask for what is not heard; does not raise. The store, which takes a query for it, is asked now and then only;
        while it does not answer there is no such figure."""
        sources = self._sources
        if sources is None:
            return
        await self._count_mail(sources.mail_counts)
        queues = {name: waiting() for name, waiting in sources.queues.items()}
        gauges = [
            _gauges(
                "connections", "Connections of clients that are open.", "transport", sources.connections()
            ),
            _gauges(
                "connections_joined",
                "Connections that have a user.",
                "tenant",
                self._folded(sources.joined()),
            ),
            _gauges("users_online", "Users with a connection.", "tenant", self._folded(sources.users())),
            _gauges("queue_depth", "How much waits to be done.", "queue", queues),
        ]
        if (mail := self._mail_counts) is not None:
            what = "Recipients of mail in the store: owed one, or refused for good."
            counts = {"due": mail.due, "refused": mail.refused}
            gauges.append(_gauges("mail_recipients", what, "state", counts))
        if (until := sources.certificate_until()) is not None:
            what = "Until when the certificate for TLS is valid, as Unix time."
            gauges.append(_gauge("tls_certificate_expiry_timestamp_seconds", what, {}, until.timestamp()))
        self._gauges = gauges

    async def _count_mail(self, ask: Callable[[], Awaitable[MailCounts]]) -> None:
        present = self._clock()
        if present - self._mail_counts_at < MAIL_COUNTS_EVERY_S:
            return
        self._mail_counts_at = present
        try:
            async with asyncio.timeout(MAIL_COUNTS_TIMEOUT_S):
                self._mail_counts = await ask()
        except (StoreUnavailable, TimeoutError):
            self._mail_counts = None

    async def collected(self) -> list[Metric]:
        """Of this process, and as they are now; does not raise. The work is done in a thread."""
        await self.refresh()
        return await asyncio.to_thread(lambda: list(self.registry.collect()))

    @property
    def uptime_s(self) -> float:
        """Since the start of this node."""
        return self._clock() - self._began_at

    def collect(self) -> Iterator[Metric]:
        """The gauges, as they were at the last `refresh`. To be called by the registry, from any thread."""
        yield _gauge("build_info", "What is running; always 1.", self._build, 1)
        yield _gauge("uptime_seconds", "Since the start of this node.", {}, self.uptime_s)
        what = "Whether a dependency answered when last asked."
        yield _gauges("dependency_up", what, "dependency", dict(self._up))
        yield from self._gauges

    def _folded(self, by_tenant: Mapping[str, int]) -> dict[str, int]:
        folded: dict[str, int] = {}
        for tenant, count in by_tenant.items():
            name = self._tenant(tenant)
            folded[name] = folded.get(name, 0) + count
        return folded


def _gauge(name: str, what: str, labels: Mapping[str, str], value: float) -> Metric:
    family = GaugeMetricFamily(f"notification_{name}", what, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _gauges(name: str, what: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"notification_{name}", what, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
