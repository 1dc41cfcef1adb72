"""What is broken, and how it is mended: each fault a kind, which is done from its beginning to its end."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from server.errors import StartupError
from server.torture.clients import Client
from server.torture.mongod import Mongod, ReplicaSet
from server.torture.node import Node
from server.torture.services import Service
from server.torture.ways import Ways

RESTARTED_WITHIN_S = 30.0

CUT_OFF_S = (1.0, 8.0)
"""Others take a node for dead after three seconds."""


class Breakable(Protocol):
    """A process, or several that are one service."""

    name: str

    async def start(self) -> None:
        """What does not run."""

    async def kill(self) -> None: ...

    async def freeze(self) -> None: ...

    def thaw(self) -> None: ...


@dataclass(slots=True)
class Fault:
    """One that was done. Times are `time.monotonic`; `recovered_s`: from its end until something that was asked for
    after it was acknowledged; None: that was not measured."""

    kind: str
    begin: float
    end: float = 0.0
    recovered_s: float | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """What there is to break. `ways`: those of each node, () where nothing can be cut; `store`, `neighbours`: those
    that run here; `pester`: publish much to one user."""

    nodes: Sequence[Node]
    ways: Sequence[Ways]
    store: Mongod | ReplicaSet | None
    neighbours: Sequence[Service]
    clients: Sequence[Client]
    is_embedded: bool
    pester: Callable[[str], Awaitable[None]]


@dataclass(slots=True)
class Faults:
    """All kinds that this scene has. `rng`: says which comes when, and how long it takes."""

    scene: Scene
    rng: random.Random
    only: Sequence[str] = ()
    """Kinds; () for all."""
    done: list[Fault] = field(default_factory=list)
    unwell: list[str] = field(default_factory=list)
    """What went wrong in mending."""

    def __post_init__(self) -> None:
        """Raises `StartupError` if `only` names what there is not."""
        unknown = sorted(set(self.only) - self._all.keys())
        if unknown:
            raise StartupError(f"there is no fault {', '.join(unknown)}; there are: {', '.join(self._all)}")

    @property
    def kinds(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """Those that are wanted."""
        return {kind: do for kind, do in self._all.items() if kind in self.only or not self.only}

    @property
    def _all(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        scene = self.scene
        kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "kill server": lambda: self._with_a_node(self._kill),
            "restart server": lambda: self._with_a_node(self._restart),
            "freeze server": lambda: self._with_a_node(lambda node: self._freeze(node, 1.0, 3.0)),
            "cut clients": self._cut_clients,
            "clients stop reading": self._stop_reading,
            "clock back": self._clock_back,
        }
        if scene.is_embedded and sys.platform == "linux":
            kinds["full disk"] = self._full_disk
        if len(scene.nodes) > 1:
            kinds["rolling restart"] = self._restart_all
        if isinstance(scene.store, ReplicaSet):
            kinds["step down mongod"] = scene.store.step_down
        places = scene.ways[0].places if scene.ways else ()
        for cut_off in (*((place,) for place in places), *([places] if len(places) > 1 else [])):
            name = " and ".join(cut_off)
            kinds[f"cut off from {name}"] = lambda cut_off=cut_off: self._cut_off(cut_off)  # type: ignore[misc]
        services = [*([scene.store] if scene.store else []), *scene.neighbours]
        for service in services:
            kinds[f"kill {service.name}"] = lambda service=service: self._kill(service)  # type: ignore[misc]
            kinds[f"freeze {service.name}"] = lambda service=service: self._freeze(service, 1.0, 5.0)  # type: ignore[misc]
        return kinds

    def plan(self, rounds: int) -> Iterator[list[str]]:
        """The kinds of each round: one that concerns a server, its store or its clients, and one of a neighbour, each
        kind once before any comes again. Of several nodes every second round is one kind alone; in the others what
        concerns the ways of a node, and the store, may come beside that, too."""
        kinds, names = set(self.kinds), [service.name for service in self.scene.neighbours]
        ways = {kind for kind in kinds if kind.startswith("cut off")}
        beside = {kind for kind in kinds - ways if kind.rpartition(" ")[2] in names}
        groups = [kinds - beside, beside]
        if is_cluster := len(self.scene.nodes) > 1:
            of_store = {kind for kind in kinds - ways if kind.endswith(" mongod")}
            groups = [kinds - beside - of_store - ways, of_store, ways, beside]
        alone, turns = self._in_turn(kinds), [self._in_turn(group) for group in groups if group]
        for number in range(rounds):
            if is_cluster and number % 2 == 0:
                yield [next(alone)]
            else:
                # Not always at the same time: most faults are to be seen alone.
                yield [next(turns[0]), *(next(turn) for turn in turns[1:] if self.rng.random() < 0.6)]

    def _in_turn(self, kinds: set[str]) -> Iterator[str]:
        while kinds:
            order = sorted(kinds)
            self.rng.shuffle(order)
            yield from order

    async def inflict(self, kinds: Sequence[str]) -> list[Fault]:
        """All of these at once; return when all is mended."""
        return list(await asyncio.gather(*map(self._inflict, kinds)))

    async def _inflict(self, kind: str) -> Fault:
        fault = Fault(kind, time.monotonic())
        self.done.append(fault)
        await self.kinds[kind]()
        fault.end = time.monotonic()
        return fault

    # -- processes -------------------------------------------------------------------------------------------
    async def _with_a_node(self, do: Callable[[Node], Awaitable[None]]) -> None:
        await do(self.rng.choice(self.scene.nodes))

    async def _kill(self, service: Breakable) -> None:
        """`kill -9`, and a new start."""
        await service.kill()
        await asyncio.sleep(self.rng.uniform(0, 1))
        await service.start()

    async def _freeze(self, service: Breakable, low_s: float, high_s: float) -> None:
        await service.freeze()
        try:
            await asyncio.sleep(self.rng.uniform(low_s, high_s))
        finally:
            service.thaw()

    async def _restart(self, node: Node) -> None:
        if not await node.restart():
            self.unwell.append("the server did not end at SIGTERM by itself")

    async def _restart_all(self) -> None:
        """One after the other, each when the one before it serves again."""
        for node in self.scene.nodes:
            await self._restart(node)
            await node.serves(RESTARTED_WITHIN_S)

    # -- the network -----------------------------------------------------------------------------------------
    async def _cut_off(self, places: Sequence[str]) -> None:
        """A node from what it shares with the others; it, and its clients, live on."""
        ways = self.rng.choice(self.scene.ways)
        ways.cut(places, is_silent=self.rng.random() < 0.5)
        try:
            await asyncio.sleep(self.rng.uniform(*CUT_OFF_S))
        finally:
            ways.mend()

    # -- clients ---------------------------------------------------------------------------------------------
    async def _cut_clients(self) -> None:
        for client in self._some_clients(0.5):
            client.cut()

    async def _stop_reading(self) -> None:
        """Until they are closed as slow, or the kernel's buffers could take it all."""
        clients = self._some_clients(0.3)
        for client in clients:
            client.stop_reading()
        try:
            for user in sorted({client.user for client in clients})[:2]:
                await self.scene.pester(user)
            await asyncio.sleep(self.rng.uniform(1, 5))
        finally:
            for client in clients:
                client.read_on()

    def _some_clients(self, share: float) -> list[Client]:
        return [each for each in self.scene.clients if each.may_be_cut and self.rng.random() < share]

    # -- disk and clock --------------------------------------------------------------------------------------
    async def _full_disk(self) -> None:
        [node] = self.scene.nodes
        node.fill_disk(self.rng.choice((0, 4096, 100_000, 1_000_000)))
        try:
            await asyncio.sleep(self.rng.uniform(0.5, 3))
        finally:
            node.free_disk()

    async def _clock_back(self) -> None:
        """A step backwards, a while in the past, and a step back to the present."""
        node = self.rng.choice(self.scene.nodes)
        # MongoDB's own clock does not step: a node may be off it by no more than a third of the overlap.
        node.shift_clock(-self.rng.choice((2.0, 60.0, 3600.0) if self.scene.is_embedded else (2.0, 8.0)))
        try:
            await asyncio.sleep(self.rng.uniform(0.5, 3))
        finally:
            node.shift_clock(0.0)


CAN_REPEAT_MAIL = (
    *("kill server", "restart server", "freeze server", "rolling restart", "full disk", "clock back"),
    *("cut off from mongod", "cut off from redis and mongod"),
)
"""These, and what happens to the store and the mail server, can make a mail go out again. The clock does so by its step
forward, if that is longer than a lease: who had a mail in hand may then have lost it."""


def disturbed(faults: Sequence[Fault], store: Mongod | ReplicaSet | None) -> list[tuple[float, float]]:
    """When a mail could not but go out again, from and to, in seconds since 1970 by the machine's clock."""
    names = ["mail", *([store.name] if store else [])]
    kinds = {
        *CAN_REPEAT_MAIL,
        *(f"{what} {name}" for name in names for what in ("kill", "freeze", "step down")),
    }
    offset = time.time() - time.monotonic()
    return [(each.begin + offset, each.end + offset) for each in faults if each.kind in kinds]
