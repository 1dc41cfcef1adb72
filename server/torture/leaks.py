"""What the server holds when nobody is there any more, beside what one holds that has just been started. Linux only
(/proc)."""

from __future__ import annotations

import asyncio
import operator
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from server.torture.judging import Finding
from server.torture.node import Node

MORE_FILES = 4
"""Descriptors that may differ: connections to a database or a broker that come and go."""

POOLED, MAX_POOLED = "pooled socket", 110
"""Connections to a store that are kept for later: pymongo's limit, and those by which it watches."""

POOLED_TASKS = frozenset({"PyMongoProtocol.read", "_poll_cancellation"})
"""Of such connections, while they wait for an answer."""

MORE_MIB = 96.0
"""By how much the memory may have grown: an interpreter gives little of it back."""

LOOKS, LOOK_EVERY_S = 5, 1.0
"""What comes and goes is not at each of these: on a busy machine there may be a lot of it at one moment."""

QUIET_WITHIN_S = 40.0

FRESH_WITHIN_S = 120.0
"""One that has just been started reaches all that it depends on; on a machine that is busy with other things, too."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """`files`: open descriptors by kind; `tasks`: names of tasks, or their kinds; `connections`, `queues`: figures of
    /metrics; `down`: what the server depends on and does not reach."""

    files: Mapping[str, int]
    threads: int
    memory_mib: float
    tasks: Sequence[str]
    connections: Mapping[str, float]
    queues: Mapping[str, float]
    down: Sequence[str]


async def take_stock(node: Node) -> Holdings:
    """Raises OSError."""
    figures, status = await node.figures(), node.status()
    return Holdings(
        node.open_files(),
        int(status["Threads"]),
        int(status["VmRSS"].split()[0]) / 1024,
        await node.tasks(),
        _labelled(figures, "notification_connections"),
        _labelled(figures, "notification_queue_depth"),
        [name for name, is_up in _labelled(figures, "notification_dependency_up").items() if not is_up],
    )


def _labelled(figures: Mapping[str, float], name: str) -> dict[str, float]:
    """The figures of this name, by the value of their one label."""
    parts = ((labelled.partition("{"), value) for labelled, value in figures.items())
    return {labels.split('"')[1]: value for (found, _, labels), value in parts if found == name}


async def what_stays(node: Node, within_s: float) -> Holdings:
    """What the server holds when all connections are gone, nothing waits and all that it depends on is reached, or what
    is left after so long. Of tasks and descriptors only as many as there are at each of several looks."""
    return await _looked_at(node, await _when_quiet(node, within_s), operator.and_)


async def what_there_may_be(node: Node, within_s: float) -> Holdings:
    """As `what_stays`, but as many as there are at any look: some of what lasts is only begun."""
    return await _looked_at(node, await _when_quiet(node, within_s), operator.or_)


async def _looked_at(
    node: Node, first: Holdings, both: Callable[[Counter[str], Counter[str]], Counter[str]]
) -> Holdings:
    tasks, files = Counter(map(_kind, first.tasks)), Counter(first.files)
    for _ in range(LOOKS - 1):
        await asyncio.sleep(LOOK_EVERY_S)
        tasks = both(tasks, Counter(map(_kind, await node.tasks())))
        files = both(files, Counter(node.open_files()))
    return replace(first, tasks=sorted(tasks.elements()), files=files)


async def _when_quiet(node: Node, within_s: float) -> Holdings:
    ends_at = time.monotonic() + within_s
    while True:
        holdings = await take_stock(node)
        waiting = [value for name, value in holdings.queues.items() if name != "sockets" and value]
        is_quiet = not any(holdings.connections.values()) and not waiting and not holdings.down
        if is_quiet or time.monotonic() > ends_at:
            return holdings
        await asyncio.sleep(0.5)


def leaked(used: Holdings, fresh: Holdings) -> Iterator[Finding]:
    """What the one that was tortured holds too much of."""
    for transport, count in used.connections.items():
        if count:
            yield Finding("leak", f"{count:g} connections ({transport}) of clients that are gone")
    for name, value in used.queues.items():
        if name != "sockets" and value:
            yield Finding("leak", f"{value:g} in the queue {name}")
    for kind in used.files:
        if kind == POOLED:
            if used.files[kind] > MAX_POOLED:
                yield Finding("leak", f"{used.files[kind]} connections to the store")
            continue
        more = used.files[kind] - fresh.files.get(kind, 0)
        if more > MORE_FILES:
            yield Finding("leak", f"{more} descriptors of the kind {kind} more than in a fresh server")
    more_tasks = Counter(used.tasks) - Counter(fresh.tasks)
    for kind in POOLED_TASKS:
        del more_tasks[kind]
    if sum(more_tasks.values()) > MORE_FILES:
        names = ", ".join(f"{name} ({count})" for name, count in more_tasks.most_common(5))
        yield Finding("leak", f"tasks more than in a fresh server: {names}")
    if used.memory_mib > fresh.memory_mib + MORE_MIB:
        yield Finding("leak", f"{used.memory_mib:.0f} MiB, where a fresh server has {fresh.memory_mib:.0f}")


def _kind(task: str) -> str:
    """Without what tells one from the next: `Task-17` and `Task-18` are of one kind."""
    return task.partition(" ")[0].rstrip("0123456789")
