"""The command `notification-server`, run in the process of the tests, and the stores that it may find."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pymongo import MongoClient

from server import cli
from server.config import load
from server.store import Directory
from server.wiring import open_beside

T = TypeVar("T")

STORES = ("embedded", "mongodb")


@dataclass(frozen=True)
class Outcome:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def problem(self) -> str:
        """The one sentence of a command that could not be carried out; nothing else was said."""
        assert self.out == ""
        [line] = self.err.splitlines()
        return line.removeprefix("notification-server: ")


class Command:
    """Runs it: `command("tenant", "list")`."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Outcome:
        self._capsys.readouterr()
        try:
            code = cli.main(arguments)
        except SystemExit as exc:
            code = int(exc.code or 0)
        out, err = self._capsys.readouterr()
        return Outcome(code, out, err)

    def must(self, *arguments: str) -> Any:
        """What it prints as JSON; for tests that go on from there."""
        outcome = self(*arguments, "--json")
        assert outcome.code == 0, outcome.err
        return outcome.json()


@contextmanager
def store_settings(kind: str, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The variables that name an empty store of this kind, which is dropped afterwards."""
    if kind == "embedded":
        yield {}
        return
    url, db = request.getfixturevalue("mongo_url"), f"test_{uuid.uuid4().hex[:16]}"
    try:
        yield {"NOTIFY_MONGODB_URL": url, "NOTIFY_MONGODB_DB": db}
    finally:
        client: MongoClient[dict[str, Any]]
        with MongoClient(url) as client:
            client.drop_database(db)


def no_variables(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Stand in this folder, without NOTIFY_ variables."""
    monkeypatch.chdir(folder)
    for name in list(os.environ):
        if name.startswith("NOTIFY_"):
            monkeypatch.delenv(name)


def in_store(work: Callable[[Directory], Awaitable[T]]) -> T:
    """Do something in the directory of the store that the environment names."""

    async def run() -> T:
        async with open_beside(load(None, os.environ)) as beside:
            return await work(beside.directory)

    return asyncio.run(run())
