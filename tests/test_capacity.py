"""bench/capacity: the table of docs/scaling.md follows from what was measured, and from nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scaling.md"
MARKER = "<!-- capacity: written by bench/capacity -->"


def of_nodes(first: float, last: float, mongod: float, redis: float) -> list[dict[str, float]]:
    return [{"first_us": first, "last_us": last, "mongod_us": mongod, "redis_us": redis}]


def of_reading(store: str, documents: int, cpu_us: float, mongod_us: float) -> list[dict[str, Any]]:
    sizes = {"bytes_per_document": 330, "object_bytes": 600, "index_bytes": 120}
    kinds = ("newest", "counts", "sync")
    costs = {"cpu_us": cpu_us, "mongod_us": mongod_us}
    return [{"store": store, "documents": documents, "kind": kind, **costs, **sizes} for kind in kinds]


MEASURED: dict[str, Any] = {
    "connections.json": {
        "hold, raw, dialect 2": [{"connections": 50_000, "base_mib": 50, "kib": 6, "idle_us": 11}],
        # of several runs, the one in the middle
        "raw, dialect 2": [{"cpu_ms": 9.9}, {"cpu_ms": 2.4}, {"cpu_ms": 1.1}],
    },
    "publish.json": {"publishing port, uvloop": [{"per_core": 2000}]},
    "broadcast.json": {"broadcast to 2000 users": [{"per_s": 10_000}]},
    "deliveries.json": {
        "one to one, notification-server": [
            {"connections": 2000, "cpu_us": 300},
            {"connections": 15_000, "cpu_us": 300},
        ]
    },
    "nodes.json": {
        "to the other, redis": of_nodes(600, 200, 400, 20),
        "to its own, redis": of_nodes(600, 50, 400, 20),
        "to the other, mongodb": of_nodes(1000, 200, 400, 0),
        "to its own, mongodb": of_nodes(1000, 100, 400, 0),
    },
    "reading.json": [
        *of_reading("sqlite", 1_000_000, 600, 0),
        *of_reading("mongo", 10_000, 9999, 9999),
        *of_reading("mongo", 1_000_000, 960, 360),
    ],
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The files of the benchmarks, with figures that are easy to reckon with."""
    folder = tmp_path / "results"
    folder.mkdir()
    for name, content in MEASURED.items():
        kept = content if isinstance(content, list) else {"machine": "a made-up one", "runs": content}
        (folder / name).write_text(json.dumps(kept))
    return folder


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text("# Before\n\n## What breaks first\n\nAfter\n")
    return path


def capacity(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, ROOT / "bench" / "capacity", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def planned(results: Path, *asked: int) -> dict[str, str]:
    done = capacity("--results", results, "--plan", *map(str, asked))
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.replace("MongoDB: ", "").splitlines())


def test_a_row_by_hand(results: Path) -> None:
    """Connections take 100,000 x (11 + (2400 + 1200) / 3600) µs = 1.2 of a core. Notifications take 0.8, of which what
    the other nodes hear is 0.05 for each node more: 2 x (1.2 + 0.7) / (1 - 0.1) = 4.2, so 5, and one to spare."""
    assert planned(results, 100_000, 1000, 100) == {
        "connections": "100,000",
        "notifications/s": "1,000",
        "documents of a user": "100",
        "nodes (cores)": "6",
        "their memory": "0.87 GiB",
        "Redis": "1 × 0.06 of a core, 1,000 messages/s",
        "nodes without Redis": "7",
        "cores of primaries": "0.84",
        "shards": "1",
        "disk": "3.07 GiB",
        "indexes": "1.12 GiB",
        "a broadcast to all": "not measured",
        "breaks first": "the core of a worker",
    }


def test_a_row_that_one_process_carries(results: Path) -> None:
    """10,000 x (11 + 1) µs and 100 x 500 µs: 0.17 of a core."""
    found = planned(results, 10_000, 100, 1000)
    assert found["nodes (cores)"] == "1, embedded store"
    assert found["Redis"] == found["nodes without Redis"] == found["cores of primaries"] == "none"
    assert found["a broadcast to all"] == "1.00 s"


def test_what_one_cell_cannot_hear_is_divided(results: Path) -> None:
    """50 µs of each of 20,000 notifications are a whole core of every node; a quarter of one is what it may take."""
    found = planned(results, 1_000_000, 20_000, 100)
    cells = int(found["nodes (cores)"].removesuffix(" cells").rpartition(" ")[2])
    assert cells >= 4
    assert int(found["shards"]) >= cells
    assert "only in" in found["nodes without Redis"]


def test_what_grew_with_the_connections_costs_more(results: Path) -> None:
    before = planned(results, 100_000, 1000, 100)
    path = results / "deliveries.json"
    path.write_text(path.read_text().replace('15000, "cpu_us": 300', '15000, "cpu_us": 900'))
    after = planned(results, 100_000, 1000, 100)
    assert int(after["nodes (cores)"]) > int(before["nodes (cores)"])


def test_the_section_is_written_and_written_anew(results: Path, page: Path) -> None:
    """Nothing else of the page changes; the same figures give the same section, others another one."""
    where = ("--results", results, "--page", page)
    assert capacity(*where, "--check").returncode == 1
    assert capacity(*where).returncode == 0
    written = page.read_text("utf-8")
    assert written.startswith(f"# Before\n\n{MARKER}\n## Capacity\n")
    assert written.endswith("<!-- capacity: end -->\n\n## What breaks first\n\nAfter\n")
    assert capacity(*where).returncode == 0
    assert page.read_text("utf-8") == written
    assert capacity(*where, "--check").returncode == 0
    file = results / "connections.json"
    file.write_text(file.read_text().replace('"idle_us": 11', '"idle_us": 500'))
    check = capacity(*where, "--check")
    assert check.returncode == 1
    assert "run bench/capacity" in check.stdout
    assert page.read_text("utf-8") == written
    assert capacity(*where).returncode == 0
    assert "500 µs" in page.read_text("utf-8")


def test_each_figure_is_named_with_its_benchmark(results: Path, page: Path) -> None:
    assert capacity("--results", results, "--page", page).returncode == 0
    named = {line.split("`")[1] for line in page.read_text("utf-8").splitlines() if line.endswith("` |")}
    assert named == {
        f"bench/{name}" for name in ("broadcast", "connections", "growth", "inbox_read", "nodes", "publish")
    }
    assert all((ROOT / name).exists() for name in named)


def test_what_breaks_first_is_explained(results: Path, page: Path) -> None:
    """Under the same name, in the table of signs."""
    assert capacity("--results", results, "--page", page).returncode == 0
    rows = [
        line for line in page.read_text("utf-8").splitlines() if line.startswith(("| 1,", "| 10", "| 1 "))
    ]
    signs = PAGE.read_text("utf-8").partition("## What breaks first")[2]
    breaks = {line.strip("| ").rpartition(" | ")[2] for line in rows}
    assert breaks
    assert all(f"\n| {each} | " in signs for each in breaks)


MISSING = {
    "connections.json": "bench/connections --hold",
    "publish.json": "bench/publish",
    "broadcast.json": "bench/broadcast",
    "deliveries.json": "bench/growth",
    "nodes.json": "bench/nodes",
    "reading.json": "bench/inbox_read",
}


@pytest.mark.parametrize("name", sorted(MISSING))
def test_a_file_that_is_missing_is_asked_for(results: Path, page: Path, name: str) -> None:
    before = page.read_text()
    (results / name).unlink()
    done = capacity("--results", results, "--page", page)
    assert done.returncode == 1
    assert f"bench/results/{name}" in done.stdout
    assert f"Run: .venv/bin/python {MISSING[name]}" in done.stdout
    assert not done.stderr
    assert page.read_text() == before


@pytest.mark.parametrize(
    ("name", "case", "command"),
    [
        ("connections.json", "raw, dialect 2", "bench/connections --case"),
        ("nodes.json", "to its own, mongodb", "bench/nodes"),
        ("deliveries.json", '"connections": 2000', "bench/growth"),
        ("reading.json", "mongo", "bench/inbox_read"),
        ("reading.json", "counts", "bench/inbox_read"),
        ("nodes.json", "redis_us", "bench/nodes"),
    ],
    ids=["a join", "hearing over MongoDB", "2,000 connections", "MongoDB", "counts", "CPU of Redis"],
)
def test_a_figure_that_is_missing_is_asked_for(results: Path, name: str, case: str, command: str) -> None:
    path = results / name
    named = case if case.startswith('"') else f'"{case}"'
    text = path.read_text()
    assert named in text
    path.write_text(text.replace(named, '"connections": 1' if case.startswith('"') else '"something else"'))
    done = capacity("--results", results, "--plan", "1000", "1", "100")
    assert done.returncode == 1
    assert done.stdout.startswith("not measured: ")
    assert f"Run: .venv/bin/python {command}" in done.stdout
    assert not done.stderr


def test_the_table_of_the_page_is_the_computed_one() -> None:
    """As soon as there is one."""
    if MARKER in PAGE.read_text("utf-8"):
        done = capacity("--check")
        assert done.returncode == 0, done.stdout + done.stderr
