"""docs/conformance/dialect-2.jsonl: with which a client in any language can check itself without a server.

`python -m tests.support.dialect_script` records it anew."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.core import Gate
from tests.support.dialect_recorder import Recorder, recorder, replaced

FILE = Path(__file__).resolve().parents[2] / "docs" / "conformance" / "dialect-2.jsonl"

Scenario = Callable[[Recorder], Awaitable[None]]


async def first_visit(r: Recorder) -> None:
    for number in range(1, 5):
        await r.notify(f"Order {number}", type="order")
    r.connect()
    await r.join("A join without `since`: nothing is known yet, the pages are to be read.", is_quiet=False)
    await r.ask("The newest page; there are older ones.", "content", {"limit": 3}, is_quiet=False)
    chat = await r.notify("Hello", type="chat", data={"room": 7})
    await r.hear("A push before the last page is read.", is_quiet=False)
    oldest = [*r.model.inbox][-1]
    await r.ask("The last page: from now on the inbox is whole.", "content", {"before": oldest, "limit": 3})
    await r.count()
    await r.hear("How many there are, by their types, too.")
    await r.change("see", chat)
    await r.hear("Another device has seen one.")
    await r.change("mark_unseen", chat)
    await r.hear("It was not seen after all.")
    await r.change("remove", chat)
    await r.hear("Deleted: the client keeps a tombstone.")
    await r.change("restore", chat)
    await r.hear("Taken back: it comes whole.")
    await r.ask(
        "A change of one's own: first the push, as to all screens, then the answer.", "seen", {"ids": [chat]}
    )
    await r.ask("Nothing is left to change: no push, and no rev.", "seen", {"ids": [chat]})
    await r.ask("What did arrive.", "ack", {"ids": [chat]})
    await r.ask("Whether anybody is there.", "ping", {})
    await r.step(
        "Not from this server: frames and fields that a client does not know are passed over.",
        [
            {"name": "weather", "data": {"sun": True}},
            {"name": "counts", "data": {**(r.model.counts or {}), "color": "red"}, "color": "red"},
        ],
    )


async def wrong_order(r: Recorder) -> None:
    r.connect()
    await r.join("A join; the inbox is empty.", is_quiet=False)
    await r.ask("An empty page.", "content", {})
    one, two = await r.notify("One"), await r.notify("Two")
    both = await r.pushes()
    await r.step("Two notifications, the later one first.", both[::-1])
    await r.step("Both again: nothing changes.", both)
    for verb in ("see", "mark_unseen", "remove", "restore"):
        await r.change(verb, one)
    seen, unseen, deleted, restored = await r.pushes()
    await r.step("Only the last of four changes of a document.", [restored])
    await r.step(
        "The three before it come late, in the wrong order: all are older than what is known.",
        [deleted, seen, unseen],
    )
    await r.step("The first push of that document, once more.", [both[0]])
    await r.change("see", one)
    await r.change("mark_unseen", one)
    seen, unseen = await r.pushes()
    await r.step("Seen and unseen; first comes the later one.", [unseen])
    await r.step("A change has given the document its rev, too: the one before it is late.", [seen])
    await r.change("see", one, two)
    await r.change("remove", two)
    late, last = await r.pushes()
    await r.step("A tombstone.", [last], is_quiet=False)
    await r.step(
        "Of two documents in a late push one is a tombstone by now: it stays that, the other is seen.", [late]
    )
    await r.step("A deleted document does not come back by its old push.", [both[1]])
    await r.ask("Nor is it missing in what has changed.", "sync", {"since": r.model.since})
    await r.change("restore", two)
    await r.change("mark_unseen", two)
    _, early = await r.pushes()
    note = "A change of a tombstone: it was restored before, which has not come yet. It stays as it is."
    await r.step(note, [early], is_quiet=False)
    await r.ask("Else what it has become would be passed over.", "sync", {"since": r.model.since})


async def all_seen(r: Recorder) -> None:
    ids = [await r.notify(f"Order {number}") for number in range(1, 4)]
    r.connect()
    await r.join("A join.", is_quiet=False)
    await r.ask("Its page.", "content", {})
    await r.change("see", ids[0])
    await r.change("mark_unseen", ids[0])
    seen, unseen = await r.pushes()
    await r.step("One was seen.", [seen], is_quiet=False)
    upto = int(unseen["data"]["rev"], 16)
    newer = await r.notify("Newer")
    await r.see_all(upto)
    await r.hear("All are seen up to a rev; the newer one is not. No document gets that rev.")
    await r.step("What was unseen before that comes late: it is seen all the same.", [unseen])
    await r.change("mark_unseen", ids[1])
    await r.hear("What is unseen after that is unseen.")
    await r.ask(
        "The revs that came of it: they are above those that the client had.",
        "sync",
        {"since": r.model.since},
    )
    await r.ask(
        "All there are; the answer says how many were changed, the push before it which.",
        "seen",
        {"all": True},
    )
    await r.change("mark_unseen", newer)
    await r.hear("And one again.")


async def back_again(r: Recorder) -> None:
    ids = [await r.notify(f"Order {number}") for number in range(1, 8)]
    r.connect()
    await r.join("A join.", is_quiet=False)
    await r.ask("Its page.", "content", {"limit": 10})
    witness = r.core.connect()
    r.say_by(witness, "join", {"v": 2})
    await witness.next()
    r.disconnect()
    # What happens while the client is away: the pushes that it misses.
    await r.change("see", ids[0], ids[1])
    await r.change("remove", ids[2])
    await r.change("remove", ids[3])
    await r.change("restore", ids[3])
    while_away = [await r.notify(f"While away {number}") for number in range(1, 4)]
    await r.see_all(r.rev_of(ids[4]))
    missed = r.frames_of(witness)

    first = await _come_slowly(r)
    note = "Back, with `since`: the answer gives nothing to go on from, for what has changed follows."
    await r.step(note, first.joined, sent=first.sent, is_quiet=False)
    note = "The first chunk, in the order of the changes; its `upto` may be used at once."
    await r.step(note, first.chunk, is_quiet=False)
    await first.second.reached()
    r.disconnect()
    first.second.open()
    r.connect()
    await r.join("Cut off in the middle of it: the client goes on from the last `upto`.")
    await r.step("All that was pushed while it was away comes late: nothing changes.", missed)
    await r.step("And in reverse.", missed[::-1])

    r.disconnect()
    await r.change("mark_unseen", ids[0], ids[1])
    await r.change("remove", *while_away[1:])
    again = [await r.notify(f"Away again {number}") for number in range(1, 4)]
    first = await _come_slowly(r)
    await r.step("Away once more, and back.", first.joined, sent=first.sent, is_quiet=False)
    await r.step("The first chunk.", first.chunk, is_quiet=False)
    await first.second.reached()
    await r.change("see", again[0], while_away[0])
    await r.change("remove", again[0])
    await r.notify("During the sync")
    third = r.core.store.hold("changes")
    first.second.open()
    note = "The second chunk was read before three more changes. Their pushes waited behind it."
    chunk = await r.read()
    await third.reached()
    await r.step(note, chunk + r.frames_of(r.connected), is_quiet=False)
    third.open()
    await r.step("The last chunk: what is in the inbox.", await r.read())
    r.connected.is_slow = False
    await r.ask(
        "A sync from there: what was pushed comes again, for pushes do not move `since`.",
        "sync",
        {"since": r.model.since},
    )
    await r.ask("A sync when nothing is new.", "sync", {"since": r.model.since})
    witness.go()


@dataclass
class _Coming:
    second: Gate
    """Where the second chunk waits that is read."""
    sent: dict[str, Any]
    joined: list[dict[str, Any]]
    chunk: list[dict[str, Any]]


async def _come_slowly(r: Recorder) -> _Coming:
    """A client joins with `since`, and takes what it finds; it has read the first chunk."""
    r.connect(is_slow=True)
    r.tick()
    second, sent = r.core.store.hold("changes"), r.say("join", {"v": 2, "since": r.model.since})
    joined, *chunk = await r.read()
    return _Coming(second, sent, [joined], chunk)


async def reset(r: Recorder) -> None:
    ids = [await r.notify(f"Order {number}") for number in range(1, 4)]
    r.connect()
    await r.join("A join.", is_quiet=False)
    await r.ask("Its page.", "content", {})
    await r.change("remove", ids[0])
    await r.hear("One is deleted.")
    r.disconnect()
    await r.change("restore", ids[0])
    await r.change("remove", ids[1])
    newest = await r.notify("While away")
    r.kept.oldest = r.rev_of(ids[0]) + 1
    r.connect()
    await r.join(
        "`since` is older than what is kept of changes, or of another inbox: all is dropped, and read anew.",
        is_quiet=False,
    )
    await r.change("see", newest)
    pushed = await r.notify("During the reading")
    await r.hear("Pushes come meanwhile.", is_quiet=False)
    await r.ask("The first page.", "content", {"limit": 2}, is_quiet=False)
    await r.ask(
        "The last page: what was known before the reset plays no part.",
        "content",
        {"before": [*r.model.inbox][-1], "limit": 2},
    )
    r.kept.oldest = None
    await r.change("see", pushed)
    await r.hear("All goes on as before.")
    await r.ask("From the `upto` of the reset.", "sync", {"since": r.model.since})
    await r.ask(
        "A `since` that is none is answered in the same way.", "sync", {"since": "nonsense"}, is_quiet=False
    )
    await r.ask("And the page.", "content", {})


async def floor(r: Recorder) -> None:
    [await r.notify(f"Order {number}") for number in range(1, 6)]
    r.connect()
    await r.join("A join.", is_quiet=False)
    await r.ask("Its page.", "content", {})
    third = list(r.model.documents.values())[2]
    r.kept.from_ = r.instant_of(third)
    await r.ask(
        "`floor` has risen: what was created before is dropped without a word. What was created then stays.",
        "sync",
        {"since": r.model.since},
    )
    await r.notify("New")
    await r.hear("And what is new comes.")
    r.kept.from_ = r.clock.now
    await r.ask("Again.", "sync", {"since": r.model.since})


async def missed(r: Recorder) -> None:
    await r.notify("One")
    await r.notify("Two")
    r.connect()
    await r.join("A join.", is_quiet=False)
    await r.ask("Its page.", "content", {})
    await r.see_all_in_part()
    await r.hear("Something has changed that cannot be told.", is_quiet=False)
    r.core.store.goes_away()
    await r.ask(
        "The store is away: an error changes nothing, and the client asks again later.",
        "sync",
        {"since": r.model.since},
        is_quiet=False,
    )
    r.core.store.is_back()
    await r.ask("What it was.", "sync", {"since": r.model.since})
    await r.ask("A command that is refused.", "delete", {"ids": 7})
    await r.step("The server ends, and says when to come back; then it closes the connection.", [r.bye()])
    await r.notify("While it was away")
    r.connect()
    note = "Back, while the store is away: the answer to the join takes longer."
    await r.step(note, [r.delayed()], is_quiet=False)
    await r.ask(
        "And here it is. Joined by a ticket.", "join", {"v": 2, "ticket": r.ticket, "since": r.model.since}
    )


SCENARIOS: dict[str, tuple[Scenario, str]] = {
    "first visit": (first_visit, "Pages, and each kind of push."),
    "wrong order": (wrong_order, "Pushes that come late, twice, and in the wrong order: the rev decides."),
    "all seen": (all_seen, "`seen` with `all`."),
    "back again": (back_again, "Catching up in chunks, with changes in between, and cut off in the middle."),
    "reset": (reset, "What a client has is worth nothing any more."),
    "floor": (floor, "Documents that are kept no longer."),
    "missed": (missed, "What cannot be told, what fails, and the end of a server."),
}


async def recorded() -> str:
    """The whole script."""
    lines: list[str] = []
    for name, (scenario, about) in SCENARIOS.items():
        async with recorder(name, about) as r:
            await scenario(r)
            steps = [json.dumps(step, ensure_ascii=False, separators=(",", ":")) for step in r.steps]
            lines += replaced(steps, r.core.store.epoch)
    return "".join(f"{line}\n" for line in lines)


def steps() -> list[dict[str, Any]]:
    """Those of the file."""
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(asyncio.run(recorded()), encoding="utf-8")
