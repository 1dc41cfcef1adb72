"""The process of a node: its signals, its memory, and its end, come what may."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import os
import signal
import threading
from collections.abc import Callable

from server import logs
from server.app import SHUTDOWN_DEADLINE_S, Server
from server.config import Config
from server.event_loop import loop_factory
from server.listening import allow_many_files
from server.workers.seat import Orders, Seat

logger = logging.getLogger(__name__)

LAST_RESORT_S = SHUTDOWN_DEADLINE_S + 2.0
"""After a signal and `drain_s`: when the process ends whatever still hangs."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""The first asks for the orderly end, the second for an end at once."""

GC_THRESHOLDS = (20_000, 20, 50)
"""Half of the cost of a push was the cyclic garbage collector looking through long-lived connections again
and again."""


def serve(config: Config, reread: Callable[[], Config], seat: Seat | None = None) -> int:
    """Run a node until SIGTERM or SIGINT; the exit code. `reread`: reads the configuration anew, at SIGHUP;
    that signal and SIGUSR2 may be blocked until here. `seat`: None: it serves alone. Raises `StartupError`."""
    allow_many_files()
    with asyncio.Runner(loop_factory=loop_factory(config.application.event_loop)) as runner:
        runner.run(_serve(config, reread, seat or Seat()))
    return 0


def check(config: Config) -> None:
    """Make what `serve` makes before it opens anything: nothing is listened to, connected or written. Raises
    `StartupError` as it would."""

    async def make() -> None:
        Server(config)

    with asyncio.Runner(loop_factory=loop_factory(config.application.event_loop)) as runner:
        runner.run(make())


async def _serve(config: Config, reread: Callable[[], Config], seat: Seat) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    server = Server(config, seat)
    last_resort_s = config.application.drain_s + LAST_RESORT_S

    def end_by_signal() -> None:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
            # Not by the loop, which may be what hangs.
            signal.signal(number, lambda *_: _leave("a second signal"))
        end()

    def end() -> None:
        if stop.is_set():
            return
        stop.set()
        last_resort = threading.Timer(last_resort_s + seat.hand_over_s, _leave, ["something hangs"])
        last_resort.daemon = True
        last_resort.start()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, end_by_signal)
    # The handler is called in the midst of any task, whose request is none of the reload's business.
    context = contextvars.copy_context()

    def reload() -> None:
        loop.call_soon_threadsafe(server.reload_soon, reread, context=context)

    def started() -> None:
        tune_gc()
        seat.ready()

    # Not the loop's handler: removing that, as the loop does at its end, would let the next SIGHUP kill the process.
    signal.signal(signal.SIGHUP, lambda *_: reload())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    try:
        await seat.take(Orders(end=end, leave=_leave, reload=reload, last_resort_s=last_resort_s))
        await server.run(stop, started)
    finally:
        for number in (signal.SIGHUP, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        await seat.leave()


def _leave(why: str) -> None:
    """End without what asyncio and the interpreter do at their end: they wait for each thread, as long as it may hang
    on a disk or a name look-up. Log records have been written, each when it was made."""
    logs.last_word(
        f"notification-server: ended at once ({why}); what was under way is completed after the next start\n"
    )
    os._exit(1)


def tune_gc() -> None:
    """Take what is there to stay out of the collector's sight; to be called when the server has started."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
