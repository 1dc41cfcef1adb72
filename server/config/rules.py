"""What the values of a section mean together: values that follow from others, and contradictions. Those about who
gets in are in `rules_access`."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from server.config import rules_access, rules_brokers, rules_cluster, rules_sql
from server.config.reader import Reading, Values
from server.config.retention import Retention
from server.config.schema import (
    Application,
    Config,
    Connections,
    Email,
    Limits,
    Log,
    MongoDB,
    Security,
)
from server.config.values import is_host, is_loopback
from server.mail_message import Sender

SMTPS_PORT = 465


def make_config(reading: Reading) -> Config:
    """The records of all that was read. What is wrong goes to `reading.problems`; the result is no good then."""
    config = Config(
        file=reading.path,
        release=reading.release,
        application=_application(reading),
        log=Log(**_fields(reading, "LOG")),
        email=_email(reading),
        mongodb=_mongodb(reading),
        users=_users(reading),
        limits=_limits(reading),
        connections=Connections(**_fields(reading, "CONNECTIONS")),
        retention=Retention(**_fields(reading, "RETENTION")),
        tls=rules_access.tls(reading),
        certificates=rules_access.certificates(reading),
        jwt=rules_access.jwt(reading, "JWT"),
        service_jwt=rules_access.jwt(reading, "SERVICE_JWT"),
        sql=rules_sql.sql(reading),
        hook=rules_access.hook(reading),
        redis_hub=rules_brokers.redis_hub(reading),
        rabbitmq=rules_brokers.rabbitmq(reading),
    )
    is_embedded = config.mongodb.url is None
    config = replace(
        config,
        auth=rules_access.sign_in(reading, config),
        cluster=rules_cluster.cluster(reading, config.application.workers, is_embedded=is_embedded),
    )
    rules_access.warn_together(reading, config)
    return replace(config, warnings=tuple(reading.warnings))


def _fields(reading: Reading, section: str) -> Values:
    """The fields of a section whose values do not depend on each other."""
    return reading.fields(section, reading.values(section))


def _application(reading: Reading) -> Application:
    values = reading.values("APPLICATION")
    apikey = values.get("apikey", "")
    if values.get("publish_without_key") and apikey:
        reading.problem("APPLICATION", "publish_without_key", "contradicts the apikey; remove one of them")
    values.setdefault("publish_without_key", not reading.release and not apikey)
    if not values["publish_without_key"] and not apikey:
        reason = "is not set, so publishing takes a key of the store; `notification-server key add` makes one"
        reading.warn("APPLICATION", "apikey", reason)
    values.setdefault("data", Path("data"))
    if "limit" in values:
        values["limit"] = _page_limit(reading, values["limit"])
    record = Application(**reading.fields("APPLICATION", values))
    if not reading.release and not is_loopback(record.address):
        reason = f"opens a DEBUG server to others ({record.address}); configuration=RELEASE is meant for that"
        reading.warn("APPLICATION", "address", reason)
    if record.publish_port is not None and not is_loopback(record.publish_address):
        reason = f"opens the publishing port to others ({record.publish_address}) in the clear: it has no TLS"
        reading.warn("APPLICATION", "publish_address", reason)
    taken = {(record.address, port) for port in (record.port, *record.also_listen)} - {(record.address, 0)}
    if (record.publish_address, record.publish_port) in taken:
        reading.problem(
            "APPLICATION", "publish_port", "is one of port and also_listen; it takes one of its own"
        )
    return record


def _page_limit(reading: Reading, written: int) -> int:
    limit = min(max(written, 1), 100)
    if limit != written:
        reading.warn("APPLICATION", "limit", f"{written} is not within 1 to 100; {limit} is used")
    return limit


def _limits(reading: Reading) -> Limits:
    limits = Limits(**_fields(reading, "LIMITS"))
    for name in ("content_bytes", "field_bytes", "data_bytes"):
        if getattr(limits, name) > limits.body_bytes:
            reading.problem("LIMITS", name, "is more than body_bytes, so that it can never be reached")
    return limits


def _users(reading: Reading) -> MappingProxyType[str, str]:
    return MappingProxyType(reading.values("USERS"))


# -- e-mail --------------------------------------------------------------------------------------------------
def _email(reading: Reading) -> Email:
    values = reading.values("EMAIL")
    _split_host(reading, values)
    host = values.get("host", "")
    values["tls"] = _security(reading, host, values)
    values.setdefault("port", SMTPS_PORT if values["tls"] == "tls" else 25)
    _settle_login(reading, values)
    values["sender"] = _sender(reading, host, values)
    email = Email(**reading.fields("EMAIL", values))
    if host and email.login and email.security == "none" and not is_loopback(host):
        reading.warn("EMAIL", "tls", f"is off, so the password goes to {host} in the clear")
    if not email.retry_first_s <= email.retry_max_s <= email.give_up_after_s:
        reading.problem("EMAIL", "retry_max_s", "must lie between retry_first_s and give_up_after_s")
    if email.lease_s <= email.timeout_s:
        reason = "must be longer than timeout_s, or a mail in hand is sent by two workers"
        reading.problem("EMAIL", "lease_s", reason)
    if email.ca is not None and not email.ca.is_file():
        reading.problem("EMAIL", "ca", f"there is no file {email.ca}")
    return email


def _split_host(reading: Reading, values: Values) -> None:
    """`host` may hold the port, as in the original: `smtp.example.org:587`, `[2001:db8::1]:587`."""
    written = values.get("host", "")
    match = re.fullmatch(r"(?:\[(?P<v6>[^\]]+)\]|(?P<name>[^:]+))(?::(?P<port>[0-9]{1,5}))?", written)
    host = (match["v6"] or match["name"]) if match else written
    if not written:
        return
    if not is_host(host):
        # Not repeated: what begins as an address may go on with a password.
        reading.problem("EMAIL", "host", "is not a host such as smtp.example.org or smtp.example.org:587")
        return
    values["host"] = host
    if match is None or match["port"] is None:
        return
    port = int(match["port"])
    if not 1 <= port <= 65535:
        reading.problem("EMAIL", "host", f"{port} is not a port")
    elif values.setdefault("port", port) != port:
        reading.problem("EMAIL", "port", f"{values['port']} contradicts port {port} in host")


def _security(reading: Reading, host: str, values: Values) -> Security:
    """Port 465 is TLS from the first byte (RFC 8314 section 3.3), for which the original's `tls=true` has no
    other word. A host that is this machine is spoken to in the clear: nobody listens, and no certificate
    names it."""
    written = values.get("tls")
    if values.get("port") == SMTPS_PORT:
        if written not in (None, "true", "tls"):
            reading.problem("EMAIL", "tls", "port 465 speaks TLS from the first byte; write tls=tls")
        return "tls"
    if written is None:
        return "none" if is_loopback(host) else "starttls"
    security: Security = "starttls" if written == "true" else written
    return security


def _settle_login(reading: Reading, values: Values) -> None:
    """`auth` false takes login and password out of use, as in the original."""
    auth = values.get("auth", "login" in values)
    if auth and "login" not in values:
        reading.problem("EMAIL", "login", "is missing, though auth is true")
    if "password" in values and "login" not in values and "auth" not in values:
        reading.problem("EMAIL", "login", "is missing, though there is a password")
    if not auth:
        values.pop("login", None)
        values.pop("password", None)


def _sender(reading: Reading, host: str, values: Values) -> str:
    """The original took any word for a sender; what is no address gives way to one that can be answered."""
    written = str(values.get("sender", ""))
    if _is_sender(written):
        return written
    login = str(values.get("login", ""))
    machine = socket.gethostname() if host else "localhost"
    fallback = login if _is_sender(login) else f"notifications@{machine}"
    if host:
        said = f"{written!r} is not an address" if written else "is not set"
        reading.warn("EMAIL", "sender", f"{said}; {fallback} is used")
    return fallback


def _is_sender(text: str) -> bool:
    try:
        Sender.parse(text)
    except ValueError:
        return False
    return True


# -- MongoDB -------------------------------------------------------------------------------------------------
def _mongodb(reading: Reading) -> MongoDB:
    values = reading.values("MONGODB")
    url, port = values.pop("url", None), values.pop("port", None)
    if not url and reading.release and not reading.is_written("MONGODB", "url"):
        reason = "is missing; in RELEASE write MongoDB's address, or url=embedded if that is meant"
        reading.problem("MONGODB", "url", reason)
    record = MongoDB(**reading.fields("MONGODB", values))
    return replace(record, url=_complete_url(reading, url, port, record.db)) if url else record


def _complete_url(reading: Reading, url: str, port: int | None, db: str) -> str:
    """The address as the original made it: `port` for the hosts that name none, `db` behind a url that ends
    in a slash.

    A database in the url is the one that its user is checked against (MongoDB's connection string,
    "defaultauthdb").
    """
    scheme, _, rest = url.partition("://")
    place = re.match(r"(?P<user>[^/?]*@)?(?P<hosts>[^/?]*)(?P<path>.*)", rest)
    user, hosts, path = (place["user"] or "", place["hosts"], place["path"]) if place else ("", rest, "")
    if port is not None and scheme.endswith("+srv"):
        reading.problem("MONGODB", "port", "contradicts the url: DNS names the ports behind mongodb+srv://")
    elif port is not None:
        hosts = ",".join(h if re.search(r":\d+$|\.sock$", h) else f"{h}:{port}" for h in hosts.split(","))
    if path == "/":
        path = f"/{db}"
        if user:
            reason = f"its user is looked up in {db}, as the original did; another: ?authSource=admin"
            reading.warn("MONGODB", "url", reason)
    return f"{scheme}://{user}{hosts}{path}"
