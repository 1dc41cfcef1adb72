"""TLS by the server itself: its certificate, and whose client certificates prove the identity of a backend."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

from server.config import TLS
from server.errors import StartupError

HANDSHAKE_TIMEOUT_S = 10.0
"""For the handshake, in which a client of good will takes a few round trips."""


def make_context(tls: TLS) -> ssl.SSLContext:
    """A context for connections of clients: TLS 1.2 and later, Python's choice of ciphers. Raises `StartupError` with
    the file that cannot be used.

    For renewed files make another one: half of a new pair in a context that is in use would serve nobody.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # WebSocket and SockJS know HTTP/1.1 only; so does the server.
    context.set_alpn_protocols(["http/1.1"])
    _expect("cert", tls.cert, b"-----BEGIN CERTIFICATE-----", "certificate")
    _expect("key", tls.key, b"PRIVATE KEY-----", "private key")
    try:
        context.load_cert_chain(tls.cert, tls.key, _no_passphrase)
    except (OSError, ValueError) as exc:  # as ssl.SSLError is
        raise StartupError(f"[TLS] cert {tls.cert} and key {tls.key} cannot be used: {_reason(exc)}") from exc
    if tls.client_ca is not None:
        _expect("client_ca", tls.client_ca, b"-----BEGIN CERTIFICATE-----", "certificate")
        # Browsers have none: who shows no certificate has to prove who they are otherwise.
        context.verify_mode = ssl.CERT_OPTIONAL
        try:
            context.load_verify_locations(tls.client_ca)
        except OSError as exc:
            raise StartupError(f"[TLS] client_ca: {tls.client_ca} cannot be used: {_reason(exc)}") from exc
    return context


def valid_until(tls: TLS | None) -> datetime | None:
    """Until when clients take the certificate that is in the file now. None: TLS is not ours, or it cannot be told."""
    if tls is None:
        return None
    # Not at the top: most servers have TLS end at a proxy, and need none of it.
    from cryptography.x509 import InvalidVersion, load_pem_x509_certificate

    try:
        # The first one is the server's own, to which the key belongs; those of its authorities follow.
        return load_pem_x509_certificate(tls.cert.read_bytes()).not_valid_after_utc
    except (OSError, ValueError, InvalidVersion):
        return None  # OpenSSL has taken it, and is less strict; it is no reason not to serve


def expired(tls: TLS | None) -> list[str]:
    """A sentence if `make_context` takes the certificate, and clients will not. It is served all the same: who was told
    to look away still gets through."""
    until = valid_until(tls)
    if tls is None or until is None or until > datetime.now(UTC):
        return []
    return [f"[TLS] cert: {tls.cert} expired on {until:%Y-%m-%d at %H:%M} UTC; clients refuse it"]


def _expect(key: str, file: Path, begin: bytes, what: str) -> None:
    """OpenSSL says of neither file which one it means, nor much of what is wrong."""
    try:
        content = file.read_bytes()
    except OSError as exc:
        raise StartupError(f"[TLS] {key}: {file} cannot be read: {exc.strerror}") from exc
    if begin not in content:
        raise StartupError(f"[TLS] {key}: there is no {what} in {file}; it must be PEM")


def _no_passphrase() -> str:
    # Without this OpenSSL would ask for it on the terminal, and the server would stand still.
    raise ValueError("the key is protected by a passphrase; take it off")


def _reason(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLError):
        if exc.reason == "KEY_VALUES_MISMATCH":
            return "the key does not belong to the certificate"
        # Python has names for few of them: "[SSL] PEM lib" is what it says of a damaged file.
        return "a part of it is damaged" if "PEM lib" in str(exc) else exc.reason or str(exc)
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
