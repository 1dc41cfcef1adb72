"""All documents together: their links lead somewhere, and what the project depends on is in docs/dependencies.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from server import errors

ROOT = Path(__file__).resolve().parents[1]

PAGES = sorted(
    file
    for pattern in ("*.md", "docs/**/*.md", "clients/**/*.md", "static/**/*.md", "tests/data/*.md")
    for file in ROOT.glob(pattern)
    if not {"node_modules", "build"} & set(file.parts)
)

DEPENDENCIES = (ROOT / "docs" / "dependencies.md").read_text("utf-8")

_LINK = re.compile(r"\]\(([^()\s]+)\)")
_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", page.read_text("utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def _is_there(link: str, page: Path) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    return target.exists() and (not anchor or anchor in _anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """To a file, and to a heading in it. Others' sites are not asked."""
    links = [link for link in _LINK.findall(_BLOCK.sub("", page.read_text("utf-8"))) if "://" not in link]
    assert [link for link in links if not _is_there(link, page)] == []


def test_every_document_is_found_from_the_readme() -> None:
    """By links, over as many documents as it takes."""
    found: set[Path] = set()
    ahead = [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in found or not page.is_file():
            continue
        found.add(page)
        if page.suffix == ".md":
            links = (
                link.partition("#")[0] for link in _LINK.findall(page.read_text("utf-8")) if "://" not in link
            )
            targets = [(page.parent / link).resolve() for link in links if link]
            ahead += targets + [target / "README.md" for target in targets]
    documents = [
        file for file in (ROOT / "docs").rglob("*") if file.suffix in (".md", ".yaml", ".yml", ".json")
    ]
    assert [str(file.relative_to(ROOT)) for file in documents if file not in found] == []


# -- dependencies --------------------------------------------------------------------------------------------
def _python() -> list[str]:
    lines = [
        line for file in (ROOT / "requirements").glob("*.in") for line in file.read_text("utf-8").splitlines()
    ]
    return sorted(
        {match[0] for line in lines if (match := re.match(r"[\w.-]+", line)) and line[0] not in "-#"}
    )


def _npm() -> list[str]:
    return list(json.loads((ROOT / "tests" / "node" / "package.json").read_text("utf-8"))["dependencies"])


def _debian() -> list[str]:
    text = (ROOT / "scripts" / "services.sh").read_text("utf-8").replace("\\\n", "")
    calls = re.findall(r"(?:apt_install|set -- \"\$@\") ([a-z][a-z0-9 -]+)", text)
    return sorted({name for call in calls for name in call.split()})


@pytest.mark.parametrize("name", [*_python(), *_npm(), *_debian()])
def test_each_dependency_has_its_reason(name: str) -> None:
    """A line of a table names it, with more to say."""
    rows = [row for row in DEPENDENCIES.splitlines() if row.startswith("| ")]
    named = [
        row for row in rows if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", row.rpartition(" | ")[0])
    ]
    assert named, f"docs/dependencies.md does not name {name}"


def test_what_is_asked_for_was_found() -> None:
    """Of each kind of dependencies, those that are sure to be there."""
    assert {"tornado", "SQLAlchemy", "pytest", "setuptools"} <= set(_python())
    assert {"ws", "socket.io-client"} <= set(_npm())
    assert {"redis-server", "rabbitmq-server", "php-predis", "golang-go", "chromium", "npm"} <= set(_debian())


def test_every_code_of_an_error_is_explained() -> None:
    """In docs/api.md: of each kind of error that a caller may see, and of what is refused before a door is found."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.code for kind in kinds if issubclass(kind, errors.ServerError)}
    codes -= {errors.Conflict.code}  # of the command line only
    codes |= {"bad_request", "method_not_allowed", "upgrade_required", "starting"}
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    assert {code for code in codes if f"`{code}`" not in text} == set()
