"""docs/scaling.md: what it says to write can be started, and what it names is there."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from server.store.mongo_connection import Connection
from server.store.mongo_documents import INBOX_INDEXES
from tests.support.certificates import CertificateAuthority
from tests.support.mongod import Mongod
from tests.support.ports import free_port
from tests.support.processes import Process, wait_until
from tests.support.proxies import NAME, Nginx, advised_settings, shipped
from tests.support.recipes import SECRET, Recipe, sections
from tests.support.redis_server import RedisServer
from tests.support.running_server import RunningServer
from tests.support.servers import server_program

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scaling.md"
TEXT = PAGE.read_text("utf-8")

STEPS = sections(PAGE)
EMBEDDED = ("One process", "A publishing port and uvloop")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


def config_of(step: str, replaced: dict[str, str]) -> str:
    """The config.ini of a step, with what is another one here."""
    recipe = Recipe(STEPS[step])
    text = recipe.take("ini").replace("=…", f"={SECRET}")
    recipe.end()
    for old, new in replaced.items():
        text = text.replace(old, new)
    return text


def starts(folder: Path, config: str) -> None:
    """What is in force is shown without a mistake; the server becomes ready, takes a notification, and ends."""
    file = folder / "config.ini"
    file.write_text(config, "utf-8")
    argv = [sys.executable, "-m", "server", "check-config", "--config", str(file)]
    checked = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with RunningServer(folder, arguments=["--config", str(file)]) as server:
        # All that it depends on is there: the store, the backplane.
        wait_until(lambda: server.get("/readyz").json()["status"] == "ready", "all being well")
        headers = {"Authorization": f"Api-Key {SECRET}", "Content-Type": "application/json"}
        body = json.dumps({"users": [{"id": "alice"}], "content": "It scales"}).encode()
        assert server.request("POST", "/notify", body, headers).status == 200
        assert server.stop() == 0


def test_each_step_has_one_configuration() -> None:
    """And there are no others."""
    assert len(blocks("ini")) == len(STEPS)
    assert set(EMBEDDED) < set(STEPS)


@pytest.mark.parametrize("step", EMBEDDED)
def test_a_step_on_one_process(tmp_path: Path, step: str) -> None:
    starts(tmp_path, config_of(step, {"8588": str(free_port())}))


@pytest.mark.parametrize("step", sorted(set(STEPS) - set(EMBEDDED)))
def test_a_step_with_mongodb(
    tmp_path: Path, mongod_replica_set: Mongod, redis_server: RedisServer, step: str
) -> None:
    """Each in a database of its own."""
    name = f"test_scaling_{re.sub('[^a-z]', '_', step.lower())}"
    replaced = {
        "mongodb://127.0.0.1:27017/?replicaSet=rs0": mongod_replica_set.url,
        "redis://127.0.0.1:6379/1": redis_server.url(1),
        "db=notifications": f"db={name}",
        "address=0.0.0.0": "address=127.0.0.1",
    }
    try:
        starts(tmp_path, config_of(step, replaced))
    finally:
        with mongod_replica_set.client() as client:
            client.drop_database(name)


def test_the_balancer_reaches_the_nodes_and_is_believed() -> None:
    """What deploy/haproxy.cfg wants of each node is there on several machines, and it is none of them itself."""
    wanted = advised_settings("haproxy.cfg").split()[1:]
    assert {line.partition("=")[0] for line in wanted} == {"address", "trusted_proxies", "hosts"}
    assert set(wanted) <= set(config_of("Several machines", {}).split())
    [proxy] = [line.partition("=")[2] for line in wanted if line.startswith("trusted_proxies=")]
    nodes = set(re.findall(r"^ *server \w+ ([\d.]+):8587", shipped("haproxy.cfg"), flags=re.MULTILINE))
    assert len(nodes) == 3 and proxy not in nodes


@pytest.mark.servers
def test_a_browser_has_all_its_streams_on_one_connection(tmp_path: Path) -> None:
    """It opens six of HTTP/1.1 at most, for all its tabs. HAProxy with its file as it is, but for port and paths."""
    authority = CertificateAuthority(tmp_path / "authority")
    pair = authority.server_pair([NAME])
    (tmp_path / "both.pem").write_bytes(pair.cert.read_bytes() + pair.key.read_bytes())
    port = free_port()
    paths = {":443": f"127.0.0.1:{port}", f"/etc/ssl/{NAME}.pem": str(tmp_path / "both.pem")}
    file = tmp_path / "haproxy.cfg"
    file.write_text(shipped("haproxy.cfg", **paths, **{"maxconn 100000": "maxconn 100"}))
    haproxy = Process([server_program("haproxy", "haproxy"), "-db", "-f", file], log=tmp_path / "log")
    haproxy.start()
    try:

        def is_up() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(is_up, "HAProxy listening")
        context = authority.client_context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain, server_hostname=NAME) as connection,
        ):
            assert connection.selected_alpn_protocol() == "h2"
    finally:
        haproxy.kill()


class NginxOfNodes(Nginx):
    """With the `upstream` of the docs, for several nodes; these are their ports."""

    def __init__(self, ports: Sequence[int], authority: CertificateAuthority) -> None:
        self._ports = ports
        super().__init__(ports[0], authority)

    def _write_configuration(self) -> None:
        super()._write_configuration()
        [block] = blocks("nginx")
        nodes = "".join(f"    server 127.0.0.1:{port};\n" for port in self._ports)
        block, count = re.subn(r"(?:    server [^\n]*\n){3}", nodes, block)
        assert count == 1
        file = self.folder / "notification.conf"
        text, count = re.subn(r"(?ms)^upstream .*?^}\n", lambda _: block, file.read_text())
        assert count == 1
        file.write_text(text)


@pytest.mark.servers
def test_nginx_keeps_a_session_on_its_node(tmp_path: Path) -> None:
    """Whose requests would be of no use to another one; all nodes have some."""
    authority = CertificateAuthority(tmp_path / "authority")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    settings = {"NOTIFY_APPLICATION_TRUSTED_PROXIES": "127.0.0.1", "NOTIFY_APPLICATION_HOSTS": NAME}
    with (
        RunningServer(tmp_path / "one", **settings) as one,
        RunningServer(tmp_path / "two", **settings) as two,
        NginxOfNodes([one.port, two.port], authority) as proxy,
    ):
        place = proxy.place()
        for number in range(32):
            path = f"/notification/000/s{number}"
            assert place.request("POST", f"{path}/xhr", b"").body == b"o\n"
            for _ in range(3):
                assert place.request("POST", f"{path}/xhr_send", b'["{}"]').status == 204
        for node in (one, two):
            assert node.get("/health").json()["websocket"]["active_connections"] > 0
        path = "/socket.io/?EIO=4&transport=polling"
        for _ in range(4):
            opened = place.request("GET", path)
            sid = json.loads(opened.body[1:])["sid"]
            assert place.request("POST", f"{path}&sid={sid}", b"40").status == 200


@pytest.mark.servers
def test_haproxy_takes_the_way_to_redis(tmp_path: Path) -> None:
    [block] = blocks("haproxy")
    file = tmp_path / "haproxy.cfg"
    file.write_text(block)
    checked = subprocess.run(
        [server_program("haproxy", "haproxy"), "-c", "-f", file], capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="names of Linux")
def test_the_kernel_has_what_is_set() -> None:
    [block] = blocks("sysctl")
    for line in block.splitlines():
        name, _, value = line.partition(" = ")
        assert Path("/proc/sys", *name.split(".")).exists(), name
        assert re.fullmatch(r"\d+( \d+)?", value), line


def test_every_collection_has_its_shard_key() -> None:
    """A row of the table names it, and whoever shards it."""
    names = set(Connection.__annotations__) - {"is_router", "documents"}
    rows = "\n".join(line for line in TEXT.splitlines() if line.startswith("| "))
    assert {name for name in names if f"`_{name}`" not in rows} == set()
    [commands] = blocks("js")
    sharded = set(re.findall(r'"notifications\.notifications(\w*)", (\{.*?\})\)', commands))
    assert all(f"`{key}`" in rows for _, key in sharded)
    assert {name for name, _ in sharded} <= {"", *(f"_{name}" for name in names)}


def test_the_shard_key_of_documents_has_an_index() -> None:
    """One of all documents that begins with it; and no index is unique, which would have to begin with it, too."""
    found = [index.document for index in INBOX_INDEXES]
    begins = [
        each["name"]
        for each in found
        if list(each["key"])[:2] == ["tenant", "_userId"] and "partialFilterExpression" not in each
    ]
    assert begins == ["changes"]
    assert not any(each.get("unique") for each in found)


def test_metrics_that_are_named_exist() -> None:
    [of_nginx] = blocks("nginx")  # names of its own
    text = TEXT.replace(of_nginx, "")
    named = set(re.findall(r"\b(?:notification|process)_[a-z_]+[a-z]\b(?!\.)", text))
    known = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
    assert {name for name in named if f"`{name}`" not in known} == set()
