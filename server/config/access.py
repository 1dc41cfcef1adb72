"""The settings about who gets in: TLS, how users sign in, tokens, the logins by SQL and by hook."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from server.config import access_values, values
from server.config.keys import DAY_S, setting
from server.grants import Scope

AuthMethod = Literal["config", "sql", "jwt", "hook"]

Algorithm = Literal["HS256", "RS256", "ES256"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """HTTPS and WSS by the server itself. Files are PEM, absolute; `cert` with its chain. `client_ca`: the authorities
    whose certificates prove a backend's identity (mTLS); None: none are asked for."""

    cert: Path = setting(None, values.PATH, live=True)
    key: Path = setting(None, values.PATH, live=True)
    client_ca: Path | None = setting(None, values.PATH, live=True)


@dataclass(frozen=True, slots=True)
class CertificateGrant:
    """What the holder of a client certificate may do. `name`: for people. `subject`: as RFC 4514 writes it
    (`CN=billing,O=Example`), attributes in the order of the text, compared without regard to their order."""

    name: str
    tenant: str
    scopes: frozenset[Scope]
    subject: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignIn:
    """How users prove who they are.

    `methods`: which of them are asked, in this order; each must be configured in its own section (`config`: [USERS]).
    `cache_s`: for how long a password that was right is remembered (as a keyed hash, in memory), so that coming back
    costs no second check; 0: not at all. `max_token_s`: the longest life of a token that the server itself makes.
    """

    methods: tuple[AuthMethod, ...] = setting(
        ("config",),
        access_values.AUTH_METHODS,
        default_note="config, and each of jwt, sql, hook that is configured",
    )
    cache_s: float = setting(300.0, values.seconds(0, 3600), live=True)
    cache_entries: int = setting(20_000, values.integer(1, 1_000_000))
    max_token_s: float = setting(3600.0, values.seconds(1, 30 * DAY_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class JWTRules:
    """Which JSON Web Tokens (RFC 7519) are believed. Exactly one of `secret`, `key` and `jwks` is set.

    `algorithms`: those that a token may be signed with, whatever its header says; `none` is never one. `secret`: for
    HS256. `key`: a PEM file with a public key. `jwks`: a file (absolute path) or an https address with a JSON Web Key
    Set (RFC 7517), which is asked for again after `jwks_cache_s`, or sooner when a token names a key that is not in it.
    `issuer`, `audience`: what `iss` and `aud` must be; None: not looked at. `tenant_claim`, `user_claim`,
    `scope_claim`: where a token says them (scopes: a list, or a text divided by blanks). `leeway_s`: how far clocks
    may differ.
    """

    algorithms: tuple[Algorithm, ...] = setting(
        (), access_values.ALGORITHMS, default_note="HS256 with a secret, else RS256 and ES256", live=True
    )
    secret: str = setting("", values.TEXT, secret=True, live=True)
    key: Path | None = setting(None, values.PATH, live=True)
    jwks: str = setting("", values.TEXT, live=True)
    jwks_cache_s: float = setting(300.0, values.seconds(1, DAY_S), live=True)
    timeout_s: float = setting(5.0, values.seconds(0.1, 60), live=True)
    issuer: str | None = setting(None, values.TEXT, live=True)
    audience: str | None = setting(None, values.TEXT, live=True)
    user_claim: str = setting("sub", values.TEXT, live=True)
    tenant_claim: str = setting("tenant", values.TEXT, live=True)
    scope_claim: str = setting("scope", values.TEXT, live=True)
    leeway_s: float = setting(10.0, values.seconds(0, 300), live=True)


PasswordCheck = Literal["database", "hash"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SQLLogin:
    """Users of a database of yours. `[MYSQL-…]` of the original is this with `check=database` on MySQL.

    `url`: SQLAlchemy's (`mysql+asyncmy://…`, `postgresql+asyncpg://…`, `sqlite+aiosqlite:///…`; the driver may be left
    out). `check`: "database" compares the password in the query, as the original did; "hash" reads the stored hash and
    verifies it here (argon2, bcrypt, Django's pbkdf2_sha256). `tenant_field` None: all are of the default tenant.
    """

    url: str = setting("", values.TEXT, secret=True)
    table: str = setting("users", access_values.SQL_TABLE)
    id_field: str = setting("id", access_values.SQL_NAME, key="idField")
    login_field: str = setting("login", access_values.SQL_NAME, key="loginField")
    password_field: str = setting("password", access_values.SQL_NAME, key="passwordField")
    tenant_field: str | None = setting(None, access_values.SQL_NAME, key="tenantField")
    check: PasswordCheck = setting(
        "hash",
        values.choice({"hash": "hash", "database": "database"}),
        default_note="hash; of [MYSQL]: database",
    )
    timeout_s: float = setting(5.0, values.seconds(0.1, 60))
    connections: int = setting(5, values.integer(1, 100))


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPHook:
    """An address of yours that decides who may join. `secret`: sent as `Authorization: Bearer …`, so that it knows us.
    `cache_s`: for how long a yes is good for the same credentials; 0: each time anew. A no is not remembered."""

    # A secret by its query, where a hook takes its key there.
    url: str = setting("", access_values.HTTP_URL, secret=True)
    secret: str = setting("", values.TEXT, secret=True, live=True)
    timeout_s: float = setting(3.0, values.seconds(0.1, 60))
    cache_s: float = setting(30.0, values.seconds(0, 3600))
    ca: Path | None = setting(None, values.PATH)
