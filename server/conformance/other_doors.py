"""Rules: the doors without commands, Server-Sent Events and REST."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from server.conformance.client import Broken
from server.conformance.lines import Closed, Event, Stream
from server.conformance.model import Fields, InboxModel
from server.conformance.shapes import frame_problem
from server.conformance.stage import EVENTS, REST_DOOR, Rules, Stage, expect, read, same
from server.conformance.target import User

RULES = Rules(EVENTS)


async def _event(s: Stage, stream: Stream, model: InboxModel) -> tuple[Event, Fields]:
    """The next event, and the frame in it."""
    try:
        async with asyncio.timeout(s.target.wait_s):
            event = await stream.event()
    except (TimeoutError, Closed) as exc:
        raise Broken("an event", str(exc) or "none in time") from None
    frame: Fields = event.data
    problem = frame_problem(frame)
    if problem is not None or "id" in frame:
        raise Broken("a push as documented", f"{problem or 'it has an id'} in {json.dumps(frame)[:300]}")
    model.hear(frame["name"], frame["data"])
    return event, frame


async def _next(s: Stage, stream: Stream, model: InboxModel, name: str) -> tuple[Event, Fields]:
    """The next of this name; others before it are heard."""
    while True:
        event, frame = await _event(s, stream, model)
        if frame["name"] == name:
            return event, frame["data"]


@RULES("a stream begins with `joined`, whose since is its id; pushes follow, with no id")
async def stream(s: Stage) -> None:
    user = await s.user()
    await s.target.publish(user, "before")
    opened, model = await s.stream(user), InboxModel()
    same(
        "status and type",
        (200, "text/event-stream"),
        (opened.status, opened.headers.get("content-type", "")[:17]),
    )
    event, frame = await _event(s, opened, model)
    data = frame["data"]
    same("the first frame", ("joined", user.id), (frame["name"], data.get("user")))
    same("its id", data["since"], event.id)
    same("unseen", 1, data["counts"]["unseen"])
    await s.target.publish(user, "after")
    event, data = await _next(s, opened, model, "notification")
    same("the push, and its id", ("after", None), (data["content"], event.id))
    event, data = await _next(s, opened, model, "counts")
    same("the counts, and their id", (2, None), (data["unseen"], event.id))


@RULES("a stream goes on from `since` or Last-Event-ID, with the `upto` of each chunk as its id")
async def stream_goes_on(s: Stage) -> None:
    user, model = await s.user(), InboxModel()
    first = await s.stream(user)
    await _event(s, first, model)
    first.close()
    await s.target.publish_many(user, 3)
    for query, last_id in ((f"&since={model.since}", None), ("", model.since), ("&since=x", model.since)):
        known = InboxModel()
        known.hear("joined", {"since": model.since, "counts": {}})
        opened = await s.stream(user, query, last_id)
        event, frame = await _event(s, opened, known)
        found = (frame["name"], frame["data"]["since"], frame["data"]["more"], event.id)
        same("the first frame", ("joined", None, True, None), found)
        event, data = await _next(s, opened, known, "sync")
        same("the id of the sync", data["upto"], event.id)
        same("what changed", ["0", "1", "2"], sorted(each["content"] for each in known.documents.values()))
        opened.close()
    again = await s.stream(user, "", event.id)
    _, data = await _next(s, again, model, "sync")
    same("the reset", False, data["reset"])


@RULES("a stream tells of changes that are asked for elsewhere, and keeps its client up to date")
async def stream_of_changes(s: Stage) -> None:
    user, model = await s.user(), InboxModel()
    opened = await s.stream(user)
    await _event(s, opened, model)
    for number in range(2):
        await s.target.publish(user, str(number))
        await _next(s, opened, model, "notification")
    ids = list(model.inbox)
    for method, fields, pushed in (
        ("PATCH", {"seen": True}, "seen"),
        ("PATCH", {"seen": False}, "unseen"),
        ("DELETE", {}, "delete"),
        ("PATCH", {"deleted": False}, "restored"),
    ):
        answer = await s.rest("changed", method, user, fields={"ids": ids[:1], **fields})
        _, data = await _next(s, opened, model, pushed)
        same("the rev", answer["rev"], data["rev"])
    same("the state of the inbox", (await s.truth(user)).inbox, model.inbox)


@RULES("without a good token, or in a version that there is not, there is no stream")
async def no_stream(s: Stage) -> None:
    user = await s.user()
    for path, headers, status in (
        ("/events?v=2", {}, 401),
        ("/events?v=2", {"Authorization": "Bearer x.y.z"}, 401),
        ("/events?v=2&ticket=x", {}, 401),
        ("/events?v=3", s.target.bearer(user), 400),
    ):
        same(f"the status of {path}", status, (await s.open_stream(path, headers)).status)


# -- REST ----------------------------------------------------------------------------------------------------

REST_RULES = Rules(REST_DOOR)


def _ids(fields: Fields) -> list[str]:
    return [each["_id"] for each in fields["documents"]]


@REST_RULES(
    "pages over HTTP: newest first, the first one with counts and where to go on from; by type and seen"
)
async def polled_pages(s: Stage) -> None:
    user = await s.user()
    for number in range(5):
        await s.target.publish(user, str(number), type="odd" if number % 2 else "even")
    first = await s.rest("first page", "GET", user, "?limit=2")
    same("the newest", ["4", "3"], [each["content"] for each in first["documents"]])
    same("older, unseen", (True, 5), (first["older"], first["counts"]["unseen"]))
    rest = await s.rest("page", "GET", user, f"?before={_ids(first)[-1]}")
    same(
        "the others",
        (["2", "1", "0"], False),
        ([each["content"] for each in rest["documents"]], rest["older"]),
    )
    odd = await s.rest("first page", "GET", user, "?type=odd&seen=false")
    same("those of a type", ["3", "1"], [each["content"] for each in odd["documents"]])
    same("seen ones", [], (await s.rest("first page", "GET", user, "?seen=true"))["documents"])
    inbox = (await s.truth(user)).inbox
    same("the same as on a socket", list(inbox), _ids(first) + _ids(rest))


async def _poll(s: Stage, user: User, model: InboxModel, limit: int = 100) -> int:
    """Catch up, as somebody who polls; how many chunks there were."""
    count = 0
    while True:
        chunk = await s.rest("changes", "GET", user, f"?since={model.since}&limit={limit}")
        model.hear("sync", chunk)
        count += 1
        if not chunk["more"]:
            return count


@REST_RULES("what changed over HTTP: in chunks, each of which says where to go on, to the state of the inbox")
async def polled_changes(s: Stage) -> None:
    user, model = await s.user(), InboxModel()
    page = await s.rest("first page", "GET", user)
    model.hear("joined", page)
    model.hear("content", page)
    await s.target.publish_many(user, 5)
    expect(await _poll(s, user, model, limit=2) > 2, "at least three chunks of two", "fewer")
    ids = list(model.inbox)
    same("how many", 5, len(ids))
    await s.rest("changed", "PATCH", user, fields={"ids": ids[:2], "seen": True})
    await s.rest("changed", "DELETE", user, fields={"ids": ids[1:3]})
    await _poll(s, user, model)
    same("the state of the inbox", (await s.truth(user)).inbox, model.inbox)
    reset = await s.rest("changes", "GET", user, "?since=nonsense")
    same(
        "the answer to another since", (True, [], False), (reset["reset"], reset["documents"], reset["more"])
    )


@REST_RULES("changes over HTTP are answered with what they really changed, and told to every screen")
async def asked_changes(s: Stage) -> None:
    user = await s.user()
    client, [id_] = await s.joined(user, 1)
    for method, fields, pushed in (
        ("PATCH", {"seen": True}, "seen"),
        ("PATCH", {"seen": False}, "unseen"),
        ("DELETE", {}, "delete"),
        ("PATCH", {"deleted": False}, "restored"),
        ("PATCH", {"deleted": True}, "delete"),
    ):
        sent = {"ids": [id_, "0123456789abcdef01234567"], **fields}
        answer = await s.rest("changed", method, user, fields=sent)
        push = (await client.push(pushed))["data"]
        same("ids and rev", {"ids": [id_], "rev": push["rev"]}, answer)
        again = await s.rest("changed", method, user, fields=sent)
        same("again", {"ids": [], "rev": None}, again)
    await s.must_have_all(client, user)


@REST_RULES("all become seen over HTTP, up to a rev")
async def asked_all(s: Stage) -> None:
    user = await s.user()
    client, ids = await s.joined(user, 3)
    upto = client.model.documents[ids[1]]["rev"]
    answer = await s.rest("all", "PATCH", user, fields={"all": True, "upto": upto, "seen": True})
    same("upto, and how many", (upto, 2), (answer["upto"], answer["changed"]))
    await client.heard()
    await s.must_have_all(client, user)
    same("how many are left", 1, (await s.rest("first page", "GET", user))["counts"]["unseen"])


@REST_RULES("an ETag is good for 304 as long as nothing changes, and for this user alone")
async def etag(s: Stage) -> None:
    user, other = await s.user(), await s.user()
    first = await s.target.inbox("GET", user)
    known = {"If-None-Match": first.headers.get("ETag", "")}
    same("an empty inbox", [], _ids(read("first page", first)))
    for _ in range(2):
        again = await s.target.inbox("GET", user, headers=known)
        same("the status when nothing changed", (304, b""), (again.code, again.body))
    same("the status for another user", 200, (await s.target.inbox("GET", other, headers=known)).code)
    await s.target.publish(user, "one")
    changed = await s.target.inbox("GET", user, headers=known)
    [id_] = _ids(read("first page", changed))
    known = {"If-None-Match": changed.headers.get("ETag", "")}
    await s.rest("changed", "PATCH", user, fields={"ids": [id_], "seen": True})
    changed = await s.target.inbox("GET", user, headers=known)
    same(
        "seen, after the change", [True], [each["seen"] for each in read("first page", changed)["documents"]]
    )
    for nonsense in ("*", '"x"', 'W/"0123456789abcdef.x"'):
        answer = await s.target.inbox("GET", user, headers={"If-None-Match": nonsense})
        same(f"the status at {nonsense}", 200, answer.code)


REFUSED: list[tuple[str, str, Any, str | None]] = [
    ("GET", "?limit=0", None, "limit"),
    ("GET", "?limit=x", None, "limit"),
    ("GET", "?before=x", None, "before"),
    ("GET", "?seen=1", None, "seen"),
    ("PATCH", "", {}, None),
    ("PATCH", "", {"ids": [], "seen": True, "deleted": False}, None),
    ("PATCH", "", {"ids": [], "seen": 1}, "seen"),
    ("PATCH", "", {"ids": "x", "seen": True}, "ids"),
    ("PATCH", "", {"all": True, "seen": False}, "all"),
    ("PATCH", "", {"all": True, "seen": True, "upto": "x"}, "upto"),
    ("PATCH", "", [], None),
    ("DELETE", "", {"ids": [7]}, "ids[0]"),
]


@REST_RULES("what is wrong is refused as a problem (RFC 9457), by its field; without a token by 401")
async def refused_requests(s: Stage) -> None:
    user = await s.user()
    for method, query, fields, path in REFUSED:
        answer = await s.target.inbox(method, user, query, fields)
        same("the type", "application/problem+json", answer.headers.get("Content-Type"))
        problem = read("problem", answer, 400)
        same(f"the field at {method} {query} {fields}", path, problem.get("field"))
    for headers in ({}, {"Authorization": "Bearer x.y.z"}):
        same(
            "the status without a token",
            401,
            (await s.target.request("GET", "/api/v2/inbox", None, headers)).code,
        )
    same("the status of POST", 405, (await s.target.inbox("POST", user, fields={})).code)
