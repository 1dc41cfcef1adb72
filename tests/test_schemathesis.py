"""The OpenAPI document is true: schemathesis asks the running server what the document allows, and what it does not,
and every answer is one that the document has. It runs as a command of its own, apart from these tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running_server import Response, RunningServer

ROOT = Path(__file__).resolve().parents[1]

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)

PASSWORDS = "/api/users/token/"
"""Wrong ones are answered slower and slower, so it is asked less often."""

UNLIMITED = "1000000/s"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One that needs a key also of callers on this machine, and counts no requests."""
    with RunningServer(
        tmp_path_factory.mktemp("server"),
        NOTIFY_APPLICATION_PUBLISH_WITHOUT_KEY="false",
        NOTIFY_LIMITS_REQUESTS_PER_KEY=UNLIMITED,
        NOTIFY_LIMITS_REQUESTS_PER_ADDRESS=UNLIMITED,
        NOTIFY_LIMITS_CONNECTS_PER_ADDRESS=UNLIMITED,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def key(server: RunningServer) -> str:
    """One that may do everything."""
    scopes = [word for scope in ("publish", "listen", "admin") for word in ("--scope", scope)]
    made = subprocess.run(
        [sys.executable, "-P", "-m", "server", "key", "add", "default", "schemathesis", "--json", *scopes],
        env={"PYTHONPATH": str(ROOT), "NOTIFY_APPLICATION_DATA": str(server.data)},
        cwd=server.data,
        check=True,
        capture_output=True,
    )
    secret: str = json.loads(made.stdout)["secret"]
    return secret


def _conforms(server: RunningServer, folder: Path, *options: str) -> None:
    """That schemathesis finds nothing."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/api/schema/"),
        *("--checks", ",".join(CHECKS), "--seed", "1", "--continue-on-failure"),
        *("--generation-database", "none", "--request-timeout", "20", "--no-color", *options),
    ]
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    env |= {"PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks"}
    # Its folder is empty: it would take settings of this project from a file, and leave its own files in it.
    found = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=100)
    assert found.returncode == 0, found.stdout + found.stderr
    assert " generated" in found.stdout, found.stdout


@pytest.mark.slow
def test_with_a_key(server: RunningServer, key: str, tmp_path: Path) -> None:
    """Whoever may do everything gets no 5xx and no answer that is not in the document."""
    _conforms(
        server,
        tmp_path,
        *("--phases", "examples,coverage,fuzzing", "-n", "50", "-H", f"Authorization: Api-Key {key}"),
        *("--exclude-path", PASSWORDS),
    )


@pytest.mark.slow
def test_without_a_key(server: RunningServer, tmp_path: Path) -> None:
    """Nor does who may do nothing."""
    _conforms(
        server, tmp_path, "--phases", "examples,coverage,fuzzing", "-n", "20", "--exclude-path", PASSWORDS
    )


@pytest.mark.slow
def test_as_a_user(server: RunningServer, tmp_path: Path) -> None:
    """Nor does a user: of the routes for users, also with the right password."""
    login = {"username": "alice", "password": "alice"}
    tokens = _post(server, PASSWORDS, login).json()
    for name, token in tokens.items():
        what = {"refresh": token} if name == "refresh" else {"token": token}
        path = "refresh" if name == "refresh" else "verify"
        assert _post(server, f"{PASSWORDS}{path}/", what).status == 200, name
    _conforms(
        server,
        tmp_path,
        *("--phases", "examples,fuzzing", "-n", "10", "-H", f"Authorization: Bearer {tokens['access']}"),
        *("--include-path-regex", "^/api/users/"),
    )


def _post(server: RunningServer, path: str, fields: object) -> Response:
    return server.request("POST", path, json.dumps(fields).encode())
