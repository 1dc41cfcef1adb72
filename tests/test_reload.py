"""SIGHUP at a running server: what it takes over from a changed configuration, what waits for a restart, and that a bad
one changes nothing. Nobody is disconnected whom a change does not concern."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import CertificateAuthority, Pair
from tests.support.client import SocketClient
from tests.support.client_v2 import client_v2
from tests.support.feeds import must, post
from tests.support.jwt_keys import claims, ec_signer, hs256
from tests.support.passwords import cheap_hash
from tests.support.ports import free_port
from tests.support.processes import wait_until
from tests.support.running_server import Response, RunningServer
from tests.support.secure_server import SecureServer, Streaming

ROOT = Path(__file__).resolve().parents[1]

REREAD = "the configuration and the files that it names were reread; changed keys: "
APIKEY_SET = f"{REREAD}[APPLICATION] apikey, [APPLICATION] publish_without_key"
"""Where there was none before."""
REFUSED = "so nothing was changed: "
TOKENS = "/api/users/token/"


def config_file(server: RunningServer) -> Path:
    return server.data.parent / "config.ini"


def configured(folder: Path, text: str = "", **settings: str) -> RunningServer:
    """A server with this config.ini."""
    (folder / "config.ini").write_text(text)
    return RunningServer(folder, **settings)


def faulty(folder: Path, fault: str, text: str = "", **settings: str) -> RunningServer:
    """The same, with this code run in its process before anything else."""
    (folder / "sitecustomize.py").write_text(fault)
    return configured(folder, text, **settings, PYTHONPATH=f"{folder}{os.pathsep}{ROOT}")


async def reload(server: RunningServer, text: str | None, says: str) -> str:
    """SIGHUP, with this config.ini (None: as it is); what is logged from then on, when that `says` so."""
    if text is not None:
        config_file(server).write_text(text)
    before = len(server.log)
    server.signal(signal.SIGHUP)
    await asyncio.to_thread(
        wait_until, lambda: f"{says}\n" in server.log[before:], f"the log saying {says!r}"
    )
    return server.log[before:]


def publish(server: RunningServer, credential: str, content: str = "x") -> Response:
    """POST /notify for alice."""
    body = json.dumps({"users": [{"id": "alice"}], "content": content}).encode()
    headers = {"Content-Type": "application/json", "Authorization": credential}
    return server.request("POST", "/notify", body, headers)


async def refusal(server: RunningServer, **join: str) -> str:
    """The code of the error that a join is answered with."""
    async with SocketClient(server) as client:
        return str((await client.refusal("join", join))["code"])


# -- what is taken over --------------------------------------------------------------------------------------


async def test_a_changed_apikey(tmp_path: Path) -> None:
    """The old one opens nothing from then on. The value is not in the log."""
    with configured(tmp_path, "[APPLICATION]\napikey=the-first\n") as server:
        async with SocketClient(server) as client:
            await client.join("alice")
            assert publish(server, "Api-Key the-first").status == 200
            assert publish(server, "Api-Key the-second").status == 400
            await reload(server, "[APPLICATION]\napikey=the-second\n", f"{REREAD}[APPLICATION] apikey")
            assert publish(server, "Api-Key the-first").status == 400
            assert publish(server, "Api-Key the-second", "by the new one").status == 200
            await client.next("notification")
            assert (await client.next("notification"))[0]["content"] == "by the new one"
        assert "the-first" not in server.log and "the-second" not in server.log


async def test_a_tenant_that_is_not_there(tmp_path: Path) -> None:
    """The log says so at the start, when the setting changes, and when a right key is refused for it; once the tenant
    is there, the key is good."""
    said = "[APPLICATION] default_tenant: there is no tenant '{}', so nobody comes in by it"
    with configured(tmp_path, "[APPLICATION]\napikey=key\ndefault_tenant=acme\n") as server:
        assert server.log.count(said.format("acme")) == 1
        assert publish(server, "Api-Key key").status == 400
        assert "refused though right (apikey): there is no tenant 'acme'" in server.log
        assert publish(server, "Api-Key another").status == 400
        assert (
            "refused POST at notify: bad_credentials: the key is wrong, expired or revoked (request"
            in server.log
        )
        await asyncio.to_thread(server.must_run, "tenant", "add", "acme")
        await asyncio.to_thread(
            wait_until, lambda: publish(server, "Api-Key key").status == 200, "the tenant being known"
        )
        other = "[APPLICATION]\napikey=key\ndefault_tenant=other\n"
        log = await reload(server, other, f"{REREAD}[APPLICATION] default_tenant")
        assert log.count(said.format("other")) == 1
        assert server.log.count(said.format("acme")) == 1


async def test_a_reload_that_fails_last_leaves_nothing_behind(tmp_path: Path) -> None:
    """What was prepared for it is let go of."""
    fault = """
from server import app, logs
from server.errors import StartupError
from server.sign_in import Verifiers
close = Verifiers.close
async def told(self):
    print("let go", flush=True)
    await close(self)
Verifiers.close = told
def setup(log, setup=logs.setup):
    if log.level == 10:
        raise StartupError("no space for a log")
    setup(log)
logs.setup = setup
"""
    with faulty(tmp_path, fault) as server:
        log = await reload(server, "[LOG]\nlevel=debug\n", "no space for a log")
        await asyncio.to_thread(wait_until, lambda: "let go" in server.log, "its being let go of")
        assert REFUSED in log


async def test_changed_limits(tmp_path: Path) -> None:
    """Rates and sizes count from the next request on; who has more connections than they may now keeps them."""
    key = "[APPLICATION]\napikey=key\n"
    small = f"{key}[LIMITS]\nrequests_per_key=2/h\ncontent_bytes=1000\nconnections_per_user=1\n"
    with configured(tmp_path, key) as server:
        async with SocketClient(server) as first, SocketClient(server) as second:
            await first.join("alice")
            await second.join("alice")
            assert publish(server, "Api-Key key", "x" * 2000).status == 200
            changed = "[LIMITS] content_bytes, [LIMITS] requests_per_key, [LIMITS] connections_per_user"
            await reload(server, small, REREAD + changed)
            assert publish(server, "Api-Key key", "x" * 2000).status == 413
            statuses = [publish(server, "Api-Key key", "small").status for _ in range(4)]
            assert statuses[-1] == 429, statuses
            assert await refusal(server, login="alice", password="alice") == "too_many_connections"
            await reload(server, key, REREAD + changed)
            assert publish(server, "Api-Key key", "for all").status == 200
            for client in (first, second):
                while (await client.next("notification"))[0]["content"] != "for all":
                    pass


async def test_a_changed_log_level(tmp_path: Path) -> None:
    """Less is said from then on, and then more again."""
    with configured(tmp_path, "[APPLICATION]\napikey=one\n") as server:
        config_file(server).write_text("[APPLICATION]\napikey=two\n[LOG]\nlevel=error\n")
        server.signal(signal.SIGHUP)  # which the log is too quiet to tell of
        wait_until(lambda: publish(server, "Api-Key two").status == 200, "the reload")
        before = server.log
        assert await refusal(server, login="alice", password="wrong") == "bad_credentials"
        assert server.log == before
        await reload(server, "[APPLICATION]\napikey=two\n", f"{REREAD}[LOG] level")
        assert await refusal(server, login="alice", password="wrong") == "bad_credentials"
        assert "a sign-in from 127.0.0.1 failed" in server.log.removeprefix(before)


async def test_a_changed_log_format(tmp_path: Path) -> None:
    """From the line about the change on, each is an object; in the log file, too. And back."""
    human = f"[LOG]\nfile={tmp_path}/log/server.log\n"
    with configured(tmp_path, human) as server:
        before = len(server.log)
        config_file(server).write_text(f"{human}format=json\n")
        server.signal(signal.SIGHUP)
        said = f'"message": "{REREAD}[LOG] format"}}\n'
        wait_until(lambda: said in server.log[before:], "the reload")
        assert await refusal(server, login="alice", password="wrong") == "bad_credentials"
        lines = [json.loads(line) for line in server.log[before:].splitlines()]
        assert lines[0]["level"] == "info" and "a sign-in" in lines[-1]["message"]
        assert (tmp_path / "log/server.log").read_text().endswith(server.log[before:])
        assert (await reload(server, human, f"{REREAD}[LOG] format")).startswith("20")


async def test_changed_passwords(tmp_path: Path) -> None:
    """Whoever has another one, or is gone, is told to come back with what is right now (3501), and cannot with the old
    one, not even where that is remembered. All others stay."""

    def users(**passwords: str) -> str:
        return "".join(["[USERS]\n", *(f"{name}={cheap_hash(word)}\n" for name, word in passwords.items())])

    before = users(ann="old", ben="gone", cleo="same")
    cleo = before.splitlines()[-1]
    with configured(tmp_path, before) as server:
        async with AsyncExitStack() as stack:
            ann, other_ann, ben, cleo_, alice = [
                await stack.enter_async_context(SocketClient(server)) for _ in range(5)
            ]
            await ann.join("ann", "old")
            await other_ann.join("ann", "old")
            await ben.join("ben", "gone")
            await cleo_.join("cleo", "same")
            await alice.join("alice")  # of the demo
            after = f"{users(ann='new', dan='added')}{cleo}\n"
            await reload(server, after, f"{REREAD}[USERS] ann, [USERS] ben, [USERS] dan")
            for client in (ann, other_ann, ben):
                assert await client.closed() == (3501, "signed_out")
            assert await refusal(server, login="ann", password="old") == "bad_credentials"
            assert await refusal(server, login="ben", password="gone") == "bad_credentials"
            for name, password in (("ann", "new"), ("dan", "added")):
                async with SocketClient(server) as client:
                    await client.join(name, password)
            server.must_notify("cleo", "alice", content="still here")
            for client in (cleo_, alice):
                assert (await client.next("notification"))[0]["content"] == "still here"


async def test_what_was_given_for_a_password_ends_with_it(tmp_path: Path) -> None:
    """Tickets and tokens of who has another one, or is gone: at SIGHUP as after a restart. Those of the others stay."""
    same = f"cleo={cheap_hash('same')}\n"
    with configured(tmp_path, f"[USERS]\nann={cheap_hash('old')}\nben={cheap_hash('old')}\n{same}") as server:
        given = {}
        for name, password in (("ann", "old"), ("ben", "old"), ("cleo", "same")):
            async with client_v2(server) as client:
                await client.join(login=name, password=password)
                tokens = must(post(server, TOKENS, {"username": name, "password": password}))
                given[name] = (client.ticket, tokens)

        async def check() -> None:
            for name, (ticket, tokens) in given.items():
                if name == "cleo":
                    async with client_v2(server) as client:
                        await client.join(ticket=ticket)
                    async with client_v2(server) as client:
                        await client.join(token=tokens["identity"])
                else:
                    async with client_v2(server) as client:
                        for proof in ({"ticket": ticket}, {"token": tokens["identity"]}):
                            error = await client.refusal("join", {"v": 2, **proof})
                            assert error["code"] == "bad_credentials", (name, proof)
                refreshed = post(server, f"{TOKENS}refresh/", {"refresh": tokens["refresh"]})
                assert refreshed.status == (200 if name == "cleo" else 401), name

        await reload(server, f"[USERS]\nann={cheap_hash('new')}\n{same}", f"{REREAD}[USERS] ann, [USERS] ben")
        await check()
        await asyncio.to_thread(server.restart)
        await check()


async def test_a_password_that_changes_while_it_is_checked(tmp_path: Path) -> None:
    """Is the old one: what was asked before the reload lets nobody in after it."""
    held = """
import pathlib, time
from server import passwords
matches = passwords.matches
def slowly(*arguments):
    print("is checking", flush=True)
    while not pathlib.Path("go on").exists():
        time.sleep(0.01)
    return matches(*arguments)
passwords.matches = slowly
"""
    with faulty(tmp_path, held, f"[USERS]\nann={cheap_hash('old')}\n") as server:
        async with SocketClient(server) as client:
            await client.send("join", {"login": "ann", "password": "old"})
            await asyncio.to_thread(wait_until, lambda: "is checking" in server.log, "the check")
            await reload(server, f"[USERS]\nann={cheap_hash('new')}\n", f"{REREAD}[USERS] ann")
            (tmp_path / "go on").touch()
            assert (await client.next("error"))["code"] == "bad_credentials"


FIRST_SECRET, SECOND_SECRET = "1" * 32, "2" * 32


async def test_a_changed_secret_of_tokens(tmp_path: Path) -> None:
    """Tokens signed with the old one are refused from then on, those with the new one are taken; who came by an old one
    stays until it ends. So for services."""

    def text(secret: str) -> str:
        return f"[JWT]\nsecret={secret}\n[SERVICE_JWT]\nsecret={secret}\naudience=service\n"

    def service(secret: str) -> str:
        return f"Bearer {hs256(claims(scope='publish', aud='service'), secret)}"

    with configured(tmp_path, text(FIRST_SECRET)) as server:
        old, new = hs256(claims(), FIRST_SECRET), hs256(claims(), SECOND_SECRET)
        async with SocketClient(server) as client:
            await client.join_by_token(old)
            assert await refusal(server, token=new) == "bad_credentials"
            assert publish(server, service(FIRST_SECRET)).status == 200
            assert publish(server, service(SECOND_SECRET)).status == 400
            changed = "[JWT] secret, [SERVICE_JWT] secret"
            log = await reload(server, text(SECOND_SECRET), REREAD + changed)
            assert FIRST_SECRET not in log and SECOND_SECRET not in log
            assert await refusal(server, token=old) == "bad_credentials"
            async with SocketClient(server) as other:
                await other.join_by_token(new)
            assert publish(server, service(FIRST_SECRET)).status == 400
            assert publish(server, service(SECOND_SECRET), "to both").status == 200
            await client.next("notification")
            assert (await client.next("notification"))[0]["content"] == "to both"


@pytest.mark.parametrize("kind", ["key", "jwks"])
async def test_a_changed_file_of_token_keys(tmp_path: Path, kind: str) -> None:
    """It is read anew, though its name is the same."""
    first, second = ec_signer(), ec_signer()
    file = tmp_path / "keys"

    def write(signer: Any) -> None:
        file.write_bytes(
            signer.pem if kind == "key" else json.dumps({"keys": [signer.jwk(kid="k")]}).encode()
        )

    write(first)
    with configured(tmp_path, f"[JWT]\n{kind}={file}\nalgorithms=ES256\n") as server:
        old, new = (signer.sign(claims(), kid="k") for signer in (first, second))
        async with SocketClient(server) as client:
            await client.join_by_token(old)
            write(second)
            await reload(server, None, f"{REREAD}none")
            assert await refusal(server, token=old) == "bad_credentials"
            async with SocketClient(server) as other:
                await other.join_by_token(new)
            server.must_notify("alice", content="still here")
            assert (await client.next("notification"))[0]["content"] == "still here"


async def test_a_changed_list_of_proxies(tmp_path: Path) -> None:
    """Whose word about addresses is believed, and whose no more."""

    def text(trusted: str) -> str:
        return f"[APPLICATION]\napikey=key\ntrusted_proxies={trusted}\n"

    async def seen_as() -> str:
        before = len(server.log)
        headers = {"X-Forwarded-For": "192.0.2.7", "Content-Type": "text/plain"}
        path = f"/notification/0/s{before}"
        assert server.request("POST", f"{path}/xhr", b"", headers).status == 200
        join = json.dumps([json.dumps({"name": "join", "data": {"login": "x", "password": "wrong"}})])
        assert server.request("POST", f"{path}/xhr_send", join.encode(), headers).status == 204
        said = "a sign-in from "
        wait_until(lambda: said in server.log[before:], "the refusal")
        return server.log[before:].partition(said)[2].split()[0]

    with configured(tmp_path, text("")) as server:
        assert await seen_as() == "127.0.0.1"
        await reload(server, text("127.0.0.1"), f"{REREAD}[APPLICATION] trusted_proxies")
        assert await seen_as() == "192.0.2.7"
        await reload(server, text("10.0.0.0/8"), f"{REREAD}[APPLICATION] trusted_proxies")
        assert await seen_as() == "127.0.0.1"


# -- TLS -----------------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path / "authority")


@pytest.fixture
def secure(tmp_path: Path, authority: CertificateAuthority) -> Iterator[SecureServer]:
    (tmp_path / "config.ini").touch()
    with SecureServer(tmp_path, authority) as running:
        yield running


def shown_certificate(server: SecureServer) -> bytes:
    """What a new connection sees."""
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain,
        server.place().context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        shown = secured.getpeercert(binary_form=True)
        assert shown is not None
        return shown


async def test_a_renewed_certificate(secure: SecureServer, authority: CertificateAuthority) -> None:
    """New connections see it; those that are open live on, whatever they speak, and so does one in its handshake."""
    old, new = secure.pair.der, authority.server_pair(file="renewed")
    half_open = socket.create_connection(("127.0.0.1", secure.port), timeout=30)
    assert shown_certificate(secure) == old  # so the one before it has been accepted, too
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(secure.place().client())
        await client.join("alice")
        streams = []
        for transport in ("xhr_streaming", "eventsource", "xhr"):
            stream = await stack.enter_async_context(Streaming(secure.place(), transport, transport))
            if transport == "xhr":
                await stream.receive("o")
            else:
                await stream.start()
                await stream.until("o")
            await stream.send("join", {"login": "alice", "password": "alice"})
            await stream.receive("unseen")
            streams.append(stream)
        secure.pair.replace(new)
        await reload(secure, "", f"{REREAD}none")
        assert shown_certificate(secure) == new.der
        with half_open, secure.place().context.wrap_socket(half_open, server_hostname="localhost") as begun:
            assert begun.getpeercert(binary_form=True) == old
        await asyncio.to_thread(secure.must_notify, "alice", content="still here")
        assert (await client.next("notification"))[0]["content"] == "still here"
        for stream in streams:
            await stream.receive("still here")


async def test_certificates_of_backends_come_and_go(
    secure: SecureServer, authority: CertificateAuthority
) -> None:
    """An authority and its holders can be added, and taken away, while others are connected."""
    billing = secure.place(authority.client_pair("billing"))
    holders = f"[TLS]\nclient_ca={authority.ca_file}\n[CERTIFICATES]\nbilling=default publish CN=billing\n"
    holders += "[APPLICATION]\npublish_without_key=false\n"
    changed = "[APPLICATION] publish_without_key, [TLS] client_ca, [CERTIFICATES] billing"
    async with secure.place().client() as client:
        await client.join("alice")
        await reload(secure, holders, REREAD + changed)
        assert secure.place().notify("alice", content="by nobody").status == 403
        assert billing.notify("alice", content="by certificate").status == 200
        await reload(
            secure, "[APPLICATION]\npublish_without_key=false\n", REREAD + changed.partition(", ")[2]
        )
        assert billing.notify("alice", content="no more").status == 403
        assert (await client.next("notification"))[0]["content"] == "by certificate"


def _missing(pair: Pair, authority: CertificateAuthority) -> None:
    pair.key.unlink()


def _half(pair: Pair, authority: CertificateAuthority) -> None:
    shutil.copy(authority.server_pair(file="other").cert, pair.cert)


def _damaged(pair: Pair, authority: CertificateAuthority) -> None:
    lines = pair.cert.read_text().splitlines()
    pair.cert.write_text("\n".join([lines[0], *lines[2:]]))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_missing, "there is no file"),
        (_half, "the key does not belong to the certificate"),
        (_damaged, "a part of it is damaged"),
    ],
)
async def test_a_certificate_that_cannot_be_used(
    secure: SecureServer,
    authority: CertificateAuthority,
    spoil: Callable[[Pair, CertificateAuthority], None],
    why: str,
) -> None:
    """The one before stays, and so does all else; when the files are right, they are taken."""
    old, new = secure.pair.der, authority.server_pair(file="renewed")
    async with secure.place().client() as client:
        await client.join("alice")
        spoil(secure.pair, authority)
        log = await refused(secure, "[LIMITS]\ncontent_bytes=1000\n")
        assert why in log and "[TLS]" in log or "NOTIFY_TLS_KEY" in log, log
        assert shown_certificate(secure) == old
        assert secure.notify("alice", content="x" * 2000).status == 200
        secure.pair.replace(new)
        await reload(secure, None, f"{REREAD}[LIMITS] content_bytes")
        assert shown_certificate(secure) == new.der
        assert secure.notify("alice", content="x" * 2000).status == 413
        assert (await client.next("notification"))[0]["content"] == "x" * 2000


# -- what waits for a restart --------------------------------------------------------------------------------


async def test_what_cannot_change_is_named(tmp_path: Path) -> None:
    """In a warning, without values; the rest of the file is taken over at once. Each reload says it again, until the
    restart that brings it."""
    text = """
[APPLICATION]
port=1
limit=7
apikey=key
[EMAIL]
password=not to be read by others
host=mail.example.org
login=somebody
[CONNECTIONS]
heartbeat_s=7
[JWT]
secret=not to be read by others, either
[LOG]
file=other.log
"""
    waiting = (
        "these wait for a restart: [APPLICATION] limit, [LOG] file, [EMAIL] host, [EMAIL] login, [EMAIL] password,"
        " [EMAIL] sender, [CONNECTIONS] heartbeat_s, [AUTH] methods, [JWT]"
    )
    with configured(tmp_path) as server:  # whose port is that of the environment
        log = await reload(server, text, waiting)
        assert f"{APIKEY_SET}\n" in log
        assert "not to be read" not in log
        assert publish(server, "Api-Key key").status == 200
        assert not (tmp_path / "other.log").exists()
        await reload(server, None, waiting)
        await asyncio.to_thread(server.restart)
        assert (tmp_path / "other.log").exists()
        assert "these wait" not in await reload(server, None, f"{REREAD}none")


async def test_debug_and_release_are_two_servers(tmp_path: Path) -> None:
    """Nothing is taken over from the other one: its sections are of other names."""
    release = "[APPLICATION]\nconfiguration=RELEASE\napikey=key\n[MONGODB]\nurl=embedded\n"
    with configured(tmp_path) as server:
        async with SocketClient(server) as client:
            await client.join("alice")
            log = await reload(
                server,
                release,
                "these wait for a restart: [APPLICATION] configuration, [APPLICATION] apikey,"
                " [APPLICATION] publish_without_key",
            )
            assert f"{REREAD}none\n" in log
            server.must_notify("alice", content="without a key")
            assert (await client.next("notification"))[0]["content"] == "without a key"


# -- a bad file ----------------------------------------------------------------------------------------------


async def refused(server: RunningServer, text: str | bytes | None) -> str:
    """SIGHUP with this file (None: as it is), which must not be taken; what the log says from then on."""
    if text is not None:
        config_file(server).write_bytes(text if isinstance(text, bytes) else text.encode())
    before = len(server.log)
    server.signal(signal.SIGHUP)
    await asyncio.to_thread(wait_until, lambda: REFUSED in server.log[before:], "the refusal")
    return server.log[before:]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("apikey=second\n", "config.ini"),
        ("[APPLICATION]\napikey=second\n[LIMITS\n", "config.ini"),
        ("[APPLICATION]\napikey=second\napikee=x\n", "[APPLICATION] apikee: unknown key"),
        ("[APPLICATION]\napikey=second\n[LIMTS]\n", "[LIMTS]: unknown section"),
        ("[APPLICATION]\napikey=second\n[LIMITS]\nbody_bytes=many\n", "[LIMITS] body_bytes: "),
        ("[APPLICATION]\napikey=second\napikey=second\n", "apikey"),
        ("[APPLICATION]\napikey=second\n[JWT]\nsecret=short\n", "[JWT] secret: "),
        ("[APPLICATION]\napikey=second\n[TLS]\ncert=none.pem\nkey=none.key\n", "none.pem"),
        (b"[APPLICATION]\napikey=second\n; caf\xe9\n", "UTF-8"),
        (b"\x00\xff\xfe", "config.ini"),
    ],
    ids=[
        "no section",
        "syntax",
        "key",
        "section",
        "value",
        "twice",
        "secret",
        "no file",
        "latin-1",
        "binary",
    ],
)
async def test_a_bad_file_changes_nothing(tmp_path: Path, text: str | bytes, why: str) -> None:
    """Also what is right in it is not taken. The log says why, once, and quotes no secret; the server serves on, and
    takes the next file that is good."""
    with configured(tmp_path, "[APPLICATION]\napikey=first\n") as server:
        async with SocketClient(server) as client:
            await client.join("alice")
            log = await refused(server, text)
            assert why in log and log.count("\n") == 1, log
            assert "ERROR" in log and "second" not in log and "Traceback" not in log
            assert publish(server, "Api-Key second").status == 400
            assert publish(server, "Api-Key first", "still here").status == 200
            assert (await client.next("notification"))[0]["content"] == "still here"
            await reload(server, "[APPLICATION]\napikey=second\n", f"{REREAD}[APPLICATION] apikey")
            assert publish(server, "Api-Key second").status == 200


def _gone(file: Path) -> None:
    file.unlink()


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("spoil", [_gone, _folder])
async def test_a_file_that_is_gone_is_no_wish_for_the_defaults(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    """The server goes on with what it had read."""
    with configured(tmp_path, "[APPLICATION]\napikey=first\n") as server:
        spoil(config_file(server))
        assert str(config_file(server).name) in await refused(server, None)
        assert server.notify("alice").status == 400
        assert publish(server, "Api-Key first").status == 200


async def test_a_file_that_comes_later(tmp_path: Path) -> None:
    """A server that was started without one reads it, where it would have looked at its start."""
    with RunningServer(tmp_path) as server:
        await reload(
            server,
            "[APPLICATION]\napikey=first\n",
            APIKEY_SET,
        )
        assert server.notify("alice").status == 400
        assert publish(server, "Api-Key first").status == 200


# -- when the signal comes -----------------------------------------------------------------------------------


async def test_many_signals_in_a_row(tmp_path: Path) -> None:
    """What the file says at the last of them is in force, whatever the ones before found."""
    with configured(tmp_path, "[APPLICATION]\napikey=0\n") as server:
        async with SocketClient(server) as client:
            await client.join("alice")
            for number in range(1, 101):
                is_bad = number % 10 == 5
                config_file(server).write_text(
                    f"[APPLICATION]\n{'bad' if is_bad else 'apikey'}=key{number}\n"
                )
                server.signal(signal.SIGHUP)
            await asyncio.to_thread(
                wait_until, lambda: publish(server, "Api-Key key100").status == 200, "the last one"
            )
            # There may be one more under way, which finds the same file.
            await reload(server, None, f"{REREAD}none")
            assert publish(server, "Api-Key key100").status == 200
            assert publish(server, "Api-Key key99").status == 400
            assert (await client.next("notification"))[0]["content"] == "x"
        assert "Traceback" not in server.log


def test_a_signal_during_a_request(tmp_path: Path) -> None:
    """Has nothing to do with it: the id of the request is not in the lines of the reload."""
    fault = """
import os, signal
from server import app
notify = app.Notifier.notify
async def hang_up_and_notify(*arguments):
    os.kill(os.getpid(), signal.SIGHUP)
    return await notify(*arguments)
app.Notifier.notify = hang_up_and_notify
"""
    with faulty(tmp_path, fault) as server:
        server.must_notify("alice", content="x")
        wait_until(lambda: REREAD in server.log, "the reload")
        assert f"{REREAD}none\n" in server.log


def test_a_signal_before_there_is_a_server(tmp_path: Path) -> None:
    """Is kept until there is one."""
    fault = """
import os, signal
from server import logs
setup = logs.setup
def hang_up_first(log):
    logs.setup = setup
    os.kill(os.getpid(), signal.SIGHUP)
    setup(log)
logs.setup = hang_up_first
"""
    with faulty(tmp_path, fault) as server:
        wait_until(lambda: f"{REREAD}none\n" in server.log, "the reload")
        assert server.stop() == 0


async def test_a_signal_while_the_store_is_away(tmp_path: Path) -> None:
    """The server that waits for its store reads the file, and goes on waiting."""
    away = f"mongodb://127.0.0.1:{free_port()}"
    server = configured(tmp_path, "", NOTIFY_MONGODB_URL=away, NOTIFY_MONGODB_TIMEOUT_S="0.5")
    server.launch()
    try:
        waiting = "waiting for the store"
        await asyncio.to_thread(wait_until, lambda: waiting in server.log, waiting)
        log = await reload(server, "[APPLICATION]\napikey=x\n", APIKEY_SET)
        # Which tenants there are is not known yet.
        assert "there is no tenant" not in log
        assert "unknown key" in await refused(server, "[APPLICATION]\napikee=x\n")
        count = server.log.count(waiting)
        await asyncio.to_thread(wait_until, lambda: server.log.count(waiting) > count, "the next try")
        assert "Traceback" not in log
        assert server.stop() == 0
    finally:
        server.kill()


def test_a_signal_during_the_end(tmp_path: Path) -> None:
    """Changes nothing, from the first step of the end to the last breath of the process: it ends in order."""
    fault = """
import asyncio, atexit, pathlib, time
from server import app
close = app.Notifier.close
async def wait(notifier):
    print("is ending", flush=True)
    while not pathlib.Path("go on").exists():
        await asyncio.sleep(0.01)
    await close(notifier)
app.Notifier.close = wait
@atexit.register
def linger():
    print("is over", flush=True)
    while not pathlib.Path("leave").exists():
        time.sleep(0.01)
"""
    with faulty(tmp_path, fault) as server:
        server.signal(signal.SIGTERM)
        for said, answer in (("is ending", "go on"), ("is over", "leave")):
            wait_until(lambda said=said: said in server.log, said)  # type: ignore[misc]
            config_file(server).write_text("[APPLICATION]\napikey=x\n")
            for _ in range(3):
                server.signal(signal.SIGHUP)
            (tmp_path / answer).touch()
        assert server.wait() == 0
        assert REREAD not in server.log and "Traceback" not in server.log and "ERROR" not in server.log


async def test_a_signal_while_a_reload_is_under_way(tmp_path: Path) -> None:
    """What the file holds then is taken over, too, and not before the other is done."""
    fault = """
import asyncio
from pathlib import Path
from server import app
apply = app.SignIn.apply
async def slow(*given):
    print("is applying", flush=True)
    while not Path(__file__).with_name("go on").exists():
        await asyncio.sleep(0.01)
    await apply(*given)
app.SignIn.apply = slow
"""
    with faulty(tmp_path, fault) as server:
        server.signal(signal.SIGHUP)
        wait_until(lambda: "is applying" in server.log, "the reload")
        config_file(server).write_text("[LOG]\nlevel=debug\n")
        server.signal(signal.SIGHUP)
        assert server.notify("alice", content="x").status == 200
        assert server.log.count("is applying") == 1
        (tmp_path / "go on").touch()
        wait_until(lambda: f"{REREAD}[LOG] level" in server.log, "what came later")


async def test_a_reload_under_way_at_the_end(tmp_path: Path) -> None:
    """Is broken off; the end is in order all the same."""
    fault = """
import asyncio
from server import app
async def hang(*_):
    print("is applying", flush=True)
    await asyncio.Event().wait()
app.SignIn.apply = hang
"""
    with faulty(tmp_path, fault) as server:
        server.signal(signal.SIGHUP)
        wait_until(lambda: "is applying" in server.log, "the reload")
        assert server.notify("alice", content="x").status == 200
        assert server.stop() == 0
        assert "Traceback" not in server.log and "not ended in time" not in server.log
