"""The kinds of values that only the settings of `access` have. As those of `values`."""

from __future__ import annotations

from urllib.parse import urlsplit

from server.certificates import parse_subject
from server.config.values import Kind, checked_text, matching, several
from server.grants import NO_TENANT, Scope, is_name

GrantPieces = tuple[str, frozenset[Scope], str]
"""Tenant, scopes and subject of a `CertificateGrant`."""


def is_http_url(text: str) -> bool:
    """Whether `text` is an address with http or https and a host, and without a user, a password or a fragment."""
    try:
        parts = urlsplit(text)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and port_is_valid
        and "@" not in parts.netloc
        and "#" not in text
        and text.isascii()
        and " " not in text
    )


def _http_url(text: str) -> str:
    if not is_http_url(checked_text(text)):
        # Not repeated: it may hold a password.
        raise ValueError(
            "is not an address such as https://example.org/join (no user and password in it, no #)"
        )
    return text


def _certificate_grant(text: str) -> GrantPieces:
    pieces = checked_text(text).split(maxsplit=2)
    if len(pieces) < 3:
        raise ValueError(f"{text!r} is not `tenant scopes subject`, such as acme publish,admin CN=billing")
    tenant, scopes, subject = pieces
    if not is_name(tenant):
        raise ValueError(f"{tenant!r} is not a tenant's name (up to 64 of a-z 0-9 . _ -, not {NO_TENANT!r})")
    try:
        parse_subject(subject)
    except ValueError as exc:
        raise ValueError(f"{subject!r} {exc}") from None
    return tenant, frozenset(map(Scope, _SCOPES.parse(scopes))), subject


def _show_grant(pieces: GrantPieces) -> str:
    tenant, scopes, subject = pieces
    return f"{tenant} {','.join(scope for scope in Scope if scope in scopes)} {subject}"


_SCOPES = several(*Scope)

AUTH_METHODS = several("config", "sql", "jwt", "hook")
# Never `none`, and no HMAC with a public key's algorithm: the rules look after that.
ALGORITHMS = several("HS256", "RS256", "ES256")

_IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_]{0,63}"
SQL_NAME = matching(_IDENTIFIER, "is not a column's name (up to 64 of A-Z a-z 0-9 _, no digit in front)")
SQL_TABLE = matching(
    rf"({_IDENTIFIER}\.)?{_IDENTIFIER}",
    "is not a table's name, with or without its schema (up to 64 of A-Z a-z 0-9 _ each, no digit in front)",
)
HTTP_URL = Kind(_http_url)
CERTIFICATE_GRANT = Kind(_certificate_grant, _show_grant)
