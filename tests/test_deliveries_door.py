"""How far a notification got with its users, at `/api/notifications/{id}/deliveries` (CONTRACT C5), from outside."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.client import SocketClient
from tests.support.command import STORES, store_settings
from tests.support.feeds import (
    SETTINGS,
    add_key,
    add_tenant,
    broadcast,
    internal,
    listening,
    must,
    service_path,
)
from tests.support.processes import wait_until
from tests.support.running_server import Response, RunningServer
from tests.support.smtp_sink import SMTPSink


@pytest.fixture(scope="module", params=STORES)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with store_settings(request.param, request) as store:
        with RunningServer(tmp_path_factory.mktemp("deliveries"), **SETTINGS, **store) as running:
            yield running


@pytest.fixture(scope="module")
def acme(server: RunningServer) -> str:
    return add_tenant(server, "acme")


def ask(server: RunningServer, nid: str, query: str = "", key: str | None = None) -> Response:
    headers = {} if key is None else {"Authorization": f"Api-Key {key}"}
    return server.request("GET", f"/api/notifications/{nid}/deliveries{query}", headers=headers)


def deliveries(server: RunningServer, nid: str, key: str | None = None) -> dict[str, dict[str, Any]]:
    """All of them, by user."""
    found = must(ask(server, nid, "?limit=1000", key))["deliveries"]
    return {each["user_id"]: each for each in found}


def problem(answer: Response, status: int) -> dict[str, Any]:
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
    body: dict[str, Any] = answer.json()
    return body


def is_recent(text: str) -> bool:
    at = datetime.fromisoformat(text)
    return text.endswith("Z") and datetime.now(UTC) - timedelta(minutes=5) < at <= datetime.now(UTC)


# -- how far -------------------------------------------------------------------------------------------------
async def test_sent_is_stored_and_delivered_is_acknowledged_or_seen(server: RunningServer) -> None:
    """Each with its time: nobody looked; acknowledged by a client; seen on a screen; deleted there."""
    async with listening(server, service_path("ack")) as client:
        nid = internal(server, ["quiet", "ack", "alice", "bob"], {"n": 1})
        frame = await client.frame()
        await client.say({"type": "message_ack", "key": frame["key"]})
    for user, name in (("alice", "seen"), ("bob", "delete")):
        async with SocketClient(server) as screen:
            document = (await screen.join(user))[-1]
            await screen.send(name, {"ids": [document["_id"]]})
            await screen.next(name)
    wait_until(lambda: deliveries(server, nid)["ack"]["status"] == "delivered", "the mark being written")
    found = deliveries(server, nid)
    assert list(found) == ["ack", "alice", "bob", "quiet"]
    assert {user: each["status"] for user, each in found.items()} == {
        "ack": "delivered",
        "alice": "delivered",
        "bob": "delivered",
        "quiet": "sent",
    }
    assert found["quiet"].keys() == {"user_id", "status", "sent_at", "delivered_at", "failed_at"}
    assert {each["failed_at"] for each in found.values()} == {None}
    assert found["quiet"]["delivered_at"] is None
    for each in found.values():
        assert is_recent(each["sent_at"])
    for user in ("ack", "alice", "bob"):
        assert is_recent(found[user]["delivered_at"])
        assert found[user]["sent_at"] <= found[user]["delivered_at"]


@pytest.mark.parametrize("kind", STORES)
async def test_failed_is_refused_mail_that_nobody_saw(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """With its time and the mail server's words; who sees it after all has it delivered."""
    with (
        SMTPSink(replies={"away@example.org": "550 5.1.1 no such mailbox"}) as smtp,
        store_settings(kind, request) as store,
        RunningServer(tmp_path, **store, **smtp_settings(smtp)) as server,
    ):
        users = [{"id": "alice", "email": "away@example.org"}, {"id": "bob", "email": "bob@example.org"}]
        server.must_notify(*users, content="c", email_send="1")
        async with SocketClient(server) as screen:
            [document] = await screen.join("bob")
        nid = document["nid"]
        wait_until(lambda: deliveries(server, nid)["alice"]["status"] == "failed", "the refusal")
        found = deliveries(server, nid)
        assert found["alice"]["delivered_at"] is None
        assert is_recent(found["alice"]["failed_at"])
        assert found["alice"]["sent_at"] <= found["alice"]["failed_at"]
        assert found["alice"]["reason"].startswith("550 ")
        assert "no such mailbox" in found["alice"]["reason"]
        assert (found["bob"]["status"], found["bob"]["failed_at"]) == ("sent", None)
        assert "away@example.org" not in str(found["bob"])
        async with SocketClient(server) as screen:
            [document] = await screen.join("alice")
            await screen.send("seen", {"ids": [document["_id"]]})
            await screen.next("seen")
        alice = deliveries(server, nid)["alice"]
        assert (alice["status"], alice["failed_at"], "reason" in alice) == ("delivered", None, False)


def smtp_settings(smtp: SMTPSink) -> dict[str, str]:
    return {"NOTIFY_EMAIL_HOST": f"127.0.0.1:{smtp.port}", "NOTIFY_EMAIL_TLS": "none"}


def test_a_broadcast_has_its_deliveries_too(server: RunningServer) -> None:
    """Of every user who was known; also while it is under way, and where there is nobody."""
    key = add_tenant(server, "known")
    nid = broadcast(server, key=key)
    assert ask(server, nid, key=key).status in (200, 404)  # nobody there to have it
    internal(server, ["a", "b"], {}, key)
    nid = broadcast(server, key=key)
    wait_until(lambda: list(deliveries(server, nid, key)) == ["a", "b"], "the broadcast reaching both")


# -- paging --------------------------------------------------------------------------------------------------
def test_pages_hold_each_user_once(server: RunningServer) -> None:
    """In the order of ids, whatever characters they have; `next` is the `after` of the next page, null at the end."""
    users = [*(f"u{n:03}" for n in range(25)), "é ü", "a/b?c=d&e", "%41", "+", "\U0001f600"]
    nid = internal(server, users, {})
    for limit in (1, 7, 10, 30, 31, 1000):
        found: list[str] = []
        query = f"?limit={limit}"
        while True:
            page = must(ask(server, nid, query))
            assert page["id"] == nid
            assert 1 <= len(page["deliveries"]) <= limit
            found += [each["user_id"] for each in page["deliveries"]]
            if page["next"] is None:
                break
            query = f"?limit={limit}&after={quote(page['next'], safe='')}"
        assert found == sorted(users, key=lambda user: user.encode())


def test_a_page_has_100_unless_said(server: RunningServer) -> None:
    """And 1000 at most."""
    nid = internal(server, [f"u{n:04}" for n in range(1001)], {})
    assert len(must(ask(server, nid))["deliveries"]) == 100
    page = must(ask(server, nid, "?limit=1000"))
    assert len(page["deliveries"]) == 1000
    assert page["next"] == "u0999"
    assert must(ask(server, nid, "?after=zzz")) == {"id": nid, "deliveries": [], "next": None}


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "", "1.5", "9" * 30, "%C2%B2", "%FF"])
def test_a_limit_that_is_none_is_400(server: RunningServer, limit: str) -> None:
    """Named by its field."""
    assert problem(ask(server, "0" * 24, f"?limit={limit}"), 400)["field"] == "limit"


# -- who may see ---------------------------------------------------------------------------------------------
def test_another_tenants_notification_is_not_there(server: RunningServer, acme: str) -> None:
    """404, word for word as one that nobody ever sent."""
    mine, theirs = internal(server, ["a"], {}), internal(server, ["a"], {}, acme)
    assert list(deliveries(server, theirs, acme)) == ["a"]
    never = "f" * 24
    for nid, key in ((mine, acme), (theirs, None)):
        body = problem(ask(server, nid, key=key), 404)
        assert body == {
            **problem(ask(server, never, key=key), 404),
            "detail": body["detail"],
        }
        assert body["detail"].replace(nid, "") == problem(ask(server, never, key=key), 404)["detail"].replace(
            never, ""
        )


def test_who_may_not_publish_may_not_look(server: RunningServer, acme: str) -> None:
    """A wrong key, or one of another scope: 403. (Without one this machine is let in.)"""
    nid = internal(server, ["a"], {}, acme)
    hearing = add_key(server, "acme", "hearing", "listen")
    assert problem(ask(server, nid, key="x" * 43), 403)["title"] == "bad_credentials"
    assert problem(ask(server, nid, key=hearing), 403)["title"] == "refused"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nid=st.text(max_size=30) | st.binary(max_size=12).map(bytes.hex), after=st.binary(max_size=30))
def test_no_address_hurts(server: RunningServer, nid: str, after: bytes) -> None:
    """Ids and positions of any kind: 404 or 400, never a 5xx."""
    where = quote(nid, safe="") or "x"
    query = "?after=" + "".join(f"%{byte:02X}" for byte in after)
    assert ask(server, where, query).status in (400, 404)
    assert "Traceback" not in server.log
