"""`/api/outbox…`: who may see and change the mail that is owed, and what they are answered."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import quote

import pytest

from server.ids import new_id
from server.messages import now
from tests.support.backends import Backend, add_key, add_tenant, known
from tests.support.command import STORES
from tests.support.house import House, open_house
from tests.support.ports import free_port
from tests.support.processes import wait_until
from tests.support.running_server import Response

SOMEBODY = "alice/ü?"

NOWHERE = f"ann@{'x' * 64}.test"
"""Looks like an address, but no domain is called so."""


@pytest.fixture(scope="module", params=STORES)
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """There is no mail server: what is owed waits. What is no address is dead."""
    settings = {
        "NOTIFY_EMAIL_HOST": f"127.0.0.1:{free_port()}",
        "NOTIFY_EMAIL_TLS": "none",
        "NOTIFY_EMAIL_SENDER": "notify@example.org",
        "NOTIFY_EMAIL_RETRY_FIRST_S": "3600",
        "NOTIFY_EMAIL_CONCURRENCY": "1",
    }
    with open_house(request.param, request, tmp_path_factory.mktemp("outbox"), **settings) as house:
        yield house


@pytest.fixture
def backend(house: House) -> Backend:
    """The first key of a new tenant, with all scopes."""
    return known(add_tenant(house.server, f"tenant-{uuid.uuid4().hex[:8]}"))


def ask(backend: Backend, method: str, path: str, **headers: str) -> Response:
    return backend.server.request(method, path, None, headers or backend.credentials)


def must(backend: Backend, method: str, path: str) -> Any:
    answer = ask(backend, method, path)
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == "application/json"
    return answer.json()


def owe(backend: Backend, **emails: str) -> str:
    """Publish for these users; the id of the notification, when its mail was tried once."""
    users = [{"id": user, "email": email} for user, email in emails.items()]
    body = {"users": users, "content": "secret", "email_subject": "Hello", "email_send": True}
    before = len(must(backend, "GET", "/api/outbox")["mails"])
    assert backend.post("/notify", body).status == 200

    def mails() -> list[Any]:
        found: list[Any] = must(backend, "GET", "/api/outbox")["mails"]
        return found[before:]

    # Answered or waiting for its turn, as the mail server is away: nothing is in hand any more.
    wait_until(lambda: all(mail["state"] != "leased" for mail in mails()), "the mail being tried")
    wait_until(lambda: any(mail["reason"] for mail in mails()), "the first answer", 90)
    nid: str = mails()[0]["id"]
    return nid


def dead(backend: Backend, *users: str) -> str:
    """A notification whose mail to these users is dead: that needs no mail server."""
    return owe(backend, **dict.fromkeys(users, NOWHERE))


def test_the_whole_way(backend: Backend) -> None:
    """Listed, shown, retried, dropped; nothing tells the content."""
    began_at = now()
    nid = dead(backend, "ann", "ben")
    listed = must(backend, "GET", "/api/outbox")
    assert listed["next"] is None
    [ann, _] = listed["mails"]
    assert datetime.fromisoformat(ann.pop("failed_at")) >= began_at
    assert ann == {
        "id": nid,
        "user_id": "ann",
        "email": NOWHERE,
        "state": "dead",
        "due_at": None,
        "leased_until": None,
        "attempts": 1,
        "code": 0,
        "reason": "not an e-mail address: its domain has an empty or overlong part",
    }
    answer = ask(backend, "GET", f"/api/outbox/{nid}")
    shown = answer.json()
    assert (shown["id"], shown["subject"], shown["forced"]) == (nid, "Hello", False)
    assert datetime.fromisoformat(shown["created_at"]) >= began_at
    assert (shown["mails"], shown["next"]) == (must(backend, "GET", "/api/outbox")["mails"], None)
    assert b"secret" not in answer.body
    assert must(backend, "POST", f"/api/outbox/{nid}/retry?user_id=ann") == {"retried": 1}
    wait_until(
        lambda: [m["state"] for m in must(backend, "GET", "/api/outbox")["mails"]] == ["dead"] * 2,
        "the retry, which a running server sees by itself",
        90,
    )
    assert must(backend, "DELETE", f"/api/outbox/{nid}?user_id=ann") == {"dropped": 1}
    assert [mail["user_id"] for mail in must(backend, "GET", "/api/outbox")["mails"]] == ["ben"]
    assert must(backend, "DELETE", f"/api/outbox/{nid}") == {"dropped": 1}
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/retry")):
        refused(ask(backend, method, f"/api/outbox/{nid}{path}"), 404, "not_found")


def test_page_by_page(backend: Backend) -> None:
    """`next` leads on, whatever is in a user id; by state, and of one notification."""
    users = ["a", "b:c", SOMEBODY]
    body = {
        "users": [{"id": user, "email": NOWHERE} for user in users],
        "content": "",
        "email_send": True,
    }
    nids = [dead(backend, "zoe")]
    assert backend.post("/notify", body).status == 200

    def all_are_dead() -> bool:
        return len(must(backend, "GET", "/api/outbox?state=dead")["mails"]) == 4

    wait_until(all_are_dead, "the mail being refused", 90)
    for path in ("/api/outbox?state=dead&limit=1", "/api/outbox?limit=1"):
        found, after = [], ""
        while True:
            page = must(backend, "GET", f"{path}{after}")
            found += page["mails"]
            if page["next"] is None:
                break
            after = f"&after={quote(page['next'])}"
        assert [mail["user_id"] for mail in found] == ["zoe", *sorted(users)]
    nids.append(found[1]["id"])
    page = must(backend, "GET", f"/api/outbox/{nids[1]}?limit=2")
    assert [mail["user_id"] for mail in page["mails"]] == sorted(users)[:2]
    page = must(backend, "GET", f"/api/outbox/{nids[1]}?limit=2&after={quote(page['next'])}")
    assert ([mail["user_id"] for mail in page["mails"]], page["next"]) == ([sorted(users)[2]], None)
    assert must(backend, "GET", "/api/outbox?state=waiting") == {"mails": [], "next": None}
    path = f"/api/outbox/{nids[1]}?user_id={quote(SOMEBODY, safe='')}"
    assert must(backend, "DELETE", path) == {"dropped": 1}


def test_what_waits_for_the_mail_server(backend: Backend) -> None:
    """Is listed with why, and can be dropped; the inbox keeps its document."""
    nid = owe(backend, ann="ann@example.test")
    [mail] = must(backend, "GET", f"/api/outbox/{nid}")["mails"]
    assert (mail["state"], mail["attempts"], mail["code"]) == ("waiting", 0, 0)
    assert mail["reason"].startswith("no connection to 127.0.0.1:")
    assert datetime.fromisoformat(mail["due_at"]) > now()
    assert must(backend, "DELETE", f"/api/outbox/{nid}") == {"dropped": 1}
    assert must(backend, "GET", "/api/outbox")["mails"] == []
    path = f"/api/notifications/{nid}/deliveries"
    assert [each["user_id"] for each in must(backend, "GET", path)["deliveries"]] == ["ann"]


# -- who may -------------------------------------------------------------------------------------------------


def refused(answer: Response, status: int, title: str, field: str | None = None) -> None:
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/problem+json")
    problem = json.loads(answer.body)
    assert (problem["status"], problem["title"], problem.get("field")) == (status, title, field)


EACH = pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "/{}"), ("DELETE", "/{}"), ("POST", "/{}/retry")],
    ids=["list", "show", "drop", "retry"],
)


@EACH
def test_without_a_key(house: House, backend: Backend, method: str, path: str) -> None:
    """Being on this machine is no credential here."""
    answer = house.server.request(method, f"/api/outbox{path.format(new_id())}")
    refused(answer, 401, "no_credentials")
    assert answer.headers["Www-Authenticate"] == "Api-Key"


@EACH
def test_without_the_scope(backend: Backend, method: str, path: str) -> None:
    """Publishing and listening are not enough."""
    key = known(add_key(backend.server, backend.tenant, "ci", "publish", "listen"))
    refused(ask(key, method, f"/api/outbox{path.format(new_id())}"), 403, "refused")


def test_of_another_tenant(house: House, backend: Backend) -> None:
    """Nothing of it is there."""
    other = known(add_tenant(house.server, f"tenant-{uuid.uuid4().hex[:8]}"))
    nid = dead(backend, "ann")
    assert must(other, "GET", "/api/outbox") == {"mails": [], "next": None}
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/retry")):
        refused(ask(other, method, f"/api/outbox/{nid}{path}"), 404, "not_found")
    assert len(must(backend, "GET", "/api/outbox")["mails"]) == 1


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("GET", "?state=lost", "state"),
        ("GET", "?limit=0", "limit"),
        ("GET", "?limit=1001", "limit"),
        ("GET", "?limit=%C2%B2", "limit"),
        ("GET", "?after=ann", "after"),
        ("GET", "?after=%FF", "after"),
        ("GET", "/6740c0ffee0123456789abcc?after=:", "after"),
        ("DELETE", "/6740c0ffee0123456789abcc?user_id=", "user_id"),
        ("DELETE", "/6740c0ffee0123456789abcc?user_id=%FF", "user_id"),
        ("POST", f"/6740c0ffee0123456789abcc/retry?user_id={'x' * 1025}", "user_id"),
    ],
)
def test_what_cannot_be_taken(backend: Backend, method: str, path: str, field: str) -> None:
    """The parameter is named."""
    refused(ask(backend, method, f"/api/outbox{path}"), 400, "invalid", field)


@pytest.mark.parametrize("nid", ["nonsense", "%00", "6740C0FFEE0123456789ABCC"])
def test_what_is_no_id(backend: Backend, nid: str) -> None:
    """There is no such notification."""
    refused(ask(backend, "GET", f"/api/outbox/{nid}"), 404, "not_found")
    refused(ask(backend, "DELETE", f"/api/outbox/{nid}"), 404, "not_found")
