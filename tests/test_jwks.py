"""Tests of server/tokens/jwks.py, key_sets.py, loading.py and of server/http_client.py."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from server.config.access import JWTRules
from server.errors import AuthUnavailable, BadCredentials, StartupError
from server.http_client import HTTPClient, NoReply
from server.tokens.jwks import AGAIN_AFTER_S, KEPT_S
from server.tokens.key_sets import MAX_KEYS, parse_key_set
from server.tokens.verifier import JWTVerifier, key_set_client
from tests.support.answering import AnsweringServer
from tests.support.jwt_keys import EC, RSA, SECRET, by_hand, claims, ec_signer, rsa_signer, segment
from tests.support.ports import free_port
from tests.support.smtp_sink import CertificateAuthority

BOTH = ("RS256", "ES256")

OTHER = rsa_signer()


class Clock:
    """Stands still, until it is moved."""

    def __init__(self) -> None:
        self.moment = 1000.0

    def __call__(self) -> float:
        return self.moment


def keys(*entries: Any) -> dict[str, Any]:
    return {"keys": list(entries)}


@asynccontextmanager
async def verifying(jwks: str, clock: Clock | None = None, **rules: Any) -> AsyncIterator[JWTVerifier]:
    http = key_set_client()
    verifier = JWTVerifier(JWTRules(**{"algorithms": BOTH, "jwks": jwks, "timeout_s": 10} | rules), http)
    if clock is not None:
        verifier._keys._clock = clock  # type: ignore[attr-defined]
    yield verifier
    await verifier.close()
    http.close()


async def renewed(verifier: JWTVerifier) -> None:
    """Return when no question for keys is under way."""
    asking = verifier._keys._asking  # type: ignore[attr-defined]
    if asking is not None:
        await asyncio.wait({asking})


async def refuses(verifier: JWTVerifier, token: str) -> None:
    with pytest.raises(BadCredentials, match="the token is wrong"):
        await verifier.verify(token)


async def knows_not(verifier: JWTVerifier, token: str) -> None:
    with pytest.raises(AuthUnavailable, match="cannot be got now"):
        await verifier.verify(token)


# -- which key a token means ---------------------------------------------------------------------------------
async def test_a_token_is_checked_with_the_key_that_it_names() -> None:
    """And with no other of the set, whatever its kind."""
    async with AnsweringServer(keys(RSA.jwk("a"), EC.jwk("b"), OTHER.jwk("c"))) as server:
        async with verifying(server.url) as verifier:
            for signer, kid in ((RSA, "a"), (EC, "b"), (OTHER, "c")):
                assert (await verifier.verify(signer.sign(claims(), kid)))["sub"] == "alice"
            for signer, kid in ((RSA, "c"), (OTHER, "a"), (RSA, "b"), (EC, "a")):
                await refuses(verifier, signer.sign(claims(), kid))
        [question] = server.questions
        assert (question.method, question.headers["accept"]) == ("GET", "application/json")


@pytest.mark.parametrize("signer", [RSA, EC], ids=["RS256", "ES256"])
async def test_without_a_name_there_must_be_one_candidate(signer: Any) -> None:
    """Of the token's algorithm; a key without a name is meant by any token then."""
    async with AnsweringServer() as server:
        for entries, kid, is_meant in (
            ([RSA.jwk("a"), EC.jwk("b")], None, True),
            ([RSA.jwk(), EC.jwk()], None, True),
            ([RSA.jwk(), EC.jwk()], "any", True),
            ([RSA.jwk(), OTHER.jwk(), EC.jwk(), ec_signer().jwk()], None, False),
            ([RSA.jwk("a"), OTHER.jwk("c"), EC.jwk("b"), ec_signer().jwk("d")], None, False),
            ([RSA.jwk(), OTHER.jwk("c"), EC.jwk(), ec_signer().jwk("d")], "any", False),
        ):
            server.body = keys(*entries)
            async with verifying(server.url) as verifier:
                token = signer.sign(claims(), kid)
                if is_meant:
                    await verifier.verify(token)
                else:
                    await refuses(verifier, token)


async def test_of_two_keys_of_one_name_the_first_counts() -> None:
    """Of the same kind; those of different kinds are told apart by the algorithm (RFC 7517 section 4.5)."""
    async with AnsweringServer(keys(RSA.jwk("a"), OTHER.jwk("a"), EC.jwk("a"))) as server:
        async with verifying(server.url) as verifier:
            await verifier.verify(RSA.sign(claims(), "a"))
            await verifier.verify(EC.sign(claims(), "a"))
            await refuses(verifier, OTHER.sign(claims(), "a"))


@pytest.mark.parametrize(
    "entry",
    [
        RSA.jwk("a", use="enc"),
        RSA.jwk("a", alg="RS512"),
        RSA.jwk("a", key_ops=["encrypt"]),
        RSA.jwk("a", key_ops="verify"),
        RSA.jwk("a", kty="rsa"),
        RSA.jwk("a", kty=["RSA"]),
        RSA.jwk("a", n=1),
        RSA.jwk("a", n="AAAA"),
        RSA.jwk("a", n="!"),
        RSA.jwk("a", n="A" * 100_000),
        RSA.jwk(1),  # type: ignore[arg-type]
        rsa_signer(1024).jwk("a"),
        EC.jwk("a", y=EC.jwk()["x"]),
        EC.jwk("a", crv="P-384"),
        EC.jwk("a", crv="no curve"),
        {name: value for name, value in EC.jwk("a").items() if name != "x"},
        ec_signer(ec.SECP384R1()).jwk("a"),
        {"kty": "oct", "kid": "a", "k": segment(SECRET.encode())},
        {"kty": "OKP", "kid": "a", "crv": "Ed25519", "x": segment(b"x" * 32)},
        "a", None, 1, [], {},
    ],
)  # fmt: skip
def test_what_is_no_usable_key_is_left_out(entry: Any) -> None:
    """The others of its set count."""
    found = parse_key_set(json.dumps(keys(entry, RSA.jwk("good"))).encode(), BOTH)
    assert [key.id for key in found.keys] == ["good"]


def test_a_key_for_an_algorithm_that_is_not_configured_is_left_out() -> None:
    found = parse_key_set(json.dumps(keys(RSA.jwk("a"), EC.jwk("b"))).encode(), ["ES256"])
    assert [key.id for key in found.keys] == ["b"]


def test_private_parts_are_left_out() -> None:
    """Whoever publishes them by mistake does not find them in our memory."""
    [key] = parse_key_set(json.dumps(keys(RSA.jwk("a", d="AAAA", p="AAAA"))).encode(), BOTH).keys
    assert not hasattr(key.material, "private_numbers")
    assert "material" not in repr(key)


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"<html>", b"null", b"[]", b"{}", b'{"keys": {}}', b'{"keys": null}', b"\xff\xfe\xfd", b"[" * 100_000,
        json.dumps(keys(*[RSA.jwk("a")] * (MAX_KEYS + 1))).encode(),
    ],
)  # fmt: skip
def test_what_is_no_key_set_is_told_apart_from_an_empty_one(raw: bytes) -> None:
    with pytest.raises(ValueError, match="^it "):
        parse_key_set(raw, BOTH)
    assert parse_key_set(b'{"keys": []}', BOTH).keys == ()


async def test_a_symmetric_key_of_a_set_is_none() -> None:
    """A secret that is published is no secret; nor is the public key one."""
    jwk = RSA.jwk("a")
    secret = {"kty": "oct", "kid": "s", "k": segment(SECRET.encode()), "alg": "HS256"}
    async with AnsweringServer(keys(jwk, secret)) as server:
        async with verifying(server.url, algorithms=("RS256", "HS256")) as verifier:
            for key in (RSA.pem, SECRET.encode(), jwk["n"].encode(), json.dumps(jwk).encode()):
                for kid in ("a", "s"):
                    await refuses(verifier, by_hand({"alg": "HS256", "kid": kid}, claims(), key))


# -- asking, and asking again --------------------------------------------------------------------------------
async def test_many_at_once_ask_once() -> None:
    """Also when the first of them goes away while the answer is on its way."""
    async with AnsweringServer(keys(RSA.jwk("a"))) as server, verifying(server.url) as verifier:
        server.hold()
        token = RSA.sign(claims(), "a")
        checks = [asyncio.create_task(verifier.verify(token)) for _ in range(50)]
        await server.asked(1)
        checks[0].cancel()
        server.let_go()
        assert all(await asyncio.gather(*checks[1:]))
        assert checks[0].cancelled()
        assert len(server.questions) == 1


async def test_a_new_key_counts_as_soon_as_a_token_names_it() -> None:
    """Keys are rotated while the server runs; the old one is good for as long as it is in the set."""
    clock = Clock()
    async with AnsweringServer(keys(RSA.jwk("a"))) as server, verifying(server.url, clock) as verifier:
        await verifier.verify(RSA.sign(claims(), "a"))
        server.body = keys(RSA.jwk("a"), OTHER.jwk("b"))
        clock.moment += AGAIN_AFTER_S
        await verifier.verify(OTHER.sign(claims(), "b"))
        await verifier.verify(RSA.sign(claims(), "a"))
        server.body = keys(OTHER.jwk("b"))
        clock.moment += AGAIN_AFTER_S
        await refuses(verifier, EC.sign(claims(), "c"))
        await refuses(verifier, RSA.sign(claims(), "a"))
        assert len(server.questions) == 3


async def test_invented_names_of_keys_make_nobody_ask() -> None:
    """More than once in ten seconds; they are refused, and good tokens are checked meanwhile."""
    clock = Clock()
    async with AnsweringServer(keys(RSA.jwk("a"))) as server, verifying(server.url, clock) as verifier:
        for second in range(30):
            for number in range(20):
                await refuses(verifier, OTHER.sign(claims(), f"{second}-{number}"))
            await verifier.verify(RSA.sign(claims(), "a"))
            clock.moment += 1
        assert len(server.questions) == 3


async def test_an_old_set_is_renewed_behind_the_back_of_who_comes() -> None:
    """Nobody waits for the answer; it counts from then on."""
    clock = Clock()
    async with AnsweringServer(keys(RSA.jwk("a"))) as server:
        async with verifying(server.url, clock, jwks_cache_s=300) as verifier:
            token = RSA.sign(claims(), "a")
            await verifier.verify(token)
            clock.moment += 300
            await verifier.verify(token)
            assert len(server.questions) == 1
            server.body = keys(OTHER.jwk("b"))
            server.hold()
            clock.moment += 1
            await verifier.verify(token)
            await server.asked(2)
            await verifier.verify(token)
            server.let_go()
            await renewed(verifier)
            await refuses(verifier, token)
            await verifier.verify(OTHER.sign(claims(), "b"))
            assert len(server.questions) == 2


async def test_after_a_pause_the_first_to_come_waits_for_the_new_set() -> None:
    """A key that was withdrawn in a quiet night opens nothing in the morning."""
    clock = Clock()
    async with AnsweringServer(keys(RSA.jwk("a"))) as server:
        async with verifying(server.url, clock, jwks_cache_s=300) as verifier:
            await verifier.verify(RSA.sign(claims(), "a"))
            server.body = keys(OTHER.jwk("b"))
            clock.moment += 601
            await refuses(verifier, RSA.sign(claims(), "a"))
            assert len(server.questions) == 2


# -- when it goes wrong --------------------------------------------------------------------------------------
async def raw_server(answer: Callable[[asyncio.StreamWriter], Any]) -> asyncio.Server:
    """Speaks no HTTP that a library would."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(handle, "127.0.0.1", 0)


async def _endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        await writer.drain()


async def _drop_by_drop(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")


async def _no_http(writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


@pytest.mark.parametrize("answer", [_endless, _drop_by_drop, _hang_up, _no_http])
async def test_a_provider_that_misbehaves_lets_nobody_in(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """And nobody waits for ever, or takes more than is bounded."""
    server = await raw_server(answer)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with verifying(url, timeout_s=0.5) as verifier:
            await knows_not(verifier, RSA.sign(claims(), "a"))
            assert sum("cannot be got (there are none)" in message for message in caplog.messages) == 1


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, b"<html>please log in</html>", "no JSON"),
        (200, {"error": "no"}, "no JSON Web Key Set"),
        (200, b"x" * (256 * 1024 + 1), "256 KiB"),
        (500, keys(RSA.jwk("a")), "500, not 200"),
        (404, b"", "404, not 200"),
        (204, b"", "204, not 200"),
    ],
)
async def test_what_is_no_key_set_lets_nobody_in(
    status: int, body: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says why, once."""
    async with AnsweringServer(body) as server, verifying(server.url) as verifier:
        server.status = status
        for _ in range(3):
            await knows_not(verifier, RSA.sign(claims(), "a"))
        [warning] = [each.getMessage() for each in caplog.records if each.name == "server.tokens.jwks"]
        assert why in warning
        assert server.url in warning


async def test_a_redirect_is_not_followed() -> None:
    """Wherever it leads: who can send it could name any server of the inner network."""
    async with AnsweringServer(keys(RSA.jwk("a"))) as inner, AnsweringServer() as outer:
        outer.status = 302
        outer.headers = {"Location": inner.url}
        async with verifying(outer.url) as verifier:
            await knows_not(verifier, RSA.sign(claims(), "a"))
        assert len(outer.questions) == 1
        assert inner.questions == []


async def test_a_provider_that_is_down_is_asked_again_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    """When it is back, so are its users; the log says both once."""
    clock = Clock()
    port = free_port()
    token = RSA.sign(claims(), "a")
    async with verifying(f"http://127.0.0.1:{port}/?client=secret", clock) as verifier:
        await knows_not(verifier, token)
        async with AnsweringServer(keys(RSA.jwk("a")), port=port) as server:
            await knows_not(verifier, token)
            assert server.questions == []
            clock.moment += AGAIN_AFTER_S
            await verifier.verify(token)
    first, second = [each.getMessage() for each in caplog.records if each.name == "server.tokens.jwks"]
    assert "cannot be got (there are none)" in first
    assert "can be got again" in second
    assert "secret" not in caplog.text


async def test_the_keys_from_before_count_while_newer_ones_cannot_be_got(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """For a day; what names a new key is told to try again, since nobody knows."""
    clock = Clock()
    token = RSA.sign(claims(), "a")
    async with AnsweringServer(keys(RSA.jwk("a"))) as server:
        async with verifying(server.url, clock, jwks_cache_s=300) as verifier:
            await verifier.verify(token)
            server.body = b"<html>"
            for _ in range(20):
                clock.moment += KEPT_S / 21
                await verifier.verify(token)
                await renewed(verifier)
            await knows_not(verifier, OTHER.sign(claims(), "b"))
            assert len(server.questions) == 21
            clock.moment += KEPT_S / 10
            await knows_not(verifier, token)
            server.body = keys(RSA.jwk("a"))
            clock.moment += AGAIN_AFTER_S
            await verifier.verify(token)
    assert [("from before" in message, "again" in message) for message in caplog.messages] == [
        (True, False),
        (False, True),
    ]


async def test_nobody_waits_for_a_provider_that_does_not_answer_if_there_are_keys() -> None:
    """Only for the first question that it does not answer."""
    clock = Clock()
    token = RSA.sign(claims(), "a")
    async with AnsweringServer(keys(RSA.jwk("a"))) as server:
        async with verifying(server.url, clock, jwks_cache_s=300, timeout_s=0.3) as verifier:
            await verifier.verify(token)
            server.hold()
            clock.moment += 301
            await verifier.verify(token)
            await renewed(verifier)
            for _ in range(5):
                clock.moment += 1000
                asking_before = verifier._keys._asking  # type: ignore[attr-defined]
                await verifier.verify(token)
                assert asking_before is None
                assert verifier._keys._asking is not None  # type: ignore[attr-defined]
                await renewed(verifier)


async def test_a_set_without_a_usable_key_counts_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever withdraws all keys means it; the log says so."""
    clock = Clock()
    async with AnsweringServer(keys(RSA.jwk("a"))) as server:
        async with verifying(server.url, clock, jwks_cache_s=300) as verifier:
            await verifier.verify(RSA.sign(claims(), "a"))
            server.body = keys(RSA.jwk("a", use="enc"))
            clock.moment += 601
            await refuses(verifier, RSA.sign(claims(), "a"))
    assert "no key for ES256 or RS256" in caplog.text


@pytest.mark.parametrize("knows_keys", [False, True])
async def test_closing_ends_the_question_and_nobody_is_left_waiting(knows_keys: bool) -> None:
    """Who waits is told to try again: that the key is new, and not known yet, is no reason to refuse the token."""
    clock = Clock()
    async with (
        AnsweringServer(keys(RSA.jwk("a"))) as server,
        verifying(server.url, clock, timeout_s=3600) as verifier,
    ):
        if knows_keys:
            await verifier.verify(RSA.sign(claims(), "a"))
            clock.moment += AGAIN_AFTER_S
        server.hold()
        check = asyncio.create_task(verifier.verify(OTHER.sign(claims(), "b")))
        await server.asked(1 + knows_keys)
        await verifier.close()
        with pytest.raises(AuthUnavailable):
            async with asyncio.timeout(60):
                await check


async def test_a_token_that_names_no_key_has_nothing_renewed() -> None:
    """There is none that could be missing: the set is as old as it may be, however many such tokens come."""
    clock = Clock()
    entries = [RSA.jwk("a"), OTHER.jwk("b")]
    async with (
        AnsweringServer(keys(*entries)) as server,
        verifying(server.url, clock, jwks_cache_s=300) as verifier,
    ):
        for _ in range(3):
            await refuses(verifier, RSA.sign(claims(), None))
            clock.moment += AGAIN_AFTER_S
        assert len(server.questions) == 1


# -- TLS -----------------------------------------------------------------------------------------------------
async def test_the_providers_certificate_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Against the authorities of the system, or of SSL_CERT_FILE; by name, too."""
    authority = CertificateAuthority(tmp_path)
    token = RSA.sign(claims(), "a")
    async with AnsweringServer(keys(RSA.jwk("a")), tls=authority.server_context()) as server:
        async with verifying(server.url) as verifier:
            await knows_not(verifier, token)
            assert "certificate verify failed" in caplog.text.lower()
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
        async with verifying(server.url) as verifier:
            await verifier.verify(token)
    for context in (authority.server_context(["example.org"]), authority.server_context(valid_days=-1)):
        async with AnsweringServer(keys(RSA.jwk("a")), tls=context) as server:
            async with verifying(server.url) as verifier:
                await knows_not(verifier, token)


def test_a_file_of_authorities_that_cannot_be_used_is_an_error_at_start(tmp_path: Path) -> None:
    """Missing, or without a certificate."""
    (tmp_path / "empty.pem").write_text("nothing")
    for name in ("empty.pem", "none.pem"):
        with pytest.raises(StartupError, match=name):
            HTTPClient(max_body_bytes=1, connections=1, ca=tmp_path / name)


async def test_questions_that_wait_for_their_turn_wait_no_longer_than_others() -> None:
    """The time in the queue counts."""
    http = HTTPClient(max_body_bytes=1024, connections=1)
    async with AnsweringServer() as server:
        server.hold()
        outcomes = await asyncio.gather(
            *(http.get(server.url, 0.5) for _ in range(3)), return_exceptions=True
        )
        assert [str(each) for each in outcomes] == ["no answer within 0.5 s"] * 3
        assert all(isinstance(each, NoReply) for each in outcomes)
    http.close()


# -- files ---------------------------------------------------------------------------------------------------
async def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """Looked at once a second at most, whatever its times say; a key that is gone opens nothing after two."""
    clock = Clock()
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(keys(RSA.jwk("a"))))
    times = path.stat()
    async with verifying(str(path), clock) as verifier:
        await verifier.verify(RSA.sign(claims(), "a"))
        path.write_text(json.dumps(keys(OTHER.jwk("b"))))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        await refuses(verifier, OTHER.sign(claims(), "b"))
        clock.moment += 1
        await verifier.verify(OTHER.sign(claims(), "b"))
        path.write_text(json.dumps(keys(EC.jwk("c"))))
        clock.moment += 2.1
        await refuses(verifier, OTHER.sign(claims(), "b"))
        await verifier.verify(EC.sign(claims(), "c"))


async def test_a_file_that_is_spoiled_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half written, too long or gone: the keys from before count, and the log says why."""
    clock = Clock()
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(keys(RSA.jwk("a"))))
    async with verifying(str(path), clock) as verifier:
        await verifier.verify(RSA.sign(claims(), "a"))
        for spoil, why in (
            (lambda: path.write_text('{"keys": [{'), "no JSON"),
            (lambda: path.write_text(" " * 300_000), "256 KiB"),
            (path.unlink, "No such file"),
        ):
            spoil()
            clock.moment += 5
            await verifier.verify(RSA.sign(claims(), "a"))
            await renewed(verifier)
            assert why in caplog.messages[-1]
            path.write_text(json.dumps(keys(RSA.jwk("a"))))
            clock.moment += 5
            await verifier.verify(RSA.sign(claims(), "a"))
            await renewed(verifier)
            assert "again" in caplog.messages[-1]
