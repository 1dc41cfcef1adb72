"""server/openapi/ and server/ingest/schema.py: the OpenAPI document, and the page that shows it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from playwright.async_api import Browser, Page, expect
from tornado.web import Application, RequestHandler

from server import __version__
from server.app import Server
from server.openapi import MEDIA_TYPES, document
from tests.support.config import Folder
from tests.support.pages import Pages
from tests.support.running_server import Response, RunningServer

DOCUMENT = document()

ELSEWHERE = re.compile(r"/(notification|socket\.io|example|demo)(/.*)?|/(\(\))?|/api/notifications/\?")
"""What the document leaves out, and says so."""

SUMS = {
    "swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
}
"""SHA-256 of the files in the npm package swagger-ui-dist 5.35.0."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server in RELEASE."""
    folder = tmp_path_factory.mktemp("released")
    settings = {"NOTIFY_APPLICATION_CONFIGURATION": "RELEASE", "NOTIFY_MONGODB_URL": "embedded"}
    with RunningServer(folder, **settings) as server:
        yield server


# -- the document --------------------------------------------------------------------------------------------


def test_the_document_is_one() -> None:
    """As the schema of OpenAPI 3.1 has it, with the version of the server."""
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert DOCUMENT["openapi"] == "3.1.0"
    assert DOCUMENT["info"]["version"] == __version__


def _operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
    ]


def _resolved(value: Any) -> Any:
    """`value` with no references; ours never refer to themselves."""
    if isinstance(value, list):
        return [_resolved(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        found: Any = DOCUMENT
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return _resolved(found)
    return {key: _resolved(each) for key, each in value.items()}


def _examples(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each schema with an example of it."""
    if isinstance(value, list):
        for each in value:
            yield from _examples(each)
    elif isinstance(value, dict):
        schema = value.get("schema")
        if isinstance(schema, dict):
            yield from ((schema, value[key]) for key in ("example",) if key in value)
            yield from ((schema, each["value"]) for each in value.get("examples", {}).values())
        if isinstance(value.get("type"), str | list) and isinstance(value.get("examples"), list):
            yield from ((value, each) for each in value["examples"])
        for key, each in value.items():
            if key not in ("example", "examples"):
                yield from _examples(each)


def test_each_example_is_one() -> None:
    """What is shown as an example fits its schema."""
    examples = list(_examples(_resolved(DOCUMENT)))
    assert len(examples) > 100
    for schema, example in examples:
        Draft202012Validator(schema).validate(example)


def test_each_operation_says_what_it_is() -> None:
    """A summary in a line, a known tag, and more than one answer or no way to go wrong."""
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    for path, method, operation in _operations():
        assert 5 < len(operation["summary"]) < 70, path
        assert set(operation["tags"]) < tags, path
        assert operation["responses"], (path, method)


def test_nothing_is_defined_in_vain() -> None:
    """Every component is used."""
    text = json.dumps(DOCUMENT)
    for section in ("schemas", "responses", "headers"):
        for name in DOCUMENT["components"][section]:
            assert f'"#/components/{section}/{name}"' in text, name
    used = {
        name for _, _, operation in _operations() for each in operation.get("security", []) for name in each
    }
    assert used == set(DOCUMENT["components"]["securitySchemes"])


# -- the routes ----------------------------------------------------------------------------------------------


@pytest.fixture
async def application(tmp_path: Path) -> Application:
    """All that a server in DEBUG answers."""
    config = Folder(tmp_path).load(f"[APPLICATION]\ndata={tmp_path}\n")
    return Server(config)._doors.application()


def _routes(application: Application) -> list[tuple[re.Pattern[str], type[RequestHandler]]]:
    return [(rule.matcher.regex, rule.target) for rule in application.wildcard_router.rules]


def _sample(path: str) -> str:
    return path.replace("{id}", "6740c0ffee0123456789abcc").replace("{user_id}", "alice")


def _methods(handler: type[RequestHandler]) -> set[str]:
    """Those that the handler has, but for what the document sums up in a sentence."""
    names = {name.lower() for name in RequestHandler.SUPPORTED_METHODS} - {"head", "options"}
    return {name for name in names if getattr(handler, name) is not getattr(RequestHandler, name)}


async def test_every_route_is_in_the_document(application: Application) -> None:
    """With each of its methods; but for those of which the document says that it leaves them out."""
    documented = {path: set(methods) for path, methods in DOCUMENT["paths"].items()}
    for regex, handler in _routes(application):
        paths = [path for path in documented if regex.fullmatch(_sample(path))]
        if not paths:
            assert ELSEWHERE.fullmatch(re.sub(r"\\(.)", r"\1", regex.pattern).rstrip("$")), regex.pattern
        for path in paths:
            first = next(handler for regex, handler in _routes(application) if regex.fullmatch(_sample(path)))
            assert documented[path] == _methods(first), path


async def test_every_path_of_the_document_is_a_route(application: Application) -> None:
    """Also without a slash at its end, where it has one."""
    for path in DOCUMENT["paths"]:
        for each in {_sample(path), _sample(path).rstrip("/")}:
            assert any(regex.fullmatch(each) for regex, _ in _routes(application)), each


# -- over HTTP -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/schema/", "/api/schema"])
def test_the_document_is_served(server: RunningServer, path: str) -> None:
    """As JSON, for pages of all origins; who has it already is told so."""
    answer = server.get(path)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.json() == DOCUMENT
    again = server.request("GET", path, headers={"If-None-Match": answer.headers["Etag"]})
    assert (again.status, again.body) == (304, b"")


def _asked(server: RunningServer, accept: str, query: str = "") -> Response:
    return server.request("GET", f"/api/schema/{query}", headers={"Accept": accept})


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
def test_the_document_by_each_of_its_names(server: RunningServer, media_type: str) -> None:
    """What Accept asks for is what it is called, and YAML is what a reader of YAML reads."""
    answer = _asked(server, media_type)
    assert answer.headers["Content-Type"] == media_type
    assert yaml.safe_load(answer.body) == DOCUMENT


def test_the_format_in_the_query_counts_first(server: RunningServer) -> None:
    """As drf-spectacular has it; what is no format counts for nothing."""
    assert _asked(server, "application/json", "?format=yaml").headers["Content-Type"] == "application/yaml"
    assert _asked(server, "application/yaml", "?format=json").headers["Content-Type"] == "application/json"
    assert _asked(server, "", "?format=%FF").headers["Content-Type"] == "application/json"


def test_the_page_asks_nobody_else(released: RunningServer) -> None:
    """It is there in RELEASE, too; its policy lets no script stand in it, and lets it reach this server only."""
    assert released.get("/api/docs").headers["Location"] == "/api/docs/"
    answer = released.get("/api/docs/")
    assert answer.status == 200
    policy = answer.headers["Content-Security-Policy"]
    assert (
        "default-src 'none'" in policy and "script-src 'self';" in policy and "connect-src 'self';" in policy
    )
    assert not re.findall(rb"https?:|<script>", answer.body)


def test_the_vendored_files_are_unchanged(released: RunningServer) -> None:
    """They are those of the npm package, and come with their licences."""
    for name, digest in SUMS.items():
        assert hashlib.sha256(released.get(f"/api/docs/{name}").body).hexdigest() == digest, name
    folder = Path(__file__).resolve().parents[1] / "static" / "example" / "api"
    assert "Apache License" in (folder / "swagger-ui.LICENSE").read_text()
    assert "SmartBear" in (folder / "swagger-ui.NOTICE").read_text()
    assert b"swagger-ui-bundle.js.LICENSE.txt" in (folder / "swagger-ui-bundle.js").read_bytes()[:200]
    assert (folder / "swagger-ui-bundle.js.LICENSE.txt").is_file()


def test_nothing_else_of_its_folder_is_served(released: RunningServer) -> None:
    """Not the licences, not the list of files, and nothing outside of it."""
    for path in ("README.md", "swagger-ui.LICENSE", "../index.html", "index.html"):
        assert released.get(f"/api/docs/{path}").status == 404, path


def test_the_demo_page_of_the_django_service(server: RunningServer, released: RunningServer) -> None:
    """Leads to ours in DEBUG; in RELEASE there is none."""
    answer = server.get("/api/notifications/")
    assert (answer.status, answer.headers["Location"]) == (302, "/")
    assert released.get("/api/notifications/").status == 404


@pytest.mark.parametrize("path", ["/notify", "/api/notifications/send/", "/api/v2/tokens"])
def test_a_method_that_a_door_has_not_is_a_problem(server: RunningServer, path: str) -> None:
    """405, with the methods that there are (RFC 9110), and found again in the log."""
    answer = server.request("DELETE", path)
    assert answer.status == 405
    assert answer.headers["Allow"] in ("POST", "POST, OPTIONS")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Request-Id"]
    assert answer.json() == {
        "type": "about:blank",
        "title": "method_not_allowed",
        "status": 405,
        "detail": "Method Not Allowed",
    }


# -- the page ------------------------------------------------------------------------------------------------


@pytest.fixture
async def pages(browser: Browser) -> AsyncIterator[Pages]:
    async with Pages(browser) as pages:
        yield pages


async def shown(pages: Pages, server: RunningServer) -> Page:
    page = await pages.open(f"{server.url}/api/docs/")
    await expect(page.get_by_role("heading", name="notification-server")).to_be_visible()
    return page


async def test_the_page_shows_every_operation(pages: Pages, released: RunningServer) -> None:
    """With nothing in the browser's console, and no request to anybody else."""
    page = await pages.open("about:blank")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.goto(f"{released.url}/api/docs/")
    await expect(page.locator(".opblock")).to_have_count(len(_operations()))
    for _, _, operation in _operations():
        await expect(page.get_by_text(operation["summary"], exact=True).first).to_be_visible()
    assert asked and all(url.startswith((f"{released.url}/", "data:", "blob:")) for url in asked), asked


async def test_try_it_out(pages: Pages, server: RunningServer) -> None:
    """The page sends the notification of the example, and shows the answer."""
    page = await shown(pages, server)
    notify = page.locator(".opblock", has_text="Publish to any number of users")
    await notify.locator(".opblock-summary-control").click()
    await notify.get_by_role("button", name="Try it out").click()
    async with page.expect_request("**/notify*") as sent:
        await notify.get_by_role("button", name="Execute").click()
    request = await sent.value
    assert request.url == f"{server.url}/notify"
    assert request.post_data_json["title"] == "Order shipped"
    answer = await request.response()
    assert answer is not None and answer.status == 200
    await expect(notify.locator(".live-responses-table td.response-col_status").last).to_have_text("200")


async def test_try_it_out_with_a_form(pages: Pages, server: RunningServer) -> None:
    """As a form, the same fields reach the door as texts."""
    page = await shown(pages, server)
    notify = page.locator(".opblock", has_text="Publish to any number of users")
    await notify.locator(".opblock-summary-control").click()
    await notify.get_by_role("button", name="Try it out").click()
    await notify.get_by_label("Request content type").select_option("application/x-www-form-urlencoded")
    async with page.expect_request("**/notify*") as sent:
        await notify.get_by_role("button", name="Execute").click()
    request = await sent.value
    answer = await request.response()
    assert answer is not None and answer.status == 200, await answer.text() if answer else ""
