"""Rules: reading an inbox, what is pushed, and changes."""

from __future__ import annotations

import asyncio
from typing import Any

from server.conformance.client import Client
from server.conformance.model import Fields
from server.conformance.stage import SOCKETS, Rules, Stage, expect, same

RULES = Rules(*SOCKETS)

NOBODYS = "0123456789abcdef01234567"

TEXTS: Fields = {
    "content": 'Ünïcödé 🎉 "quoted" \\ <b>&amp;</b>\u2028 end',
    "type": "order",
    "title": "Title ß",
    "url": "https://shop.example/?a=1&b=2",
    "icon": "icon.svg",
    "image": "image.png",
}


@RULES(
    "pages come newest first, from before the last one of the page before, and say whether there are older ones"
)
async def pages(s: Stage) -> None:
    client, ids = await s.joined(await s.user(), 5)
    found: list[str] = []
    before: str | None = None
    olders: list[bool] = []
    while not olders or olders[-1]:
        page = await client.ask("content", {"limit": 2, "before": before})
        found += [each["_id"] for each in page["documents"]]
        olders.append(page["older"])
        expect(bool(page["documents"]), "documents, as there were older ones", page)
        before = found[-1]
    same("all documents, newest first", ids[::-1], found)
    same("older of each page", [True, True, False], olders)
    same("nothing before the oldest", [], (await client.ask("content", {"before": before}))["documents"])
    # What is deleted still has its place.
    await client.ask("delete", {"ids": [ids[2]]})
    page = await client.ask("content", {"before": ids[2]})
    same("what is before a deleted one", ids[1::-1], [each["_id"] for each in page["documents"]])


@RULES("pages may be of one type, of the seen or of the unseen")
async def filters(s: Stage) -> None:
    user = await s.user()
    for type_ in ("order", "order", "chat"):
        await s.target.publish(user, type=type_)
    client = await s.join(user)
    c, b, a = client.model.inbox
    await client.ask("seen", {"ids": [a]})

    async def found(**which: Any) -> list[str]:
        return [each["_id"] for each in (await client.ask("content", which))["documents"]]

    same("type order", [b, a], await found(type="order"))
    same("seen false", [c, b], await found(seen=False))
    same("type order, seen true", [a], await found(type="order", seen=True))
    same("a type that there is not", [], await found(type="none"))


@RULES("a document has what was published, and is pushed as it is read")
async def documents(s: Stage) -> None:
    user = await s.user()
    client = await s.join(user)
    await s.target.publish(user, **TEXTS)
    pushed = (await client.push("notification"))["data"]
    same("the fields", TEXTS, {name: pushed.get(name) for name in TEXTS})
    same("whose it is", user.id, pushed["_userId"])
    same("what it is", (False, False, None), (pushed["seen"], pushed["delete"], pushed["deletedAt"]))
    page = await client.ask("content", {})
    same("the same when read", [pushed], page["documents"])
    await s.target.publish(user)
    bare = (await client.push("notification"))["data"]
    expect(bare["rev"] > pushed["rev"], f"a rev above {pushed['rev']}", bare["rev"])


@RULES("`data` is any JSON value but null, and is there only if the publisher gave it")
async def data_as_given(s: Stage) -> None:
    user = await s.user()
    client = await s.join(user)
    given: list[Any] = [{"list": [1, 2.5, None, True], "object": {}}, [], "text", 0, False]
    for data in given:
        await s.target.publish_data(user, data)
        same("the data", data, (await client.push("notification"))["data"].get("data"))
    await s.target.publish(user)
    expect("data" not in (await client.push("notification"))["data"], "no data", "some")


@RULES("what is pushed is in the inbox by then")
async def stored_first(s: Stage) -> None:
    user = await s.user()
    client = await s.join(user)
    for number in range(5):
        await s.target.publish(user, str(number))
        pushed = (await client.push("notification"))["data"]["_id"]
        newest = (await client.ask("content", {"limit": 1}))["documents"]
        same("the newest", [pushed], [each["_id"] for each in newest])


@RULES("counts are exact, by types, too, and are pushed after each change")
async def counts(s: Stage) -> None:
    user = await s.user()
    client = await s.join(user)
    for number, type_ in enumerate(("order", "order", ""), 1):
        await s.target.publish(user, type=type_)
        await client.counted(number, number)
    newest, _, oldest = client.model.inbox
    for name, id_, unseen, total in (
        ("seen", oldest, 2, 3),
        ("delete", newest, 1, 2),
        ("restore", newest, 2, 3),
        ("unseen", oldest, 3, 3),
    ):
        await client.ask(name, {"ids": [id_]})
        await client.counted(unseen, total)
    types = {"order": {"unseen": 2, "total": 2}, "": {"unseen": 1, "total": 1}}
    same("counts by types", types, (await client.ask("counts"))["types"])


async def _change(client: Client, other: Client, name: str, ids: list[str], pushed: str) -> str:
    """The new rev."""
    asker_hears, answer = client.push(pushed), None
    request = await client.say(name, {"ids": [*ids, NOBODYS, "nonsense", *ids]})
    push = await asker_hears
    expect(not request.answers, "the push before the answer", "the answer first")
    answer = (await client.answered(request))[-1]["data"]
    same(f"what {name} changed", ids, answer["ids"])
    same("the same push to another device", push, await other.push(pushed))
    told = push["data"].get("ids", [push["data"].get("_id")])
    same(f"the ids that are told of {name}", ids, told)
    same("the rev that is told", answer["rev"], push["data"]["rev"])
    again = await client.ask(name, {"ids": ids})
    same(f"what {name} changes again", ([], None), (again["ids"], again["rev"]))
    return str(answer["rev"])


@RULES(
    "a change is pushed to all devices, then answered with what it really changed; again it changes nothing"
)
async def changes(s: Stage) -> None:
    user = await s.user()
    client, [_, id_] = await s.joined(user, 2)
    other = await s.join(user)
    last = client.model.documents[id_]["rev"]
    for name, pushed in (
        ("seen", "seen"),
        ("unseen", "unseen"),
        ("seen", "seen"),
        ("delete", "delete"),
        ("restore", "restored"),
        ("delete", "delete"),
    ):
        rev = await _change(client, other, name, [id_], pushed)
        expect(rev > last, f"a rev of {name} above {last}", rev)
        last = rev
        same("the state of another device", client.model.inbox, other.model.inbox)
    for name in ("seen", "unseen"):
        same(f"{name} of a deleted document", [], (await client.ask(name, {"ids": [id_]}))["ids"])
    same("no other push", [], await other.heard())
    await s.must_have_all(client, user)


@RULES("only what had to change is told, and gets a new rev")
async def really_changed(s: Stage) -> None:
    user = await s.user()
    client, [one, two] = await s.joined(user, 2)
    await client.ask("seen", {"ids": [one]})
    client.pushes.clear()
    before = client.model.documents[one]["rev"]
    answer = await client.ask("seen", {"ids": [one, two]})
    same("what changed", [two], answer["ids"])
    same("what is told", [[two]], [each["data"]["ids"] for each in await client.heard()])
    found = {each["_id"]: each["rev"] for each in (await client.ask("content", {}))["documents"]}
    same("the rev of the other one", before, found[one])
    same("the rev of this one", answer["rev"], found[two])


@RULES("a restored document comes whole, seen as it was")
async def restored(s: Stage) -> None:
    user = await s.user()
    client, [id_] = await s.joined(user, 1, title="Title")
    await client.ask("seen", {"ids": [id_]})
    await client.ask("delete", {"ids": [id_]})
    same("an empty inbox", {}, client.model.inbox)
    await client.ask("restore", {"ids": [id_]})
    push = (await client.push("restored"))["data"]
    found = (push["_id"], push["title"], push["seen"], push["delete"], push["deletedAt"])
    same("the document", (id_, "Title", True, False, None), found)
    same("the same when read", [push], (await client.ask("content", {}))["documents"])
    await s.must_have_all(client, user)


@RULES("`seen` with `all` reaches every document up to the rev, and none above it")
async def all_up_to(s: Stage) -> None:
    user = await s.user()
    client, ids = await s.joined(user, 4)
    other = await s.join(user)
    await client.ask("seen", {"ids": ids[:1]})
    # Of what several nodes stored in quick succession, the later may have the lower rev.
    by_rev = sorted(ids[1:], key=lambda id_: client.model.documents[id_]["rev"])
    upto = client.model.documents[by_rev[1]]["rev"]
    answer = await client.ask("seen", {"all": True, "upto": upto})
    same("upto and how many", (upto, 2), (answer["upto"], answer["changed"]))
    await other.heard()
    for each in (client, other):
        await s.must_have_all(each, user)
    same("what is unseen", by_rev[2:], [id_ for id_, seen in client.model.inbox.items() if not seen])
    again = await client.ask("seen", {"all": True, "upto": upto})
    same("how many again", 0, again["changed"])
    # What is unseen afterwards stays it, whatever was said before.
    await other.ask("unseen", {"ids": ids[:1]})
    await client.heard()
    await s.must_have_all(client, user)
    rest = await client.ask("seen", {"all": True})
    same("how many without a rev", 2, rest["changed"])
    expect(rest["upto"] < "f" * 16, "a rev of the present", rest["upto"])
    await other.heard()
    await s.must_have_all(other, user)
    await client.sync()
    await s.must_have_all(client, user)


@RULES("an acknowledgement is answered, and changes nothing")
async def acknowledgement(s: Stage) -> None:
    user = await s.user()
    client, ids = await s.joined(user, 1)
    before = (await client.ask("content", {}))["documents"]
    same("the answer", {"ids": ids}, await client.ask("ack", {"ids": ids}))
    same("the document", before, (await client.ask("content", {}))["documents"])
    same("no push", [], await client.heard())


@RULES("many changes at once, from several devices, end in the same state everywhere after a sync")
async def crowd(s: Stage) -> None:
    user = await s.user()
    first, ids = await s.joined(user, 6)
    devices = [first, *[await s.join(user) for _ in range(2)]]

    async def work(device: Client, number: int) -> None:
        for turn, name in enumerate(("seen", "delete", "unseen", "restore", "seen", "delete")):
            await device.ask(name, {"ids": [ids[(turn * number + number) % 6], ids[turn]]})
            if turn % 3 == number:
                await device.ask("seen", {"all": True})

    tasks = [work(device, number) for number, device in enumerate(devices)]
    await asyncio.gather(*tasks, *(s.target.publish(user, str(number)) for number in range(6)))
    for device in devices:
        await device.sync()
        await s.must_have_all(device, user)
