"""The figures of several processes as those of one: how they are told, and how they are added up.

What is told is JSON: a list of families, each `[name, documentation, type, unit, samples]`, a sample being
`[name, labels, value]`. Processes of two versions may tell each other, while one is replaced by the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

Families = list[Metric]

Packed = list[list[Any]]
"""Families, as above; Any: JSON."""

Key = tuple[str, tuple[tuple[str, str], ...]]
"""A sample: its name and its labels."""

_LARGEST = frozenset(
    {
        "notification_uptime_seconds",
        "notification_build_info",
        "notification_mail_recipients",  # the whole store's, on each
        "process_open_fds",  # beside the smallest limit: whether one of them runs out
        "python_info",
    }
)
_SMALLEST = frozenset(
    {
        "notification_dependency_up",  # up is what all of them reach
        "notification_tls_certificate_expiry_timestamp_seconds",  # who has not taken over a renewed one yet
        "process_start_time_seconds",
        "process_max_fds",
    }
)
_LARGEST_SAMPLES = frozenset({("notification_queue_depth", (("queue", "broadcasts"),))})
"""These are of all nodes, too."""

_KEPT = frozenset({"counter", "histogram", "summary"})
"""What goes on counting when a process has ended."""


def pack(families: Iterable[Metric]) -> Packed:
    """Without the times at which counters began: those of several processes have none."""
    return [
        [
            family.name,
            family.documentation,
            family.type,
            family.unit,
            [[s.name, s.labels, s.value] for s in family.samples if not s.name.endswith("_created")],
        ]
        for family in families
    ]


def unpack(packed: Packed) -> Families:
    """Raises ValueError or TypeError if it is no such list."""
    families = []
    for name, documentation, kind, unit, samples in packed:
        family = Metric(name, documentation, kind, unit)
        family.samples = [Sample(sample, labels, value) for sample, labels, value in samples]
        families.append(family)
    return families


def added_up(all_packed: Sequence[Packed]) -> Packed:
    """Counters, histograms and gauges summed, but for those of which the largest or the smallest is true of all
    together."""
    heads: dict[str, list[Any]] = {}
    sums: dict[str, dict[Key, float]] = {}
    for packed in all_packed:
        for name, documentation, kind, unit, samples in packed:
            heads.setdefault(name, [name, documentation, kind, unit])
            values = sums.setdefault(name, {})
            for sample, labels, value in samples:
                key = sample, tuple(sorted(labels.items()))
                values[key] = _rule(key)(values[key], value) if key in values else value
    return [[*head, [[s, dict(ls), v] for (s, ls), v in sums[name].items()]] for name, head in heads.items()]


def counted(packed: Packed) -> Packed:
    """Only what goes on counting: so that no sum goes back when a process ends."""
    return [family for family in packed if family[2] in _KEPT]


def _rule(key: Key) -> Callable[[float, float], float]:
    if key[0] in _LARGEST or key in _LARGEST_SAMPLES:
        return max
    return min if key[0] in _SMALLEST else _sum


def _sum(one: float, other: float) -> float:
    return one + other
