"""What the settings about who gets in mean together: TLS, the ways to sign in, tokens, certificates."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from server.certificates import Subject, parse_subject
from server.config.access import (
    TLS,
    Algorithm,
    AuthMethod,
    CertificateGrant,
    HTTPHook,
    JWTRules,
    SignIn,
)
from server.config.access_values import is_http_url
from server.config.reader import Reading, Values
from server.config.rules_sql import section_of_sql
from server.config.schema import SECTIONS, Config
from server.config.values import is_loopback

# RFC 7518 section 3.2: a key for HS256 has at least as many bits as its hash.
MIN_SECRET_BYTES = 32


# -- TLS and certificates ------------------------------------------------------------------------------------
def tls(reading: Reading) -> TLS | None:
    """None: nothing of it is written."""
    values = reading.fields("TLS", reading.values("TLS"))
    if not values:
        return None
    for name in ("cert", "key"):
        if not reading.is_written("TLS", name):
            reading.problem("TLS", name, "is missing; TLS takes both cert and key")
    _check_files(reading, "TLS", values)
    return TLS(**{"cert": Path(), "key": Path()} | values)


def certificates(reading: Reading) -> tuple[CertificateGrant, ...]:
    """In the order of the file. A subject means one thing only, in whatever order its attributes stand."""
    grants = [CertificateGrant(name, *pieces) for name, pieces in reading.values("CERTIFICATES").items()]
    if grants and not reading.is_written("TLS", "client_ca"):
        reason = "is missing, though [CERTIFICATES] says what clients' certificates allow"
        reading.problem("TLS", "client_ca", reason)
    seen: dict[Subject, str] = {}
    for grant in grants:
        other = seen.setdefault(parse_subject(grant.subject), grant.name)
        if other != grant.name:
            reading.problem("CERTIFICATES", grant.name, f"has the same subject as {other}")
    return tuple(grants)


def _check_files(reading: Reading, section: str, values: Values) -> None:
    """Every path among these fields is a file that this process can read."""
    for key in SECTIONS[section].keys.values():
        path = values.get(key.field)
        if isinstance(path, Path):
            _check_file(reading, section, key.name, path)


def _check_file(reading: Reading, section: str, key: str, path: Path) -> None:
    if not path.is_file():
        reading.problem(section, key, f"there is no file {path}")
    elif not os.access(path, os.R_OK):
        reading.problem(section, key, f"{path} cannot be read by the user that this server runs as")


# -- how users sign in ---------------------------------------------------------------------------------------
def sign_in(reading: Reading, config: Config) -> SignIn:
    """Without `methods`: every one that is configured, that of config.ini first."""
    values = reading.values("AUTH")
    configured: dict[AuthMethod, str] = {
        "config": "USERS",
        **({"jwt": "JWT"} if config.jwt else {}),
        **({"sql": section_of_sql(reading)} if config.sql else {}),
        **({"hook": "HOOK"} if config.hook else {}),
    }
    methods = values.setdefault("methods", tuple(configured))
    for method in methods:
        if method not in configured:
            section = method.upper()
            reading.problem("AUTH", "methods", f"names {method}, but nothing stands in [{section}]")
    for method, section in configured.items():
        if method not in methods and (method != "config" or config.users):
            reading.warn(section, "", f"is not used, since [AUTH] methods does not name {method}")
    return SignIn(**reading.fields("AUTH", values))


# -- tokens --------------------------------------------------------------------------------------------------
def jwt(reading: Reading, section: str) -> JWTRules | None:
    """The rules of `[JWT]` or `[SERVICE_JWT]`; None: nothing of it is written."""
    values = reading.fields(section, reading.values(section))
    if not values:
        return None
    _check_files(reading, section, values)
    written = [name for name in ("secret", "key", "jwks") if reading.is_written(section, name)]
    if len(written) > 1:
        reading.problem(section, written[1], f"contradicts {written[0]}; write one of secret, key and jwks")
    elif not written:
        reading.problem(section, "", "tells no tokens apart; write one of secret, key and jwks")
    elif "secret" in values and len(values["secret"].encode()) < MIN_SECRET_BYTES:
        reason = f"has less than {MIN_SECRET_BYTES} bytes (RFC 7518 section 3.2), so that it could be guessed"
        reading.problem(section, "secret", reason)
    elif "jwks" in values:
        values["jwks"] = _key_set(reading, section, values["jwks"])
    fitting: tuple[Algorithm, ...] = ("HS256",) if "secret" in values else ("RS256", "ES256")
    for algorithm in values.setdefault("algorithms", fitting):
        if written and algorithm not in fitting:
            reason = f"{algorithm} does not fit {written[0]}, only {' and '.join(fitting)} would"
            reading.problem(section, "algorithms", reason)
    rules = JWTRules(**values)
    if rules.audience is None and (rules.issuer is None or not rules.secret):
        reason = "is not set, so a token that the same key signed for another service counts here too"
        reading.warn(section, "audience", reason)
    return rules


def _key_set(reading: Reading, section: str, written: str) -> str:
    """An address as it is, the path of a file absolute."""
    if "://" in written:
        if not is_http_url(written):
            reading.problem(
                section, "jwks", "is neither a file nor an address such as https://example.org/jwks.json"
            )
        elif not _is_private(written):
            reading.problem(section, "jwks", "must be https, since who changes it on its way can make tokens")
        return written
    path = reading.base / written
    _check_file(reading, section, "jwks", path)
    return str(path)


def _is_private(url: str) -> bool:
    """Whether what is said there cannot be heard or changed on its way."""
    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback(parts.hostname or "")


# -- the hook ------------------------------------------------------------------------------------------------
def hook(reading: Reading) -> HTTPHook | None:
    """None: nothing of it is written."""
    values = reading.fields("HOOK", reading.values("HOOK"))
    if not values:
        return None
    _check_files(reading, "HOOK", values)
    record = HTTPHook(**values)
    if not record.url:
        if not reading.is_written("HOOK", "url"):
            reading.problem("HOOK", "url", "is missing, so the hook leads nowhere")
    elif not _is_private(record.url):
        reading.problem("HOOK", "url", "must be https, since passwords are sent there")
    if not record.secret:
        reason = "is not set, so the hook cannot tell this server from others who try passwords there"
        reading.warn("HOOK", "secret", reason)
    return record


# -- all together --------------------------------------------------------------------------------------------
def warn_together(reading: Reading, config: Config) -> None:
    """Say what no section shows by itself."""
    application, jwt, service = config.application, config.jwt, config.service_jwt
    if jwt and service and _keys(jwt) == _keys(service):
        reason = "must differ from that of [JWT]: with the same key, issuer and audience, a user's token could publish"
        reading.problem("SERVICE_JWT", "audience", reason)
    if config.auth.methods == ("config",) and not config.users and config.release:
        reason = (
            "is empty, so users join only with tokens that a backend gets for them (POST /api/v2/tokens);"
            " `notification-server user add NAME` makes a line for one with a password"
        )
        reading.warn("USERS", "", reason)
    is_open = not is_loopback(application.address)
    if config.release and is_open and config.tls is None and not application.trusted_proxies:
        reason = "is open to others without [TLS] or trusted_proxies: passwords and keys travel in the clear"
        reading.warn("APPLICATION", "address", reason)
    if application.default_tenant is None and config.users and "config" in config.auth.methods:
        reading.warn("APPLICATION", "default_tenant", "is none, so those of [USERS] cannot join")
    if application.default_tenant is None and config.sql and config.sql.tenant_field is None:
        reading.warn(
            section_of_sql(reading), "", "its users cannot join without a tenantField: default_tenant is none"
        )


def _keys(rules: JWTRules) -> tuple[object, ...]:
    """What makes a token one of these rules."""
    return rules.secret, rules.key, rules.jwks, rules.issuer, rules.audience
