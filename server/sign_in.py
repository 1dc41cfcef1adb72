"""How users and services prove who they are, as the configuration says: makes the methods and keeps them up to date.

Wiring only; what the methods do is in `users`, `logins` and `tokens`, and the order in which they are asked in `auth`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from server.auth import Authenticator, PasswordMethod, TokenMethod
from server.checks import Probe
from server.config import Config, JWTRules
from server.credentials import CredentialCache
from server.grants import SignOut
from server.guessing import Brake
from server.http_client import HTTPClient
from server.logins.hook import HookLogin
from server.logins.token import TokenLogin
from server.passwords import PasswordChecks
from server.publishers import ServiceTokens
from server.tenants import Tenants
from server.tokens.own import OwnTokens
from server.tokens.services import JWTServices
from server.tokens.verifier import JWTVerifier, key_set_client
from server.users import ConfigUsers, DemoUsers

if TYPE_CHECKING:
    from server.logins.sql import SQLLoginMethod


class Verifiers:
    """What checks the tokens of others. Raises `StartupError` if a key cannot be used."""

    def __init__(self, config: Config, http: HTTPClient) -> None:
        self._made: list[JWTVerifier] = []
        self.login = self.services = None
        if config.jwt is not None:
            self.login = TokenLogin(self._verifier(config.jwt, http), config.jwt)
        if config.service_jwt is not None:
            self.services = JWTServices(self._verifier(config.service_jwt, http), config.service_jwt)

    def _verifier(self, rules: JWTRules, http: HTTPClient) -> JWTVerifier:
        self._made.append(JWTVerifier(rules, http))
        return self._made[-1]

    async def close(self) -> None:
        for verifier in self._made:
            await verifier.close()


class SignIn:
    """One for each node; to be made where a loop runs. Raises `StartupError` if a key or an address cannot be used."""

    def __init__(self, config: Config, tenants: Tenants) -> None:
        limits, auth = config.limits, config.auth
        cache = CredentialCache(auth.cache_s, auth.cache_entries)
        self._checks = PasswordChecks(limits.password_checks, limits.password_queue, cache)
        self._http = key_set_client()
        self._tenants = tenants
        self._users = ConfigUsers(config.users, self._checks, config.application.default_tenant)
        tenants.use_passwords(self._users.key_ids)
        self._sql = self._make_sql(config)
        self._hook = self._make_hook(config)
        self._jwt = Verifiers(config, self._http)
        self.own_tokens = OwnTokens()
        self.brake = Brake(limits.password_queue)
        self.authenticator = Authenticator(
            self._password_methods(config),
            self._token_methods(config),
            tenants,
            default_tenant=config.application.default_tenant,
            cache=cache,
            brake=self.brake,
            memories=[] if self._hook is None else [self._hook],
        )

    def _make_sql(self, config: Config) -> SQLLoginMethod | None:
        if config.sql is None or "sql" not in config.auth.methods:
            return None
        from server.logins.sql import SQLLoginMethod  # imports much, for those who have such a database

        return SQLLoginMethod(config.sql, self._checks)

    def _make_hook(self, config: Config) -> HookLogin | None:
        if config.hook is None or "hook" not in config.auth.methods:
            return None
        return HookLogin(config.hook)

    def _password_methods(self, config: Config) -> list[PasswordMethod]:
        methods: dict[str, PasswordMethod | None] = {
            "config": self._users,
            "sql": self._sql,
            "hook": self._hook,
        }
        named = [method for name in config.auth.methods if (method := methods.get(name)) is not None]
        return named if config.release else [DemoUsers(self._users), *named]

    def _token_methods(self, config: Config) -> list[TokenMethod]:
        methods: dict[str, TokenMethod | None] = {"jwt": self._jwt.login, "hook": self._hook}
        # Which token was made here is seen without asking anybody.
        return [
            self.own_tokens,
            *(method for name in config.auth.methods if (method := methods.get(name)) is not None),
        ]

    @property
    def probes(self) -> dict[str, Probe]:
        """How what sign-in depends on is asked how it is, by name."""
        return {} if self._sql is None else {"sql": self._sql.check}

    @property
    def service_tokens(self) -> ServiceTokens | None:
        return self._jwt.services

    # -- changes ---------------------------------------------------------------------------------------------
    def prepare(self, config: Config) -> Verifiers:
        """What `apply` needs of a changed configuration. Raises `StartupError` if a key cannot be used: then nothing
        has changed."""
        return Verifiers(config, self._http)

    async def apply(self, config: Config, prepared: Verifiers) -> None:
        """Go by a changed configuration from now on."""
        old, self._jwt = self._jwt, prepared
        self._users.replace(config.users, config.application.default_tenant)
        self._tenants.use_passwords(self._users.key_ids)
        self.authenticator.apply(
            default_tenant=config.application.default_tenant,
            cache_s=config.auth.cache_s,
            token_methods=self._token_methods(config),
        )
        if self._hook is not None and config.hook is not None:
            self._hook.apply(config.hook)
        await old.close()

    def forget(self, sign_outs: Iterable[SignOut]) -> None:
        """Users were signed out: nothing that is remembered of them lets them in."""
        for each in sign_outs:
            self.authenticator.forget(each.tenant, each.user_id)

    async def close(self) -> None:
        """End what is under way."""
        await self.authenticator.close()
        self._checks.close()
        if self._sql is not None:
            await self._sql.close()
        if self._hook is not None:
            await self._hook.close()
        await self._jwt.close()
        self._http.close()
