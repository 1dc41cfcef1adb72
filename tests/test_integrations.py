"""Every example of docs/integrations/, run as it stands there against a running server: what it publishes is in the
inbox, and comes to the page's own example of listening. What is different here are ports, keys and addresses only.

docs/integrations/python.md is tested in test_client_py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.backends import Backend, known
from tests.support.feeds import send, user_token
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

NO_KEYLESS = {"NOTIFY_APPLICATION_PUBLISH_WITHOUT_KEY": "false"}


def place(folder: Path, replace: dict[str, str], **settings: str) -> Place:
    """9000 is in none of these pages."""
    return Place(folder, {"9000": "9000", **replace}, **settings)


def new_key(guide: Guide, tenant: str, block: str) -> Backend:
    """Who has the key that these commands export."""
    guide.place.run(block)
    return known(Backend(guide.place.server, tenant, guide.place.run("echo $KEY").strip()))


# -- the pages -----------------------------------------------------------------------------------------------
def released(folder: Path) -> Place:
    """As in production, where nobody publishes who is not let in."""
    return place(
        folder,
        {},
        NOTIFY_APPLICATION_CONFIGURATION="RELEASE",
        NOTIFY_MONGODB_URL="embedded",
        NOTIFY_USERS_alice=cheap_hash("alice"),
    )


@contextmanager
def webservice_notification(folder: Path) -> Iterator[Guide]:
    page = story("webservice-notification")
    with Guide("webservice-notification", released(folder), lambda document: [[document]]) as guide:
        guide.place.serve(page.take("ini"))
        guide.kept = {"config": page.take("ini"), "with the key": page.take("sh"), "listen": page.take("js")}
        guide.listen(guide.kept["listen"])
        page.end()
        yield guide


@contextmanager
def redis_hub(folder: Path) -> Iterator[Guide]:
    page = story("redis-hub")
    with RedisServer() as redis:
        befores = (":", "-p ", "port=", "'127.0.0.1', ")
        here = {f"{before}6379": f"{before}{redis.port}" for before in befores}
        with Guide("redis-hub", place(folder, here), _hub_shows) as guide:
            guide.place.serve(page.take("ini"))
            server = guide.place.server
            wait_until(lambda: "consuming from Redis" in server.log, "the server listening to Redis")
            guide.broker = redis
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
    with Guide("internal-api", place(folder, {}, **NO_KEYLESS), lambda document: [document["data"]]) as guide:
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


PAGES = {
    "webservice-notification": webservice_notification,
    "redis-hub": redis_hub,
    "django-service": django_service,
    "internal-api": internal_api,
    "multi-tenant": multi_tenant,
}

TOLD: dict[str, dict[str, Any]] = {
    "webservice-notification": {"title": "Order shipped", "content": "It arrives tomorrow."},
    "redis-hub": {"data": {"title": "Order shipped", "message": "It arrives tomorrow."}},
    "django-service": {"data": {"title": "Order shipped", "order": 7}},
    "internal-api": {"data": {"type": "booking", "title": "Booking confirmed"}, "type": "booking"},
    "multi-tenant": {"title": "Maintenance", "content": "Tonight at ten", "type": "alert"},
}
"""What the examples of a page publish."""


def told(guide: Guide, document: dict[str, Any]) -> dict[str, Any]:
    """What the document says of that."""
    return {name: document.get(name) for name in TOLD[guide.page]}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Guide]]:
    """Follows each page that is asked for once."""
    guides: dict[str, Guide] = {}
    with ExitStack() as stack:

        def follow(page: str) -> Guide:
            if page not in guides:
                guides[page] = stack.enter_context(PAGES[page](tmp_path_factory.mktemp(page)))
            return guides[page]

        yield follow


@pytest.fixture
def guide(request: pytest.FixtureRequest, opened: Callable[[str], Guide]) -> Guide:
    """A page that was followed up to its examples of publishing, and listens."""
    return opened(request.param)


def following(page: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("guide", [page], indirect=True)


# -- the examples --------------------------------------------------------------------------------------------
def test_every_block_is_run() -> None:
    """Each page has an example in each language; what else there is to run has a test below."""
    by_itself = {"django-service": {"RabbitMQ"}, "multi-tenant": {"How far it got"}}
    for page in PAGES:
        runnable = {heading for heading, text in chapters(page).items() if "```" in text}
        assert runnable - LANGUAGES.keys() == by_itself.get(page, set())
        assert {"Python", "Node", "PHP", "Go"} < runnable
        assert len(runnable & {"curl", "redis-cli"}) == 1
    pages = {file.stem for file in FOLDER.glob("*.md") if "### PHP" in file.read_text("utf-8")}
    assert pages == PAGES.keys()


@pytest.mark.parametrize(
    ("guide", "language"),
    [(page, heading) for page in PAGES for heading in chapters(page) if heading in LANGUAGES],
    indirect=["guide"],
)
def test_example(guide: Guide, language: str) -> None:
    """It publishes what it says, to those whom it names."""
    recipe = Recipe(guide.chapters[language])
    _, document = guide.publish(LANGUAGES[language], recipe.take(LANGUAGES[language]))
    recipe.end()
    assert told(guide, document) == TOLD[guide.page]
    assert document["_userId"] == "alice"


# -- pages that only listen ----------------------------------------------------------------------------------
def test_socketio(tmp_path: Path) -> None:
    """The example of socketio.md: what waited, what is new, and why it ends."""
    page = Recipe((FOLDER / "socketio.md").read_text("utf-8"))
    with Guide("socketio", place(tmp_path, {}, NOTIFY_JWT_SECRET=SECRET), _hub_shows) as guide:
        guide.place.serve()
        server = guide.place.server
        send(server, "alice", {"n": 1})
        get_token = "const getToken = async () => token;\n"
        guide.listen(get_token + page.take("js"), token=user_token("alice", secret=SECRET))
        page.end()
        send(server, "alice", {"n": 2})
        wait_until(lambda: [{"n": 2}] in guide.heard(), "what is new")
        assert server.run("user", "sign-out", "alice").returncode == 0
        wait_until(lambda: ["the server ends this: 3501 signed_out"] in guide.heard(), "the end")
        payloads = [line for line in guide.heard() if isinstance(line[0], dict)]
        assert payloads == [[{"n": 1}], [{"n": 2}]]


def test_sse(tmp_path: Path) -> None:
    """The command of sse.md shows the stream. (Its script for pages is run in a browser, in test_events_door.)"""
    page = Recipe((FOLDER / "sse.md").read_text("utf-8"))
    with Guide("sse", place(tmp_path, {}, NOTIFY_JWT_SECRET=SECRET), _hub_shows) as guide:
        guide.place.serve()
        send(guide.place.server, "alice", {"n": 1})
        token = user_token("alice", secret=SECRET)
        guide.place.run_beside(f"TOKEN={token}\nexec > stream.log\n{page.take('sh')}")
        shown = tmp_path / "stream.log"
        wait_until(lambda: shown.exists() and "event: count" in shown.read_text("utf-8"), "the listing")
        send(guide.place.server, "alice", {"n": 2})
        wait_until(lambda: '"data":{"n":2}' in shown.read_text("utf-8"), "what is new")
        assert shown.read_text("utf-8").index('"data":{"n":1}') < shown.read_text("utf-8").index(
            "event: count"
        )


# -- webservice-notification ---------------------------------------------------------------------------------
@following("webservice-notification")
def test_other_addresses_than_loopback(guide: Guide) -> None:
    """Pages get there by them, too."""
    # On Linux that is another address of this machine, at which nothing answers that listens at 127.0.0.1 only.
    curl = f"curl -s http://127.0.0.2:{guide.place.server.port}/healthz"
    assert json.loads(guide.run("sh", curl)) == {"status": "ok"}


@following("webservice-notification")
def test_a_key_in_config_ini(guide: Guide, tmp_path: Path) -> None:
    """It opens the door for who sends it, and nobody else."""
    with Guide(guide.page, released(tmp_path), guide.shown) as keyed:
        keyed.place.serve(guide.kept["config"])
        assert "API Key refused" in keyed.run("sh", f"SECRET=wrong\n{guide.kept['with the key']}")
        keyless = Recipe(guide.chapters["curl"]).take("sh")
        assert keyed.run("sh", keyless).strip()
        keyed.place.run(f"SECRET={SECRET}")
        keyed.listen(guide.kept["listen"])
        keyed.publish("sh", guide.kept["with the key"])


# -- the Redis hub -------------------------------------------------------------------------------------------
@following("redis-hub")
def test_health_shows_redis(guide: Guide) -> None:
    """As the hub did, and `/metrics` counts what came from it. Load balancers, who ask `/readyz`, go on sending."""
    server = guide.place.server

    def redis_is(status: str) -> bool:
        answer = server.get("/health")
        is_up = answer.json()["redis"]["status"] == "connected"
        assert (answer.status, answer.json()["status"]) == ((200, "healthy") if is_up else (503, "degraded"))
        assert server.get("/readyz").status == 200
        return bool(answer.json()["redis"]["status"] == status)

    def received() -> int:
        count: int = server.get("/metrics").json()["messages"]["received_from_redis"]
        return count

    wait_until(lambda: redis_is("connected"), "Redis being seen")
    guide.publish("sh", Recipe(guide.chapters["redis-cli"]).take("sh"))
    wait_until(lambda: received() == len(guide.heard()) - 1, "all being counted")
    guide.broker.kill()
    wait_until(lambda: redis_is("disconnected"), "Redis being missed")
    guide.broker.start()
    wait_until(lambda: redis_is("connected"), "Redis being back")


# -- the Django service --------------------------------------------------------------------------------------
@following("django-service")
def test_the_old_ports_and_no_key(guide: Guide) -> None:
    """What backends on this machine sent before works without a change, and the WebSocket's port answers, too."""
    _, document = guide.publish("sh", guide.kept["without a key"])
    assert told(guide, document) == TOLD[guide.page]
    curl = f"curl -s http://127.0.0.1:{guide.kept['port']}/healthz"
    assert json.loads(guide.run("sh", curl)) == {"status": "ok"}


@following("django-service")
def test_rabbitmq(guide: Guide) -> None:
    """A message to the exchange."""
    recipe = Recipe(guide.chapters["RabbitMQ"])
    recipe.take("ini")
    _, document = guide.publish("python", recipe.take("python"))
    recipe.end()
    assert told(guide, document) == TOLD[guide.page]


@following("django-service")
def test_the_page_acknowledges(guide: Guide) -> None:
    """What the page's example was sent counts as delivered."""
    recipe = Recipe(guide.chapters["curl"])
    _, document = guide.publish("sh", recipe.take("sh"))
    path = f"/api/notifications/{document['nid']}/deliveries"

    def is_delivered() -> bool:
        answer = guide.place.server.request("GET", path, headers=guide.backend.credentials).json()
        return [delivery["status"] for delivery in answer["deliveries"]] == ["delivered"]

    wait_until(is_delivered, "the acknowledgement being stored")


# -- the multi-tenant service --------------------------------------------------------------------------------
@following("multi-tenant")
def test_the_old_port(guide: Guide) -> None:
    """The server listens on it, too."""
    curl = f"curl -s http://127.0.0.1:{guide.kept['port']}/healthz"
    assert json.loads(guide.run("sh", curl)) == {"status": "ok"}


@following("multi-tenant")
def test_how_far_it_got(guide: Guide) -> None:
    """As curl shows it for what curl has published."""
    printed, document = guide.publish("sh", Recipe(guide.chapters["curl"]).take("sh"))
    answer = json.loads(printed)
    assert answer == {"status": "broadcasted", "id": document["nid"]}
    recipe = Recipe(guide.chapters["How far it got"])
    block = recipe.take("sh")
    recipe.end()
    found = json.loads(guide.run("sh", f"ID={answer['id']}\n{block}"))
    [delivery] = found["deliveries"]
    assert (delivery["user_id"], delivery["status"], found["next"]) == ("alice", "sent", None)
