"""Which backend is calling: every form of credential, on tenants of a real store."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from server.certificates import parse_subject
from server.config.access import JWTRules
from server.errors import KEY_WRONG, AuthUnavailable, BadCredentials, NoCredentials, Refused, TokenExpired
from server.grants import (
    ALL_SCOPES,
    DEFAULT_TENANT,
    ApiKey,
    Grant,
    Scope,
    Tenant,
    hash_secret,
    new_secret,
)
from server.http_client import HTTPClient
from server.ids import new_id
from server.messages import now
from server.publishers import (
    CertificateHolder,
    Presented,
    PublisherRules,
    Publishers,
    ServiceClaims,
)
from server.store.sqlite import SQLiteStore
from server.tenants import Tenants
from server.tokens.services import JWTServices
from server.tokens.verifier import JWTVerifier
from tests.support.jwt_keys import RSA, SECRET, claims, hs256
from tests.support.recording import ELSEWHERE, LOCAL

APIKEY = "the-one-of-config.ini-é"
PUBLISH = frozenset({Scope.PUBLISH})
BILLING = parse_subject("CN=billing,O=Example")
RULES = PublisherRules(
    certificates=(
        CertificateHolder("billing", BILLING, Grant("acme", PUBLISH, "certificate billing")),
        CertificateHolder("late", parse_subject("CN=late"), Grant("gone", PUBLISH, "certificate late")),
    )
)
JWT = JWTRules(algorithms=("HS256",), secret=SECRET, issuer="idp", audience="notifications")


def token(**said: object) -> str:
    """Of a service, good for `JWT`; None takes a claim away."""
    return hs256(claims(**{"sub": "shop", "iss": "idp", "aud": "notifications"} | said))


@dataclass
class Desk:
    """The publishers, with a tenant `acme` and its keys, and a tenant `gone` that is removed."""

    publishers: Publishers
    tenants: Tenants
    secrets: dict[str, str]

    async def grant(self, **presented: str) -> Grant:
        return await self.publishers.identify(Presented(**presented), ELSEWHERE)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    store = SQLiteStore(tmp_path / "data" / "notifications.sqlite3")
    await store.open()
    secrets: dict[str, str] = {}

    def key(tenant: str, name: str, scopes: frozenset[Scope], life: timedelta | None = None) -> ApiKey:
        secrets[name] = new_secret()
        ends_at = now() + life if life else None
        return ApiKey(new_id(), tenant, name, hash_secret(secrets[name]), scopes, now(), ends_at)

    directory = store.directory
    await directory.add_tenant(Tenant("acme", now()), key("acme", "first", ALL_SCOPES))
    await directory.add_key(key("acme", "ci", PUBLISH, timedelta(days=1)))
    await directory.add_key(key("acme", "old", PUBLISH, timedelta(milliseconds=-1)))
    await directory.add_key(key("acme", "revoked", PUBLISH))
    await directory.revoke_key("acme", "revoked", now())
    await directory.add_tenant(Tenant("gone", now()), key("gone", "lost", ALL_SCOPES))
    await directory.remove_tenant("gone", now())
    tenants = Tenants(lambda: directory)
    await tenants.open()
    yield Desk(Publishers(tenants, RULES), tenants, secrets)
    await store.close()


@pytest.fixture
def services(http: HTTPClient) -> JWTServices:
    return JWTServices(JWTVerifier(JWT, http), JWT)


def forms(secret: str) -> list[dict[str, str]]:
    """All in which a key may be presented."""
    return [
        {"authorization": f"Api-Key {secret}"},
        {"authorization": f"api-key   {secret} "},
        {"authorization": f"Bearer {secret}"},
        {"authorization": f"BEARER {secret}"},
        {"internal_api_key": secret},
        {"internal_api_key": f" {secret} "},
        {"apikey": secret},
    ]


# -- keys ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", range(7))
async def test_a_key_is_taken_in_every_form(desk: Desk, form: int) -> None:
    """It says the tenant, the scopes and its name; never itself."""
    secret = desk.secrets["ci"]
    grant = await desk.grant(**forms(secret)[form])
    assert (grant.tenant, grant.scopes, grant.label) == ("acme", PUBLISH, "key ci")
    assert grant.key_id is not None
    assert desk.tenants.has_key(grant.key_id)
    assert secret not in repr(grant)


@pytest.mark.parametrize("form", range(7))
@pytest.mark.parametrize("name", ["old", "revoked", "lost", "unknown"])
async def test_a_key_that_opens_nothing_is_wrong_in_every_form(desk: Desk, name: str, form: int) -> None:
    """In the same words, whether it has ended, was revoked, is of a removed tenant or never was one."""
    secret = desk.secrets.get(name, new_secret())
    with pytest.raises(BadCredentials) as caught:
        await desk.grant(**forms(secret)[form])
    assert str(caught.value) == KEY_WRONG


@pytest.mark.parametrize(
    "presented",
    [
        {"authorization": "Api-Key"},
        {"authorization": "Api-Key "},
        {"authorization": "Bearer \udcff"},
        {"authorization": "Bearer a.b.c"},
        {"internal_api_key": ""},
        {"internal_api_key": "ключ"},
        {"apikey": "\0"},
    ],
)
async def test_what_cannot_be_a_key_is_wrong(desk: Desk, presented: dict[str, str]) -> None:
    """Something was sent: that is not the same as nothing."""
    with pytest.raises(BadCredentials):
        await desk.grant(**presented)


# -- the one key of config.ini -------------------------------------------------------------------------------
@pytest.mark.parametrize("form", range(7))
async def test_the_apikey_publishes_for_the_default_tenant(desk: Desk, form: int) -> None:
    """In every form; it makes no tokens and signs nobody out."""
    desk.publishers.apply(replace(RULES, apikey=APIKEY), None)
    grant = await desk.grant(**forms(APIKEY)[form])
    assert grant == Grant(DEFAULT_TENANT, PUBLISH, "apikey")
    assert (await desk.grant(**forms(desk.secrets["ci"])[form])).tenant == "acme"


@pytest.mark.parametrize(("default_tenant", "tenant"), [("acme", "acme"), (None, DEFAULT_TENANT)])
async def test_the_apikey_goes_with_the_default_tenant(
    desk: Desk, default_tenant: str | None, tenant: str
) -> None:
    """It was there before there were tenants: without a default one it is of the first."""
    desk.publishers.apply(replace(RULES, apikey=APIKEY, default_tenant=default_tenant), None)
    assert (await desk.grant(apikey=APIKEY)).tenant == tenant


async def test_without_an_apikey_an_empty_one_is_none(desk: Desk) -> None:
    """An empty setting matches nothing."""
    with pytest.raises(NoCredentials):
        await desk.grant(apikey="")
    with pytest.raises(BadCredentials):
        await desk.grant(authorization="Bearer ")


async def test_whether_a_body_is_worth_reading(desk: Desk, tmp_path: Path) -> None:
    """Only if some key could stand in it."""
    assert desk.publishers.takes_fields
    store = SQLiteStore(tmp_path / "empty" / "notifications.sqlite3")
    await store.open()
    tenants = Tenants(lambda: store.directory)
    await tenants.open()
    await store.close()
    assert not Publishers(tenants, RULES).takes_fields
    assert Publishers(tenants, replace(RULES, apikey=APIKEY)).takes_fields


# -- which one decides ---------------------------------------------------------------------------------------
async def test_the_first_of_several_decides(desk: Desk) -> None:
    """Authorization, internal-api-key, apikey, certificate: a wrong one is not healed by a right one behind it."""
    good, wrong = desk.secrets["ci"], new_secret()
    order = ["authorization", "internal_api_key", "apikey"]
    for index, first in enumerate(order):
        rest = dict.fromkeys(order[index + 1 :], good)
        with pytest.raises(BadCredentials):
            await desk.publishers.identify(
                Presented(**{first: _value(first, wrong)}, **rest, certificate=BILLING), LOCAL
            )
        others = dict.fromkeys(order[index + 1 :], wrong)
        grant = await desk.publishers.identify(Presented(**{first: _value(first, good)}, **others), ELSEWHERE)
        assert grant.label == "key ci"


def _value(form: str, secret: str) -> str:
    return f"Api-Key {secret}" if form == "authorization" else secret


async def test_a_scheme_that_is_not_ours_says_nothing(desk: Desk) -> None:
    """A proxy in front may ask for a password of its own: what stands behind it decides."""
    grant = await desk.grant(authorization="Basic YTpi", internal_api_key=desk.secrets["ci"])
    assert grant.label == "key ci"
    with pytest.raises(NoCredentials):
        await desk.grant(authorization="Basic YTpi")


# -- tokens of services --------------------------------------------------------------------------------------
async def test_a_service_token(desk: Desk, services: JWTServices) -> None:
    """Says its tenant and its scopes; it is no key of the store."""
    desk.publishers.apply(RULES, services)
    grant = await desk.grant(authorization=f"Bearer {token(tenant='acme', scope='publish admin other')}")
    assert grant == Grant("acme", frozenset({Scope.PUBLISH, Scope.ADMIN}), "service shop")


async def test_a_service_token_without_a_tenant(desk: Desk, services: JWTServices) -> None:
    """Is of the default tenant; where there is none, it is refused."""
    desk.publishers.apply(RULES, services)
    assert (await desk.grant(authorization=f"Bearer {token()}")).tenant == DEFAULT_TENANT
    desk.publishers.apply(replace(RULES, default_tenant=None), services)
    with pytest.raises(BadCredentials, match="default_tenant"):
        await desk.grant(authorization=f"Bearer {token()}")
    assert (await desk.grant(authorization=f"Bearer {token(tenant='acme')}")).tenant == "acme"


@pytest.mark.parametrize("tenant", ["gone", "nobody"])
async def test_a_service_token_of_a_tenant_that_is_not_there(
    desk: Desk, services: JWTServices, tenant: str
) -> None:
    """As wrong as any, whether or not there once was one."""
    desk.publishers.apply(RULES, services)
    with pytest.raises(BadCredentials) as caught:
        await desk.grant(authorization=f"Bearer {token(tenant=tenant)}")
    assert str(caught.value) == KEY_WRONG


@pytest.mark.parametrize(
    "said",
    [{"iss": "other"}, {"aud": "other"}, {"iss": None}, {"aud": None}, {"exp": None}, {"tenant": "No"}],
)
async def test_a_wrong_service_token(desk: Desk, services: JWTServices, said: dict[str, object]) -> None:
    """Of another issuer, for another audience, without an end."""
    desk.publishers.apply(RULES, services)
    with pytest.raises(BadCredentials):
        await desk.grant(authorization=f"Bearer {token(**said)}")


async def test_a_service_token_that_has_ended_or_is_forged(desk: Desk, services: JWTServices) -> None:
    """Nobody gets in by it; that it has ended may be known."""
    desk.publishers.apply(RULES, services)
    with pytest.raises(TokenExpired):
        await desk.grant(authorization=f"Bearer {token(exp=1000)}")
    forged = hs256(claims(iss="idp", aud="notifications"), "another secret of more than enough bytes")
    for wrong in (forged, RSA.sign(claims(iss="idp", aud="notifications")), f"{token()}x"):
        with pytest.raises(BadCredentials):
            await desk.grant(authorization=f"Bearer {wrong}")


async def test_keys_go_on_beside_service_tokens(desk: Desk, services: JWTServices) -> None:
    """As Bearer, too; a token is none as Api-Key."""
    desk.publishers.apply(RULES, services)
    assert (await desk.grant(authorization=f"Bearer {desk.secrets['ci']}")).label == "key ci"
    with pytest.raises(BadCredentials):
        await desk.grant(authorization=f"Api-Key {token()}")


async def test_services_that_cannot_be_checked_are_not_let_in(desk: Desk) -> None:
    """It is nobody's fault, and they may try again."""

    class Away:
        async def check(self, token: str) -> ServiceClaims:
            raise AuthUnavailable("away")

    desk.publishers.apply(RULES, Away())
    with pytest.raises(AuthUnavailable):
        await desk.publishers.identify(Presented(authorization=f"Bearer {token()}"), LOCAL)


# -- certificates --------------------------------------------------------------------------------------------
async def test_a_certificate(desk: Desk) -> None:
    """Whose subject is configured; one of a tenant that is removed opens nothing, nor does any other subject."""
    grant = await desk.publishers.identify(Presented(certificate=BILLING), ELSEWHERE)
    assert grant == Grant("acme", PUBLISH, "certificate billing")
    for subject in ("CN=late", "CN=billing", "CN=billing,O=Example,L=x"):
        with pytest.raises(BadCredentials):
            await desk.publishers.identify(Presented(certificate=parse_subject(subject)), LOCAL)


# -- this machine --------------------------------------------------------------------------------------------
async def test_this_machine_publishes_without_a_key_if_it_may(desk: Desk) -> None:
    """And does nothing else; others are told what is missing."""
    with pytest.raises(NoCredentials, match="key add"):
        await desk.publishers.identify(Presented(), LOCAL)
    desk.publishers.apply(replace(RULES, publish_without_key=True), None)
    assert await desk.publishers.identify(Presented(), LOCAL) == Grant(
        DEFAULT_TENANT, PUBLISH, "this machine", is_keyless=True
    )
    with pytest.raises(NoCredentials, match="192.0.2.1"):
        await desk.publishers.identify(Presented(), ELSEWHERE)


async def test_a_wrong_key_is_wrong_from_this_machine_as_well(desk: Desk) -> None:
    """A backend with a mistyped key must hear of it before it moves to another machine."""
    desk.publishers.apply(replace(RULES, publish_without_key=True), None)
    with pytest.raises(BadCredentials):
        await desk.publishers.identify(Presented(apikey=new_secret()), LOCAL)


# -- tenants that are not there ------------------------------------------------------------------------------
async def test_a_setting_that_names_no_tenant_is_told_of_once(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """And again when that has changed meanwhile. A right credential for it is refused like a wrong one; the log says
    why."""

    def told() -> list[str]:
        lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        caplog.clear()
        return lines

    publishers = desk.publishers
    for _ in range(2):
        publishers.warn_of_missing_tenants()
    late = (
        "[CERTIFICATES] late: there is no tenant 'gone', so nobody comes in by it;"
        " `notification-server tenant add gone` makes it"
    )
    assert told() == [late]
    publishers.apply(replace(RULES, apikey=APIKEY, default_tenant="nobody"), None)
    publishers.warn_of_missing_tenants()
    [line] = told()
    assert line.startswith("[APPLICATION] default_tenant: there is no tenant 'nobody'")
    with pytest.raises(BadCredentials) as caught:
        await desk.grant(apikey=APIKEY)
    assert str(caught.value) == KEY_WRONG
    assert told() == ["refused though right (apikey): there is no tenant 'nobody'"]
    publishers.apply(PublisherRules(), None)
    publishers.warn_of_missing_tenants()
    publishers.apply(replace(RULES, default_tenant=None), None)
    publishers.warn_of_missing_tenants()
    assert told() == [late]


@pytest.mark.parametrize("default_tenant", ["gone", "nobody"])
async def test_where_the_default_tenant_is_not_there_nobody_is_let_in_for_it(
    desk: Desk, default_tenant: str
) -> None:
    """Neither by the apikey, nor for being here."""
    rules = PublisherRules(apikey=APIKEY, publish_without_key=True, default_tenant=default_tenant)
    desk.publishers.apply(rules, None)
    for presented in (Presented(), Presented(apikey=APIKEY)):
        with pytest.raises(Refused):
            await desk.publishers.identify(presented, LOCAL)


def test_nothing_shows_what_was_presented() -> None:
    """It goes into no log."""
    presented = Presented("Api-Key s3cret", "s3cret", "s3cret")
    assert "s3cret" not in repr(presented)
    assert "s3cret" not in repr(PublisherRules(apikey="s3cret"))
