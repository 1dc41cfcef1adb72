"""A running server with several tenants, and their users."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.backends import Backend, add_key, add_tenant, known
from tests.support.client import SocketClient
from tests.support.command import store_settings
from tests.support.running_server import RunningServer
from tests.support.sockjs_clients import DOORS

ALL_SCOPES = ("publish", "listen", "admin")


@dataclass(frozen=True)
class House:
    """A running server with three tenants, and a backend for each."""

    server: RunningServer
    store: Mapping[str, str]
    """The settings that name its store."""
    default: Backend
    a: Backend
    b: Backend

    @property
    def tenants(self) -> tuple[Backend, ...]:
        """In the order of their fields."""
        return self.default, self.a, self.b


@contextmanager
def open_house(kind: str, request: pytest.FixtureRequest, folder: Path, **settings: str) -> Iterator[House]:
    """A house on a store of this kind, which is empty. `folder`: as of RunningServer; `settings`: more of them."""
    with store_settings(kind, request) as store, RunningServer(folder, **store, **settings) as server:
        backends = (
            add_key(server, "default", "own", *ALL_SCOPES),
            add_tenant(server, "a"),
            add_tenant(server, "b"),
        )
        yield House(server, store, *map(known, backends))


@asynccontextmanager
async def joined(backend: Backend, user: str, door: str = "websocket") -> AsyncIterator[SocketClient]:
    """The tenant's user of this id, welcomed."""
    async with DOORS[door](backend.server) as client:
        await client.join_by_token(backend.token(user))
        yield client


async def inbox(backend: Backend, user: str) -> list[dict[str, Any]]:
    """What the tenant's user has, newest first."""
    async with joined(backend, user) as client:
        return await client.content(limit=100)


def contents(documents: list[dict[str, Any]]) -> list[str]:
    return [document["content"] for document in documents]
