"""The process over the workers: starts them, starts anew those that die, replaces them one by one, passes on what it is
told, and ends them in order. It serves nobody itself.

Each worker listens on sockets of its own, bound to the same ports (SO_REUSEPORT): the kernel spreads connections over
those that are there, and one that has died gets none. Who replaces a worker has the same sockets, so that no connection
that waits in them is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from server import logs
from server.config import Config
from server.config.changes import with_live_keys
from server.errors import InvalidConfig, StartupError
from server.greeting import announce
from server.ingest.consumer import Backoff
from server.listening import PUBLISHING, bind, bind_shared
from server.service_manager import tell_manager
from server.tasks import Tasks, first_of
from server.workers import signs
from server.workers.channel import Message, line
from server.workers.child import DEAF, STARTUP_CODES, Child, command
from server.workers.handoff import close_untaken
from server.workers.tally import Tally

logger = logging.getLogger(__name__)

RETRY_FIRST_S, RETRY_MAX_S = 0.5, 30.0
"""Before a worker that has died early is started anew; growing with each in a row."""

STABLE_S = 10.0
"""Who has served for so long is started anew at once."""

COMING_UP_S = 60.0
"""For a worker that is to replace another: until then it serves, or the old one stays."""

END_S = 18.0
"""For a worker to end, beside `drain_s`: longer than it gives itself (`LAST_RESORT_S` and `HAND_OVER_S`)."""

CLOSING_S = 1.0
"""So often what a worker has not taken in time is closed."""

POST_BYTES = 1024 * 1024
"""That may be on their way to a worker, if the kernel allows as much."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Slot:
    """The place of one worker, whoever has it at the moment."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.has_served = asyncio.Event()
        self.child: Child | None = None
        self.successor: Child | None = None
        """Who is to replace it, and does not serve yet."""
        self.is_replaced = asyncio.Event()
        """Whether `child` is another one than before, which may take a while to end."""
        self.main: list[socket.socket] = []
        self.publishing: list[socket.socket] = []
        # Kept while there is nobody, too: what is thrown in then is for who comes next.
        self.inbox, self.post = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.post.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, POST_BYTES)

    def close(self) -> None:
        """Of these sockets, those of the supervisor: the kernel has others for who connects from now on."""
        for each in (*self.main, *self.publishing):
            each.close()
        self.main, self.publishing = [], []


def supervise(config: Config, reread: Callable[[], Config]) -> int:
    """Run as many workers as the configuration says, until SIGTERM or SIGINT; the exit code. `reread`: as for
    `process.serve`; SIGHUP and SIGUSR2 may be blocked until here. Raises `StartupError`."""
    command()  # else it would be found out at each start of a worker

    async def run() -> int:
        return await Supervisor(config, reread).run()

    with asyncio.Runner() as runner:
        return runner.run(run())


class Supervisor:
    """To be made where a loop runs. Raises `StartupError`."""

    def __init__(self, config: Config, reread: Callable[[], Config]) -> None:
        self._config = config
        self._reread = reread
        self._slots = [Slot(number + 1) for number in range(config.application.workers)]
        self._children: set[Child] = set()
        self._tally = Tally()
        self._keeping = Tasks()
        self._hearing = Tasks()
        self._answering = Tasks()
        self._stop = asyncio.Event()
        self._exit_code = 0
        self._is_up = False
        self._is_replacement_due = asyncio.Event()
        application = config.application
        # These listen never: they find a free port, and whether somebody else has this one.
        self._reserved = bind(application.address, (application.port, *application.also_listen))
        self._reserved_publishing: list[socket.socket] = []
        if application.publish_port is not None:
            self._reserved_publishing = bind(
                application.publish_address, [application.publish_port], PUBLISHING
            )
        self._lifeline, self._held_end = os.pipe()

    async def run(self) -> int:
        """Until the end of all; the exit code."""
        self._take_signals()
        try:
            self._keeping.start(self._start_all(), "start")
            self._keeping.start(self._replace_when_due(), "replacing")
            self._keeping.start(signs.watch_for(self._children), "signs of life")
            self._keeping.start(self._close_untaken(), "closing")
            await self._stop.wait()
        finally:
            await self._end_all()
            for number in DEAF:
                signal.signal(number, signal.SIG_IGN)
        return self._exit_code

    # -- signals ---------------------------------------------------------------------------------------------
    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._end_by_signal)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        # Not the loop's: it removes its handlers at its end, and then the signals would end the process.
        signal.signal(signal.SIGHUP, lambda *_: loop.call_soon_threadsafe(self._reload))
        signal.signal(signal.SIGUSR2, lambda *_: loop.call_soon_threadsafe(self._replacement_is_due))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, DEAF)

    def _end_by_signal(self) -> None:
        if not self._stop.is_set():
            self._stop.set()
            return
        for child in self._children:
            child.kill()
        logs.last_word(
            "notification-server: all workers were ended at once (a second signal);"
            " what was under way is completed after the next start\n"
        )
        os._exit(1)

    def _reap(self) -> None:
        for child in self._children:
            child.reap()

    def _reload(self) -> None:
        """Pass it on, if there is nothing wrong with the configuration: else each would say so."""
        if self._stop.is_set():
            return
        try:
            config = with_live_keys(self._config, self._reread())
            logs.setup(config.log)
        except InvalidConfig as error:
            logger.error("the configuration is wrong, so nothing was changed: %s", "; ".join(error.problems))
            return
        except StartupError as error:
            logger.error("the configuration cannot be used, so nothing was changed: %s", error)
            return
        self._config = config
        for child in self._children:
            child.say(line("reload"))

    def _replacement_is_due(self) -> None:
        if self._is_up and not self._stop.is_set():
            self._is_replacement_due.set()
        else:
            logger.warning("the workers are not replaced while the server starts or ends")

    # -- the start -------------------------------------------------------------------------------------------
    async def _start_all(self) -> None:
        """The first alone: it brings a store up to this version, and says what is wrong for all."""
        logger.info("pid %d supervises %d workers", os.getpid(), len(self._slots))
        first, *others = self._slots
        self._keeping.start(self._keep(first), "worker 1")
        await first.has_served.wait()
        for slot in others:
            self._keeping.start(self._keep(slot), f"worker {slot.number}")
        for slot in others:
            await slot.has_served.wait()
        self._is_up = True
        self._announce()
        tell_manager("READY=1")

    def _announce(self) -> None:
        names = next((c.names for c in self._children if c.names), {})
        store, mail = str(names.get("store")), str(names.get("mail"))
        port = self._reserved[0].getsockname()[1]
        published = self._reserved_publishing
        publish_port = published[0].getsockname()[1] if published else None
        announce(self._config, port, store, mail, publish_port, len(self._slots))

    # -- one worker ------------------------------------------------------------------------------------------
    async def _keep(self, slot: Slot) -> None:
        """See to it that there is one."""
        backoff = Backoff(RETRY_FIRST_S, RETRY_MAX_S)
        lease_holder = _lease_holder()
        while True:
            served_s = 0.0
            try:
                child = await self._live(slot, lease_holder)
            except (OSError, StartupError) as exc:
                told = f"worker {slot.number} could not be started: {exc}"
            else:
                # It holds nothing any more, so who comes next may have what it had.
                lease_holder = child.lease_holder
                told = f"{child} {child.end_told}"
                if child.ready_at is not None:
                    served_s = time.monotonic() - child.ready_at
                elif not self._is_up and child.code in STARTUP_CODES and slot is self._slots[0]:
                    self._exit_code = child.code  # it has said why
                    self._stop.set()
                    return
                else:
                    told += " before it served"
            if served_s >= STABLE_S:
                backoff.reset()
                delay_s = 0.0
            else:
                delay_s = backoff.next_s()
            logger.error("%s; it is started anew %s", told, f"in {delay_s:.1f} s" if delay_s else "at once")
            await asyncio.sleep(delay_s)

    async def _live(self, slot: Slot, lease_holder: str) -> Child:
        """From the start of a worker to the end of the last one that has replaced it, which is returned; those before
        may end later. Raises OSError, `StartupError`."""
        slot.main = bind_shared(_addresses(self._reserved))
        try:
            slot.publishing = bind_shared(_addresses(self._reserved_publishing), PUBLISHING)
            child = slot.child = self._start(slot, lease_holder)
            while True:
                slot.is_replaced.clear()
                await first_of(child.has_ended.wait(), slot.is_replaced.wait())
                if slot.child is child and slot.successor is not None:
                    slot.child, slot.successor = slot.successor, None
                if slot.child is child:
                    return child
                child = slot.child
        finally:
            slot.child = None
            slot.close()

    def _start(self, slot: Slot, lease_holder: str) -> Child:
        child = Child(slot.number, lease_holder, self._told)
        is_early = not any(each.is_ready.is_set() for each in self._children)
        posts = [each.post for each in self._slots]
        child.start(slot.main, slot.publishing, self._lifeline, slot.inbox, posts, is_early=is_early)
        self._children.add(child)
        self._hearing.start(self._hear(child), str(child))
        return child

    async def _hear(self, child: Child) -> None:
        await child.hear()
        self._children.discard(child)
        self._tally.ended(child)

    def _told(self, child: Child, message: Message) -> None:
        match message:
            case {"is": "ready"}:
                logger.info("%s serves", child)
                self._slots[child.number - 1].has_served.set()
            case {"is": "closed"}:
                slot = self._slots[child.number - 1]
                if slot.child is child and slot.successor is None:
                    slot.close()  # else the kernel would go on giving connections to sockets that nobody listens to
            case {"is": "figures"}:
                self._tally.heard(child)
            case {"is": "ask", "packed": list(packed)}:
                child.figures = packed
                self._answering.start(self._tally.answer(child, set(self._children)), "figures")

    async def _close_untaken(self) -> None:
        """Else who waits for a worker that does not come up would wait for as long as that takes."""
        while True:
            await asyncio.sleep(CLOSING_S)
            for slot in self._slots:
                if count := close_untaken(slot.inbox):
                    logger.warning("closed %d connections that worker %d has not taken", count, slot.number)
                    self._tally.closed(count)

    # -- replacing -------------------------------------------------------------------------------------------
    async def _replace_when_due(self) -> None:
        while True:
            await self._is_replacement_due.wait()
            self._is_replacement_due.clear()
            logger.info("the workers are replaced, one by one")
            for slot in self._slots:
                if not await self._replace(slot):
                    break
            else:
                logger.info("all workers are replaced")

    async def _replace(self, slot: Slot) -> bool:
        """False: the new one did not come up, and neither would others."""
        old = slot.child
        if old is not None and not old.is_ready.is_set():
            # It may have been started before what is there now.
            trouble = await _trouble_of(old)
            if trouble and not old.has_ended.is_set():
                logger.error("%s %s, so it is not replaced, and no other is", old, trouble)
                return False
        old = slot.child
        if old is None or not old.is_ready.is_set() or not slot.main:
            return True  # it is being started anew anyway
        try:
            # Of another name: for a while both are there, and a lease is for one of them.
            new = slot.successor = self._start(slot, _lease_holder())
        except (OSError, StartupError) as exc:
            logger.error("%s goes on, as no other could be started: %s", old, exc)
            return False
        trouble = await _trouble_of(new)
        if slot.successor is new:
            slot.successor = None
            if not trouble:
                slot.child = new
                slot.is_replaced.set()
        if trouble:
            goes_on = f"{old} goes on" if slot.child is old else f"{old} has ended meanwhile"
            logger.error("%s %s, so %s, and no other is replaced", new, trouble, goes_on)
            await self._end(new)
            return False
        logger.info("%s is replaced by %s", old, new)
        await self._end(old, is_replaced=True)
        return True

    # -- the end ---------------------------------------------------------------------------------------------
    async def _end(self, child: Child, *, is_replaced: bool = False) -> None:
        """Returns when it has ended, or nothing more can be done about it."""
        drain_s = 0.0 if is_replaced else child.drain_s
        child.end(is_replaced=is_replaced)
        try:
            async with asyncio.timeout(END_S + drain_s):
                await child.has_ended.wait()
        except TimeoutError:
            logger.error("%s has not ended in time, so it is killed", child)
            child.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_S):
                    await child.has_ended.wait()

    async def _end_all(self) -> None:
        await self._keeping.cancel()
        children = list(self._children)
        await asyncio.gather(*(self._end(child) for child in children))
        if any(child.code != 0 for child in children if child.ready_at is not None):
            self._exit_code = self._exit_code or 1
        await self._answering.cancel()
        await self._hearing.cancel()


async def _trouble_of(new: Child) -> str:
    """Wait until it serves; else why it does not."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(COMING_UP_S):
            await first_of(new.is_ready.wait(), new.has_ended.wait())
    if new.has_ended.is_set():
        return f"{new.end_told} before it served"
    return "" if new.is_ready.is_set() else f"does not serve after {COMING_UP_S:g} s"


def _addresses(bound: Iterable[socket.socket]) -> list[tuple[int, Any]]:
    return [(each.family, each.getsockname()) for each in bound]


def _lease_holder() -> str:
    return f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(4)}"
