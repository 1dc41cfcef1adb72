"""TLS by the server itself: its certificate, and whose client certificates prove the identity of a backend."""

from __future__ import annotations

import ssl

from server.config import TLS
from server.errors import StartupError

HANDSHAKE_TIMEOUT_S = 10.0
"""For the handshake, in which a client of good will takes a few round trips."""


def make_context(tls: TLS) -> ssl.SSLContext:
    """A context for connections of clients: TLS 1.2 and later, Python's choice of ciphers. Raises `StartupError` with
    the file that cannot be used."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # WebSocket and SockJS know HTTP/1.1 only; so does the server.
    context.set_alpn_protocols(["http/1.1"])
    load_certificate(context, tls)
    if tls.client_ca is not None:
        # Browsers have none: who shows no certificate has to prove who they are otherwise.
        context.verify_mode = ssl.CERT_OPTIONAL
        try:
            context.load_verify_locations(tls.client_ca)
        except (OSError, ssl.SSLError) as exc:
            raise StartupError(f"[TLS] client_ca: {tls.client_ca} cannot be used: {_reason(exc)}") from exc
    return context


def load_certificate(context: ssl.SSLContext, tls: TLS) -> None:
    """Use the certificate for the connections that come from now on. Raises `StartupError`: then the one before it
    stays in use."""
    try:
        # Tried first: a failure half way would leave a certificate without its key in the context that is in use.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(tls.cert, tls.key, _no_passphrase)
        context.load_cert_chain(tls.cert, tls.key, _no_passphrase)
    except (OSError, ssl.SSLError, ValueError) as exc:
        raise StartupError(f"[TLS] cert {tls.cert} and key {tls.key} cannot be used: {_reason(exc)}") from exc


def _no_passphrase() -> str:
    # Without this OpenSSL would ask for it on the terminal, and the server would stand still.
    raise ValueError("the key is protected by a passphrase; take it off")


def _reason(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLError):
        return {
            "KEY_VALUES_MISMATCH": "the key does not belong to the certificate",
            "NO_START_LINE": "it is not PEM",
            "PEM_LIB": "it is not PEM, or does not hold what it should",
        }.get(exc.reason or "", exc.reason or str(exc))
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
