"""Asks other servers over HTTP, for the parts that need to: nothing waits for ever, nothing grows without bound.

Certificates are checked against the authorities of the system (or of the file that the environment variable
SSL_CERT_FILE names), unless a file of the only ones to trust is given. Redirects are not followed: who can send them
could name any server of the inner network, or have passwords sent anywhere. Proxies of the environment are not used.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tornado.httpclient import HTTPClientError, HTTPRequest, HTTPResponse
from tornado.simple_httpclient import HTTPStreamClosedError, HTTPTimeoutError, SimpleAsyncHTTPClient

from server.errors import StartupError


class NoReply(Exception):
    """`str(error)` says why, for the log."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered, whatever that is."""

    status: int
    body: bytes = field(repr=False)


class HTTPClient:
    """To be made where a loop runs. `connections`: at once; more questions wait, which counts as part of their time.
    `ca`: a PEM file. Raises `StartupError` if that cannot be used."""

    def __init__(self, *, max_body_bytes: int, connections: int, ca: Path | None = None) -> None:
        self._max_body_bytes = max_body_bytes
        self._tls = _tls(ca)
        # An instance of its own: the shared one has limits that others may set.
        self._client = SimpleAsyncHTTPClient(
            force_instance=True, max_clients=connections, max_body_size=max_body_bytes
        )

    async def get(self, url: str, timeout_s: float, headers: Mapping[str, str] | None = None) -> Reply:
        """Raises `NoReply`, at latest after `timeout_s`."""
        return await self._ask(url, timeout_s, "GET", headers or {}, None)

    async def post(self, url: str, timeout_s: float, headers: Mapping[str, str], body: bytes) -> Reply:
        """Send JSON. Raises `NoReply`, at latest after `timeout_s`."""
        return await self._ask(url, timeout_s, "POST", {"Content-Type": "application/json", **headers}, body)

    def close(self) -> None:
        """Take no more questions. Idempotent."""
        self._client.close()

    async def _ask(
        self, url: str, timeout_s: float, method: str, headers: Mapping[str, str], body: bytes | None
    ) -> Reply:
        request = HTTPRequest(
            url,
            method,
            {"Accept": "application/json", **headers},
            body,
            user_agent="notification-server",
            connect_timeout=timeout_s,
            request_timeout=timeout_s,
            follow_redirects=False,
            # What is not unpacked cannot grow.
            decompress_response=False,
            ssl_options=self._tls,
        )
        asking = asyncio.ensure_future(self._client.fetch(request, raise_error=False))
        asking.add_done_callback(_look)
        # The client's own timeouts begin anew when a question leaves its queue; this one does not. And the client must
        # not find its future cancelled: it would log as an error what comes of it later.
        done, _ = await asyncio.wait({asking}, timeout=timeout_s)
        if not done:
            raise NoReply(f"no answer within {timeout_s:g} s")
        try:
            response = asking.result()
        except HTTPTimeoutError as exc:
            raise NoReply(f"no answer within {timeout_s:g} s") from exc
        except HTTPStreamClosedError as exc:
            limit = f"{self._max_body_bytes // 1024} KiB"
            raise NoReply(f"the answer broke off, or is longer than {limit}") from exc
        except (HTTPClientError, OSError, ValueError) as exc:
            raise NoReply(str(exc) or type(exc).__name__) from exc
        return Reply(response.code, response.body)


def _look(asking: asyncio.Future[HTTPResponse]) -> None:
    """An error that comes when nobody waits any more has been noticed."""
    if not asking.cancelled():
        asking.exception()


def _tls(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as exc:  # an ssl.SSLError, too
        raise StartupError(f"the file of authorities {ca} cannot be used: {exc}") from exc
