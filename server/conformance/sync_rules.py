"""Rules: catching up. Whatever happened in between, after a sync a client has what is in the inbox."""

from __future__ import annotations

import asyncio

from server.conformance.client import Client
from server.conformance.model import Fields, InboxModel
from server.conformance.shapes import MAX_DOCUMENTS
from server.conformance.stage import SOCKETS, Rules, Stage, cannot, expect, same
from server.conformance.target import User

RULES = Rules(*SOCKETS)

MANY = 2 * MAX_DOCUMENTS + 20
"""Three chunks."""


@RULES("a sync brings every document that changed, as it is now, tombstones too")
async def changes_come(s: Stage) -> None:
    user = await s.user()
    client, [seen, deleted, both, _] = await s.joined(user, 4)
    model = client.model
    client.close()
    other = await s.join(user)
    await other.ask("seen", {"ids": [seen, both]})
    await other.ask("delete", {"ids": [deleted, both]})
    await other.ask("restore", {"ids": [both]})
    await s.target.publish(user, "new")
    new = (await other.push("notification"))["data"]["_id"]
    back = await s.connect()
    asked = await back.ask_all("join", {"v": 2, **user.proof, "since": model.since})
    found = {each["_id"]: (each["seen"], each["delete"]) for each in _documents(asked)}
    expected = {seen: (True, False), deleted: (False, True), both: (True, False), new: (False, False)}
    same("what changed", expected, {id_: found.get(id_) for id_ in expected})
    client = await s.join(user, model)
    await s.must_have_all(client, user)


def _documents(answers: list[Fields]) -> list[Fields]:
    return [each for answer in answers for each in answer.get("documents", [])]


@RULES("a join with `since` is followed by the sync, under its id; before it there is nothing to go on from")
async def join_with_since(s: Stage) -> None:
    user = await s.user()
    client, _ = await s.joined(user, 1)
    client.close()
    back = await s.connect(client.model)
    joined, *chunks = await back.ask_all("join", {"v": 2, **user.proof, "since": client.model.since})
    same("since and more", (None, True), (joined["since"], joined["more"]))
    expect(len(chunks) > 0, "a sync behind it", joined)
    same("the reset", False, chunks[-1]["reset"])
    await s.must_have_all(back, user)


@RULES("a sync when nothing changed brings nothing new, and `upto` serves again")
async def nothing_new(s: Stage) -> None:
    user = await s.user()
    client, _ = await s.joined(user, 2)
    await client.sync()
    before = client.model.inbox
    revs = {id_: each["rev"] for id_, each in client.model.documents.items()}
    for _ in range(2):
        answers = await client.ask_all("sync", {"since": client.model.since})
        same("the reset", False, answers[-1]["reset"])
        known = [each for each in _documents(answers) if revs.get(each["_id"]) == each["rev"]]
        same("only what is known", known, _documents(answers))
    same("the state", before, client.model.inbox)


@RULES("pushes do not move `since`: what was pushed comes again, and a sync never goes back")
async def pushes_and_since(s: Stage) -> None:
    user = await s.user()
    client = await s.join(user)
    since = client.model.since
    await s.target.publish(user, "pushed")
    pushed = (await client.push("notification"))["data"]
    await client.ask("seen", {"ids": [pushed["_id"]]})
    found = _documents(await client.ask_all("sync", {"since": since}))
    same(
        "the pushed document, as it is now",
        [True],
        [each["seen"] for each in found if each["_id"] == pushed["_id"]],
    )
    later = _documents(await client.ask_all("sync", {"since": since}))
    same("the same from the same since", [each["rev"] for each in found], [each["rev"] for each in later])


async def _lagging(s: Stage) -> tuple[User, InboxModel]:
    """A user with more to catch up with than fits into two chunks, and what one of their devices knew before."""
    user = await s.user()
    client = await s.join(user)
    client.close()
    await s.target.publish_many(user, MANY)
    return user, client.model


@RULES(
    f"a long sync comes in chunks of at most {MAX_DOCUMENTS}, in the order of the changes; each says where it goes on"
)
async def chunks(s: Stage) -> None:
    user, model = await _lagging(s)
    client = await s.connect(model)
    _, *answers = await client.ask_all("join", {"v": 2, **user.proof, "since": model.since})
    same("more of each chunk", [True] * (len(answers) - 1) + [False], [each["more"] for each in answers])
    expect(len(answers) > 2, "at least three chunks", str(len(answers)))
    places = [(each["rev"], each["_id"]) for each in _documents(answers)]
    same("how many documents, each once", len(set(places)), len(places))
    await s.must_have_all(client, user)
    uptos = [each["upto"] for each in answers]
    same("an upto of each chunk's own", sorted(set(uptos)), sorted(uptos))
    known: set[str] = set()
    for number, answer in enumerate(answers[:-1]):
        known |= set(_ids(answers[number : number + 1]))
        again = _ids(await client.ask_all("sync", {"since": answer["upto"]}))
        # What could have become visible late may come again; nothing is left out.
        rest = [each for each in again if each not in known]
        same("what follows the upto of a chunk", _ids(answers[number + 1 :]), rest)


def _ids(answers: list[Fields]) -> list[str]:
    return [each["_id"] for each in _documents(answers)]


@RULES("pushes during a sync are not lost, and a stale chunk never overtakes one")
async def pushes_during_sync(s: Stage) -> None:
    user, model = await _lagging(s)
    other = await s.join(user)
    client = await s.connect(model)
    request = await client.say("join", {"v": 2, **user.proof, "since": model.since})
    newest, oldest = [*other.model.inbox][0], [*other.model.inbox][-1]
    working = asyncio.gather(
        _work(other, newest, oldest), *(s.target.publish(user, f"new {number}") for number in range(5))
    )
    await client.answered(request)
    await working
    await client.heard()
    await s.must_have_all(client, user)


async def _work(other: Client, newest: str, oldest: str) -> None:
    for name, id_ in (
        ("seen", newest),
        ("delete", oldest),
        ("unseen", newest),
        ("restore", oldest),
        ("delete", newest),
    ):
        await other.ask(name, {"ids": [id_]})


@RULES(
    "who is cut off in the middle of a sync goes on from the last `upto`, and ends with all, whatever changed since"
)
async def cut_off(s: Stage) -> None:
    user = await s.user()
    await s.target.publish_many(user, MANY)
    other, away = await s.join(user), await s.join(user)
    away.close()
    ids = list(other.model.inbox)
    await other.ask("seen", {"ids": ids})
    client = await s.connect(away.model)
    request = await client.say("join", {"v": 2, **user.proof, "since": client.model.since})
    while len(request.answers) < 2:
        await client.frame()
    if not request.answers[-1]["data"]["more"]:
        cannot("all came in one chunk")
    client.close()
    await other.ask("delete", {"ids": ids[1:]})
    back = await s.join(user, client.model)
    same("the state of the inbox", (await s.truth(user)).inbox, back.model.inbox)


@RULES("a `since` that is none of the server's is answered by a reset, with where to go on from")
async def reset(s: Stage) -> None:
    user = await s.user()
    client, _ = await s.joined(user, 2)
    epoch = str(client.model.since).partition(".")[0]
    for since in ("x", "another.0000000000000001", ".", f"{epoch}.{'f' * 16}", "é" * 100):
        answers = await client.ask_all("sync", {"since": since})
        same(f"the answer to {since[:30]!r}", (1, True), (len(answers), answers[0]["reset"]))
    expect(client.model.must_page and not client.model.inbox, "all to be read anew", client.model.inbox)
    upto = client.model.since
    await s.target.publish(user, "after the reset")
    await client.read_pages()
    await s.must_have_all(client, user)
    found = _documents(await client.ask_all("sync", {"since": upto}))
    expect(any(each["content"] == "after the reset" for each in found), "what changed since the reset", found)


@RULES("a device that was away, again and again, always comes back to the state of the inbox")
async def away(s: Stage) -> None:
    user = await s.user()
    client, ids = await s.joined(user, 5)
    model = client.model
    client.close()
    busy = await s.join(user)
    for turn in range(5):
        await busy.ask("seen", {"ids": ids[turn::2]})
        await busy.ask("delete", {"ids": [ids[turn]]})
        await s.target.publish(user, f"turn {turn}")
        if turn % 2:
            await busy.ask("restore", {"ids": [ids[turn - 1]]})
            await busy.ask("unseen", {"ids": [ids[turn - 1]]})
        else:
            await busy.ask("seen", {"all": True, "upto": busy.model.documents[ids[turn]]["rev"]})
        back = await s.join(user, model)
        await s.must_have_all(back, user)
        back.close()
    await busy.heard()
    await s.must_have_all(busy, user)
