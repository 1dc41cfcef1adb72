"""Every section and key of config.ini with its default, and the records that the rest of the server reads.

A key is a field of the section's record, with the same name unless `key=` gives the one in the file. Units
are in the names: `_s` seconds, `_bytes` bytes. The keys that only shape other fields stand in `SECTIONS`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal
from zoneinfo import ZoneInfo

from server.callers import IPNetwork
from server.config import access_values, values
from server.config.access import TLS, CertificateGrant, HTTPHook, JWTRules, SignIn, SQLLogin
from server.config.brokers import RabbitMQ, RedisHub
from server.config.cluster import Cluster
from server.config.keys import DAY_S, KIB, MIB, Key, setting
from server.config.retention import Retention
from server.grants import DEFAULT_TENANT
from server.rates import Rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """Where the server listens, who may publish, where data lies.

    `address`: the one to listen on; loopback unless set, so that nobody gets in from outside by accident. `port`,
    `publish_port` 0: any free one; `publish_port` None: there is none. `page_limit`: documents on a page. `apikey` "":
    none. `data`: absolute, as `load()` makes it. `publish_without_key`: whether callers on this machine may publish
    while no apikey is set. `origins`: of the pages that may connect, lower-case, ("*",) for all. `hosts`,
    `trusted_proxies`: see `callers.CallerPolicy`. `internal`: networks whose callers see every figure of `/metrics`.
    `default_tenant`: whose users they are that come without a tenant; None: those are refused. `workers`: processes
    that serve together; 1: one, and nobody over it.
    """

    port: int = setting(8587, values.LISTENING_PORT)
    address: str = setting("127.0.0.1", values.ADDRESS)
    # Where clients of other systems look for what has one port here.
    also_listen: tuple[int, ...] = setting((), values.PORTS)
    # A port of its own, for publishing only: off unless it is named. Plain HTTP, so loopback unless set.
    publish_port: int | None = setting(None, values.or_none("off", values.LISTENING_PORT))
    publish_address: str = setting("127.0.0.1", values.ADDRESS)
    # One for each core, where there is a MongoDB. More than any machine has cores for would only wait for each other.
    workers: int = setting(1, values.integer(1, 64))
    # uvloop is an extra, and what it wins is for who publishes a lot.
    event_loop: Literal["asyncio", "uvloop"] = setting(
        "asyncio", values.choice({"asyncio": "asyncio", "uvloop": "uvloop"})
    )
    # `load()` brings it within 1..100 with a warning: the original took any number and clamped what it
    # served.
    page_limit: int = setting(30, values.integer(-(10**9), 10**9), key="limit")
    apikey: str = setting("", values.TEXT, secret=True, live=True)
    data: Path = setting(Path("data"), values.PATH, default_note="./data")
    publish_without_key: bool = setting(
        False, values.BOOLEAN, default_note="true in DEBUG without an apikey, else false", live=True
    )
    origins: tuple[str, ...] = setting(("*",), values.ORIGINS)
    hosts: tuple[str, ...] = setting((), values.HOSTS, live=True)
    trusted_proxies: tuple[IPNetwork, ...] = setting((), values.NETWORKS, live=True)
    internal: tuple[IPNetwork, ...] = setting((), values.NETWORKS, live=True)
    # Totals only; figures of single tenants are for admin keys and internal callers.
    public_metrics: bool = setting(True, values.BOOLEAN, live=True)
    default_tenant: str | None = setting(DEFAULT_TENANT, values.DEFAULT_TENANT, live=True)
    # How long a request with an idempotency key is known when it comes again: no longer than anything else is kept.
    keep_keys_s: float = setting(float(DAY_S), values.seconds(60, DAY_S), live=True)
    # How long /readyz says that the end is near before it begins. Without a load balancer that asks there, time lost.
    drain_s: float = setting(0.0, values.seconds(0, 300))


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """`file`: absolute; None: standard error only. `level`: one of the numbers of `logging`."""

    file: Path | None = setting(None, values.PATH)
    level: int = setting(logging.INFO, values.LOG_LEVEL, live=True)
    # human: a line to read; json: an object a line, for collectors.
    format: Literal["human", "json"] = setting(
        "human", values.choice({"human": "human", "json": "json"}), live=True
    )


Security = Literal["none", "starttls", "tls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Email:
    """How mail leaves. Certificates are always verified.

    `host` "": nowhere; mails are written as files under `data`/mail. `security`: "tls" from the first byte
    (RFC 8314), "starttls" required before anything else is said, or "none". `login` "": no authentication.
    `sender`: an address, or a name with its address (`Name <address>`). `ca`: a PEM file of the only
    authorities to trust; None: the system's.
    """

    host: str = setting("", values.TEXT)
    # 25 also with STARTTLS: where a host of the original's config.ini named no port, this was it.
    port: int = setting(25, values.PORT, default_note="465 with tls=tls, else 25")
    security: Security = setting(
        "starttls",
        values.choice(
            {"starttls": "starttls", "tls": "tls", "none": "none"}
            | dict.fromkeys(("true", "yes", "on", "1"), "true")
            | dict.fromkeys(("false", "no", "off", "0"), "none")
        ),
        key="tls",
        default_note="tls on port 465, none if the host is this machine, else starttls",
    )
    login: str = setting("", values.TEXT)
    password: str = setting("", values.TEXT, secret=True)
    sender: str = setting(
        "notifications@localhost",
        values.TEXT,
        default_note="login if that is an address, else notifications@ this machine's name",
    )
    ca: Path | None = setting(None, values.PATH)
    # For connecting and for each answer but that to the content, of which a repeat would come twice. Shorter than
    # RFC 5321 4.5.3.2 asks of relays, since nobody is lost: we retry.
    timeout_s: float = setting(30.0, values.seconds(0.1, 3600))
    # What every server must take (RFC 5321 4.5.3.1.8).
    recipients_per_message: int = setting(100, values.integer(1, 10_000))
    # Connections to the mail server at once; small servers allow few.
    concurrency: int = setting(4, values.integer(1, 100))
    # Recipients handed over, on each node: providers refuse, or worse, distrust, who is faster than agreed.
    rate: Rate | None = setting(None, values.RATE)
    # After so long without a word, another worker may take over a mail: longer than any attempt takes.
    lease_s: float = setting(300.0, values.seconds(1, DAY_S))
    # The first retry soon, since most faults are short (greylisting: minutes); then twice as long each time
    # up to an hour. Giving up after 5 days of being put off, as RFC 5321 4.5.4.1 has it (at least 4-5 days).
    retry_first_s: float = setting(60.0, values.seconds(0.1, 7 * DAY_S))
    retry_max_s: float = setting(3600.0, values.seconds(0.1, 7 * DAY_S))
    give_up_after_s: float = setting(5.0 * DAY_S, values.seconds(1, 90 * DAY_S))


# Names that MongoDB takes (its manual, "Naming Restrictions"), without those that need quoting.
_DATABASE = values.matching(
    r'[^/\\. "$*<>:|?\x00-\x20]{1,63}', "is not a name that MongoDB takes for a database"
)
_COLLECTION = values.matching(
    r"(?!system\.)[^$\x00-\x20.][^$\x00-\x20]{0,119}", "is not a name that MongoDB takes for a collection"
)
_MONGODB_URL = values.or_none(
    "embedded",
    values.matching(
        r"mongodb(\+srv)?://[^\s/?]\S*",
        "is neither 'embedded' nor an address that begins with mongodb:// or mongodb+srv://",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MongoDB:
    """`url`: complete, with the port; None: the embedded store. `collection` None: the one named after `db`
    if it exists (the original's), else `notifications`. `timeout_s`: for each operation. `legacy_timezone`:
    in which the original, which stored local times without their zone, was running; None: UTC."""

    url: str | None = setting(
        None, _MONGODB_URL, secret=True, default_note="embedded (in RELEASE: none, write it)"
    )
    db: str = setting("ws_notification", _DATABASE)
    collection: str | None = setting(None, _COLLECTION)
    timeout_s: float = setting(10.0, values.seconds(0.1, 20))
    legacy_timezone: ZoneInfo | None = setting(None, values.TIME_ZONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may hold, and how much work of strangers waits. More is refused with the limit's
    name."""

    # 10,000 users with their addresses take about 1 MiB; the rest is room for the texts.
    body_bytes: int = setting(4 * MIB, values.size(KIB, 64 * MIB), live=True)
    users_per_request: int = setting(10_000, values.integer(1, 100_000), live=True)
    # UTF-8 bytes of `content`. Far below the 16 MiB that MongoDB takes for a document.
    content_bytes: int = setting(64 * KIB, values.size(1, 4 * MIB), live=True)
    # UTF-8 bytes of each other text of a notification.
    field_bytes: int = setting(2 * KIB, values.size(1, MIB), live=True)
    # A payload or `data`, as compact JSON.
    data_bytes: int = setting(64 * KIB, values.size(1, 4 * MIB), live=True)
    # Password checks at once: each takes a core for a moment and 64 MiB of memory, which is what makes
    # guessing dear.
    password_checks: int = setting(2, values.integer(1, 64))
    # Requests of one backend's key. A runaway loop is stopped, no honest backend is.
    requests_per_key: Rate | None = setting(Rate(100_000, 10), values.RATE, live=True)
    # Requests of one address that publish or manage, beside those of this machine. Those with a key count there.
    requests_per_address: Rate | None = setting(Rate(600, 60), values.RATE, live=True)
    # Users that one tenant signs out over this server's API, whether or not they are there: each is remembered for
    # 30 days, in the store and in the memory of every node.
    sign_outs_per_tenant: Rate | None = setting(Rate(1000, 60), values.RATE, live=True)
    # New connections and SockJS sessions of one address. An office behind one address comes back at once after a cut.
    connects_per_address: Rate | None = setting(Rate(2000, 30), values.RATE, live=True)
    # Commands of one user and of one address, over all connections, and of one connection. Faster ones wait, they are
    # not refused. Each 16 KiB of a message or an answer count as one more.
    commands_per_user: Rate | None = setting(Rate(500, 10), values.RATE, live=True)
    commands_per_address: Rate | None = setting(Rate(2000, 10), values.RATE, live=True)
    commands_per_connection: Rate | None = setting(Rate(300, 10), values.RATE, live=True)
    # Connections open at once. Behind a proxy that trusted_proxies does not name, all have one address.
    connections_per_user: int = setting(100, values.integer(1, 1_000_000), live=True)
    connections_per_address: int = setting(2000, values.integer(1, 1_000_000), live=True)
    # Until a connection has to have joined. Long enough for a user who types a password on a connected page.
    join_within_s: float = setting(120.0, values.seconds(0.1, DAY_S), live=True)
    # Password checks that wait for their turn: half a minute's worth. More are refused as "busy".
    password_queue: int = setting(1000, values.integer(1, 100_000))


@dataclass(frozen=True, slots=True, kw_only=True)
class Connections:
    """What one client's connection may cost."""

    # SockJS's own interval: under the 30-60 s after which proxies drop silent connections.
    heartbeat_s: float = setting(25.0, values.seconds(0.1, 3600))
    # How long a polling session outlives its last request (SockJS's own delay).
    disconnect_delay_s: float = setting(5.0, values.seconds(0.1, 3600))
    # What waits for one client; more means that it is slow. At 10,000 clients that is 2.5 GiB at the very
    # worst.
    queue_bytes: int = setting(256 * KIB, values.size(KIB, 64 * MIB))
    # A client that takes less than 8 KiB/s of what waits for it, averaged over so long, is slow.
    slow_after_s: float = setting(30.0, values.seconds(0.1, 3600))
    # One message of a client. `seen` with 10,000 ids takes 270 KiB.
    message_bytes: int = setting(MIB, values.size(KIB, 16 * MIB))
    # Commands of one client that wait for their turn; with more its door reads no further, and with twice as many
    # the next is refused as `busy`.
    pending_commands: int = setting(256, values.integer(1, 100_000))


def _nothing() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings, valid and complete. Its `repr` holds no secret.

    `file`: where they were read from, None without a file. `release`: configuration=RELEASE. `users`: name ->
    argon2 hash of those who may join. `jwt`, `service_jwt`: None where the section names no key. `sql`: from `[SQL]` or
    `[MYSQL]`, None without either. `hook`: None without an address. `redis_hub`, `rabbitmq`: None: those doors are
    shut. `warnings`: what the operator should know though it works, each naming file, section and key.
    """

    file: Path | None = None
    release: bool = False
    application: Application = field(default_factory=Application)
    log: Log = field(default_factory=Log)
    email: Email = field(default_factory=Email)
    mongodb: MongoDB = field(default_factory=MongoDB)
    users: Mapping[str, str] = field(default_factory=_nothing, repr=False)
    limits: Limits = field(default_factory=Limits)
    connections: Connections = field(default_factory=Connections)
    retention: Retention = field(default_factory=Retention)
    tls: TLS | None = None
    certificates: tuple[CertificateGrant, ...] = ()
    auth: SignIn = field(default_factory=SignIn)
    jwt: JWTRules | None = None
    service_jwt: JWTRules | None = None
    sql: SQLLogin | None = None
    hook: HTTPHook | None = None
    redis_hub: RedisHub | None = None
    rabbitmq: RabbitMQ | None = None
    cluster: Cluster = field(default_factory=Cluster)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the file. `keys`: by their lower-case names, in the order of the docs. `any_key`: what a
    key that is not in `keys` is; its name then keeps its letter case. `forms`: whether it has a -DEBUG and a
    -RELEASE form. A field of Config has its name, unless all its keys only shape other fields."""

    name: str
    keys: Mapping[str, Key]
    any_key: Key | None = None
    forms: bool = True

    @property
    def is_shown(self) -> bool:
        """Whether what is in force has this section."""
        return self.any_key is not None or any(key.field for key in self.keys.values())


def _section(name: str, record: type | None, *more: Key, forms: bool = True) -> Section:
    keys = list(more)
    for item in fields(record) if record else ():
        key: Key = item.metadata["key"]
        keys.append(replace(key, name=key.name or item.name, field=item.name))
    return Section(name, {key.name.lower(): key for key in keys}, forms=forms)


CONFIGURATION = Key("configuration", values.choice({"debug": False, "release": True}), default="DEBUG")

_PASSWORD_HASH = values.matching(
    r"\$argon2(id|i|d)\$v=\d+\$m=\d+,t=\d+,p=\d+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+",
    "is not a hash as `notification-server user add` makes it",
)

_MYSQL_KEYS = (
    Key("host", values.TEXT, default="127.0.0.1"),
    Key("user", values.TEXT),
    Key("password", values.TEXT, secret=True),
    Key("port", values.PORT, default="3306"),
    Key("db", values.TEXT),
    Key("table", access_values.SQL_TABLE),
    Key("idField", access_values.SQL_NAME),
    Key("loginField", access_values.SQL_NAME),
    Key("passwordField", access_values.SQL_NAME),
)
"""The original's; they become a `SQLLogin`."""

SECTIONS: Mapping[str, Section] = {
    section.name: section
    for section in (
        _section("APPLICATION", Application, CONFIGURATION, forms=False),
        _section("LOG", Log),
        _section("EMAIL", Email, Key("auth", values.BOOLEAN, default="true if there is a login")),
        _section("MONGODB", MongoDB, Key("port", values.PORT, default="27017")),
        Section("USERS", {}, any_key=Key("", _PASSWORD_HASH, secret=True, live=True)),
        _section("LIMITS", Limits),
        _section("CONNECTIONS", Connections),
        _section("RETENTION", Retention),
        _section("TLS", TLS),
        Section("CERTIFICATES", {}, any_key=Key("", access_values.CERTIFICATE_GRANT, live=True)),
        _section("AUTH", SignIn),
        _section("JWT", JWTRules),
        _section("SERVICE_JWT", JWTRules),
        _section("SQL", SQLLogin),
        _section("MYSQL", None, *_MYSQL_KEYS),
        _section("HOOK", HTTPHook),
        _section("REDIS_HUB", RedisHub),
        _section("RABBITMQ", RabbitMQ),
        _section("CLUSTER", Cluster),
    )
}
