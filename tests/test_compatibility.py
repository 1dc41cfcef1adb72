"""docs/compatibility.md: each promise names its proof, and each proof is a test that there is."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "docs" / "compatibility.md").read_text("utf-8")

PROOF = re.compile(r"`(test_[\w*]+|tests/\w+/|…)(?:::(test_\w+))?`")


def _chapters() -> dict[str, str]:
    """By their headings, of the first level."""
    _, *pieces = re.split(r"^# (.+)\n", TEXT, flags=re.MULTILINE)
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


def _tables(text: str) -> list[list[list[str]]]:
    """Their rows, the first of each being its head."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    return [
        [
            [cell.strip() for cell in line.strip("|").split(" | ")]
            for line in block.splitlines()
            if "---" not in line
        ]
        for block in blocks
    ]


def _proofs(text: str) -> list[tuple[str, str]]:
    """Module and test ("": all of the module); `…` is the module that was named last."""
    found, module = [], ""
    for named, test in PROOF.findall(text):
        module = module if named == "…" else named
        found.append((module, test))
    return found


@cache
def _tests(module: str) -> frozenset[str]:
    tree = ast.parse((TESTS / f"{module}.py").read_text("utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


def _is_there(module: str, test: str) -> bool:
    if module.endswith("/"):
        return any((TESTS.parent / module).glob("test_*.py"))
    modules = [file.stem for file in TESTS.glob(f"{module}.py")]
    return bool(modules) and all(test in _tests(each) if test else bool(_tests(each)) for each in modules)


@pytest.mark.parametrize("chapter", _chapters())
def test_every_proof_is_there(chapter: str) -> None:
    """Nothing is named that was renamed or removed."""
    proofs = _proofs(_chapters()[chapter])
    assert proofs
    assert [f"{module}::{test}" for module, test in proofs if not _is_there(module, test)] == []


@pytest.mark.parametrize("chapter", _chapters())
def test_every_row_has_a_proof(chapter: str) -> None:
    """Of what holds and, for all but the first system, of what differs."""
    proven = [table for table in _tables(_chapters()[chapter]) if table[0][-1] == "proved by"]
    assert len(proven) == (1 if "webservice-notification" in chapter else 2)
    for head, *rows in proven:
        assert rows
        for row in rows:
            assert len(row) == len(head) == 3, row
            assert _proofs(row[-1]) and not PROOF.sub("", row[-1]).strip(", "), row


def test_a_row_without_a_proof_is_seen() -> None:
    """So are a test and a module that are not there."""
    assert _is_there("test_compatibility", "test_every_row_has_a_proof")
    assert not _is_there("test_compatibility", "test_nothing")
    assert not _is_there("test_nothing", "")
    assert not _is_there("tests/nothing/", "")
    assert not _proofs("yes, by `this`")
