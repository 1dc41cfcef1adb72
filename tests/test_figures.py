"""The figures of several processes as those of one."""

from __future__ import annotations

import json

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.figures import Packed, added_up, counted, pack, unpack


def figures(count: int, **gauges: float) -> Packed:
    """Of a process that has counted so often, by a counter and by a histogram, as they come over a socket."""
    registry = CollectorRegistry()
    counter = Counter("things", "Things.", ["kind"], registry=registry)
    histogram = Histogram("time_seconds", "Time.", registry=registry, buckets=(1.0, 2.0))
    for _ in range(count):
        counter.labels("a").inc()
        histogram.observe(1.5)
    for name, value in gauges.items():
        Gauge(name, name, registry=registry).set(value)
    packed: Packed = json.loads(json.dumps(pack(registry.collect())))
    return packed


def samples(packed: Packed) -> dict[str, float]:
    return {
        each.name + "".join(f" {label}={value}" for label, value in each.labels.items()): each.value
        for family in unpack(packed)
        for each in family.samples
    }


def test_what_is_told_is_what_there_is() -> None:
    """But for the times at which counters began."""
    assert samples(figures(3, waiting=7)) == {
        "things_total kind=a": 3,
        "time_seconds_bucket le=1.0": 0,
        "time_seconds_bucket le=2.0": 3,
        "time_seconds_bucket le=+Inf": 3,
        "time_seconds_count": 3,
        "time_seconds_sum": 4.5,
        "waiting": 7,
    }


def test_counters_histograms_and_gauges_are_summed() -> None:
    """Each sample with those of the same labels; what only one has stays."""
    total = samples(added_up([figures(3, waiting=7), figures(2, waiting=1, other=5), []]))
    assert total == {
        "things_total kind=a": 5,
        "time_seconds_bucket le=1.0": 0,
        "time_seconds_bucket le=2.0": 5,
        "time_seconds_bucket le=+Inf": 5,
        "time_seconds_count": 5,
        "time_seconds_sum": 7.5,
        "waiting": 8,
        "other": 5,
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("notification_connections", 5, id="sum"),
        pytest.param("notification_mail_recipients", 3, id="largest"),
        pytest.param("notification_dependency_up", 2, id="smallest"),
    ],
)
def test_of_some_gauges_one_is_true_of_all(name: str, expected: float) -> None:
    """Where each process says something of the whole, or where the worst one counts."""
    assert samples(added_up([figures(0, **{name: 3}), figures(0, **{name: 2})]))[name] == expected


def test_of_the_queues_that_of_broadcasts_is_of_all_nodes() -> None:
    """So it is no sum."""

    def queues(depth: float) -> Packed:
        registry = CollectorRegistry()
        gauge = Gauge("notification_queue_depth", "d", ["queue"], registry=registry)
        for queue in ("broadcasts", "marks"):
            gauge.labels(queue).set(depth)
        return pack(registry.collect())

    assert samples(added_up([queues(3), queues(4)])) == {
        "notification_queue_depth queue=broadcasts": 4,
        "notification_queue_depth queue=marks": 7,
    }


def test_what_a_process_has_counted_outlives_it() -> None:
    """Its gauges do not."""
    assert samples(added_up([counted(figures(3, waiting=7)), figures(1, waiting=2)]))["waiting"] == 2
    assert samples(added_up([counted(figures(3)), figures(1)]))["things_total kind=a"] == 4
