"""Reverse proxies with the configuration of deploy/, in which nothing but ports and paths is another one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.support.certificates import CertificateAuthority, Pair
from tests.support.ports import free_port
from tests.support.processes import Process, wait_until
from tests.support.secure_server import SecurePlace
from tests.support.servers import server_program

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"

NAME = "notifications.example.org"
"""Of the server in the files of deploy/."""
OTHER_NAME = "other.example.org"
"""Another name of the proxy, which the server does not know."""


def shipped(file: str, **replaced: str) -> str:
    """A file of deploy/. `replaced`: what stands there exactly once -> what stands there in the test."""
    text = (DEPLOY / file).read_text()
    for old, new in replaced.items():
        assert text.count(old) == 1, (file, old)
        text = text.replace(old, new)
    return text


def advised_settings(file: str) -> str:
    """The config.ini that stands in the comment at the top of a file of deploy/."""
    lines = (DEPLOY / file).read_text().splitlines()
    advised = [line.removeprefix("#     ") for line in lines if line.startswith("#     ")]
    assert advised[0] == "[APPLICATION]", advised
    return "\n".join([*advised, ""])


class Proxy(ABC):
    """A proxy that ends TLS, in front of what listens on `upstream`; ports and data are its own."""

    file: str
    """Its configuration in deploy/."""
    program: str
    forwards_request_id = True

    def __init__(self, upstream: int, authority: CertificateAuthority) -> None:
        self.upstream = upstream
        self.port = free_port()
        self._authority = authority
        # Not pytest's folder, which is closed to the user that a worker may run as.
        self.folder = Path(tempfile.mkdtemp(prefix=f"test-{self.program}-"))
        self.pair = self._new_pair("proxy")
        self._process = Process(
            self._command(server_program(self.program, self.program)),
            log=self.folder / "log",
            cwd=self.folder,
            env={"HOME": str(self.folder), "XDG_CONFIG_HOME": "", "XDG_DATA_HOME": ""},
        )

    @abstractmethod
    def _write_configuration(self) -> None:
        """With what is shipped in it."""

    @abstractmethod
    def _command(self, program: Path) -> Sequence[str | Path]:
        """What to start, in the foreground."""

    @abstractmethod
    def reload(self) -> None:
        """Let it take over its configuration and its certificate anew."""

    def _new_pair(self, file: str) -> Pair:
        return self._authority.server_pair([NAME, OTHER_NAME], file=file)

    def renew_certificate(self) -> bytes:
        """Put a new one in its place; what it is. Counts from the next `reload` on."""
        self.pair.replace(self._new_pair("renewed"))
        return self.pair.der

    def shown_certificate(self) -> bytes:
        """What a new connection sees."""
        context = self._authority.client_context()
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=30) as plain,
            context.wrap_socket(plain, server_hostname=NAME) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
            assert shown is not None
            return shown

    def place(self, name: str = NAME, source: str = "127.0.0.1") -> SecurePlace:
        """Where it is, for a client that has this address."""
        return SecurePlace(self.port, self._authority.client_context(), name, source)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        return self._process.output()

    def stop(self) -> int:
        return self._process.stop()

    def _is_up(self) -> bool:
        if not self._process.is_running:
            raise RuntimeError(f"{self.program} ended with {self._process.returncode}:\n{self.log}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def __enter__(self) -> Self:
        try:
            self._write_configuration()
            self._process.start()
            wait_until(self._is_up, f"{self.program} listening")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


_NGINX = """
{user}
daemon off;
worker_processes 2;
pid nginx.pid;
error_log stderr notice;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include notification.conf;
}}
"""


class Nginx(Proxy):
    """Debian's."""

    file = "nginx.conf"
    program = "nginx"

    def _write_configuration(self) -> None:
        text = shipped(
            self.file,
            **{
                "server 127.0.0.1:8587;": f"server 127.0.0.1:{self.upstream};",
                "listen 443 ssl http2;": f"listen 127.0.0.1:{self.port} ssl http2;",
                f"/etc/ssl/{NAME}.crt": str(self.pair.cert),
                f"/etc/ssl/{NAME}.key": str(self.pair.key),
                "/var/log/nginx/notification.log": str(self.access_log),
            },
        )
        (self.folder / "notification.conf").write_text(text)
        user = "user root;" if os.geteuid() == 0 else ""
        (self.folder / "nginx.conf").write_text(_NGINX.format(user=user))

    def _command(self, program: Path) -> Sequence[str | Path]:
        return [program, "-p", f"{self.folder}/", "-c", "nginx.conf", "-e", "stderr"]

    @property
    def access_log(self) -> Path:
        return self.folder / "access.log"

    def reload(self) -> None:
        before = self.workers
        os.kill(self.pid, signal.SIGHUP)
        wait_until(lambda: bool(self.workers - before), "new workers")
        # Until they have heard of their end, the old ones take connections in.
        wait_until(lambda: all(f" {pid}#{pid}: gracefully" in self.log for pid in before), "the old workers")

    @property
    def workers(self) -> set[int]:
        """The pids of its children."""
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.pid)], capture_output=True, text=True)
        return {int(pid) for pid in listed.stdout.split()}


class Caddy(Proxy):
    """Debian's."""

    file = "Caddyfile"
    program = "caddy"

    def __init__(self, upstream: int, authority: CertificateAuthority) -> None:
        self._admin_port = free_port()
        super().__init__(upstream, authority)

    def _write_configuration(self) -> None:
        # The certificate is ours: there is no authority here to ask for one.
        site = f"https://{NAME}:{self.port}, https://{OTHER_NAME}:{self.port} {{\n"
        text = shipped(
            self.file,
            **{
                f"{NAME} {{\n": f"{site}\tbind 127.0.0.1\n\ttls {self.pair.cert} {self.pair.key}\n",
                "reverse_proxy 127.0.0.1:8587 {": f"reverse_proxy 127.0.0.1:{self.upstream} {{",
            },
        )
        options = f"{{\n\tadmin localhost:{self._admin_port}\n\tauto_https disable_redirects\n}}\n"
        (self.folder / "Caddyfile").write_text(options + text)

    def _command(self, program: Path) -> Sequence[str | Path]:
        self._program = program
        return [program, "run", "--config", "Caddyfile", "--adapter", "caddyfile"]

    def reload(self) -> None:
        # --force: it does not look into the files of the certificate to see whether anything has changed.
        command = [self._program, "reload", "--force", "--config", "Caddyfile", "--adapter", "caddyfile"]
        address = f"localhost:{self._admin_port}"
        subprocess.run(
            [*command, "--address", address], cwd=self.folder, check=True, capture_output=True, timeout=60
        )
