"""The server that is checked, from outside: publishing to users, tokens, and requests of users."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest, HTTPResponse

from server.conformance.lines import Unreachable

MAX_TRIES = 5
"""Of a request that is answered by 429 or 503."""

MAX_RETRY_S = 5.0

TOGETHER = 8
"""Requests under way at once."""


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may join. `proof`: the fields of `join`; `token`: None for the users of the demo."""

    id: str
    proof: Mapping[str, str] = field(repr=False)
    token: str | None = field(repr=False, default=None)


class Denied(Unreachable):
    """The key, or the lack of one, does not allow it."""


class CannotCheck(Exception):
    """What a rule needs is not there; in words."""


class Target:
    """`key`: with the scopes `publish` and `listen`, and for some rules `admin`; None: a server on this machine that
    takes notifications without one, and its demo users. `wait_s`: how long an answer may take."""

    def __init__(self, url: str, key: str | None, wait_s: float) -> None:
        self.url = url.rstrip("/")
        self.wait_s = wait_s
        self._key = key
        self._client = AsyncHTTPClient(force_instance=True, max_clients=2 * TOGETHER)
        self._run = secrets.token_hex(4)
        self._count = 0
        self._turn = asyncio.Semaphore(TOGETHER)

    @property
    def has_key(self) -> bool:
        return self._key is not None

    def close(self) -> None:
        self._client.close()

    # -- requests --------------------------------------------------------------------------------------------
    async def request(
        self, method: str, path: str, fields: Any = None, headers: Mapping[str, str] | None = None
    ) -> HTTPResponse:
        """Whatever the answer is. Raises `Unreachable`."""
        request = HTTPRequest(
            self.url + path,
            method,
            headers={"Content-Type": "application/json", **(headers or {})},
            body=None if fields is None else json.dumps(fields),
            allow_nonstandard_methods=True,
            connect_timeout=self.wait_s,
            request_timeout=self.wait_s,
            follow_redirects=False,
        )
        try:
            async with self._turn:
                return await self._client.fetch(request, raise_error=False)
        except (OSError, HTTPClientError) as exc:
            raise Unreachable(f"{method} {path}: {exc}") from exc

    async def _patiently(self, path: str, fields: Any, expected: tuple[int, ...]) -> HTTPResponse:
        """A request of the backend, again where the server says so. Raises `Unreachable`."""
        headers = {} if self._key is None else {"Authorization": f"Api-Key {self._key}"}
        for _ in range(MAX_TRIES):
            answer = await self.request("POST", path, fields, headers)
            if answer.code not in (429, 503):
                break
            await asyncio.sleep(min(float(answer.headers.get("Retry-After", "1")), MAX_RETRY_S))
        if answer.code not in expected:
            error = Denied if answer.code in (401, 403) else Unreachable
            raise error(f"POST {path} answered {answer.code}: {answer.body.decode(errors='replace')[:200]}")
        return answer

    # -- as a backend ----------------------------------------------------------------------------------------
    async def publish(self, user: User, content: str = "", **fields: Any) -> None:
        """One notification for this user. Raises `Unreachable`."""
        sent = {"users": [{"id": user.id}], "content": content, **fields}
        await self._patiently("/notify", sent, (200,))

    async def publish_data(self, user: User, data: Any) -> None:
        """A notification that is nothing but data. Raises `Unreachable`."""
        await self._patiently("/api/notifications/send/", {"user_id": user.id, "payload": data}, (200,))

    async def publish_many(self, user: User, count: int) -> None:
        """So many, in any order."""
        await asyncio.gather(*(self.publish(user, str(number)) for number in range(count)))

    async def user(self, expires_in_s: int = 600) -> User:
        """Somebody who never was here. Raises `CannotCheck`, `Unreachable`."""
        if self._key is None:
            raise CannotCheck("needs a key with the scopes publish and listen")
        self._count += 1
        id_ = f"conformance-{self._run}-{self._count}"
        fields = {"user_id": id_, "expires_in": expires_in_s}
        token = json.loads((await self._patiently("/api/v2/tokens", fields, (200,))).body)["token"]
        return User(id_, {"token": token}, token)

    async def sign_out(self, user: User) -> None:
        """Everywhere. Raises `CannotCheck` if the key may not."""
        try:
            await self._patiently(f"/api/v2/users/{quote(user.id, safe='')}/sign-out", {}, (200, 204))
        except Denied as exc:
            raise CannotCheck(f"needs a key with the scope admin: {exc}") from exc

    # -- as a user -------------------------------------------------------------------------------------------
    async def inbox(
        self,
        method: str,
        user: User,
        query: str = "",
        fields: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> HTTPResponse:
        """A request to `/api/v2/inbox`. Raises `CannotCheck`, `Unreachable`."""
        return await self.request(
            method, f"/api/v2/inbox{query}", fields, self.bearer(user) | dict(headers or {})
        )

    @staticmethod
    def bearer(user: User) -> dict[str, str]:
        """Raises `CannotCheck`."""
        if user.token is None:
            raise CannotCheck("needs a token: give a key with the scope listen")
        return {"Authorization": f"Bearer {user.token}"}


DEMO_USERS = ("alice", "bob")


def demo_user(name: str) -> User:
    """One of the example page."""
    return User(name, {"login": name, "password": name})
