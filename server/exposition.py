"""How figures leave: who sees which, as Prometheus's text or as a summary. Knows no HTTP.

Whoever may see all gets them by tenant; a tenant gets its own; everybody else gets the same families added up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from server.metrics import Metrics

KEPT_S = 1.0
"""For how long an answer is given again: collecting and writing takes a while, and anybody may ask."""


class TextFormat(StrEnum):
    """Both are for Prometheus; the values are their media types."""

    PLAIN = "text/plain"
    OPENMETRICS = "application/openmetrics-text"

    @property
    def content_type(self) -> str:
        return CONTENT_TYPE_PLAIN_0_0_4 if self is TextFormat.PLAIN else openmetrics.CONTENT_TYPE_LATEST


@dataclass(frozen=True, slots=True)
class View:
    """What somebody may see. `by_tenant`: the figures of each tenant, else their sum. `tenant`: of this one only, None:
    of all. `has_node`: also what is no tenant's (connections by transport, queues, the process)."""

    by_tenant: bool = False
    tenant: str | None = None
    has_node: bool = True


EVERYTHING = View(by_tenant=True)
TOTALS = View()


@dataclass(frozen=True, slots=True)
class Summary:
    """A few figures for people. `connections`: those open (of a tenant: those that have a user); `users`: users online;
    `sent`: notifications handed to connections; `failed`: notifications that could not be stored, and connections
    closed because they did not take what was sent; `fetched`: messages that came by Redis."""

    connections: int
    users: int
    sent: int
    failed: int
    fetched: int


class Exposition:
    """Shows the figures of `metrics`, at most `kept_s` seconds old. The work is done in a thread: with a thousand
    tenants it takes a tenth of a second."""

    def __init__(
        self, metrics: Metrics, kept_s: float = KEPT_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = metrics
        self._kept_s = kept_s
        self._clock = clock
        self._families: list[Metric] = []
        self._collected_at = float("-inf")
        self._texts: dict[tuple[View, TextFormat], bytes] = {}
        self._working = asyncio.Lock()

    async def text(self, view: View, text_format: TextFormat) -> bytes:
        """All figures in the view."""
        async with self._working:
            families = await self._current()
            if (known := self._texts.get((view, text_format))) is not None:
                return known
            write = generate_latest if text_format is TextFormat.PLAIN else openmetrics.generate_latest
            text: bytes = await asyncio.to_thread(write, _Shown(families, view))
            self._texts[view, text_format] = text
            return text

    async def summary(self, view: View) -> Summary:
        """The figures in the view, as a few numbers."""
        async with self._working:
            families = {family.name: family for family in await self._current()}

        def count(name: str, **labels: str) -> int:
            family = families.get(f"notification_{name}")
            return 0 if family is None else round(_sum(_shown([family], view), labels))

        return Summary(
            connections=count("connections" if view.tenant is None else "connections_joined"),
            users=count("users_online"),
            sent=count("pushed"),
            # Which tenant a slow connection was of is not known.
            failed=count("failed") + (0 if view.tenant else count("connections_closed", reason="slow")),
            fetched=0 if view.tenant else count("messages_received", door="redis"),
        )

    async def _current(self) -> list[Metric]:
        if self._clock() - self._collected_at >= self._kept_s:
            own = await self._metrics.collected()
            others = self._metrics.others
            self._families = own if others is None else await others(own)
            self._collected_at = self._clock()
            self._texts.clear()
        return self._families


class _Shown(Collector):
    """What Prometheus's writers ask for: the families of a view."""

    def __init__(self, families: Iterable[Metric], view: View) -> None:
        self._families = families
        self._view = view

    def collect(self) -> Iterator[Metric]:
        return _shown(self._families, self._view)


def _shown(families: Iterable[Metric], view: View) -> Iterator[Metric]:
    for family in families:
        samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        if any("tenant" in sample.labels for sample in samples):
            samples = _of(samples, view)
        elif not view.has_node:
            samples = []
        # A family that nothing has been counted in yet would tell a tenant when that changes, for whomever.
        if samples or view.has_node:
            yield _with(family, samples)


def _of(samples: Iterable[Sample], view: View) -> list[Sample]:
    if view.tenant is not None:
        return [sample for sample in samples if sample.labels["tenant"] == view.tenant]
    return list(samples) if view.by_tenant else _added_up(samples)


def _added_up(samples: Iterable[Sample]) -> list[Sample]:
    """Without the label `tenant`."""
    sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for sample in samples:
        key = sample.name, tuple(item for item in sample.labels.items() if item[0] != "tenant")
        sums[key] = sums.get(key, 0) + sample.value
    return [Sample(name, dict(labels), value) for (name, labels), value in sums.items()]


def _with(family: Metric, samples: list[Sample]) -> Metric:
    shown = Metric(family.name, family.documentation, family.type, family.unit)
    shown.samples = samples
    return shown


def _sum(families: Iterable[Metric], labels: Mapping[str, str]) -> float:
    """Of the samples with these labels, and any others."""
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if labels.items() <= sample.labels.items()
    )
