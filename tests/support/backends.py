"""Backends of tenants: what they ask of a running server, with an API key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from tests.support.processes import wait_until
from tests.support.running_server import Response, RunningServer


@dataclass(frozen=True)
class Backend:
    """Speaks for a tenant."""

    server: RunningServer
    tenant: str
    key: str = field(repr=False)

    @property
    def credentials(self) -> dict[str, str]:
        return {"Authorization": f"Api-Key {self.key}"}

    def post(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Response:
        """JSON, with the key."""
        sent = {"Content-Type": "application/json", **self.credentials, **(headers or {})}
        return self.server.request("POST", path, json.dumps(body).encode(), sent)

    def notify(self, *users: str, content: str = "", **fields: Any) -> Response:
        body = {"users": [{"id": user} for user in users], "content": content, **fields}
        return self.post("/notify", body)

    def must_notify(self, *users: str, content: str = "", **fields: Any) -> None:
        """`notify`, for tests that go on from there."""
        answer = self.notify(*users, content=content, **fields)
        if answer.status != 200:
            raise RuntimeError(f"POST /notify answered {answer.status}: {answer.body.decode()}")

    def make_token(self, user: Any, **fields: Any) -> Response:
        return self.post("/api/v2/tokens", {"user_id": user, **fields})

    def token(self, user: str, **fields: Any) -> str:
        """A token of this user, for tests that go on from there."""
        answer = self.make_token(user, **fields)
        if answer.status != 200:
            raise RuntimeError(f"POST /api/v2/tokens answered {answer.status}: {answer.body.decode()}")
        token: str = answer.json()["token"]
        return token

    def sign_out(self, user: str) -> Response:
        return self.post(f"/api/v2/users/{quote(user, safe='')}/sign-out")


def add_tenant(server: RunningServer, name: str) -> Backend:
    """A new tenant, with its first key; a running server may not know it yet."""
    return Backend(server, name, server.must_run("tenant", "add", name)["key"]["secret"])


def add_key(server: RunningServer, tenant: str, name: str, *scopes: str, expires: str = "") -> Backend:
    """A new key of a tenant; a running server may not know it yet."""
    options = [option for scope in scopes for option in ("--scope", scope)]
    options += ["--expires", expires] if expires else []
    return Backend(server, tenant, server.must_run("key", "add", tenant, name, *options)["secret"])


def known(backend: Backend) -> Backend:
    """The backend, when the server knows its key."""
    wait_until(
        lambda: b"wrong, expired" not in backend.post("/api/v2/tokens", {}).body, "the key being known"
    )
    return backend
