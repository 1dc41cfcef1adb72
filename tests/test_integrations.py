"""Every example of docs/integrations/, run as it stands there against a running server: what it publishes is in the
inbox, and comes to the page's own example of listening. What is different here are ports, keys and addresses only.

docs/integrations/python.md is tested in test_client_py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.backends import Backend, known
from tests.support.feeds import user_token
from tests.support.guides import FOLDER, Guide, chapters, story
from tests.support.passwords import cheap_hash
from tests.support.ports import free_port
from tests.support.processes import wait_until
from tests.support.rabbitmq import RabbitMQServer
from tests.support.recipes import SECRET, Place, Recipe
from tests.support.redis_server import RedisServer

pytestmark = [pytest.mark.servers, pytest.mark.node]

LANGUAGES = {"curl": "sh", "redis-cli": "sh", "Python": "python", "Node": "js", "PHP": "php", "Go": "go"}
"""Headings of examples, and what their blocks are marked as."""

RELEASE = {
    "NOTIFY_APPLICATION_CONFIGURATION": "RELEASE",
    "NOTIFY_MONGODB_URL": "embedded",
    "NOTIFY_USERS_ALICE": "",
}
NO_KEYLESS = {"NOTIFY_APPLICATION_PUBLISH_WITHOUT_KEY": "false"}


def place(folder: Path, replace: dict[str, str] | None = None, **settings: str) -> Place:
    """9000 is in none of these pages."""
    return Place(folder, {"9000": "9000", **(replace or {})}, **settings)


def new_key(guide: Guide, tenant: str, block: str) -> Backend:
    """Who has the key that these commands export."""
    guide.place.run(block)
    return known(Backend(guide.place.server, tenant, guide.place.run("echo $KEY").strip()))


# -- the pages -----------------------------------------------------------------------------------------------
def released(folder: Path) -> Place:
    """As in production, where nobody publishes who is not let in."""
    settings = {"CONFIGURATION": "RELEASE"}
    environment = {f"NOTIFY_APPLICATION_{name}": value for name, value in settings.items()}
    return place(folder, NOTIFY_MONGODB_URL="embedded", NOTIFY_USERS_alice=cheap_hash("alice"), **environment)


@contextmanager
def webservice_notification(folder: Path) -> Iterator[Guide]:
    page = story("webservice-notification")
    with Guide("webservice-notification", released(folder), lambda document: [[document]]) as guide:
        guide.place.serve(page.take("ini"))
        guide.kept = {"config": page.take("ini"), "with the key": page.take("sh")}
        guide.listen(page.take("js"))
        page.end()
        yield guide


@contextmanager
def redis_hub(folder: Path) -> Iterator[Guide]:
    page = story("redis-hub")
    with RedisServer() as redis:
        here = {
            f"{before}6379": f"{before}{redis.port}"
            for before in (":", "-p ", "port=", "'127.0.0.1', ")
        }
        with Guide("redis-hub", place(folder, here), _hub_shows) as guide:
            guide.place.serve(page.take("ini"))
            log = guide.place.server
            wait_until(lambda: "consuming from Redis" in log.log, "the server listening to Redis")
            guide.users = {"alice": user_token("alice", secret=SECRET)}
            guide.listen(page.take("js"), token=user_token("alice", secret=SECRET))
            page.end()
            yield guide


def _hub_shows(document: dict[str, Any]) -> list[Any]:
    return ["notification", document["data"], document["createdAt"]]


@contextmanager
def django_service(folder: Path) -> Iterator[Guide]:
    page, rabbitmq = story("django-service"), Recipe(chapters("django-service")["RabbitMQ"])
    ports = [str(free_port()), str(free_port())]
    with RabbitMQServer() as broker:
        here = {
            "also_listen=8002 8003": f"also_listen={' '.join(ports)}",
            "127.0.0.1:8002": f"127.0.0.1:{ports[0]}",
            ":5672": f":{broker.port}",
            ", 5672": f", {broker.port}",
        }
        with Guide("django-service", place(folder, here), lambda document: [document["data"]]) as guide:
            guide.place.serve(page.take("ini") + rabbitmq.take("ini"))
            server = guide.place.server
            wait_until(lambda: "consuming from RabbitMQ" in server.log, "the server listening to RabbitMQ")
            guide.kept = {"without a key": page.take("sh"), "port": ports[1]}
            guide.backend = new_key(guide, "default", page.take("sh"))
            identity = json.loads(guide.place.run(page.take("sh")))["identity"]
            guide.listen(page.take("js"), identity=identity)
            page.end()
            yield guide


@contextmanager
def internal_api(folder: Path) -> Iterator[Guide]:
    page = story("internal-api")
    with Guide("internal-api", place(folder, **NO_KEYLESS), lambda document: [document["data"]]) as guide:
        make_key = page.take("sh")
        guide.place.serve(page.take("ini"))
        guide.backend = new_key(guide, "default", make_key)
        guide.users = {user: user_token(user, secret=SECRET) for user in ("alice", "7")}
        guide.listen(page.take("js"), token=user_token("alice", secret=SECRET))
        page.end()
        yield guide


@contextmanager
def multi_tenant(folder: Path) -> Iterator[Guide]:
    page = story("multi-tenant")
    port = str(free_port())
    here = {"also_listen=8000": f"also_listen={port}"}
    with Guide("multi-tenant", place(folder, here, **NO_KEYLESS), _tenant_shows) as guide:
        guide.place.serve(page.take("ini"))
        guide.kept = {"port": port}
        guide.backend = new_key(guide, "acme", page.take("sh"))
        guide.users = {"alice": guide.backend.token("alice")}
        example = page.take("js")
        key = guide.place.run(page.take("sh")).strip()
        known(Backend(guide.place.server, "acme", key))
        guide.listen(example, key=key)
        page.end()
        yield guide


def _tenant_shows(document: dict[str, Any]) -> list[Any]:
    return [document["title"], document["content"], document["data"], document["createdAt"]]
