"""clients/python: against the server as people run it; where answers matter that it cannot be made to give, against
real sockets that answer by a script."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from inspect import isasyncgen
from pathlib import Path
from typing import Any

import notification_client
import pytest
from notification_client import (
    AnswerLost,
    AsyncClient,
    Client,
    Invalid,
    NotFound,
    NotificationError,
    RateLimited,
    Refused,
    Retries,
    Token,
    TooLarge,
    Unavailable,
    UnexpectedAnswer,
    Unreachable,
    client,
    protocol,
)
from notification_client.protocol import Answer, Call, exchange

from tests.support.backends import Backend, add_tenant, known
from tests.support.certificates import CertificateAuthority
from tests.support.client import SocketClient
from tests.support.ports import free_port
from tests.support.processes import wait_until
from tests.support.running_server import RunningServer
from tests.support.scripted_server import CUT, Reply, ScriptedServer
from tests.support.secure_server import SecureServer

ROOT = Path(__file__).resolve().parents[1]
CLIENT_FOLDER = ROOT / "clients" / "python"
DOCUMENTS = [CLIENT_FOLDER / "README.md", ROOT / "docs" / "integrations" / "python.md"]
KEY = "k" * 43
ONCE = Retries(attempts=1)
ALICE = ["alice"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def acme(server: RunningServer) -> Backend:
    """A tenant whose key allows all."""
    return known(add_tenant(server, "acme"))


@pytest.fixture
def script() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        yield scripted


class Caller:
    """Either client, called in one way."""

    def __init__(self, wrapped: Client | AsyncClient) -> None:
        self.wrapped = wrapped

    async def __call__(self, method: str, *args: Any, **kwargs: Any) -> Any:
        function = getattr(self.wrapped, method)
        if isinstance(self.wrapped, Client):
            return await asyncio.to_thread(lambda: _all(function(*args, **kwargs)))
        made = function(*args, **kwargs)
        return [item async for item in made] if isasyncgen(made) else await made


def _all(result: Any) -> Any:
    return list(result) if isinstance(result, Iterator) else result


class Make:
    """Makes callers, and closes them."""

    def __init__(self, kind: type[Client] | type[AsyncClient]) -> None:
        self._kind = kind
        self._made: list[Caller] = []

    def __call__(self, url: str, **kwargs: Any) -> Caller:
        caller = Caller(self._kind(url, **kwargs))
        self._made.append(caller)
        return caller

    async def close(self) -> None:
        for caller in self._made:
            await caller("close")


@pytest.fixture(params=[Client, AsyncClient])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    maker = Make(request.param)
    yield maker
    await maker.close()


async def inbox(server: RunningServer, acme: Backend, user: str) -> list[dict[str, Any]]:
    """What is unseen by this user of the tenant."""
    async with SocketClient(server) as socket:
        return await socket.join_by_token(acme.token(user))


# -- the calls, answered by the real server ------------------------------------------------------------------
async def test_every_field_arrives(make: Make, server: RunningServer, acme: Backend) -> None:
    """As it was given, in the inbox of each user, however they were named."""
    fields = {
        "title": "Shipped",
        "type": "order",
        "url": "https://x.test/?a=1&b=é",
        "icon": "i",
        "image": "m",
    }
    users = ["ann", 7, {"id": "ben", "email": "ben@example.test"}]
    content = 'It arrives\n"tomorrow" … 📦'
    assert await make(server.url, key=acme.key)("notify", content, users=users, **fields) is None
    for user in ("ann", "7", "ben"):
        newest = (await inbox(server, acme, user))[-1]
        assert {name: newest[name] for name in fields} == fields
        assert newest["content"] == content


async def test_mail_is_sent_if_asked_for(make: Make, tmp_path: Path) -> None:
    """With subject and text of its own."""
    with RunningServer(tmp_path) as running:
        mail = {
            "email_send": True,
            "email_subject": "Parcel",
            "email_content": "At the door",
            "email_type": "text/plain",
        }
        users = [{"id": "alice", "email": "alice@example.test"}]
        await make(running.url)("notify", "", users=users, **mail)
        folder = running.data / "mail"
        await asyncio.to_thread(wait_until, lambda: any(folder.glob("*.eml")), "the mail")
        [written] = folder.glob("*.eml")
        assert b"Subject: Parcel" in written.read_bytes()


async def test_without_a_key(make: Make, server: RunningServer) -> None:
    """Where the server asks for none."""
    await make(server.url)("notify", "no key", users=ALICE)
    async with SocketClient(server) as socket:
        assert (await socket.join("alice"))[-1]["content"] == "no key"


async def test_nobody_to_notify_is_no_error(make: Make, server: RunningServer, acme: Backend) -> None:
    """A backend need not ask whether its list is empty."""
    await make(server.url, key=acme.key)("notify", "nobody", users=[])


async def test_a_wrong_field_is_named(make: Make, server: RunningServer, acme: Backend) -> None:
    """By its path, and the server's sentence says why."""
    caller = make(server.url, key=acme.key)
    with pytest.raises(Invalid) as caught:
        await caller("notify", "x", users=["a", {"email": "b@example.test"}])
    assert (caught.value.field, caught.value.status, caught.value.code) == ("users[1].id", 400, "invalid")
    assert str(caught.value) == "users[1].id: missing"
    assert not caught.value.maybe_done


async def test_what_is_too_large_is_named(make: Make, server: RunningServer, acme: Backend) -> None:
    """It is Invalid, too, for those who do not care."""
    with pytest.raises(TooLarge) as caught:
        await make(server.url, key=acme.key)("notify", "x" * 100_000, users=ALICE)
    assert isinstance(caught.value, Invalid)
    assert (caught.value.field, caught.value.status) == ("content", 413)


async def test_a_wrong_key_is_refused(make: Make, server: RunningServer) -> None:
    """By C1's HTML at /notify, by a problem elsewhere."""
    caller = make(server.url, key=KEY)
    for method, args, kwargs in [("notify", ["x"], {"users": ALICE}), ("token", ["alice"], {})]:
        with pytest.raises(Refused) as caught:
            await caller(method, *args, **kwargs)
        assert caught.value.code == "bad_credentials"
        assert KEY not in str(caught.value)


async def test_a_missing_key_is_refused(make: Make, server: RunningServer) -> None:
    """For what takes one also on the server's own machine."""
    with pytest.raises(Refused, match="scope listen"):
        await make(server.url)("token", "alice")


async def test_a_user_joins_by_a_token(make: Make, server: RunningServer, acme: Backend) -> None:
    """Until it expires."""
    caller = make(server.url, key=acme.key)
    await caller("notify", "for tess", users=["tess"])
    begin = datetime.now(UTC)
    token: Token = await caller("token", "tess", 60)
    # It lives for whole seconds.
    assert timedelta(seconds=59) <= token.expires_at - begin
    assert token.expires_at - datetime.now(UTC) <= timedelta(seconds=61)
    assert token.token not in repr(token)
    async with SocketClient(server) as socket:
        assert (await socket.join_by_token(token.token))[-1]["content"] == "for tess"
    assert (await caller("token", 7)).expires_at > token.expires_at
    with pytest.raises(Invalid) as caught:
        await caller("token", "tess", 0)
    assert caught.value.field == "expires_in"


@pytest.mark.parametrize("user", ["sam", "..", ".", "a/b?c#d%2F", "é ✓", 12])
async def test_a_user_is_signed_out(
    make: Make, server: RunningServer, acme: Backend, user: str | int
) -> None:
    """Whatever their id is made of."""
    async with SocketClient(server) as socket:
        await socket.join_by_token(acme.token(str(user)))
        assert await make(server.url, key=acme.key)("sign_out", user) is None
        assert (await socket.closed())[0] == 3501


async def test_notify_user_by_id(make: Make, server: RunningServer, acme: Backend) -> None:
    """The payload of CONTRACT C3 is the notification's data."""
    message = {"test": "hello", "n": [1, None]}
    assert await make(server.url, key=acme.key)("notify_user_by_id", "cleo", message) is None
    [document] = (await inbox(server, acme, "cleo"))[-1:]
    assert document["data"] == message


async def test_notify_user_by_id_wants_a_message(make: Make, server: RunningServer, acme: Backend) -> None:
    """The refusal of CONTRACT C3 names the field in its own way."""
    with pytest.raises(Invalid) as caught:
        await make(server.url, key=acme.key)("notify_user_by_id", "cleo", None)
    assert caught.value.field == "payload"


async def test_send(make: Make, server: RunningServer, acme: Backend) -> None:
    """The id that it returns is the notification's."""
    id_ = await make(server.url, key=acme.key)("send", ["dora", 8], {"type": "call", "from": "ben"})
    for user in ("dora", "8"):
        [document] = (await inbox(server, acme, user))[-1:]
        assert (document["nid"], document["data"]) == (id_, {"type": "call", "from": "ben"})


async def test_broadcast(make: Make, server: RunningServer, acme: Backend) -> None:
    """Whom the tenant knows gets it, with the id that it returns."""
    caller = make(server.url, key=acme.key)
    await caller("notify", "before", users=["edna"])
    id_ = await caller("broadcast", "News", "For all", {"priority": "high"})
    newest = (await inbox(server, acme, "edna"))[-1]
    assert (newest["nid"], newest["title"], newest["content"]) == (id_, "News", "For all")
    assert newest["data"] == {"priority": "high"}


async def test_deliveries(make: Make, server: RunningServer, acme: Backend) -> None:
    """User by user; who has seen it is told from who has not, and an unknown id from both."""
    caller = make(server.url, key=acme.key)
    id_ = await caller("send", ["fay", "gus"], {"n": 1})
    async with SocketClient(server) as socket:
        unseen = await socket.join_by_token(acme.token("fay"))
        await socket.send("seen", {"ids": [unseen[-1]["_id"]]})
        await socket.next("seen")
    fay, gus = await caller("deliveries", id_)
    assert (fay.user_id, fay.status, gus.user_id, gus.status) == ("fay", "delivered", "gus", "sent")
    assert fay.sent_at == gus.sent_at <= fay.delivered_at <= datetime.now(UTC)
    assert gus.delivered_at is None
    with pytest.raises(NotFound):
        await caller("deliveries", "0" * 24)


async def test_notify_user_by_id_as_a_function(
    server: RunningServer, acme: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Address and key come from the environment; a missing address is named."""
    monkeypatch.delenv("NOTIFICATION_URL", raising=False)
    notification_client._client.cache_clear()
    with pytest.raises(ValueError, match="NOTIFICATION_URL is not set"):
        notification_client.notify_user_by_id("hal", {"n": 1})
    monkeypatch.setenv("NOTIFICATION_URL", server.url)
    monkeypatch.setenv("NOTIFICATION_KEY", acme.key)
    try:
        for number in (1, 2):
            await asyncio.to_thread(notification_client.notify_user_by_id, "hal", {"n": number})
        assert [document["data"] for document in await inbox(server, acme, "hal")] == [{"n": 1}, {"n": 2}]
    finally:
        notification_client._client().close()
        notification_client._client.cache_clear()


async def test_over_tls(make: Make, tmp_path: Path) -> None:
    """A private authority is trusted through `tls`; without it the server is not, and nothing is sent to it."""
    authority = CertificateAuthority(tmp_path)
    with SecureServer(tmp_path, authority) as secure:
        url = f"https://localhost:{secure.port}"
        await make(url, tls=authority.client_context())("notify", "secret", users=ALICE)
        with pytest.raises(Unreachable, match="certificate verify failed"):
            await make(url, retries=ONCE)("notify", "secret", users=ALICE)


async def test_a_restart_in_between_is_bridged(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing listens nothing is sent, so it is sent again."""
    running = RunningServer(tmp_path)
    with running:
        caller = make(running.url)
        await caller("notify", "before", users=ALICE)
        running.stop()
        fake_sleep(monkeypatch, running.start)
        await caller("notify", "after", users=ALICE)
        async with SocketClient(running) as socket:
            assert [document["content"] for document in await socket.join("alice")] == ["before", "after"]


def test_many_threads_share_a_client(server: RunningServer, acme: Backend) -> None:
    """Each call gets its own answer."""
    users = [f"thread-{number}" for number in range(60)]
    with Client(server.url, key=acme.key) as shared, ThreadPoolExecutor(8) as threads:
        tokens = list(threads.map(shared.token, users))

    async def all_join() -> None:
        for user, token in zip(users, tokens, strict=True):
            async with SocketClient(server) as socket:
                await socket.join_by_token(token.token)
                acme.must_notify(user, content=user)
                [document] = await socket.next("notification")
                assert document["content"] == user

    asyncio.run(all_join())


FORK = """
import os, sys
from notification_client import Client
client = Client(sys.argv[1], key=sys.argv[2])
client.token("parent")
child = os.fork()
if child == 0:
    client.token("child")
    client.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
client.token("parent")
unused = os.fork()
if unused == 0:
    client.close()
    os._exit(0)
os.waitpid(unused, 0)
client.token("parent")
client.close()
"""


def test_a_fork_takes_no_connection_along(script: ScriptedServer) -> None:
    """The child opens its own, and leaves the parent's alone, also when it closes the client."""
    script.reply(*[Reply(200, {"token": "t", "expires_at": "2030-01-31T12:10:00.000Z"})] * 4)
    run_python(FORK, script.url, KEY)
    assert [(json.loads(asked.body)["user_id"], asked.connection) for asked in script.asked] == [
        ("parent", 0),
        ("child", 1),
        ("parent", 0),
        ("parent", 0),
    ]


def run_python(code: str, *arguments: str) -> str:
    """What this program prints, run with the client alone; warnings are errors."""
    env = {**os.environ, "PYTHONPATH": str(CLIENT_FOLDER)}
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


# -- what goes over the wire ---------------------------------------------------------------------------------
async def test_connections_are_used_again(make: Make, script: ScriptedServer) -> None:
    """Also after a refusal."""
    script.reply(Reply(200), Reply(400, {"title": "invalid", "detail": "no", "field": ""}), Reply(200))
    caller = make(script.url)
    await caller("notify", "1", users=ALICE)
    with pytest.raises(Invalid):
        await caller("notify", "2", users=ALICE)
    await caller("notify", "3", users=ALICE)
    assert [asked.connection for asked in script.asked] == [0, 0, 0]


async def test_the_key_travels_in_a_header(make: Make, script: ScriptedServer) -> None:
    """Beside the version of the client; a path before the server's own is kept."""
    script.reply(Reply(200))
    await make(script.url + "/behind/proxy/", key=KEY)("notify", "x", users=ALICE)
    [asked] = script.asked
    assert (asked.method, asked.path) == ("POST", "/behind/proxy/notify")
    assert asked.headers["authorization"] == f"Api-Key {KEY}"
    assert asked.headers["content-type"] == "application/json"
    assert asked.headers["user-agent"] == f"notification-client/{notification_client.__version__}"


async def test_a_redirect_is_not_followed(make: Make, script: ScriptedServer) -> None:
    """The key goes to nobody but whom it is for."""
    script.reply(Reply(307, headers={"Location": f"{script.url}/elsewhere"}))
    with pytest.raises(UnexpectedAnswer) as caught:
        await make(script.url, key=KEY)("notify", "x", users=ALICE)
    assert caught.value.status == 307
    assert len(script.asked) == 1


@pytest.mark.parametrize(
    "body", ["<html>Welcome</html>", [], {"token": 1}, {"token": "t", "expires_at": "soon"}]
)
async def test_somebody_else_answers(make: Make, script: ScriptedServer, body: Any) -> None:
    """A 200 that is not this server's is no success."""
    script.reply(Reply(200, body))
    with pytest.raises(UnexpectedAnswer) as caught:
        await make(script.url)("token", "alice")
    assert caught.value.maybe_done


async def test_deliveries_come_page_by_page(make: Make, script: ScriptedServer) -> None:
    """Each asked for with what the one before ended with; the page after the last is not asked for."""
    sent_at = "2026-11-21T09:30:00.123Z"
    first = {"user_id": "a", "status": "delivered", "sent_at": sent_at, "delivered_at": sent_at}
    second = {
        "user_id": "b",
        "status": "failed",
        "sent_at": sent_at,
        "delivered_at": None,
        "reason": "550 no",
    }
    script.reply(
        Reply(200, {"deliveries": [first], "next": "a &é"}),
        Reply(200, {"deliveries": [second], "next": None}),
    )
    a, b = await make(script.url)("deliveries", "6740c0ffee0123456789abcc")
    assert a.delivered_at == datetime(2026, 11, 21, 9, 30, 0, 123000, UTC)
    assert (b.status, b.delivered_at, b.reason) == ("failed", None, "550 no")
    path = "/api/notifications/6740c0ffee0123456789abcc/deliveries"
    assert [asked.path for asked in script.asked] == [path, f"{path}?after=a%20%26%C3%A9"]


async def test_no_answer_in_time(make: Make, script: ScriptedServer) -> None:
    """Is an error that says so."""
    script.hold()
    with pytest.raises(AnswerLost) as caught:
        await make(script.url, timeout=0.1, retries=ONCE)("notify", "x", users=ALICE)
    assert caught.value.maybe_done
    assert len(script.asked) == 1


PUBLISHING: list[tuple[str, tuple[Any, ...], dict[str, Any], Reply]] = [
    ("notify", ("x",), {"users": ALICE}, Reply(200)),
    ("notify_user_by_id", ("alice", {"a": 1}), {}, Reply(200, {"user_id": "alice", "payload": {"a": 1}})),
    ("send", (ALICE, {"a": 1}), {}, Reply(202, {"status": "queued", "id": "i"})),
    ("broadcast", ("T", "M"), {}, Reply(200, {"status": "broadcasted", "id": "i"})),
]
each_call = pytest.mark.parametrize(
    ("method", "args", "kwargs", "good"), PUBLISHING, ids=[method for method, *_ in PUBLISHING]
)


@each_call
async def test_what_is_sent_again_has_the_same_key(
    make: Make,
    script: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    args: Any,
    kwargs: Any,
    good: Reply,
) -> None:
    """Whatever went wrong, also if it may have been stored; each call has another one, or the caller's own."""
    fake_sleep(monkeypatch)
    in_progress = Reply(409, {"title": "in_progress"}, {"Retry-After": "1"})
    script.reply(
        CUT, in_progress, Reply(503, {"title": "store_unavailable"}), good, CUT, good, Reply(502), good
    )
    caller = make(script.url)
    await caller(method, *args, **kwargs)
    await caller(method, *args, **kwargs)
    await caller(method, *args, **kwargs, idempotency_key="order-7")
    keys = [asked.headers["idempotency-key"] for asked in script.asked]
    first, second = keys[0], keys[4]
    assert keys == [first] * 4 + [second] * 2 + ["order-7"] * 2
    assert first != second and len(first) == len(second) == 36
    assert len({asked.body for asked in script.asked}) == 1


async def test_other_calls_have_no_key(
    make: Make, script: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are repeated as they are: twice does no more than once."""
    fake_sleep(monkeypatch)
    script.reply(CUT, Reply(204))
    await make(script.url)("sign_out", "alice")
    assert [asked.headers.get("idempotency-key") for asked in script.asked] == [None, None]


@pytest.mark.parametrize("key", ["", "a b", "é", "a\n", "x" * 256], ids=ascii)
async def test_what_is_no_idempotency_key(make: Make, script: ScriptedServer, key: str) -> None:
    """Is refused before anything is sent."""
    with pytest.raises(ValueError, match="^idempotency_key: "):
        await make(script.url)("notify", "x", users=ALICE, idempotency_key=key)
    assert script.asked == []


@each_call
async def test_a_key_of_the_callers_own(
    make: Make,
    server: RunningServer,
    acme: Backend,
    method: str,
    args: Any,
    kwargs: Any,
    good: Reply,
) -> None:
    """The same call made anew has the same result; another one with that key is refused."""
    caller = make(server.url, key=acme.key)
    key = f"{method}-{os.urandom(8).hex()}"
    results = [await caller(method, *args, **kwargs, idempotency_key=key) for _ in range(3)]
    assert len(set(results)) == 1
    with pytest.raises(Invalid) as caught:
        await caller("notify", "something else", users=ALICE, idempotency_key=key)
    assert (caught.value.status, caught.value.code) == (422, "idempotency_key_reused")
    assert not caught.value.maybe_done


async def test_a_lost_answer_notifies_nobody_twice(
    make: Make, server: RunningServer, acme: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real server stored it, the client never heard of it, and sent it again."""
    user = f"user-{os.urandom(8).hex()}"
    caller = make(server.url, key=acme.key)
    attempt, lost = caller.wrapped._attempt, 0  # type: ignore[attr-defined]  # of either client

    async def lose_async(call: Any) -> Any:
        return lose(await attempt(call))

    def lose(answer: Any) -> Any:
        nonlocal lost
        lost += 1
        return AnswerLost("", maybe_done=True) if lost < 3 else answer

    is_sync = isinstance(caller.wrapped, Client)
    monkeypatch.setattr(
        caller.wrapped, "_attempt", (lambda call: lose(attempt(call))) if is_sync else lose_async
    )
    fake_sleep(monkeypatch)
    await caller("notify", "once", users=[user])
    assert lost == 3
    assert [document["content"] for document in await inbox(server, acme, user)] == ["once"]


async def test_the_server_says_when_to_come_back(
    make: Make, script: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the client waits that long."""
    slept = fake_sleep(monkeypatch)
    script.reply(Reply(429, {"title": "rate_limited"}, {"Retry-After": "7"}), Reply(200))
    await make(script.url)("notify", "x", users=ALICE)
    assert len(slept) == 1 and 7 <= slept[0] <= 8


def fake_sleep(monkeypatch: pytest.MonkeyPatch, then: Any = lambda: None) -> list[float]:
    """The clients sleep no more, but do this; how long they would have slept."""
    slept: list[float] = []

    def sleep(delay_s: float) -> None:
        slept.append(delay_s)
        then()

    async def asleep(delay_s: float) -> None:
        slept.append(delay_s)
        await asyncio.to_thread(then)

    monkeypatch.setattr(client, "sleep", sleep)
    monkeypatch.setattr(client, "sleep_async", asleep)
    return slept


async def test_nothing_secret_is_logged(
    make: Make, server: RunningServer, acme: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither key nor content nor token, by whatever library at whatever level; nor do they stand in any repr."""
    caplog.set_level(logging.DEBUG)
    caller = make(server.url, key=acme.key)
    await caller("notify", "very private", users=ALICE)
    token = await caller("token", "alice")
    with pytest.raises(Invalid) as caught:
        await caller("notify", "very private", users=[{"id": ""}])
    assert "httpcore" in caplog.text
    call = protocol.notify("very private", ALICE, {}, None)
    for text in (
        caplog.text,
        repr(caller.wrapped),
        repr(call),
        repr(caught.value),
        str(caught.value),
        repr(token),
    ):
        for secret in (acme.key, "very private", token.token):
            assert secret not in text


# -- when a call is sent again -------------------------------------------------------------------------------
PLAIN = Call("POST", "/", b"{}", lambda answer: answer)
GOOD = Answer(200, {}, b'"done"')
MANY = Retries(attempts=1000, total_s=1e9)


def answer(status: int, code: str = "", retry_after: str = "") -> Answer:
    return Answer(status, {"retry-after": retry_after}, json.dumps({"title": code}).encode())


def is_repeated(call: Call[Any], outcome: Answer | NotificationError, retries: Retries = MANY) -> bool:
    steps = exchange(call, retries)
    assert next(steps) == 0
    try:
        steps.send(outcome)
    except NotificationError:
        return False
    with pytest.raises(StopIteration) as ended:
        steps.send(GOOD)
    assert ended.value.value == "done"
    return True


@pytest.mark.parametrize(
    "outcome",
    [
        Unreachable(""),
        AnswerLost("", maybe_done=True),
        answer(409, "in_progress"),
        answer(429),
        answer(502),
        answer(503),
        answer(503, "busy"),
        answer(503, "auth_unavailable"),
        answer(503, "store_unavailable"),
        answer(504),
    ],
    ids=str,
)
def test_what_may_pass_is_repeated(outcome: Answer | NotificationError) -> None:
    """Whether or not it may have been done: twice does no more than once."""
    assert is_repeated(PLAIN, outcome)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 409, 413, 422, 500])
def test_what_would_fail_again_is_not_repeated(status: int) -> None:
    """Nor what nobody knows."""
    assert not is_repeated(PLAIN, answer(status))


@pytest.mark.parametrize(
    ("code", "maybe_done"),
    [
        ("busy", False),
        ("auth_unavailable", False),
        ("starting", False),
        ("store_unavailable", True),
        ("", True),
    ],
)
def test_a_503_that_comes_before_anything_is_stored(code: str, maybe_done: bool) -> None:
    """Is known to have done nothing, by the server's word for it."""
    steps = exchange(PLAIN, Retries(attempts=1))
    next(steps)
    with pytest.raises(Unavailable) as caught:
        steps.send(answer(503, code))
    assert caught.value.maybe_done is maybe_done


def test_attempts_are_bounded() -> None:
    """The first one counts; the last error is raised."""
    steps = exchange(PLAIN, Retries(attempts=3))
    next(steps)
    steps.send(answer(503, "busy"))
    steps.send(answer(503, "busy"))
    with pytest.raises(RateLimited):
        steps.send(answer(429))
    assert not is_repeated(PLAIN, answer(503, "busy"), ONCE)


def test_delays_grow_up_to_a_bound_and_differ() -> None:
    """The bound doubles with each attempt, and the delay lies in its upper half."""
    steps = exchange(PLAIN, MANY)
    next(steps)
    for bound in [0.5, 1, 2, 4, 5, 5, 5]:
        assert bound / 2 <= steps.send(answer(503, "busy")) <= bound
    assert len({protocol._delay_s(Unreachable(""), 1) for _ in range(10)}) > 1
    assert protocol._delay_s(Unreachable(""), 100_000) <= 5


def test_time_is_bounded() -> None:
    """No attempt begins later than allowed, however long the ones before took; who cannot come back in time gives up at
    once."""
    now = 100.0
    steps = exchange(PLAIN, Retries(attempts=1000, total_s=10), clock=lambda: now)
    next(steps)
    now = 108.9
    assert 108.9 + steps.send(answer(503, "busy")) <= 110
    now = 109.9
    with pytest.raises(Unavailable):
        steps.send(answer(503, "busy"))
    steps = exchange(PLAIN, Retries(attempts=1000, total_s=10), clock=lambda: now)
    next(steps)
    with pytest.raises(RateLimited) as caught:
        steps.send(answer(429, retry_after="10"))
    assert caught.value.retry_after == 10


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0", 0), ("120", 120), ("", None), ("soon", None), ("-1", None), ("Fri, 31 Dec 1999 23:59:59 GMT", 0)],
)
def test_retry_after(value: str, expected: float | None) -> None:
    """In seconds; what cannot be understood says nothing."""
    error = protocol.refusal(answer(503, retry_after=value))
    assert isinstance(error, Unavailable)
    assert error.retry_after == expected


def test_retry_after_as_a_date() -> None:
    """It is that long from now."""
    at = datetime.now(UTC) + timedelta(hours=1)
    error = protocol.refusal(answer(503, retry_after=format_datetime(at, usegmt=True)))
    assert isinstance(error, Unavailable)
    assert error.retry_after is not None and 0 < error.retry_after <= 3600


def test_an_earlier_attempt_that_may_have_been_done_is_remembered() -> None:
    """A refused connection says nothing about the answer that was lost before it."""
    steps = exchange(PLAIN, Retries(attempts=2))
    next(steps)
    steps.send(AnswerLost("", maybe_done=True))
    with pytest.raises(Unreachable) as caught:
        steps.send(Unreachable(""))
    assert caught.value.maybe_done


# -- answers and arguments -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (
            400,
            {"payload": ["missing"], "detail": "payload: missing", "field": "payload"},
            Invalid,
            "payload: missing",
        ),
        (400, {"payload": ["This field may not be null."]}, Invalid, "payload: This field may not be null."),
        (401, {"title": "no_credentials", "detail": "a key is needed"}, Refused, "a key is needed"),
        (403, {"detail": "Invalid API key"}, Refused, "Invalid API key"),
        (404, "<html>", UnexpectedAnswer, "the server answered 404, without a reason"),
        (404, {"title": "not_found", "detail": "no such notification"}, NotFound, "no such notification"),
        (413, "<html>", TooLarge, "the server answered 413, without a reason"),
        (500, "<html>", UnexpectedAnswer, "the server answered 500, without a reason"),
        (502, [1], Unavailable, "the server answered 502, without a reason"),
    ],
)
def test_refusals_in_every_dialect(
    status: int, body: Any, kind: type[NotificationError], message: str
) -> None:
    """The server's problems, Django's lists, and what proxies say."""
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    error = protocol.refusal(Answer(status, {}, raw))
    assert type(error) is kind
    assert (str(error), error.status) == (message, status)
    if status == 400:
        assert error.field == "payload"  # type: ignore[attr-defined]  # it is Invalid


def test_errors_survive_pickling() -> None:
    """As task queues pickle them; with their attributes."""
    error = protocol.refusal(answer(429, "rate_limited", "3"))
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.status, copy.retry_after) == (RateLimited, str(error), 429, 3)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8587",
        "ftp://h",
        "http://",
        "http://u:hidden@h",
        "http://h/?key=hidden",
        "http://h#hidden",
    ]
    + ["http://h:0", "http://h:port", "http://[::1"],
)
def test_what_is_no_address(url: str) -> None:
    """Is refused at once, and not repeated: it may hold a password."""
    with pytest.raises(ValueError) as caught:
        Client(url)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("key", ["", " hidden", "hidden\n", "hidden\r\nX: y", "hiddén", "hid den"])
def test_what_is_no_key(key: str) -> None:
    """A line break would be another header; it is not repeated."""
    with pytest.raises(ValueError, match="^key: ") as caught:
        Client("http://127.0.0.1:1", key=key)
    assert "hid" not in str(caught.value)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_there_always_is_a_timeout(timeout: float) -> None:
    """Nothing waits for ever."""
    with pytest.raises(ValueError, match="^timeout: "):
        Client("http://127.0.0.1:1", timeout=timeout)


async def test_slips_of_the_pen_are_not_sent(make: Make) -> None:
    """An unknown field, a text for a list, an empty id: the server would ignore or misunderstand them."""
    caller = make(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TypeError, match="titel"):
        await caller("notify", "x", users=ALICE, titel="x")
    with pytest.raises(TypeError, match="users: not a list"):
        await caller("notify", "x", users="alice")
    with pytest.raises(TypeError, match="user_ids: not a list"):
        await caller("send", "alice", {})
    with pytest.raises(ValueError, match="user_id: empty"):
        await caller("sign_out", "")
    with pytest.raises(ValueError, match="JSON"):
        await caller("notify_user_by_id", "alice", float("nan"))


async def test_a_closed_client_says_so(make: Make, server: RunningServer) -> None:
    """And may be closed again."""
    caller = make(server.url)
    await caller("close")
    with pytest.raises(RuntimeError, match="closed"):
        await caller("notify", "x", users=ALICE)


def test_a_context_manager_closes(server: RunningServer) -> None:
    """At its end; what is asked page by page is not asked before."""
    with Client(server.url) as used:
        used.notify("x", users=ALICE)
        used.deliveries("not asked for")
    with pytest.raises(RuntimeError, match="closed"):
        used.notify("x", users=ALICE)


# -- the documents -------------------------------------------------------------------------------------------
EXAMPLES = [
    pytest.param(example, id=f"{path.name}-{number}")
    for path in DOCUMENTS
    for number, example in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run(
    example: str, server: RunningServer, acme: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand in the documents, with the address and key of the tests."""
    monkeypatch.setenv("NOTIFICATION_URL", server.url)
    monkeypatch.setenv("NOTIFICATION_KEY", acme.key)
    run_python(example)
