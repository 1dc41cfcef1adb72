"""The systemd unit of deploy/, and the commands of docs/deployment.md."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pytest
from websockets.asyncio.client import connect

from server.passwords import hash_password
from server.service_manager import tell_manager
from tests.support.client import SocketClient
from tests.support.ports import free_port
from tests.support.processes import Process
from tests.support.running_server import RunningServer
from tests.support.servers import server_program

ROOT = Path(__file__).resolve().parents[1]

KEY = "key-of-the-backend"


# -- the service manager -------------------------------------------------------------------------------------


def test_a_manager_is_told_by_whatever_address_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A path, or an abstract one; that there is none any more hurts nobody."""
    abstract = f"notification-{os.getpid()}-{os.urandom(4).hex()}"
    for bound, address in ((f"\0{abstract}", f"@{abstract}"), (str(tmp_path / "s"), str(tmp_path / "s"))):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(bound)
            tell_manager("READY=1")
            assert manager.recv(100) == b"READY=1"
        assert not caplog.records
        tell_manager("READY=1")
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        caplog.clear()


# -- systemd -------------------------------------------------------------------------------------------------

UNIT = ROOT / "deploy" / "notification-server.service"


def unit_settings() -> dict[str, list[str]]:
    """Of the unit: what each key is set to, in order."""
    settings: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings.setdefault(key, []).append(value)
    return settings


@pytest.mark.servers
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """Every line of it; the program and the documents that it names are where they would be."""
    program = server_program("systemd-analyze", "systemd")
    text = UNIT.read_text().replace("/opt/notification-server/.venv/bin/python", sys.executable)
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("/opt/notification-server", str(ROOT)))
    verified = subprocess.run(
        [program, "verify", "--man=no", unit], capture_output=True, text=True, timeout=60
    )
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    unit.write_text(f"{text}[Service]\nLimitNOFLE=1\n")
    spoilt = subprocess.run([program, "verify", "--man=no", unit], capture_output=True, text=True, timeout=60)
    assert "LimitNOFLE" in spoilt.stderr  # that it looks at all


class Service:
    """What systemd does with the unit, but for its user and its sandbox: in a folder as it describes it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.settings = unit_settings()
        self.port = free_port()
        self.configuration = folder / "config.ini"
        text = f"[APPLICATION]\nconfiguration=RELEASE\nport={self.port}\napikey={KEY}\n"
        self.configuration.write_text(f"{text}data={folder}/data\n[MONGODB]\nurl=embedded\n")
        [command] = self.settings["ExecStart"]
        [work] = self.settings["WorkingDirectory"]
        paths = {
            "/opt/notification-server/.venv/bin/python": sys.executable,
            "/etc/notification-server/config.ini": str(self.configuration),
        }
        assert work == "/opt/notification-server"
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(str(folder / "manager"))
        self._manager.settimeout(30)
        self.process = Process(
            [paths.get(word, word) for word in shlex.split(command)],
            log=folder / "log",
            cwd=ROOT,
            env={"NOTIFY_SOCKET": str(folder / "manager"), **environment},
        )

    def told(self) -> bytes:
        """What the process tells its manager next."""
        return self._manager.recv(4096)

    def run(self, key: str) -> None:
        """Carry out a command of the unit."""
        [command] = self.settings[key]
        command = command.replace("$MAINPID", str(self.process.pid))
        subprocess.run(shlex.split(command), check=True, timeout=30)

    def get(self, path: str) -> int:
        return self._request("GET", path, None)

    def post(self, path: str, fields: Mapping[str, Any]) -> int:
        return self._request("POST", path, json.dumps(fields))

    def _request(self, method: str, path: str, body: str | None) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(
                method, path, body, {"Authorization": f"Api-Key {KEY}", "Content-Type": "application/json"}
            )
            return connection.getresponse().status
        finally:
            connection.close()

    def __enter__(self) -> Self:
        self.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self._manager.close()


def test_the_command_of_the_unit(tmp_path: Path) -> None:
    """It says when it serves, rereads its configuration as the unit asks it to, and ends with 0 at SIGTERM."""
    with Service(tmp_path) as service:
        assert service.settings["Type"] == ["notify"]
        assert service.told() == b"READY=1"
        assert service.get("/readyz") == 200
        service.configuration.write_text(f"{service.configuration.read_text()}[LOG]\nlevel=debug\n")
        service.run("ExecReload")
        service.process.wait_for_output(
            "the configuration and the files that it names were reread; changed keys: [LOG] level\n"
        )
        assert "KillSignal" not in service.settings  # so it is SIGTERM
        assert service.process.stop() == 0
        assert "Traceback" not in service.process.output() and "ERROR" not in service.process.output()


def test_a_unit_is_not_ready_before_its_store(tmp_path: Path) -> None:
    """And the reload that systemd sends after that only would do no harm before, either."""
    with Service(tmp_path) as service:
        away = f"mongodb://127.0.0.1:{free_port()}"
        text = service.configuration.read_text().replace("url=embedded", f"url={away}\ntimeout_s=0.2")
        service.process.stop()
        service.configuration.write_text(text)
        service.process.log.unlink()
        service.process.start()
        service.process.wait_for_output("waiting for the store")
        service.run("ExecReload")
        service.process.wait_for_output(
            "the configuration and the files that it names were reread; changed keys: none\n"
        )
        assert service.process.stop() == 0
        service._manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            service.told()


_SANDBOX = """
import ctypes, json, os, pathlib
libc, seccomp = ctypes.CDLL(None, use_errno=True), ctypes.CDLL("libseccomp.so.2")
def check(result):
    if result < 0:
        raise OSError(result, "the sandbox could not be made")
if libc.prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE: Linux 6.3
    print("no MDWE", flush=True)
seccomp.seccomp_init.restype = ctypes.c_void_p
sandbox = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(0x80000000)))  # SCMP_ACT_KILL_PROCESS
for name in json.loads(os.environ.pop("ALLOWED_CALLS")):
    number = seccomp.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:  # else this architecture has it not
        check(seccomp.seccomp_rule_add(sandbox, ctypes.c_uint32(0x7FFF0000), number, 0))
check(seccomp.seccomp_load(sandbox))
"""


def system_calls(program: Path, name: str) -> set[str]:
    """Those of a group (`@…`), as systemd has it; a single one is its own."""
    if not name.startswith("@"):
        return {name}
    listed = subprocess.run([program, "syscall-filter", name], capture_output=True, text=True, check=True)
    members = [line.strip() for line in listed.stdout.splitlines()[1:]]
    return {
        call
        for member in members
        if member and not member.startswith("#")
        for call in system_calls(program, member)
    }


@pytest.mark.servers
async def test_the_sandbox_of_the_unit_has_room_for_the_server(tmp_path: Path) -> None:
    """Starting, storing, checking a password, writing a mail, rereading and ending take no call of the system that the
    unit does not allow: here the first one would be the end of the process."""
    program = server_program("systemd-analyze", "systemd")
    allowed, *denied = unit_settings()["SystemCallFilter"]
    calls = set().union(*(system_calls(program, name) for name in allowed.split()))
    for line in denied:
        assert line.startswith("~")
        # What a group of those that are allowed names as well goes all the same (systemd.exec(5)).
        calls -= set().union(*(system_calls(program, name) for name in line[1:].split()))
    (tmp_path / "sitecustomize.py").write_text(_SANDBOX)
    if os.geteuid() == 0:
        calls.add("fchown")  # which SQLite makes for root only
    environment = {"ALLOWED_CALLS": json.dumps(sorted(calls)), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with Service(tmp_path, **environment) as service:
        text = service.configuration.read_text()
        service.configuration.write_text(f"{text}[USERS]\nann={hash_password('s3cret')}\n")
        assert service.told() == b"READY=1"
        service.run("ExecReload")
        service.process.wait_for_output(
            "the configuration and the files that it names were reread; changed keys: "
        )
        async with connect(f"ws://127.0.0.1:{service.port}/notification/websocket") as client:
            join = {"name": "join", "data": {"login": "ann", "password": "s3cret"}}
            await client.send(json.dumps(join))
            async with asyncio.timeout(30):
                while '"count"' not in str(await client.recv()):
                    pass
            user = {"id": "ann", "email": "ann@example.test"}
            fields = {"users": [user], "content": "through the sandbox", "email_force": True}
            assert service.post("/notify", fields) == 200
            async with asyncio.timeout(30):
                assert "through the sandbox" in str(await client.recv())
            await asyncio.to_thread(service.process.wait_for_output, "1 sent, 0 refused")
        with open(f"/proc/{service.process.pid}/status") as status:
            assert "Seccomp:\t2\n" in status.read()
        assert service.process.stop() == 0
        assert "Traceback" not in service.process.output() and "ERROR" not in service.process.output()


# -- docs/deployment.md --------------------------------------------------------------------------------------

DOCS = (ROOT / "docs" / "deployment.md").read_text()


def documented(beginning: str) -> str:
    """The one block of commands of the docs that begins like this."""
    [block] = [
        block for block in re.findall(r"```sh\n(.*?)```", DOCS, re.DOTALL) if block.startswith(beginning)
    ]
    return str(block)


def test_a_backup_of_a_running_server(tmp_path: Path) -> None:
    """Made and restored by the commands of the docs, it holds what was stored until then, and nothing since."""
    backup = documented("install -d -m 0700 -o notification-server /var/backups")
    restore = documented("systemctl stop notification-server\nmv")
    stop, *restore_lines, start = restore.splitlines()
    assert (stop, start) == ("systemctl stop notification-server", "systemctl start notification-server")
    paths = {
        "cd /opt/notification-server": f"cd {ROOT}",
        "runuser -u notification-server -- .venv/bin/python": sys.executable,
        "/var/lib/notification-server": str(tmp_path / "data"),
        "/var/backups/notification-server": str(tmp_path / "backups"),
        " --config /etc/notification-server/config.ini": "",
        "-o notification-server ": "",
    }
    restore = "\n".join([f"cd {ROOT}", *restore_lines])
    for old, new in paths.items():
        backup, restore = backup.replace(old, new), restore.replace(old, new)
    variables = os.environ | {"NOTIFY_APPLICATION_DATA": str(tmp_path / "data")}
    with RunningServer(tmp_path) as server:
        server.must_notify("alice", content="before")
        subprocess.run(["sh", "-euc", backup], check=True, timeout=60, env=variables)
        server.must_notify("alice", content="after")
        server.kill()  # so that its write-ahead log is left behind
        subprocess.run(["sh", "-euc", restore], check=True, timeout=60, env=variables)
        server.start()
        assert server.get("/readyz").status == 200
        server.must_notify("alice", content="later")
        contents = asyncio.run(inbox(server, "alice"))
        assert contents == ["before", "later"]


async def inbox(server: RunningServer, user: str) -> list[str]:
    async with SocketClient(server) as client:
        return [document["content"] for document in await client.join(user)]


def test_the_log_file_of_the_example_can_be_written() -> None:
    """The unit makes the folder of the one that config.ini suggests: it may write nowhere else below /var/log."""
    [file] = re.findall("^;file=(/.*)$", (ROOT / "config.ini").read_text(), re.MULTILINE)
    [folder] = unit_settings()["LogsDirectory"]
    assert Path(file).parent == Path("/var/log", folder)
    assert f"`/var/log/{folder}`" in DOCS


def test_the_configuration_of_the_docs(tmp_path: Path) -> None:
    """Is good, and a key and users can be added to it by an administrator who is not the server's user."""
    [text] = re.findall(r"```ini\n(.*?)```", DOCS, re.DOTALL)
    file = tmp_path / "config.ini"
    file.write_text(text.replace("/var/lib/notification-server", str(tmp_path / "data")))
    group = 65534 if os.geteuid() == 0 else [os.getegid(), *os.getgroups()][-1]
    os.chown(file, -1, group)
    file.chmod(0o640)
    server = RunningServer(tmp_path)
    checked = server.run("check-config")
    assert checked.returncode == 0 and "error" not in checked.stderr
    assert server.run("user", "add", "ann", "--write", stdin="s3cret\n").returncode == 0
    found = file.stat()
    assert (found.st_gid, found.st_mode & 0o777) == (group, 0o640)
    assert server.run("user", "remove", "ann").returncode == 0
    assert (file.stat().st_gid, file.stat().st_mode & 0o777) == (group, 0o640)
