"""Every section and key of config.ini with its default, and the records that the rest of the server reads.

A key is a field of the section's record, with the same name unless `key=` gives the one in the file. Units
are in the names: `_s` seconds, `_bytes` bytes. The keys that only shape other fields stand in `SECTIONS`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from zoneinfo import ZoneInfo

from server.callers import IPNetwork
from server.config import values
from server.config.values import Kind

KIB = 1024
MIB = 1024 * KIB
DAY_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Key:
    """`name`: as in the file. `field`: that of the section's record, "" for a key that only shapes others.
    `default`: for people, as it would be written in the file."""

    name: str
    kind: Kind
    field: str = ""
    default: str = ""
    secret: bool = False


def setting(
    default: object, kind: Kind, *, key: str = "", secret: bool = False, default_note: str = ""
) -> Any:  # Any: as `dataclasses.field`, so that the field's own type counts
    """A field that is a key of the file. `default_note` says what the default is where it depends on
    something."""
    shown = default_note or ("" if default in (None, (), "") else kind.show(default))
    return field(
        default=default, repr=not secret, metadata={"key": Key(key, kind, default=shown, secret=secret)}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """Where the server listens, who may publish, where data lies.

    `address`: the one to listen on; loopback unless set, so that nobody gets in from outside by accident.
    `port` 0: any free one. `page_limit`: documents on a page. `apikey` "": none. `data`: absolute, as
    `load()` makes it. `publish_without_key`: whether callers on this machine may publish while no apikey is
    set. `origins`: of the pages that may connect, lower-case, ("*",) for all. `hosts`, `trusted_proxies`: see
    `callers.CallerPolicy`.
    """

    port: int = setting(8587, values.LISTENING_PORT)
    address: str = setting("127.0.0.1", values.ADDRESS)
    # `load()` brings it within 1..100 with a warning: the original took any number and clamped what it
    # served.
    page_limit: int = setting(30, values.integer(-(10**9), 10**9), key="limit")
    apikey: str = setting("", values.TEXT, secret=True)
    data: Path = setting(Path("data"), values.PATH, default_note="./data")
    publish_without_key: bool = setting(
        False, values.BOOLEAN, default_note="true in DEBUG without an apikey, else false"
    )
    origins: tuple[str, ...] = setting(("*",), values.ORIGINS)
    hosts: tuple[str, ...] = setting((), values.HOSTS)
    trusted_proxies: tuple[IPNetwork, ...] = setting((), values.NETWORKS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """`file`: absolute; None: standard error only. `level`: one of the numbers of `logging`."""

    file: Path | None = setting(None, values.PATH)
    level: int = setting(logging.INFO, values.LOG_LEVEL)


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
    # For connecting and for each answer. Shorter than RFC 5321 4.5.3.2 asks of relays, since nobody is lost:
    # we retry.
    timeout_s: float = setting(30.0, values.seconds(0.1, 3600))
    # What every server must take (RFC 5321 4.5.3.1.8).
    recipients_per_message: int = setting(100, values.integer(1, 10_000))
    # Connections to the mail server at once; small servers allow few.
    concurrency: int = setting(4, values.integer(1, 100))
    # After so long without a word, another worker may take over a mail: longer than any attempt takes.
    lease_s: float = setting(300.0, values.seconds(1, DAY_S))
    # The first retry soon, since most faults are short (greylisting: minutes); then twice as long each time
    # up to an hour. Giving up after 5 days, as RFC 5321 4.5.4.1 has it (at least 4-5 days).
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
_MONGODB_URL = values.matching(
    r"(?i:embedded)|mongodb(\+srv)?://[^\s/?]\S*",
    "is neither 'embedded' nor an address that begins with mongodb:// or mongodb+srv://",
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
    body_bytes: int = setting(4 * MIB, values.size(KIB, 64 * MIB))
    users_per_request: int = setting(10_000, values.integer(1, 100_000))
    # UTF-8 bytes of `content`. Far below the 16 MiB that MongoDB takes for a document.
    content_bytes: int = setting(64 * KIB, values.size(1, 4 * MIB))
    # UTF-8 bytes of each other text of a notification.
    field_bytes: int = setting(2 * KIB, values.size(1, MIB))
    # Password checks at once: each takes a core for a moment and 64 MiB of memory, which is what makes
    # guessing dear.
    password_checks: int = setting(2, values.integer(1, 64))
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
    argon2 hash of those who may join. `mysql`: as written, for the SQL login; not used yet. `warnings`: what
    the operator should know though it works, each naming file, section and key.
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
    mysql: Mapping[str, str] = field(default_factory=_nothing, repr=False)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the file. `keys`: by their lower-case names, in the order of the docs. `any_key`: what a
    key that is not in `keys` is; its name then keeps its letter case. `forms`: whether it has a -DEBUG and a
    -RELEASE form."""

    name: str
    keys: Mapping[str, Key]
    any_key: Key | None = None
    forms: bool = True


def _section(name: str, record: type | None, *more: Key, forms: bool = True) -> Section:
    keys = list(more)
    for item in fields(record) if record else ():
        key: Key = item.metadata["key"]
        keys.append(Key(key.name or item.name, key.kind, item.name, key.default, key.secret))
    return Section(name, {key.name.lower(): key for key in keys}, forms=forms)


CONFIGURATION = Key("configuration", values.choice({"debug": False, "release": True}), default="DEBUG")

_PASSWORD_HASH = values.matching(
    r"\$argon2(id|i|d)\$v=\d+\$m=\d+,t=\d+,p=\d+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+",
    "is not a hash as `notification-server user add` makes it",
)

_MYSQL_KEYS = ("host", "user", "password", "port", "db", "table", "idField", "loginField", "passwordField")

SECTIONS: Mapping[str, Section] = {
    section.name: section
    for section in (
        _section("APPLICATION", Application, CONFIGURATION, forms=False),
        _section("LOG", Log),
        _section("EMAIL", Email, Key("auth", values.BOOLEAN, default="true if there is a login")),
        _section("MONGODB", MongoDB, Key("port", values.PORT, default="27017")),
        Section("USERS", {}, any_key=Key("", _PASSWORD_HASH, secret=True)),
        _section("LIMITS", Limits),
        _section("CONNECTIONS", Connections),
        _section("MYSQL", None, *(Key(name, values.TEXT, secret=name == "password") for name in _MYSQL_KEYS)),
    )
}
