"""The plan of the house (docs/architecture.md), as rules that the imports are held against."""

from __future__ import annotations

import ast
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = {
    "PURE": "errors ids revs rates grants claims certificates messages moments payloads requests parsers idempotency"
    " commands commands_v2 since wire wire_v2 dialects requests_v2 requests_batch requests_plain openapi openapi.*"
    " accept affinity callers bus tasks flights arrivals assets mail_message reasons request_id methods config"
    " config.*",
    "PORTS": "store store.broadcasts store.deliveries store.backup store.directory store.fsck store.mail"
    " store.retention mail_transport metrics tallies exposition figures checks",
    "CORE 1": "credentials passwords guessing auth users rooms scan sign_outs tenants limits publishers http_client"
    " redis_client",
    "CORE 2": "backplane presence cluster cluster.link cluster.codec cluster.outgoing cluster.repeats cluster.gaps"
    " cluster.asking cluster.backplane",
    "CORE 3": "notifier broadcaster retention inbox sync counts marks mailing outbox sweep",
    "CORE 4": "screen session conversations conversations.* feed feed_screen stream_feed inbox_feed",
    "EDGES": "store.sqlite* store.mongo* folder_lock smtp mail_folder ingest ingest.* logins logins.* tokens tokens.*"
    " transports transports.* admin health cluster.redis* cluster.mongodb",
    "ROOT": "__init__ __main__ app wiring consumers doors publish_port entrance reloading sign_in process event_loop"
    " greeting listening streams relocation tls security_headers service_manager workers workers.*"
    " cli cli.* logs conformance conformance.* torture torture.*",
}
"""A module imports its own layer and those above it in this list."""

EDGES = [
    "store.sqlite* folder_lock",
    "store.mongo*",
    "smtp",
    "mail_folder",
    "ingest ingest.*",
    "logins logins.sql*",
    "logins.hook*",
    "tokens tokens.* logins.token*",
    "transports transports.*",
    "admin",
    "health",
    "cluster.redis*",
    "cluster.mongodb",
]
"""An edge may be several modules; it never imports another edge."""

HOMES = {
    "aio_pika": "ingest.rabbitmq* torture.brokers",
    "pamqp": "ingest.rabbitmq_link",
    "argon2": "passwords",
    "bcrypt": "passwords",
    "bson": "store.mongo* cluster.mongodb",
    "cryptography": "tokens.keys tls",
    "httptools": "ingest.lane.protocol",
    "jwt": "tokens.*",
    "msgspec": "messages requests requests_v2 requests_batch requests_plain openapi openapi.* cluster.codec",
    "pymongo": "store.mongo* cluster.mongodb torture.mongod",
    "aiosmtpd": "torture.sink",
    "aiosmtplib": "smtp",
    "aiohappyeyeballs": "smtp",
    "redis": "redis_client ingest.redis cluster.redis*",
    "prometheus_client": "metrics tallies exposition figures",
    "sockjs": "transports.sockjs*",
    "sqlalchemy": "logins.sql*",
    "tornado": "ingest.* transports.* admin health methods http_client app doors entrance relocation streams"
    " security_headers torture.lines conformance.lines conformance.stage conformance.target",
    "pydispatch": "bus counts metrics app",
    "uvloop": "event_loop",
}
"""Where each library from outside may be imported; pydispatch where signals are heard. There are no others."""

IO = {
    "asyncio",
    "concurrent",
    "http",
    "multiprocessing",
    "selectors",
    "socket",
    "sqlite3",
    "subprocess",
    "threading",
}
WITHOUT_IO = (
    "errors ids revs rates grants claims certificates messages payloads parsers idempotency commands"
    " commands_v2 since wire wire_v2 dialects accept callers bus mail_message"
)
"""PURE but for the owner of tasks, and what looks for files and the name of the machine."""

OWNERS = "tasks store.mongo_batches store.sqlite logins.sql_database http_client transports.events torture.*"
"""Who starts tasks: all others have `tasks.Tasks` do it, or `tasks.first_of`. These see to the end of theirs."""

MAX_LINES = 400


def _name(path: Path) -> str:
    """`store.sqlite` for server/store/sqlite.py, `store` for server/store/__init__.py."""
    parts = path.relative_to(ROOT / "server").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"


MODULES = {_name(path): path for path in sorted((ROOT / "server").rglob("*.py"))}

each_module = pytest.mark.parametrize("module", MODULES)


def _is_in(module: str, patterns: str) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns.split())


def _layer(module: str) -> int:
    [layer] = [number for number, patterns in enumerate(LAYERS.values()) if _is_in(module, patterns)]
    return layer


def _edge(module: str) -> int:
    [edge] = [number for number, patterns in enumerate(EDGES) if _is_in(module, patterns)]
    return edge


def _imports(module: str) -> set[str]:
    """The dotted names of all that a module imports, wherever in it that stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _own_imports(module: str) -> set[str]:
    """The modules of the server among them; a name in a module counts as the module."""
    names = [name.removeprefix("server.") for name in _imports(module) if name.startswith("server.")]
    return {name if name in MODULES else name.rpartition(".")[0] or "__init__" for name in names}


def _libraries(module: str) -> set[str]:
    return {name.partition(".")[0] for name in _imports(module)} - {"server"}


@each_module
def test_a_module_has_its_place(module: str) -> None:
    """Each stands in exactly one layer, and each of the edges in exactly one edge."""
    if list(LAYERS)[_layer(module)] == "EDGES":
        _edge(module)


@each_module
def test_imports_point_up_only(module: str) -> None:
    """To the own layer, or to one above it."""
    below = {name for name in _own_imports(module) - {"__init__"} if _layer(name) > _layer(module)}
    assert not below


@each_module
def test_edges_never_import_each_other(module: str) -> None:
    """A store knows no transport, a door no mail server."""
    edges = {name for name in {module} | _own_imports(module) if _is_in(name, LAYERS["EDGES"])}
    if module in edges:
        assert {_edge(name) for name in edges} == {_edge(module)}


@each_module
def test_each_library_has_one_home(module: str) -> None:
    """What replaces a library replaces it there."""
    foreign = _libraries(module) - sys.stdlib_module_names
    assert {library for library in foreign if not _is_in(module, HOMES.get(library, ""))} == set()


@pytest.mark.parametrize("module", WITHOUT_IO.split())
def test_what_is_without_io_imports_none(module: str) -> None:
    """It can be tested, and read, without anything running."""
    assert not _libraries(module) & IO


@each_module
def test_a_module_says_what_it_is_for(module: str) -> None:
    """In its first line, and in few enough lines altogether."""
    text = MODULES[module].read_text()
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= MAX_LINES


@each_module
def test_a_task_has_an_owner_that_sees_to_its_end(module: str) -> None:
    """Also where a cancellation gets lost: a TaskGroup cancels once, and `wait_for` loses them (Python 3.11)."""
    used = {
        node.attr
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.Attribute)
    }
    assert not used & {"TaskGroup", "wait_for"}
    assert not used & {"create_task", "ensure_future"} or _is_in(module, OWNERS)


def test_the_rules_speak_of_what_there_is() -> None:
    """A rule about a module or library that is gone is a mistake of these tables."""
    for patterns in [*LAYERS.values(), *EDGES, *HOMES.values(), OWNERS]:
        for pattern in patterns.split():
            assert any(fnmatchcase(module, pattern) for module in MODULES), pattern
    assert set(HOMES) <= set().union(*map(_libraries, MODULES))
