"""Tenants never see each other: at every door of a running server, with the same user ids on all sides."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default as default_policy
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from server.grants import new_secret
from server.ids import new_id
from tests.support.backends import Backend, add_key, add_tenant, known
from tests.support.client import SocketClient
from tests.support.command import STORES
from tests.support.house import ALL_SCOPES, House, contents, inbox, joined, open_house
from tests.support.jwt_keys import hs256
from tests.support.processes import wait_until
from tests.support.running_server import Response, RunningServer
from tests.support.smtp_sink import SMTPSink
from tests.support.sockjs_clients import DOORS

APIKEY = "the key of config.ini"
USERS_SECRET = "what signs the tokens of users, and nothing else"
SERVICES_SECRET = "what signs the tokens of services, and nothing else"

FOREIGN = {"Host": "notify.example.org"}
"""What a caller sends who is not taken for somebody on this machine, and so not for its operator."""


@pytest.fixture(scope="module", params=STORES)
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """For all tests that leave it as it was, but for what they tell a user of their own."""
    settings = {
        "NOTIFY_APPLICATION_APIKEY": APIKEY,
        "NOTIFY_APPLICATION_PUBLIC_METRICS": "false",
        "NOTIFY_JWT_SECRET": USERS_SECRET,
        "NOTIFY_SERVICE_JWT_SECRET": SERVICES_SECRET,
    }
    with open_house(request.param, request, tmp_path_factory.mktemp("house"), **settings) as house:
        yield house


async def answer(client: SocketClient, name: str, data: Any) -> str:
    """What comes next after a command, as it came."""
    await client.send(name, data)
    async with asyncio.timeout(15):
        return str(await client.socket.recv())


def token_of(tenant: str | None, user: str, secret: str = USERS_SECRET) -> str:
    """As somebody makes it whom the server believes (None: without a claim)."""
    said = {"sub": user, "exp": time.time() + 600, "iat": time.time()}
    return hs256(said if tenant is None else said | {"tenant": tenant}, secret)


# -- publishing ----------------------------------------------------------------------------------------------
def _service(backend: Backend) -> str:
    return hs256({"sub": "shop", "tenant": backend.tenant, "exp": time.time() + 600}, SERVICES_SECRET)


CREDENTIALS: dict[str, Callable[[Backend], tuple[dict[str, str], dict[str, str]]]] = {
    "Api-Key": lambda backend: (backend.credentials, {}),
    "Bearer": lambda backend: ({"Authorization": f"Bearer {backend.key}"}, {}),
    "internal-api-key": lambda backend: ({"internal-api-key": backend.key}, {}),
    "apikey": lambda backend: ({}, {"apikey": backend.key}),
    "service": lambda backend: ({"Authorization": f"Bearer {_service(backend)}"}, {}),
}
"""The ways in which a backend says who it is: headers, and fields."""


def post(server: RunningServer, path: str, fields: Mapping[str, Any], headers: Mapping[str, str]) -> Response:
    return server.request(
        "POST", path, json.dumps(fields).encode(), {"Content-Type": "application/json", **headers}
    )


@pytest.mark.parametrize("way", CREDENTIALS)
async def test_a_notification_reaches_the_own_namesake_only(house: House, user: str, way: str) -> None:
    """Whatever the credential that says the tenant: pushed to its user, stored for its user, and for nobody else."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(joined(backend, user)) for backend in house.tenants]
        for backend in house.tenants:
            headers, fields = CREDENTIALS[way](backend)
            body = {"users": [{"id": user}], "content": f"of {backend.tenant}", **fields}
            assert post(house.server, "/notify", body, headers).status == 200
        for backend, client in zip(house.tenants, clients, strict=True):
            assert contents(await client.next("notification")) == [f"of {backend.tenant}"]
            assert await client.next("count") == {"unseen": 1}
            assert contents(await client.content()) == [f"of {backend.tenant}"]


async def test_the_apikey_of_the_config_is_of_the_default_tenant(house: House, user: str) -> None:
    """In whatever field it comes; nobody else hears of it."""
    for headers, fields in (({}, {"apikey": APIKEY}), ({"internal-api-key": APIKEY}, {})):
        body = {"users": [{"id": user}], "content": "old", **fields}
        assert post(house.server, "/notify", body, headers).status == 200
    assert [contents(await inbox(backend, user)) for backend in house.tenants] == [["old"] * 2, [], []]


async def test_who_is_on_this_machine_is_of_the_default_tenant(
    request: pytest.FixtureRequest, tmp_path: Path, user: str
) -> None:
    """Where no key is needed."""
    with open_house("embedded", request, tmp_path) as house:
        house.server.must_notify(user, content="from here")
        assert [contents(await inbox(backend, user)) for backend in house.tenants] == [["from here"], [], []]


async def test_naming_another_tenant_changes_nothing(house: House, user: str) -> None:
    """The key alone says whose the users are, at every door that takes one."""
    hint = {"tenant": "a", "tenant_id": "a", "tenantId": "a", "default_tenant": "a"}
    headers = {"X-Tenant": "a", "X-Tenant-Id": "a"}
    answer_ = house.b.post("/notify", {"users": [{"id": user, **hint}], "content": "x", **hint}, headers)
    assert answer_.status == 200
    made = house.b.post("/api/v2/tokens?tenant=a", {"user_id": user, **hint}, headers)
    async with SocketClient(house.server) as client:
        await client.send("join", {"token": made.json()["token"], **hint})
        assert contents(await client.next("notification")) == ["x"]
    async with joined(house.a, user) as theirs:
        assert house.b.post(f"/api/v2/users/{user}/sign-out?tenant=a", hint, headers).status == 204
        assert await theirs.content() == []


# -- listening -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("door", DOORS)
async def test_a_token_opens_the_inbox_of_its_tenant(house: House, user: str, door: str) -> None:
    """One made here, or one that claims a tenant: its documents and its count, in every answer and in every push."""
    for count, backend in enumerate(house.tenants, 1):
        for _ in range(count):
            backend.must_notify(user, content=f"of {backend.tenant}")
    for count, backend in enumerate(house.tenants, 1):
        expected = [f"of {backend.tenant}"] * count
        for token in (backend.token(user), token_of(backend.tenant, user)):
            async with DOORS[door](house.server) as client:
                await client.send("join", {"token": token})
                documents = await client.next("notification")
                assert contents(documents) == expected
                assert {document["_userId"] for document in documents} == {user}
                assert await client.next("count") == {"unseen": count}
                for command, data in (("unseen", {}), ("content", 0), ("content", {"page": 0})):
                    await client.send(command, data)
                    assert await client.next("notification") == documents
                await client.send("content", 1)
                assert await client.next("notification") == []
                assert await client.content(limit=100) == documents[::-1]


async def test_who_names_no_tenant_is_of_the_default_tenant(house: House) -> None:
    """With a password, or with a token that claims none."""
    for backend in house.tenants:
        backend.must_notify("alice", content=f"of {backend.tenant}")
    async with SocketClient(house.server) as by_password, SocketClient(house.server) as by_token:
        assert contents(await by_password.join("alice")) == ["of default"]
        assert contents(await by_token.join_by_token(token_of(None, "alice"))) == ["of default"]
        house.b.must_notify("alice", content="of b again")
        house.default.must_notify("alice", content="of default again")
        for client in (by_password, by_token):
            assert contents(await client.next("notification")) == ["of default again"]


async def test_a_connection_changes_tenants_as_a_whole(house: House, user: str) -> None:
    """Joining again as the namesake of another tenant leaves the first room."""
    async with joined(house.a, user) as client:
        house.b.must_notify(user, content="of b")
        assert contents(await client.join_by_token(house.b.token(user))) == ["of b"]
        house.a.must_notify(user, content="of a")
        house.b.must_notify(user, content="of b again")
        assert contents(await client.next("notification")) == ["of b again"]
        assert contents(await client.content()) == ["of b again", "of b"]


# -- commands with the ids of others -------------------------------------------------------------------------
COMMANDS: dict[str, Callable[[str], tuple[str, Any]]] = {
    "seen": lambda id_: ("seen", {"ids": [id_]}),
    "seen, a bare list": lambda id_: ("seen", [id_]),
    "delete": lambda id_: ("delete", {"ids": [id_]}),
    "delete, a bare list": lambda id_: ("delete", [id_]),
    "content before": lambda id_: ("content", {"before": id_, "limit": 10}),
}


@pytest.mark.parametrize("command", COMMANDS)
async def test_the_id_of_another_tenant_is_nobodys(house: House, user: str, command: str) -> None:
    """Answered byte by byte as one that exists nowhere, also as the only one of several; its owner notices nothing."""
    # The asker has an older document and a newer one than the owner.
    for backend in (house.b, *house.tenants):
        backend.must_notify(user, content=f"of {backend.tenant}")
    before = [await inbox(backend, user) for backend in house.tenants]
    [theirs], [own, _] = before[1:]
    async with joined(house.a, user) as owner, joined(house.b, user) as client:
        answers = {
            (await answer(client, *COMMANDS[command](id_))).replace(id_, "ID")
            for id_ in (theirs["_id"], theirs["nid"], before[0][0]["_id"], new_id("a"))
        }
        assert len(answers) == 1
        if command != "content before":
            await client.send(command.partition(",")[0], [theirs["_id"], own["_id"], new_id("b")])
            assert await client.next(command.partition(",")[0]) == [own["_id"]]
        house.a.must_notify(user, content="later")
        name, documents = await owner.frame()
        assert (name, contents(documents)) == ("notification", ["later"])
    assert [each for each in await inbox(house.a, user) if each["content"] != "later"] == before[1]
    assert await inbox(house.default, user) == before[0]


async def test_all_are_all_of_the_own_tenant(house: House, user: str) -> None:
    """Marking all as seen leaves the others' counts."""
    for backend in house.tenants:
        backend.must_notify(user, content=f"of {backend.tenant}")
    async with joined(house.b, user) as client:
        await client.send("seen", {"all": True})
        assert len(await client.next("seen")) == 1
        assert await client.next("count") == {"unseen": 0}
    for backend, count in zip(house.tenants, (1, 1, 0), strict=True):
        async with DOORS["websocket"](house.server) as client:
            await client.send("join", {"token": backend.token(user)})
            assert await client.next("count") == {"unseen": count}


async def test_ids_do_not_count_the_documents_of_others(house: House, user: str) -> None:
    """The gap between two ids of a tenant is the same, however much the others store in between."""
    for noise in (0, 7, 0):
        house.a.must_notify(user, content="tick")
        for _ in range(noise):
            house.b.must_notify(user, content="noise")
            house.default.must_notify(user, content="noise")
    house.a.must_notify(user, content="tick")
    for field in ("_id", "nid"):
        ids = [document[field] for document in reversed(await inbox(house.a, user))]
        counters = [int(id_[-6:], 16) for id_ in ids]
        gaps = {(after - before) % (1 << 24) for before, after in zip(counters, counters[1:], strict=False)}
        assert len(gaps) == 1, (field, gaps)
        others = {document[field][8:18] for document in await inbox(house.b, user)}
        assert others.isdisjoint(id_[8:18] for id_ in ids)


# -- users ---------------------------------------------------------------------------------------------------
async def test_signing_out_is_of_the_own_user(house: House, user: str) -> None:
    """Connections and tokens of the namesakes stay good."""
    tokens = [backend.token(user) for backend in house.tenants]
    async with AsyncExitStack() as stack:
        default, a, b = [await stack.enter_async_context(joined(each, user)) for each in house.tenants]
        assert house.b.sign_out(user).status == 204
        assert await b.closed() == (3501, "signed_out")
        for backend, client in ((house.default, default), (house.a, a)):
            backend.must_notify(user, content="still there")
            assert contents(await client.next("notification")) == ["still there"]
    for token, is_good in zip(tokens, (True, True, False), strict=True):
        async with SocketClient(house.server) as client:
            if is_good:
                assert contents(await client.join_by_token(token)) == ["still there"]
            else:
                assert (await client.refusal("join", {"token": token}))["code"] == "bad_credentials"


async def test_whether_another_tenant_has_a_user_is_not_to_be_found_out(house: House, user: str) -> None:
    """A token for them, signing them out, their inbox: all as for somebody whom nobody knows."""
    house.a.must_notify(user)
    nobody = f"nobody-{uuid.uuid4().hex[:8]}"
    made = [house.b.make_token(each) for each in (user, nobody)]
    assert [(each.status, sorted(each.json())) for each in made] == [(200, ["expires_at", "token"])] * 2
    assert [await inbox(house.b, each) for each in (user, nobody)] == [[], []]
    out = [house.b.sign_out(each) for each in (user, nobody)]
    assert [(each.status, each.body) for each in out] == [(204, b"")] * 2
    assert len({len(each.headers) for each in out}) == 1


# -- what a refusal tells ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def dead_keys(house: House) -> dict[str, str]:
    """Keys that open nothing: of nobody, revoked, of a tenant that was removed, of one that is no more."""
    gone, erased = known(add_tenant(house.server, "gone")), known(add_tenant(house.server, "erased"))
    revoked = known(add_key(house.server, "a", "old", *ALL_SCOPES))
    house.server.must_run("key", "revoke", "a", "old")
    house.server.must_run("tenant", "remove", "gone", "--yes")
    house.server.must_run("tenant", "remove", "erased", "--yes", "--erase")
    for backend in (gone, erased, revoked):
        wait_until(partial(is_refused, backend), "the key being worthless")
    return {"nobody's": new_secret(), "revoked": revoked.key, "removed": gone.key, "erased": erased.key}


def is_refused(backend: Backend) -> bool:
    return backend.make_token("x").status == 403


def told(response: Response) -> tuple[int, dict[str, str], bytes]:
    """All that an answer says, but for what differs in each."""
    own = ("date", "x-request-id")
    headers = {name.lower(): value for name, value in response.headers.items() if name.lower() not in own}
    return response.status, headers, response.body


@pytest.mark.parametrize("way", ["Api-Key", "Bearer", "internal-api-key", "apikey"])
@pytest.mark.parametrize(
    ("path", "status"), [("/notify", 400), ("/api/v2/tokens", 403), ("/api/v2/users/alice/sign-out", 403)]
)
def test_all_wrong_keys_are_equal(
    house: House, dead_keys: dict[str, str], way: str, path: str, status: int
) -> None:
    """Whether a tenant was there, is there, or a key was once good: the answers are the same, byte by byte."""
    answers = []
    for key in dead_keys.values():
        headers, fields = CREDENTIALS[way](Backend(house.server, "", key))
        body = {"users": [{"id": "alice"}], "user_id": "alice", "content": "x", **fields}
        answers.append(told(post(house.server, path, body, headers)))
    assert answers == answers[:1] * len(dead_keys)
    # No field of these doors holds a key.
    assert answers[0][0] == (401 if way == "apikey" and status == 403 else status)


def test_a_service_learns_of_no_tenant_but_its_own(house: House, dead_keys: dict[str, str]) -> None:
    """A token that names one which is not there is told the same as one that names one which was."""
    answers = []
    for path in ("/notify", "/api/v2/tokens"):
        for tenant in ("gone", "erased", "nowhere"):
            headers, fields = CREDENTIALS["service"](Backend(house.server, tenant, ""))
            answers.append(told(post(house.server, path, fields, headers)))
    assert answers == answers[:1] * 3 + answers[3:4] * 3


async def test_all_wrong_tokens_are_equal(house: House, dead_keys: dict[str, str], user: str) -> None:
    """One of a tenant that is not there, that was there, or that is there and has not signed it."""
    head, _, signature = house.b.token(user).split(".")
    _, payload, _ = house.a.token(user).split(".")
    tokens = [
        token_of("nowhere", user),
        token_of("gone", user),
        token_of("erased", user),
        token_of("a", user, "a secret that somebody else has made up"),
        token_of("NOT A NAME", user),
        f"{head}.{payload}.{signature}",
        "no.token.atall",
    ]
    async with SocketClient(house.server) as client:
        refusals = [await client.refusal("join", {"token": token}) for token in tokens]
    assert refusals == [{"code": "bad_credentials", "message": "the token is wrong"}] * len(tokens)


# -- figures -------------------------------------------------------------------------------------------------
def figures(backend: Backend) -> tuple[str, Any]:
    """All that a tenant's admin key shows from outside."""
    headers = backend.credentials | FOREIGN
    text = backend.server.request("GET", "/metrics", None, {"Accept": "text/plain", **headers})
    summary = backend.server.request("GET", "/metrics", None, {"Accept": "application/json", **headers})
    assert (text.status, summary.status) == (200, 200)
    shown = summary.json()
    return text.body.decode(), {name: shown[name] for name in ("connections", "messages")}


async def test_the_figures_of_a_tenant_are_its_own(house: House, user: str) -> None:
    """They name nobody else, and stay as they are whatever the others do, or have done to them."""
    quiet, busy = (known(add_tenant(house.server, f"{name}-{user}")) for name in ("quiet", "busy"))
    quiet.must_notify(user)

    def everything() -> str:
        return house.server.request("GET", "/metrics", None, {"Accept": "text/plain"}).body.decode()

    await asyncio.to_thread(wait_until, lambda: quiet.tenant in everything(), "the figures")
    before = figures(quiet)
    assert f'tenant="{quiet.tenant}"' in before[0]
    assert before[1]["connections"] == {"active": 0, "total_unique_users": 0}
    async with joined(busy, user) as client:
        busy.must_notify(user, "another", content="x")
        await client.next("notification")
        assert (await client.refusal("join", {"token": "wrong"}))["code"] == "bad_credentials"
        assert busy.post("/notify", {"users": 7}).status == 400
        assert busy.sign_out("another").status == 204
        online = f'notification_users_online{{tenant="{busy.tenant}"}} 1.0'
        await asyncio.to_thread(wait_until, lambda: online in everything(), "the others' figures")
        after = figures(quiet)
        others = figures(busy)
    assert after[0].splitlines() == before[0].splitlines()
    assert after[1] == before[1]
    assert others[1]["connections"] == {"active": 1, "total_unique_users": 1}
    for text, own in ((after[0], quiet), (others[0], busy)):
        labels = {
            line.partition('tenant="')[2].partition('"')[0] for line in text.splitlines() if "{" in line
        }
        assert labels == {own.tenant}


def test_figures_of_all_are_for_no_guest(house: House) -> None:
    """A key that may not see figures is told no more than nobody; no answer at `/health` names a tenant."""
    publisher = known(add_key(house.server, "a", f"publisher-{new_id()}", "publish"))
    answers = [
        told(house.server.request("GET", "/metrics", None, headers))
        for headers in (FOREIGN, FOREIGN | publisher.credentials)
    ]
    assert answers[0] == answers[1]
    assert answers[0][0] == 403
    for path in ("/health", "/healthz", "/readyz"):
        seen = house.server.request("GET", path, None, FOREIGN | house.a.credentials)
        assert not any(f'"{backend.tenant}"'.encode() in seen.body for backend in house.tenants)


# -- mail ----------------------------------------------------------------------------------------------------
def parsed(content: bytes) -> EmailMessage:
    return BytesParser(EmailMessage, policy=default_policy).parsebytes(content)


@pytest.mark.parametrize("kind", STORES)
async def test_no_mail_has_recipients_of_two_tenants(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    """Also of the same text at the same moment, to the same address; and who is online elsewhere is away here."""
    with SMTPSink() as sink:
        settings = {
            "NOTIFY_EMAIL_HOST": f"127.0.0.1:{sink.port}",
            "NOTIFY_EMAIL_SENDER": "bell@example.test",
            "NOTIFY_EMAIL_TLS": "false",
        }
        with open_house(kind, request, tmp_path, **settings) as house:
            async with joined(house.b, "carol"):
                await asyncio.gather(*(asyncio.to_thread(mail, backend) for backend in house.tenants))
                sunk = [await sink.next_mail() for _ in range(3)]
    recipients = {parsed(each.content).get_content().strip(): sorted(each.recipients) for each in sunk}
    everybody = ["carol@{}.test", "dave@{}.test", "shared@example.test"]
    assert recipients == {
        tenant: [address.format(tenant) for address in everybody[tenant == "b" :]]
        for tenant in ("default", "a", "b")
    }
    for each in sunk:
        others = {f"carol@{tenant}.test" for tenant in recipients} | {"shared@example.test"}
        assert not any(address.encode() in each.content for address in others)


def mail(backend: Backend) -> None:
    """Everybody who is away, at the same address in all tenants and at one of the tenant's own."""
    users = [{"id": name, "email": f"{name}@{backend.tenant}.test"} for name in ("carol", "dave")]
    users.append({"id": "erin", "email": "shared@example.test"})
    fields = {"content": "same", "email_content": backend.tenant, "title": "same", "email_send": True}
    assert backend.post("/notify", {"users": users, **fields}).status == 200


# -- limits --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", STORES)
async def test_what_one_tenant_uses_up_is_not_missing_to_another(
    request: pytest.FixtureRequest, tmp_path: Path, user: str, kind: str
) -> None:
    """Requests of its key, and connections of its user."""
    settings = {"NOTIFY_LIMITS_REQUESTS_PER_KEY": "30/1h", "NOTIFY_LIMITS_CONNECTIONS_PER_USER": "1"}
    with open_house(kind, request, tmp_path, **settings) as house:
        async with joined(house.a, user), SocketClient(house.server) as second:
            token = house.a.token(user)
            assert (await second.refusal("join", {"token": token}))["code"] == "too_many_connections"
            async with joined(house.b, user) as theirs:
                before = remaining(house.b.notify(user))
                while (last := house.a.notify("another")).status == 200:
                    pass
                assert (last.status, last.json()["title"]) == (429, "rate_limited")
                assert int(last.headers["Retry-After"]) > 0
                assert house.a.make_token(user).status == 429
                after = house.b.notify(user)
                assert (after.status, remaining(after)) == (200, before - 1)
                for _ in range(2):
                    assert len(await theirs.next("notification")) == 1


def remaining(response: Response) -> int:
    """What is left, as the header RateLimit says it."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    name, left, _ = headers["ratelimit"].split(";")
    assert name == '"requests_per_key"'
    return int(left.removeprefix("r="))
