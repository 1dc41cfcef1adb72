"""Tests of server/tokens/verifier.py, keys.py and services.py."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from server.config.access import JWTRules
from server.errors import BadCredentials, StartupError, TokenExpired
from server.grants import Scope
from server.http_client import HTTPClient
from server.publishers import ServiceClaims
from server.tokens.services import JWTServices
from server.tokens.verifier import JWTVerifier
from tests.support.jwt_keys import (
    EC,
    RSA,
    SECRET,
    Signer,
    by_hand,
    claims,
    ec_signer,
    hs256,
    rsa_signer,
    segment,
)

HS256 = JWTRules(algorithms=("HS256",), secret=SECRET)


@pytest.fixture
def shared(http: HTTPClient) -> JWTVerifier:
    """By a shared secret."""
    return JWTVerifier(HS256, http)


def with_pem(signer: Signer, folder: Path, http: HTTPClient, **rules: Any) -> JWTVerifier:
    path = folder / "public.pem"
    path.write_bytes(signer.pem)
    return JWTVerifier(JWTRules(**{"algorithms": ("RS256", "ES256"), "key": path} | rules), http)


async def refuses(verifier: JWTVerifier, token: str) -> None:
    """As wrong, not as expired, and without a word of the token."""
    with pytest.raises(BadCredentials) as caught:
        await verifier.verify(token)
    assert type(caught.value) is BadCredentials
    assert str(caught.value) == "the token is wrong"
    assert caught.value.__cause__ is None


# -- what is good --------------------------------------------------------------------------------------------
async def test_a_token_signed_with_the_shared_secret_is_good(shared: JWTVerifier) -> None:
    """Its claims come back as they are, also those that nobody here knows."""
    said = claims(tenant="acme", more={"of": "it"})
    assert await shared.verify(hs256(said)) == said


@pytest.mark.parametrize("signer", [RSA, EC], ids=["RS256", "ES256"])
async def test_a_token_signed_with_the_private_key_is_good(
    signer: Signer, tmp_path: Path, http: HTTPClient
) -> None:
    """The file holds the public key only."""
    verifier = with_pem(signer, tmp_path, http)
    assert (await verifier.verify(signer.sign(claims())))["sub"] == "alice"
    assert (await verifier.verify(signer.sign(claims(), "any")))["sub"] == "alice"


async def test_a_subject_may_be_a_number(shared: JWTVerifier) -> None:
    """Not by the letter of RFC 7519, but by that of many who number their users."""
    assert (await shared.verify(hs256(claims(sub=7))))["sub"] == 7


# -- signatures ----------------------------------------------------------------------------------------------
async def test_a_token_of_another_secret_is_refused(shared: JWTVerifier) -> None:
    await refuses(shared, hs256(claims(), SECRET + "!"))


async def test_a_changed_token_is_refused(shared: JWTVerifier) -> None:
    """Whichever of its parts was changed."""
    header, _, signature = hs256(claims()).split(".")
    await refuses(shared, f"{header}.{segment(claims(sub='root'))}.{signature}")
    await refuses(shared, ".".join([*hs256(claims()).split(".")[:2], ""]))


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", ""])
@pytest.mark.parametrize("signature", ["", "AAAA"])
async def test_a_token_without_a_signature_is_refused(
    name: str, signature: str, shared: JWTVerifier, tmp_path: Path, http: HTTPClient
) -> None:
    """However `none` is written."""
    token = f"{segment({'alg': name, 'typ': 'JWT'})}.{segment(claims())}.{signature}"
    await refuses(shared, token)
    await refuses(with_pem(RSA, tmp_path, http), token)


@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize("signer", [RSA, EC], ids=["RS256", "ES256"])
async def test_a_public_key_is_no_secret(
    signer: Signer, strip: bool, tmp_path: Path, http: HTTPClient
) -> None:
    """A token signed with HMAC, with the public key as its secret, is refused, also where HS256 was allowed."""
    pem = signer.pem.strip() if strip else signer.pem
    forged = by_hand({"alg": "HS256", "typ": "JWT"}, claims(), pem)
    await refuses(with_pem(signer, tmp_path, http), forged)
    await refuses(with_pem(signer, tmp_path, http, algorithms=("HS256", signer.algorithm)), forged)


async def test_an_algorithm_that_is_not_configured_is_refused(tmp_path: Path, http: HTTPClient) -> None:
    """Though the key is right."""
    verifier = with_pem(RSA, tmp_path, http)
    await refuses(verifier, jwt.encode(claims(), RSA.key, "RS512"))
    await refuses(verifier, jwt.encode(claims(), RSA.key, "PS256"))
    await refuses(verifier, EC.sign(claims()))


async def test_a_token_that_demands_what_is_not_understood_is_refused(shared: JWTVerifier) -> None:
    """RFC 7515 section 4.1.11: `crit`."""
    await refuses(shared, hs256(claims(), crit=["exp"], exp=1))
    await refuses(shared, by_hand({"alg": "HS256", "crit": []}, claims(), SECRET.encode()))
    await refuses(shared, by_hand({"alg": "HS256", "crit": ["b64"], "b64": False}, claims(), SECRET.encode()))


# -- time ----------------------------------------------------------------------------------------------------
async def test_an_expired_token_says_so(shared: JWTVerifier) -> None:
    """But only if it was signed rightly: else nothing is known about it."""
    said = claims(iat=int(time.time()) - 900, exp=int(time.time()) - 60)
    with pytest.raises(TokenExpired):
        await shared.verify(hs256(said))
    await refuses(shared, hs256(said, SECRET + "!"))


async def test_a_token_without_an_end_is_refused(shared: JWTVerifier) -> None:
    await refuses(shared, hs256(claims(exp=None)))


@pytest.mark.parametrize("claim", ["nbf", "iat"])
async def test_a_token_of_the_future_is_refused(claim: str, shared: JWTVerifier) -> None:
    """Whether it says that it begins or that it was made then."""
    await refuses(shared, hs256(claims(**{claim: int(time.time()) + 300})))


async def test_clocks_may_differ_a_little(http: HTTPClient) -> None:
    """By `leeway_s`, at both ends; not by more."""
    verifier = JWTVerifier(JWTRules(algorithms=("HS256",), secret=SECRET, leeway_s=120), http)
    present = int(time.time())
    await verifier.verify(hs256(claims(iat=present + 60, nbf=present + 60)))
    await verifier.verify(hs256(claims(exp=present - 60)))
    with pytest.raises(TokenExpired):
        await verifier.verify(hs256(claims(exp=present - 180)))
    await refuses(verifier, hs256(claims(nbf=present + 240)))


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
@pytest.mark.parametrize(
    "text",
    [
        "1e400", "-1e400", "NaN", "Infinity", "-Infinity", "1" + "0" * 30, "1" + "0" * 4999, "-1",
        "1900000000000", "true", '"soon"', '"4102444800"', "null", "[1]", '{"a": 1}',
    ],
)  # fmt: skip
async def test_a_time_that_is_none_is_refused(claim: str, text: str, shared: JWTVerifier) -> None:
    """Also what is a number, but no instant of a calendar, as milliseconds are."""
    present = int(time.time())
    said = {"sub": "alice", "iat": present, "exp": present + 600, "nbf": present} | {claim: "HERE"}
    payload = json.dumps(said).replace('"HERE"', text).encode()
    token = by_hand({"alg": "HS256"}, payload, SECRET.encode())
    if claim == "exp" and text in ("-1", "true"):
        with pytest.raises(TokenExpired):
            await shared.verify(token)
    else:
        await refuses(shared, token)


async def test_a_time_may_have_a_fraction(shared: JWTVerifier) -> None:
    """RFC 7519 section 2: NumericDate."""
    await shared.verify(hs256(claims(iat=time.time(), exp=time.time() + 60.5)))


# -- for whom, by whom ---------------------------------------------------------------------------------------
async def test_the_audience_must_be_ours(http: HTTPClient) -> None:
    """Alone or among others; a token without one is for nobody."""
    verifier = JWTVerifier(JWTRules(algorithms=("HS256",), secret=SECRET, audience="inbox"), http)
    await verifier.verify(hs256(claims(aud="inbox")))
    await verifier.verify(hs256(claims(aud=["shop", "inbox"])))
    for wrong in ("shop", "inbox2", "", ["shop"], [], ["inbox", 1], {"inbox": 1}, 1, None):
        await refuses(verifier, hs256(claims(aud=wrong)))


async def test_the_issuer_must_be_the_one_configured(http: HTTPClient) -> None:
    verifier = JWTVerifier(JWTRules(algorithms=("HS256",), secret=SECRET, issuer="https://id.example"), http)
    await verifier.verify(by_hand({"alg": "HS256"}, claims(iss="https://id.example"), SECRET.encode()))
    for wrong in ("https://id.example/", "", ["https://id.example"], 1, None):
        await refuses(verifier, by_hand({"alg": "HS256"}, claims(iss=wrong), SECRET.encode()))


async def test_what_is_not_configured_is_not_looked_at(shared: JWTVerifier) -> None:
    """Neither audience nor issuer."""
    await shared.verify(hs256(claims(aud="anybody", iss="somebody")))


# -- garbage -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "token",
    [
        "", ".", "..", "...", "a.b.c", "a.b.c.d", "é.é.é", "\ud800.\ud800.\ud800", "\0.\0.\0",
        f"{segment(b'[]')}.{segment(b'{}')}.AAAA",
        f"{segment(b'{')}.{segment(b'{}')}.AAAA",
        f"{segment(bytes([0xFF, 0xFE, 0xFD]))}.{segment(b'{}')}.AAAA",
        f"{segment(b'[' * 4000)}.{segment(b'{}')}.AAAA",
        f"{segment({'alg': ['HS256']})}.{segment(b'{}')}.AAAA",
        f"{segment({'alg': {'HS256': 1}})}.{segment(b'{}')}.AAAA",
        f"{segment({'alg': 'HS256', 'kid': 1})}.{segment(b'{}')}.AAAA",
        f"{segment({'kid': 'a'})}.{segment(b'{}')}.AAAA",
    ],
)  # fmt: skip
async def test_garbage_is_refused(token: str, shared: JWTVerifier) -> None:
    """As any wrong token, and is nobody's error."""
    await refuses(shared, token)


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"1", b"null", b"{", b'{"sub": "\xff"}', b"[" * 5000, b'{"a":' * 1000]
)
async def test_a_signed_payload_that_is_no_object_is_refused(payload: bytes, shared: JWTVerifier) -> None:
    """However deep it goes down."""
    await refuses(shared, by_hand({"alg": "HS256"}, payload, SECRET.encode()))


async def test_a_token_is_of_bounded_length(shared: JWTVerifier) -> None:
    """8192 characters, beyond which nobody looks into it."""
    await shared.verify(hs256(claims(more="x" * 5000)))
    await refuses(shared, hs256(claims(more="x" * 8000)))


async def test_why_a_token_is_refused_is_in_the_log_of_who_asks(
    shared: JWTVerifier, caplog: pytest.LogCaptureFixture
) -> None:
    """At the level DEBUG, as the kind of the mistake; nothing of the token."""
    caplog.set_level(logging.DEBUG, "server.tokens")
    token = hs256(claims(sub="somebody"), SECRET + "!", kid="their key")
    await refuses(shared, token)
    assert caplog.messages == ["a token is refused: InvalidSignatureError"]


# -- keys ----------------------------------------------------------------------------------------------------
def test_a_short_secret_is_none(http: HTTPClient) -> None:
    """It could be guessed, and is not shown."""
    with pytest.raises(StartupError, match="32 bytes") as caught:
        JWTVerifier(JWTRules(algorithms=("HS256",), secret="hunter2"), http)
    assert "hunter2" not in str(caught.value)


def _ed25519_pem() -> bytes:
    return (
        ed25519.Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: b"", "no PEM file with a public key"),
        (lambda: b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no PEM file"),
        (lambda: RSA.private_pem, "no PEM file with a public key"),
        (lambda: rsa_signer(1024).pem, "1024 bits"),
        (lambda: ec_signer(ec.SECP384R1()).pem, "neither an RSA key nor one of the curve P-256"),
        (_ed25519_pem, "neither an RSA key nor one of the curve P-256"),
    ],
)
async def test_a_file_without_a_fitting_key_is_an_error_at_start(
    make: Any, why: str, tmp_path: Path, http: HTTPClient
) -> None:
    """It says what is wrong with which file."""
    path = tmp_path / "key.pem"
    path.write_bytes(make())
    with pytest.raises(StartupError, match=why) as caught:
        JWTVerifier(JWTRules(algorithms=("RS256", "ES256"), key=path), http)
    assert str(path) in str(caught.value)


async def test_a_key_that_no_token_may_have_used_is_an_error_at_start(
    tmp_path: Path, http: HTTPClient
) -> None:
    """An RSA key where only ES256 counts; a file that is not there."""
    with pytest.raises(StartupError, match="RS256"):
        with_pem(RSA, tmp_path, http, algorithms=("ES256",))
    with pytest.raises(StartupError, match="cannot be read"):
        JWTVerifier(JWTRules(algorithms=("RS256",), key=tmp_path / "none.pem"), http)


# -- services ------------------------------------------------------------------------------------------------
async def test_a_service_says_its_tenant_and_scopes(shared: JWTVerifier) -> None:
    """As a text divided by blanks or as a list; what is not ours among them is passed over."""
    services = JWTServices(shared, HS256)
    expected = ServiceClaims("acme", frozenset({Scope.PUBLISH, Scope.ADMIN}), "billing")
    for scope in ("publish openid admin", ["publish", "openid", "admin", 7, None]):
        assert await services.check(hs256(claims(sub="billing", tenant="acme", scope=scope))) == expected


async def test_a_service_without_scopes_may_publish(shared: JWTVerifier) -> None:
    """One whose scopes are all of other services may nothing."""
    services = JWTServices(shared, HS256)
    assert (await services.check(hs256(claims()))).scopes == {Scope.PUBLISH}
    assert (await services.check(hs256(claims(scope="openid profile")))).scopes == frozenset()
    assert (await services.check(hs256(claims(scope="")))).scopes == frozenset()


async def test_the_names_of_claims_are_configured(http: HTTPClient) -> None:
    rules = JWTRules(algorithms=("HS256",), secret=SECRET, tenant_claim="org", scope_claim="scp")
    services = JWTServices(JWTVerifier(rules, http), rules)
    found = await services.check(hs256(claims(org="acme", scp=["listen"], tenant="other", scope="admin")))
    assert (found.tenant, found.scopes) == ("acme", {Scope.LISTEN})


@pytest.mark.parametrize(
    "wrong", [{"tenant": "No Name"}, {"tenant": 1}, {"tenant": "none"}, {"scope": 1}, {"scope": {}}]
)
async def test_a_service_that_says_nonsense_is_refused(wrong: dict[str, Any], shared: JWTVerifier) -> None:
    """A tenant or scopes of a wrong kind are not the same as none."""
    with pytest.raises(BadCredentials, match="the token is wrong"):
        await JWTServices(shared, HS256).check(hs256(claims(**wrong)))


async def test_a_service_is_called_by_who_it_is(shared: JWTVerifier) -> None:
    """Short and harmless, for logs and figures."""

    async def label(**more: Any) -> str:
        return (await JWTServices(shared, HS256).check(hs256(claims(**more)))).label

    assert await label(sub="repo:acme/shop@main", client_id="c") == "repo:acme/shop@main"
    assert await label(sub=None, client_id="shop", azp="z") == "shop"
    assert await label(sub=None, azp="z") == "z"
    assert await label(sub=7) == "unnamed"
    assert await label(sub='a\n"b\x1b\u202e' + "c" * 100) == "a__b__" + "c" * 58
