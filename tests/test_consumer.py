"""What the doors that fetch have in common: delays, the lease, lanes, and how trouble is said."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl

import pytest
from pydispatch import dispatcher

from server.bus import CONSUMER_CHANGED
from server.checks import NotYet, Trouble
from server.errors import InvalidNotification, StoreUnavailable, TooLarge
from server.ingest import consumer
from server.ingest.consumer import Backoff, Consumer, Lanes, Lease, json_of, reason_of
from tests.support.consuming import MemoryLeases


# -- delays --------------------------------------------------------------------------------------------------
def test_delays_double_up_to_the_longest() -> None:
    """Each with jitter of up to a half; from the first again after a reset."""
    backoff = Backoff(1, 30)
    for longest in (1, 2, 4, 8, 16, 30, 30):
        assert longest / 2 <= backoff.next_s() <= longest
    backoff.reset()
    assert backoff.next_s() <= 1


# -- the lease -----------------------------------------------------------------------------------------------
async def test_a_lease_has_one_holder() -> None:
    """Until it is given back."""
    leases = MemoryLeases()
    first, second = Lease(leases, "redis", "first"), Lease(leases, "redis", "second")
    assert await first.renew()
    assert not await second.renew()
    assert await first.renew()
    await second.give_back()  # it is not theirs
    assert not await second.renew()
    await first.give_back()
    assert not first.is_ours
    assert await second.renew()


async def test_a_store_that_is_away_changes_nobodys_lease() -> None:
    """Who had it goes on, who had not waits; giving it back is left to its end."""
    leases = MemoryLeases()
    first, second = Lease(leases, "redis", "first"), Lease(leases, "redis", "second")
    await first.renew()
    leases.is_away = True
    assert await first.renew()
    assert not await second.renew()
    await first.give_back()
    assert first.is_ours


async def test_what_came_under_the_lease_is_ours() -> None:
    """Also after we have lost it; what came later is not."""
    leases = MemoryLeases()
    lease = Lease(leases, "redis", "us", 0.0)
    await lease.renew()
    sure_until = lease.sure_until
    leases.give_to("redis", "other")
    assert await lease.covers(sure_until)
    assert not await lease.covers(sure_until + 1)


async def test_a_lease_counts_from_before_it_was_asked_for() -> None:
    """However long the store takes to answer: another one may have it from then on."""
    ended_at = []

    class Slow(MemoryLeases):
        async def take(self, name: str, holder: str, lease_s: float) -> bool:
            is_ours = await super().take(name, holder, lease_s)
            ended_at.append(self.held[name][1])
            await asyncio.sleep(0.05)
            return is_ours

    lease = Lease(Slow(), "redis", "us", 3600.0)
    await lease.renew()
    assert lease.sure_until <= ended_at[0]


# -- lanes ---------------------------------------------------------------------------------------------------
async def test_a_users_work_is_done_in_order_and_others_do_not_wait() -> None:
    """What fails unforeseen is logged, and its lane goes on."""
    done: list[str] = []
    gate = asyncio.Event()

    async def work(item: str) -> None:
        if item == "a1":
            await gate.wait()
        if item == "b1":
            raise ZeroDivisionError
        done.append(item)
        if item == "b2":
            gate.set()

    # Enough lanes that these two have one each.
    lanes = Lanes(work, 4096)
    task = asyncio.create_task(lanes.run())
    for item in ("a1", "a2", "b1", "b2", "a3"):
        lanes.put(item[0], item)
    assert lanes.waiting == 5
    async with asyncio.timeout(30):
        await lanes.idle()
    assert lanes.waiting == 0
    assert done == ["b2", "a1", "a2", "a3"]
    task.cancel()
    await asyncio.wait([task])


# -- life ----------------------------------------------------------------------------------------------------
class Failing(Consumer):
    """Ends as it is told, attempt by attempt; None: consumes until it stops."""

    door = "test"

    def __init__(self, *endings: Exception | None) -> None:
        super().__init__("a broker", "default", Backoff(0.0, 0.0))
        self.endings = list(endings)
        self.finished = False

    @property
    def waiting(self) -> int:
        return 0

    async def _consume(self) -> None:
        ending = self.endings.pop(0)
        if ending is not None:
            raise ending
        self._note_up()
        await self._stopping.wait()

    async def _finish(self) -> None:
        self.finished = True

    def _why(self, error: Exception) -> str | None:
        return reason_of(error) if isinstance(error, OSError) else None


async def test_each_change_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """The same trouble again is none; what was not to be expected comes with its traceback."""
    caplog.set_level(logging.INFO, "server.ingest")
    refused = ConnectionRefusedError(111, "x")
    door = Failing(
        refused, refused, OSError(113, "x"), StoreUnavailable(), ZeroDivisionError(), refused, None
    )
    ups: list[bool] = []

    def note(is_up: bool) -> None:
        ups.append(is_up)
        asyncio.get_running_loop().call_soon(door._stopping.set)

    dispatcher.connect(note, CONSUMER_CHANGED, sender=door)
    with pytest.raises(Trouble, match="^not connected$"):
        await door.probe()
    async with asyncio.timeout(30):
        await door.run()
        await door.stop(30)
    assert [record.message for record in caplog.records] == [
        "test: not consuming from a broker: Connection refused; trying again",
        "test: not consuming from a broker: No route to host; trying again",
        "test: not consuming from a broker: the store is away; trying again",
        "test: failed; trying again",
        "test: not consuming from a broker: Connection refused; trying again",
        "test: consuming from a broker",
    ]
    assert ups == [True, False]
    assert door.finished


async def test_what_has_not_failed_yet_is_no_trouble_for_the_log() -> None:
    """Until the first attempt has come to something."""
    door = Failing()
    with pytest.raises(NotYet, match="^not connected$"):
        await door.probe()
    door._note_down(ConnectionRefusedError(111, "x"))
    with pytest.raises(Trouble, match="^not connected$") as caught:
        await door.probe()
    assert caught.type is Trouble


async def test_what_is_well_again_is_said_after_the_unforeseen(caplog: pytest.LogCaptureFixture) -> None:
    """Though the same was said before it."""
    caplog.set_level(logging.INFO, "server.ingest")

    class Stumbling(Failing):
        async def _consume(self) -> None:
            self._note_up()
            if self.endings:
                raise self.endings.pop(0)  # type: ignore[misc]  # none of these is None
            await self._stopping.wait()

    door = Stumbling(ZeroDivisionError())
    asyncio.get_running_loop().call_later(0.05, door._stopping.set)
    async with asyncio.timeout(30):
        await door.run()
    assert [record.message for record in caplog.records] == [
        "test: consuming from a broker",
        "test: failed; trying again",
        "test: consuming from a broker",
    ]


@pytest.mark.parametrize(("stable_s", "resets"), [(3600.0, 0), (0.0, 3)], ids=["soon", "late"])
async def test_delays_begin_anew_after_what_was_well_for_a_while(
    monkeypatch: pytest.MonkeyPatch, stable_s: float, resets: int
) -> None:
    """What ends as soon as it begins is tried less and less often."""
    monkeypatch.setattr(consumer, "STABLE_S", stable_s)

    class Counting(Backoff):
        resets = 0

        def reset(self) -> None:
            self.resets += 1

    class Ending(Failing):
        async def _consume(self) -> None:
            self._note_up()
            if len(self.endings) == 1:
                self._stopping.set()
            raise self.endings.pop(0) or OSError()

    door = Ending(OSError(), OSError(), OSError())
    backoff = door._backoff = Counting(0.0, 0.0)
    async with asyncio.timeout(30):
        await door.run()
    assert backoff.resets == resets


async def test_a_stop_before_anything_returns_at_once() -> None:
    """And nothing is consumed afterwards."""
    door = Failing()
    async with asyncio.timeout(30):
        await door.stop(30)
        await door.run()


# -- reading and saying --------------------------------------------------------------------------------------
def test_a_message_is_json_in_utf8() -> None:
    """And not too long."""
    assert json_of('{"a": ["ü", 1.5, null]}'.encode(), 100) == {"a": ["ü", 1.5, None]}
    for body, why in {
        b"": "not JSON",
        b"Infinity": "not JSON",
        b"9" * 5000: "not JSON",
        b"\xff": "not UTF-8",
        b"\xef\xbb\xbf1": "not JSON",
        b"[" * 5000: "nested too deeply",
    }.items():
        with pytest.raises(InvalidNotification, match=why):
            json_of(body, 5000)
    with pytest.raises(TooLarge, match="over the 3 bytes"):
        json_of(b"1234", 3)


def _wrapped(inner: Exception) -> Exception:
    try:
        try:
            raise inner
        except Exception as exc:
            raise ConnectionError("Error 111 connecting") from exc
    except ConnectionError as exc:
        return exc


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(111, "Connect call failed"), "Connection refused"),
        (_wrapped(ConnectionRefusedError(111, "Connect call failed")), "Connection refused"),
        (_wrapped(ssl.SSLError(1, "certificate verify failed")), "certificate verify failed"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (ConnectionError("Connection closed by server."), "Connection closed by server"),
        (ConnectionError(), "ConnectionError"),
        (ConnectionError("two\nlines\x1b[1m"), "two lines [1m"),
    ],
)
def test_reasons_are_a_line_to_read(error: Exception, reason: str) -> None:
    """What the system says, where it said something; never a second line, nor control characters."""
    assert reason in reason_of(error)
    assert reason_of(error).isprintable()
