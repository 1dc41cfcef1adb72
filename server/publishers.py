"""Which backend is calling, and what it may do: by its key, its token, its certificate, or by being on this machine."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from server.callers import Caller
from server.certificates import Subject
from server.errors import KEY_WRONG, BadCredentials, NoCredentials, TenantGone
from server.grants import DEFAULT_TENANT, Grant, Scope
from server.tenants import Tenants

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Presented:
    """What came with a request. None: did not come. `authorization`, `internal_api_key`: the headers. `apikey`: the
    field. `certificate`: the subject of a verified client certificate."""

    authorization: str | None = field(default=None, repr=False)
    internal_api_key: str | None = field(default=None, repr=False)
    apikey: str | None = field(default=None, repr=False)
    certificate: Subject | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether no credential came at all."""
        return not (self.authorization or self.internal_api_key or self.apikey or self.certificate)


NOTHING = Presented()
"""Of all who show nothing."""


@dataclass(frozen=True, slots=True)
class ServiceClaims:
    """What the token of a service says. `tenant` None: nothing about that."""

    tenant: str | None
    scopes: frozenset[Scope]
    label: str


class ServiceTokens(Protocol):
    """Checks the tokens of services."""

    async def check(self, token: str) -> ServiceClaims:
        """Raises `BadCredentials`, `TokenExpired`, `AuthUnavailable`."""


@dataclass(frozen=True, slots=True)
class CertificateHolder:
    """The holder of a certificate with this subject. `name`: of the line in [CERTIFICATES]."""

    name: str
    subject: Subject
    grant: Grant


@dataclass(frozen=True, slots=True)
class PublisherRules:
    """What is configured. `apikey` "": none. `default_tenant` None: who says no tenant is refused."""

    apikey: str = field(default="", repr=False)
    publish_without_key: bool = False
    default_tenant: str | None = DEFAULT_TENANT
    certificates: tuple[CertificateHolder, ...] = ()

    @property
    def named_tenants(self) -> Mapping[str, str]:
        """The tenants that config.ini names, by where it does."""
        named = {"[APPLICATION] default_tenant": self.default_tenant} if self.default_tenant else {}
        return named | {f"[CERTIFICATES] {each.name}": each.grant.tenant for each in self.certificates}


class Publishers:
    """Knows all credentials of backends. The first of those presented decides, in the order: `Authorization`,
    `internal-api-key`, `apikey`, certificate; only who presents none may be let in for being on this machine."""

    def __init__(
        self, tenants: Tenants, rules: PublisherRules, service_tokens: ServiceTokens | None = None
    ) -> None:
        self._tenants = tenants
        self._service_tokens = service_tokens
        self._missing: frozenset[tuple[str, str]] = frozenset()
        self.rules = rules

    @property
    def takes_fields(self) -> bool:
        """Whether a key in the field `apikey` could be a right one: else nobody needs to read a stranger's body."""
        return bool(self.rules.apikey) or self._tenants.has_keys

    def apply(self, rules: PublisherRules, service_tokens: ServiceTokens | None) -> None:
        """Go by these from now on."""
        self.rules = rules
        self._service_tokens = service_tokens

    def warn_of_missing_tenants(self) -> None:
        """Name those in the configuration that are not there, once for as long as they are not. To be called when
        tenants or the rules have changed."""
        if not self._tenants.active:  # not read yet: one is always there
            return
        missing = frozenset(
            (where, tenant)
            for where, tenant in self.rules.named_tenants.items()
            if not self._tenants.is_active(tenant)
        )
        for where, tenant in sorted(missing - self._missing):
            logger.warning("%s", missing_tenant(where, tenant))
        self._missing = missing

    async def identify(self, presented: Presented, caller: Caller) -> Grant:
        """What the caller may do. Raises `NoCredentials` where none came and none are needed to be refused,
        `BadCredentials` where the one that came is wrong, `AuthUnavailable`."""
        grant = None if presented is NOTHING else await self._of_credential(presented)
        if grant is None:
            grant = self._of_machine(caller)
        if not self._tenants.is_active(grant.tenant):
            logger.warning("refused though right (%s): there is no tenant %r", grant.label, grant.tenant)
            raise TenantGone
        return grant

    async def _of_credential(self, presented: Presented) -> Grant | None:
        scheme, _, credential = (presented.authorization or "").partition(" ")
        credential = credential.strip()
        if scheme.lower() == "api-key":
            return self._of_key(credential)
        if scheme.lower() == "bearer":
            return await self._of_bearer(credential)
        if presented.internal_api_key is not None:
            return self._of_key(presented.internal_api_key.strip())
        if presented.apikey:
            return self._of_key(presented.apikey)
        if presented.certificate is not None:
            return self._of_certificate(presented.certificate)
        return None

    def _of_key(self, secret: str) -> Grant:
        rules = self.rules
        if rules.apikey and hmac.compare_digest(secret.encode(errors="replace"), rules.apikey.encode()):
            return Grant(rules.default_tenant or DEFAULT_TENANT, frozenset({Scope.PUBLISH}), "apikey")
        key = self._tenants.find_key(secret)
        if key is None:
            raise BadCredentials(KEY_WRONG)
        return Grant(key.tenant, key.scopes, f"key {key.name}", key.id)

    async def _of_bearer(self, credential: str) -> Grant:
        # A JSON Web Token in its compact form has three parts (RFC 7519 section 3.1), a key of ours one.
        if self._service_tokens is None or credential.count(".") != 2:
            return self._of_key(credential)
        claims = await self._service_tokens.check(credential)
        tenant = claims.tenant or self.rules.default_tenant
        if tenant is None:
            raise BadCredentials("the token names no tenant, and there is no default_tenant")
        return Grant(tenant, claims.scopes, f"service {claims.label}")

    def _of_certificate(self, subject: Subject) -> Grant:
        for holder in self.rules.certificates:
            if holder.subject == subject:
                return holder.grant
        raise BadCredentials("the certificate's subject is not in [CERTIFICATES]")

    def _of_machine(self, caller: Caller) -> Grant:
        rules = self.rules
        if not rules.publish_without_key:
            raise NoCredentials(
                "a key is needed: make one with `notification-server key add`, and send it as"
                " `Authorization: Api-Key …`"
            )
        if not caller.is_local:
            raise NoCredentials(
                "without a key only callers on this machine may publish: make one with `notification-server key add`;"
                f" {caller.why_not_local}"
            )
        return _of_this_machine(rules.default_tenant or DEFAULT_TENANT)


@lru_cache(16)
def _of_this_machine(tenant: str) -> Grant:
    return Grant(tenant, frozenset({Scope.PUBLISH}), "this machine", is_keyless=True)


def missing_tenant(where: str, tenant: str) -> str:
    """What to say of a setting that names a tenant which is not there."""
    return (
        f"{where}: there is no tenant {tenant!r}, so nobody comes in by it;"
        f" `notification-server tenant add {tenant}` makes it"
    )
