"""The subject of a certificate as text, and when two of them are the same (RFC 4514)."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterable, Mapping
from typing import Any

_SHORT = {
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
    "givenName": "GN",
    "surname": "SN",
    "jurisdictionCountryName": "jurisdictionC",
    "jurisdictionStateOrProvinceName": "jurisdictionST",
    "jurisdictionLocalityName": "jurisdictionL",
}
"""The names that Python's `ssl` gives attributes, and those of RFC 4514 section 3; of others, those that OpenSSL
prints."""

Subject = tuple[tuple[str, str], ...]
"""Attributes and values, sorted: two subjects that differ only in order are taken for the same, since the order depends
on who writes them down (OpenSSL begins at the other end than RFC 4514 does)."""


def parse_subject(text: str) -> Subject:
    """The subject in `CN=billing,O=Example`. A `,` `+` `=` or `\\` that belongs to a value has a `\\` in front; other
    characters may be written as the bytes of their UTF-8 (`\\C3\\A9`). Raises ValueError."""
    attributes = []
    for part in re.split(r"(?<!\\)[,+]", text):
        name, equals, value = part.strip().partition("=")
        value = _unescaped(value.strip())
        if not equals or not re.fullmatch(r"[A-Za-z][A-Za-z0-9.-]*", name) or not value:
            raise ValueError("is not a subject such as CN=billing,O=Example")
        attributes.append((_SHORT.get(name, name).upper(), value))
    return tuple(sorted(attributes))


def _unescaped(value: str) -> str:
    def plain(escaped: re.Match[str]) -> str:
        pairs, character = escaped[1], escaped[2]
        return bytes.fromhex(pairs.replace("\\", "")).decode() if pairs else character

    return re.sub(r"((?:\\[0-9A-Fa-f]{2})+)|\\(.)", plain, value)


def subject_of(certificate: Mapping[str, Any] | None) -> Subject | None:
    """That of a certificate as `SSLSocket.getpeercert` returns it; None if there is none that was verified, or if it
    has expired since: a connection may live for days, and a session of TLS be resumed."""
    if not certificate or ssl.cert_time_to_seconds(certificate["notAfter"]) < time.time():
        return None
    relative_names: Iterable[Iterable[tuple[str, str]]] = certificate.get("subject", ())
    return tuple(
        sorted((_SHORT.get(name, name).upper(), value) for names in relative_names for name, value in names)
    )
