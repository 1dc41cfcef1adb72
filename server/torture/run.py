"""The torture itself: start, load, break round by round, let it come to rest, and judge."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import asdict
from pathlib import Path

from server.torture import leaks
from server.torture.brokers import RedisPublisher
from server.torture.children import Reaper
from server.torture.clients import Client, read_pages
from server.torture.faults import Fault, Faults, Scene, disturbed
from server.torture.house import House, Options
from server.torture.judging import (
    Evidence,
    Finding,
    Inbox,
    View,
    count_passed_over,
    count_repeated,
    judge,
)
from server.torture.ledger import Request
from server.torture.lines import LineEnded
from server.torture.mailbox import Taken, read_taken
from server.torture.node import Node
from server.torture.publishers import NotifyDoor, publish_until_acknowledged
from server.torture.report import Progress, Result
from server.torture.services import MailServer

RECOVERED_WITHIN_S = 60.0
"""After a fault is over; longer, and it is one of the findings."""

SETTLED_WITHIN_S = 90.0
"""When all is mended: a sweep completes what is half stored every 15 s, mail goes out when its lease has ended."""

TOLD_WITHIN_S = 40.0
"""What clients still have to be told, when all else is done: of what was stored though the store did not say so in time
(three time-outs and a sweep later)."""

MONGODB_OVERLAP_S = 30.0
"""See `Store.changes_overlap_s`."""

HTTP_DOORS = ("notify", "service", "internal", "broadcast")

NOISY = ("tornado", "aio_pika", "aiormq", "pymongo", "asyncio")
"""Who logs each connection that fails: here that is what is wanted."""


class Torture:
    """One run: `open`, `break_things`, `judge`, `close`."""

    def __init__(self, options: Options, folder: Path, reaper: Reaper, progress: Progress) -> None:
        self.options = options
        self.house = House(options, folder, reaper)
        self.rounds = self.house.plan.rounds if options.rounds is None else options.rounds
        self.result = Result(options.seed, options.plan, described(options), left_out=self.house.left_out)
        self._folder = folder
        self._progress = progress
        self._findings: list[Finding] = []
        house = self.house
        scene = Scene(
            house.nodes.all,
            house.ways,
            house.store,
            house.neighbours,
            house.clients,
            options.store == "embedded",
            house.pester,
        )
        rng = random.Random(f"{options.seed} faults")  # noqa: S311  # repeats a run, keeps no secret
        self.faults = Faults(scene, rng, options.only)

    # -- load, and faults ------------------------------------------------------------------------------------
    async def open(self) -> None:
        """Start everything, and let everybody be known to the server. Raises `StartupError`."""
        self._progress.show(0, "starting")
        await self.house.open()
        house = self.house
        house.listen()
        await all_here(house.clients)
        door = NotifyDoor(house.nodes, house.ledger, house.audience)
        request = house.ledger.open(door.name, house.audience.everybody)
        await publish_until_acknowledged(door, request, house.ledger, random.Random(0))  # noqa: S311  # no secret

    async def break_things(self) -> None:
        """All rounds, under load."""
        self.house.publish()
        for number, kinds in enumerate(self.faults.plan(self.rounds), 1):
            self._progress.show(0.1 + 0.6 * number / self.rounds, " and ".join(kinds))
            await asyncio.sleep(self.faults.rng.uniform(0.3, 1.2))
            for fault in await self.faults.inflict(kinds):
                await self._recover(fault)
        self.result.rounds = self.rounds

    async def _recover(self, fault: Fault) -> None:
        """Wait until what is asked for now is done."""
        ends_at = fault.end + RECOVERED_WITHIN_S
        await self._see_that_it_lives()
        while (at := self._recovered_at(fault)) is None:
            await self._see_that_it_lives()
            if time.monotonic() > ends_at:
                self._broken(f"nothing went through within {RECOVERED_WITHIN_S:g} s after: {fault.kind}")
                return
            await asyncio.sleep(0.1)
        if len(self.house.nodes.all) > 1:
            for node in self.house.nodes.all:
                if not await node.serves(RECOVERED_WITHIN_S):
                    self._broken(
                        f"the {node.name} does not serve {RECOVERED_WITHIN_S:g} s after: {fault.kind}"
                    )
            at = max(at, time.monotonic())
        fault.recovered_s = round(max(0.0, at - fault.end), 3)

    def _recovered_at(self, fault: Fault) -> float | None:
        """As `time.monotonic`; None: not yet."""
        concerned = fault.kind.partition(" ")[2]
        if concerned == "mail":
            offset = time.time() - time.monotonic()
            later = (each.at - offset for each in self.mails if each.at - offset >= fault.end)
            return min(later, default=None)
        doors = (concerned,) if concerned in ("redis", "rabbitmq") else HTTP_DOORS
        return self.house.ledger.first_acknowledged_after(fault.end, doors)

    async def _see_that_it_lives(self) -> None:
        for node in self.house.nodes.all:
            if not node.child.is_running:
                self._broken(f"the {node.name} ended by itself, with {node.child.returncode}")
                await node.start()

    def _broken(self, what: str) -> None:
        self._findings.append(Finding("broken", what))

    @property
    def mails(self) -> list[Taken]:
        return read_taken(self.house.mail.taken)

    # -- coming to rest --------------------------------------------------------------------------------------
    async def settle(self) -> None:
        """Finish what was begun, and wait until all of it is done, or is late."""
        self._progress.show(0.72, "finishing what was begun")
        house = self.house
        await house.finish(RECOVERED_WITHIN_S)
        await self._publish_by_redis()
        begin = time.monotonic()
        while time.monotonic() < begin + SETTLED_WITHIN_S:
            waits_for = await self._waits_for()
            self._progress.show(0.75, f"waiting for {waits_for}" if waits_for else "all there")
            if not waits_for:
                break
            await asyncio.sleep(1.0)
        self.result.settled_s = round(time.monotonic() - begin, 1)

    async def _publish_by_redis(self) -> None:
        """Now that nothing is broken, what is published there must arrive, too."""
        house = self.house
        if house.redis is None:
            return
        door, rng = RedisPublisher(house.redis, house.ledger, house.audience), random.Random(1)  # noqa: S311  # no secret
        for user in house.audience.everybody:
            request = house.ledger.open(door.name, [user])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECOVERED_WITHIN_S):
                    await publish_until_acknowledged(door, request, house.ledger, rng)

    async def _waits_for(self) -> str:
        """What is not done yet; "": nothing."""
        house = self.house
        try:
            figures = await house.nodes.any().figures()
            inboxes = await self._read_inboxes()
        except (OSError, ValueError) as error:
            return str(error)
        due = figures.get('notification_mail_recipients{state="due"}')
        waiting = house.rabbit_publisher and await house.rabbit_publisher.waiting()
        if house.rabbit_publisher and waiting != 0:
            return "RabbitMQ"
        if due != 0:
            return f"mail ({due:g} due)" if due is not None else "mail"
        evidence = Evidence(house.ledger, house.changes, inboxes, mails=self.mails)
        late = [each for each in judge(evidence) if each.kind == "lost" or "not mailed" in each.what]
        return f"{len(late)} that are not there yet" if late else ""

    async def _inboxes(self) -> dict[str, Inbox]:
        """Now that they must be readable; on a busy machine one question may be late all the same. Raises OSError,
        ValueError."""
        ends_at = time.monotonic() + RECOVERED_WITHIN_S
        while True:
            try:
                return await self._read_inboxes()
            except (OSError, ValueError):
                if time.monotonic() > ends_at:
                    raise
                await asyncio.sleep(1.0)

    async def _read_inboxes(self) -> dict[str, Inbox]:
        users = self.house.audience.everybody
        return {user: Inbox(user, await read_pages(self.house.nodes, user)) for user in users}

    # -- judging ---------------------------------------------------------------------------------------------
    async def judge(self) -> Result:
        """Compare, then look at what the server still holds. Ends all clients."""
        house, result = self.house, self.result
        self._progress.show(0.85, "comparing")
        views = await self._finish_clients()
        inboxes = await self._inboxes()
        evidence = Evidence(
            house.ledger, house.changes, inboxes, views, self.mails, disturbed(self.faults.done, house.store)
        )
        evidence.overlap_s = 0.0 if self.options.store == "embedded" else MONGODB_OVERLAP_S
        evidence.others += [finding for hand in house.hands for finding in hand.findings]
        self._count(inboxes)
        self._progress.show(0.9, "looking for leaks")
        await self._look_for_leaks()
        self._read_log()
        evidence.others += [*self._findings, *(Finding("broken", what) for what in self.faults.unwell)]
        result.findings = judge(evidence)
        self._write_down()
        return result

    def _write_down(self) -> None:
        """The ledger, the faults and what was not answered, for whoever looks into what went wrong. Times are seconds
        since 1970."""
        offset = time.time() - time.monotonic()
        with (self._folder / "ledger.jsonl").open("w") as file:
            done: list[Request | Fault] = [*self.house.ledger.requests.values(), *self.faults.done]
            for each in done:
                fields = asdict(each)
                times = ("sent_at", "acknowledged_at", "begin", "end")
                fields |= {name: fields[name] + offset for name in times if fields.get(name) is not None}
                file.write(json.dumps(fields) + "\n")
            file.write(json.dumps({"unanswered": self.house.changes.unanswered()}) + "\n")

    async def _finish_clients(self) -> list[View]:
        house = self.house
        for client in house.clients:
            client.read_on()
        await all_here(house.clients)
        results = await asyncio.gather(*map(finish_client, house.clients))
        self._findings += [Finding("differs", what) for what in results if what]
        inboxes = await self._inboxes()
        await self._told(inboxes)
        await asyncio.sleep(1.0)  # counts follow within a quarter of a second
        return [client.view() for client in house.clients]

    async def _told(self, inboxes: dict[str, Inbox]) -> None:
        """Wait until those who only listen, or cannot ask what they missed, were told everything, or are late."""
        ends_at = time.monotonic() + TOLD_WITHIN_S
        while time.monotonic() < ends_at:
            views = [view for client in self.house.clients if (view := client.view()).states is None]
            evidence = Evidence(self.house.ledger, self.house.changes, inboxes, views)
            if not any(finding.kind == "differs" for finding in judge(evidence)):
                return
            await asyncio.sleep(0.5)

    def _count(self, inboxes: dict[str, Inbox]) -> None:
        house, result, mails = self.house, self.result, self.mails
        result.faults = self.faults.done
        result.requests = len(house.ledger.requests)
        for request in house.ledger.acknowledged:
            result.acknowledged += 1
            result.by_door[request.door] = result.by_door.get(request.door, 0) + 1
        result.tries = sum(request.tries for request in house.ledger.requests.values())
        result.documents = sum(len(inbox.documents) for inbox in inboxes.values())
        result.clients = len(house.clients)
        result.reconnects = sum(client.connected - 1 for client in house.clients)
        result.changes = house.changes.acknowledged
        result.mails = sum(len(mail.to) for mail in mails)
        result.mails_repeated = count_repeated(mails)
        result.passed_over = count_passed_over(house.ledger, inboxes)

    async def _look_for_leaks(self) -> None:
        await self.house.leave()
        if sys.platform != "linux":
            return
        # Side by side: each of them waits for what others give up late.
        await asyncio.gather(*map(self._look_for_leaks_of, self.house.nodes.all))

    async def _look_for_leaks_of(self, node: Node) -> None:
        try:
            used = await leaks.what_stays(node, leaks.QUIET_WITHIN_S)
            if not await node.restart():
                self._broken(f"the {node.name} did not end at SIGTERM by itself")
            await node.serves(30.0)
            fresh = await leaks.what_there_may_be(node, leaks.FRESH_WITHIN_S)
        except OSError as error:
            self._broken(f"the {node.name} does not say what it holds: {error}")
            return
        if fresh.down:
            self._broken(f"the {node.name}, just started, does not reach: {', '.join(fresh.down)}")
            return
        self._findings += leaks.leaked(used, fresh)
        name = f"{node.name}: " if len(self.house.nodes.all) > 1 else ""
        self.result.holdings |= {
            f"{name}memory, of a fresh one": f"{used.memory_mib:.0f} MiB, {fresh.memory_mib:.0f} MiB",
            f"{name}files, of a fresh one": f"{sum(used.files.values())}, {sum(fresh.files.values())}",
            f"{name}tasks, of a fresh one": f"{len(used.tasks)}, {len(fresh.tasks)}",
        }

    def _read_log(self) -> None:
        """What nobody foresaw ends with a traceback there."""
        for node in self.house.nodes.all:
            for error in sorted(set(tracebacks(node.child.output()))):
                self._broken(f"the {node.name} logged: {error}")

    async def close(self) -> None:
        await self.house.close()


def described(options: Options) -> str:
    """What is tortured."""
    if options.nodes == 1:
        return options.store
    return f"{options.store}, {options.nodes} nodes over {options.backplane}"


def tracebacks(log: str) -> list[str]:
    """The last line of each."""
    # The log indents what follows the first line of a record by a tab; within a traceback all but the last by spaces.
    found = re.findall(r"^\t?Traceback .*\n(?:\t? .*\n)*\t?(\S.*)$", log, re.MULTILINE)
    return [line[:200] for line in found]


async def all_here(clients: list[Client]) -> None:
    """Wait for all of them, for a while."""
    waiting = [asyncio.create_task(client.is_here.wait()) for client in clients]
    _, late = await asyncio.wait(waiting, timeout=RECOVERED_WITHIN_S)
    for task in late:
        task.cancel()


async def finish_client(client: Client) -> str:
    """What is wrong with it; "": it is up to date."""
    why = ""
    for _ in range(3):
        try:
            async with asyncio.timeout(RECOVERED_WITHIN_S):
                await client.is_here.wait()
                await client.finish()
            return client.trouble or ""
        except (LineEnded, TimeoutError) as error:
            why = f"{client.name} cannot catch up: {error!r}"
    return why


async def torture(options: Options, progress: Progress) -> Result:
    """A whole run. If anything is wrong, its folder is kept. Raises `StartupError`."""
    MailServer.check()
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # By aio-pika, when it drops a connection that was given up while it was made.
    warnings.filterwarnings("ignore", "coroutine 'Connection.close' was never awaited", RuntimeWarning)
    began_at = time.monotonic()
    task = asyncio.current_task()
    if task is not None:  # SIGTERM, too, leaves nothing behind
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    folder = Path(tempfile.mkdtemp(prefix="notification-torture-"))
    reaper = Reaper()
    is_kept = False
    try:
        run = Torture(options, folder, reaper, progress)
        try:
            await run.open()
            await run.break_things()
            await run.settle()
            result = await run.judge()
        except Exception as error:
            is_kept = True
            error.add_note(f"kept to look at: {folder}")
            raise
        finally:
            await run.close()
        result.duration_s = round(time.monotonic() - began_at, 1)
        is_kept = bool(result.findings)
        if is_kept:
            result.folder = str(folder)
            (folder / "result.json").write_text(json.dumps(result.fields(), indent=2))
        return result
    finally:
        progress.end()
        reaper.close()
        if not is_kept:
            shutil.rmtree(folder, ignore_errors=True)
