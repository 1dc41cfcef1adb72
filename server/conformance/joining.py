"""Rules: who a connection is, and how its requests are answered."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from server.conformance.stage import SOCKETS, Rules, Stage, expect, same

RULES = Rules(*SOCKETS)

COMMANDS: dict[str, Any] = {
    "sync": {"since": "x"},
    "content": {},
    "seen": {"ids": []},
    "unseen": {"ids": []},
    "delete": {"ids": []},
    "restore": {"ids": []},
    "ack": {"ids": []},
    "counts": {},
}
"""Those that need a user."""


@RULES("join is answered by `joined` with all its fields, and by no documents")
async def join(s: Stage) -> None:
    user = await s.user()
    await s.target.publish(user, "one", type="order")
    client = await s.connect()
    [joined] = await client.ask_all("join", {"v": 2, **user.proof})
    same("the user", user.id, joined["user"])
    expect(joined["since"] is not None and not joined["more"], "a since, and nothing more", joined)
    counts = {"unseen": 1, "total": 1, "types": {"order": {"unseen": 1, "total": 1}}}
    same("counts", counts, joined["counts"])
    same("no document unasked", [], await client.heard())


@RULES("without a user every command is answered by not_joined, with its id")
async def not_joined(s: Stage) -> None:
    client = await s.connect()
    # So that the connection speaks this dialect, whatever it speaks at first.
    refused = await client.refusal("join", {"v": 2, "token": "x.y.z"})
    same("the code of a wrong token", "bad_credentials", refused["code"])
    user = await s.user()
    await client.ask("join", {"v": 2, **user.proof})
    await client.ask("leave")
    for name, data in COMMANDS.items():
        same(f"the code of {name}", "not_joined", (await client.refusal(name, data))["code"])


@RULES("a version that there is not is refused by its field")
async def unknown_versions(s: Stage) -> None:
    client, user = await s.connect(), await s.user()
    await client.ask("join", {"v": 2, **user.proof})
    versions: list[Any] = [0, 3, "2", True, []]
    for version in versions:
        refused = await client.refusal("join", {"v": version, **user.proof})
        same(f"the field at {version!r}", "data.v", refused.get("field"))


@RULES("a join that fails changes nothing; the connection lives on")
async def failed_join(s: Stage) -> None:
    user = await s.user()
    client = await s.join(user)
    refused = await client.refusal("join", {"v": 2, "token": "x.y.z"})
    same("code and retryable", ("bad_credentials", False), (refused["code"], refused["retryable"]))
    await s.target.publish(user, "still here")
    same("the push", "still here", (await client.push("notification"))["data"]["content"])


@RULES("a ticket is as good as a token, brings the next one, and is no token")
async def tickets(s: Stage) -> None:
    user = await s.user()
    first = await s.join(user)
    expect(first.ticket is not None, "a ticket", first.ticket)
    ticket = str(first.ticket)
    second = await s.connect()
    same("the user", user.id, (await second.join({"ticket": ticket}))["user"])
    expect(second.ticket is not None, "another ticket", second.ticket)
    other = await s.connect()
    for proof in ({"ticket": ticket[:-4] + "AAAA"}, {"ticket": "x"}, {"token": ticket}):
        refused = await other.refusal("join", {"v": 2, **proof})
        same(f"the code of a wrong {next(iter(proof))}", "bad_credentials", refused["code"])
    refused = await other.refusal("join", {"v": 2, "ticket": ticket, **user.proof})
    same("the code of a ticket and another proof", "invalid", refused["code"])


@RULES("joining as somebody else leaves the first user; after `leave` nothing is pushed")
async def leave(s: Stage) -> None:
    one, other = await s.user(), await s.user()
    client = await s.connect()
    await client.ask("join", {"v": 2, **one.proof})
    same("the user", other.id, (await client.ask("join", {"v": 2, **other.proof}))["user"])
    await s.target.publish(one, "for the first")
    await s.target.publish(other, "for the second")
    same("the push", "for the second", (await client.push("notification"))["data"]["content"])
    same("no other push", [], await client.heard())
    same("the answer to leave", {}, await client.ask("leave"))
    witness = await s.join(other)
    await s.target.publish(other, "for nobody here")
    await witness.push("notification")
    # A push would break a rule that is true of all frames.
    same("the code", "not_joined", (await client.refusal("counts"))["code"])


@RULES("a command is answered exactly once with its id, in the order of the commands")
async def order(s: Stage) -> None:
    client, ids = await s.joined(await s.user(), 3)
    asked = [
        await client.say("content", {"limit": 2}, "text as id"),
        await client.say("seen", {"ids": ids[:1]}),
        await client.say("counts", {}, 2**53 - 1),
        await client.say("sync", {"since": client.model.since}, -1),
        await client.say("delete", {"ids": ids[1:2]}),
        await client.say("shout", {}),
        await client.say("ping", {}),
        await client.say("content", {}, "x" * 64),
    ]
    await client.answered(asked[-1])
    same("commands that were answered", [True] * len(asked), [each.is_answered for each in asked])
    same("the answer to an unknown command", "error", asked[5].answers[0]["name"])


@RULES("a command without an id is answered without one; what is no id is refused")
async def without_id(s: Stage) -> None:
    client, _ = await s.joined(await s.user(), 1)
    await client.line.send('{"name": "content", "data": {}}')
    expect("id" not in await client.frame(), "an answer without id", "one with")
    wrong: list[Any] = [{}, True, 2**53, "x" * 65, 1.5]
    for id_ in wrong:
        await client.line.send(json.dumps({"name": "counts", "id": id_}))
        refused = (await client.push("error"))["data"]
        same(f"the field at id {id_!r:.20}", "id", refused.get("field"))


REFUSED: list[tuple[str, Any, str]] = [
    ("sync", {}, "data.since"),
    ("sync", {"since": ""}, "data.since"),
    ("content", {"before": "x"}, "data.before"),
    ("content", {"limit": 0}, "data.limit"),
    ("content", {"limit": "1"}, "data.limit"),
    ("content", {"seen": 1}, "data.seen"),
    ("content", {"type": 1}, "data.type"),
    ("seen", {"all": False}, "data.all"),
    ("seen", {"all": True, "ids": []}, "data.all"),
    ("seen", {"all": True, "upto": 7}, "data.upto"),
    ("seen", {}, "data.ids"),
    ("unseen", {"ids": "x"}, "data.ids"),
    ("delete", {"ids": [7]}, "data.ids[0]"),
    ("restore", [], "data"),
    ("ack", {"ids": None}, "data.ids"),
    ("shout", {}, "name"),
]


@RULES("what is wrong is refused by its field, changes nothing, and the connection lives on")
async def refusals(s: Stage) -> None:
    user = await s.user()
    client, _ = await s.joined(user, 1)
    for name, data, path in REFUSED:
        refused = await client.refusal(name, data)
        found = (refused["code"], refused["retryable"], refused.get("field"))
        same(f"the error at {name} {data}", ("invalid", False, path), found)
    for text in ("no JSON", "[]", "7", '{"name": 7}', "{}"):
        await client.line.send(text)
        same(f"the code at {text}", "invalid", (await client.push("error"))["data"]["code"])
    same("no push", [], await client.heard())
    await s.must_have_all(client, user)


@RULES("a sign-out ends the connection with 3501, and the tickets from before")
async def sign_out(s: Stage) -> None:
    user = await s.user()
    client = await s.join(user)
    await s.target.sign_out(user)
    same("the close code", 3501, (await client.closed()).code)
    other = await s.connect()
    refused = await other.refusal("join", {"v": 2, "ticket": client.ticket})
    same("the code", "bad_credentials", refused["code"])


@RULES("a connection ends with the token by which it joined (3005), and so does its ticket")
async def token_end(s: Stage) -> None:
    user = await s.user(expires_in_s=2)
    client = await s.join(user)
    same("the close code", 3005, (await client.closed()).code)
    other = await s.connect()
    for proof in ({"ticket": client.ticket}, user.proof):
        refused = await other.refusal("join", {"v": 2, **proof})
        same(f"the code of an old {next(iter(proof))}", "token_expired", refused["code"])


@RULES("changes asked for right before the end of the connection are made")
async def last_words(s: Stage) -> None:
    user = await s.user()
    client, ids = await s.joined(user, 2)
    watching = await s.join(user)
    await client.say("seen", {"ids": ids[:1]})
    await client.say("delete", {"ids": ids[1:]})
    client.close()
    same("the push", ids[:1], (await watching.push("seen"))["data"]["ids"])
    same("the push", ids[1:], (await watching.push("delete"))["data"]["ids"])


@RULES("two devices of a user hear the same; another user hears nothing, and can change nothing")
async def devices(s: Stage) -> None:
    user, other = await s.user(), await s.user()
    [one, two] = [await s.join(user) for _ in range(2)]
    stranger = await s.join(other)
    await s.target.publish(user, "for both")
    pushes = await asyncio.gather(*(each.push("notification") for each in (one, two)))
    same("the same push", pushes[0], pushes[1])
    ids = [pushes[0]["data"]["_id"]]
    for name in ("seen", "unseen", "delete", "restore"):
        answer = await stranger.ask(name, {"ids": ids})
        same(f"what {name} changes", ([], None), (answer["ids"], answer["rev"]))
    same("no push", [], await stranger.heard())
    same(
        "a page before a document of somebody else",
        [],
        (await stranger.ask("content", {"before": ids[0]}))["documents"],
    )
    await s.must_have_all(one, user)
