"""Every recipe of docs/authentication.md, followed as a reader would: with the right proof, and with a wrong one.

A heading `### A key` is followed by `test_a_key`, which takes the blocks under it from the document. What is different
here are ports only.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.backends import Backend, known
from tests.support.jwt_keys import claims, hs256
from tests.support.mariadb import MariaDB
from tests.support.postgres import Postgres
from tests.support.processes import wait_until
from tests.support.recipes import SECRET, Place, Recipe, sections

SECTIONS = sections(Path(__file__).parents[1] / "docs" / "authentication.md")

NO_KEYLESS = {"NOTIFY_APPLICATION_PUBLISH_WITHOUT_KEY": "false"}


def test_name(heading: str) -> str:
    return "test_" + "_".join(re.findall("[a-z0-9]+", heading.lower()))


test_name.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture
def recipe(request: pytest.FixtureRequest) -> Iterator[Recipe]:
    """That of the heading by which the test is called. In the end all of it has been run."""
    [text] = [text for heading, text in SECTIONS.items() if test_name(heading) == request.function.__name__]
    recipe = Recipe(text)
    yield recipe
    recipe.end()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Where nobody publishes without a credential."""
    with Place(tmp_path, **NO_KEYLESS) as place:
        yield place


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Place]:
    """Where join.py lies, and callers on this machine may publish."""
    with Place(tmp_path) as place:
        place.write(Recipe(SECTIONS["To try it"]).take("python"))
        yield place


def frames(printed: str) -> list[tuple[str, object]]:
    """What join.py printed: names and data."""
    parsed = [json.loads(line) for line in printed.splitlines() if line]
    return [(frame["name"], frame["data"]) for frame in parsed]


def joins_as(place: Place, user: str, command: str) -> None:
    """The recipe's command lets in who it says: they get what this user, and nobody else, is told."""
    title = uuid4().hex
    place.server.must_notify(user, title=title)
    *notifications, (last, count) = frames(place.run(command))
    documents = [document for _, data in notifications for document in json.loads(str(data))]
    assert documents[-1]["title"] == title
    assert (last, count) == ("count", {"unseen": len(documents)})


def is_refused(place: Place, command: str, code: str = "bad_credentials") -> None:
    [(name, error)] = frames(place.run(command))
    assert name == "error" and isinstance(error, dict)
    assert error["code"] == code


def publishes(place: Place, command: str) -> None:
    """The recipe's command prints what it says there: 200, and nothing else."""
    assert place.run(command).split() == [command.rsplit("# ", 1)[1].strip()] == ["200"]


def does_not_publish(place: Place, command: str) -> None:
    assert "API Key refused" in place.run(command)


def test_every_recipe_is_run() -> None:
    """A recipe without a test would rot."""
    missing = [heading for heading in SECTIONS if test_name(heading) not in globals()]
    assert SECTIONS and not missing


# -- who publishes -------------------------------------------------------------------------------------------
def test_a_key(recipe: Recipe, place: Place) -> None:
    place.serve()
    place.run(recipe.take("sh"))
    known(Backend(place.server, "default", place.run("echo $KEY").strip()))
    command = recipe.take("sh")
    publishes(place, command)
    place.run("KEY=wrong")
    does_not_publish(place, command)


def test_the_apikey_of_config_ini(recipe: Recipe, place: Place) -> None:
    place.serve(recipe.take("ini"))
    command = recipe.take("sh")
    publishes(place, command)
    place.run("SECRET=wrong")
    does_not_publish(place, command)


def test_a_service_s_token(recipe: Recipe, place: Place) -> None:
    """A token of another key is none."""
    keys = recipe.take("sh")
    place.run(keys)
    place.serve(recipe.take("ini"))
    command = recipe.take("sh")
    publishes(place, command)
    place.run(keys)
    does_not_publish(place, command)


def test_a_certificate_mtls(recipe: Recipe, place: Place) -> None:
    """A certificate of the same authority with another subject opens nothing."""
    certificates = recipe.take("sh")
    place.run(certificates)
    place.serve(recipe.take("ini"))
    command = recipe.take("sh")
    publishes(place, command)
    other = [line for line in certificates.splitlines() if "billing" in line or line.startswith("new=")]
    place.run("\n".join(other).replace("CN=billing", "CN=other"))
    does_not_publish(place, command)


# -- who listens ---------------------------------------------------------------------------------------------
def test_to_try_it(recipe: Recipe, listening: Place) -> None:
    """The refusal is that of the document, word by word."""
    recipe.take("python")
    listening.serve()
    command = recipe.take("sh")
    assert listening.run(command).strip() == command.rsplit("# ", 1)[1].strip()
    welcome = [line.strip() for line in SECTIONS["To try it"].splitlines() if line.startswith("    {")]
    assert listening.run("python3 join.py login=alice password=alice").split() == welcome


def test_users_of_config_ini(recipe: Recipe, listening: Place) -> None:
    (listening.folder / "config.ini").touch()
    listening.run(recipe.take("sh"))
    listening.serve()
    command = recipe.take("sh")
    joins_as(listening, "carol", command)
    is_refused(listening, command.replace("correct", "wrong"))
    assert "carol" in listening.run("notification-server user list").split()
    listening.run("notification-server user remove carol")
    listening.server.signal(signal.SIGHUP)
    wait_until(lambda: "bad_credentials" in listening.run(command), "carol being unknown")


def test_a_users_table_as_webservice_notification_asked_it(
    recipe: Recipe, listening_to_mariadb: Place, mariadb: MariaDB
) -> None:
    place = listening_to_mariadb
    mariadb.run(recipe.take("sql"), "shop")
    place.serve(recipe.take("ini"))
    command = recipe.take("sh")
    joins_as(place, "1", command)
    is_refused(place, command.replace("wonderland", "guessed"))
    is_refused(place, command.replace("wonderland", "\"' OR ''='\""))


@pytest.fixture
def listening_to_mariadb(listening: Place, mariadb: MariaDB) -> Iterator[Place]:
    listening.replace["port=3306"] = f"port={mariadb.port}"
    mariadb.run("CREATE DATABASE shop")
    yield listening
    mariadb.run("DROP DATABASE shop; DROP USER IF EXISTS notify@localhost")


def test_a_users_table_with_hashed_passwords(
    recipe: Recipe, listening_to_postgres: Place, postgres: Postgres
) -> None:
    """Who is not in the view is nobody."""
    place = listening_to_postgres
    postgres.run(recipe.take("sql"), "shop")
    place.serve(recipe.take("ini"))
    command = recipe.take("sh")
    joins_as(place, "1", command)
    is_refused(place, command.replace("wonderland", "guessed"))
    is_refused(place, "python3 join.py login=bob@example.org password=builder")


@pytest.fixture
def listening_to_postgres(listening: Place, postgres: Postgres) -> Iterator[Place]:
    listening.replace[":5432"] = f":{postgres.port}"
    postgres.run("CREATE DATABASE shop")
    yield listening
    postgres.run("DROP DATABASE shop WITH (FORCE)")
    postgres.run("DROP USER IF EXISTS notify")


def test_json_web_tokens_with_a_shared_secret_hs256(
    recipe: Recipe, listening: Place, node_modules: Path
) -> None:
    """A token of another secret is none, and one that has ended has, whatever `leeway_s` is. The block of PHP is run
    where there is PHP; scripts/test does not install it."""
    listening.serve(recipe.take("ini"))
    in_python, in_node, in_php = (recipe.take(language) for language in ("sh", "js", "php"))
    join = 'python3 join.py token="$TOKEN"'
    programs = {"node": in_node, "php": in_php} if shutil.which("php") else {"node": in_node}
    for program, block in programs.items():
        (listening.folder / "token").write_text(block)
        joins_as(listening, "alice", f"TOKEN=$({program} token)\n{join}")
        is_refused(listening, f"TOKEN=$(SECRET={SECRET[::-1]} {program} token)\n{join}")
    is_refused(listening, f"SECRET={SECRET[::-1]}\n{in_python}")
    joins_as(listening, "alice", f"SECRET={SECRET}\n{in_python}")
    ended = hs256(claims(exp=claims()["iat"] - 1), SECRET)
    is_refused(listening, f"python3 join.py token={ended}", "token_expired")


def test_json_web_tokens_with_a_key_pair_rs256_es256(recipe: Recipe, listening: Place) -> None:
    """By a file, by an address, and by one key."""
    keys = recipe.take("sh")
    listening.run(keys)
    listening.serve(recipe.take("ini"))
    command = recipe.take("sh")
    joins_as(listening, "alice", command)
    other_key = "openssl genrsa -out private.pem 2048"
    is_refused(listening, f"{other_key} 2>&-\n{command}")
    listening.run(keys)
    listening.run_beside(recipe.take("sh"))
    listening.serve(recipe.take("ini"))
    wait_until(lambda: "alice" in listening.run(command), "the key set being there")
    is_refused(listening, f"{other_key} 2>&-\n{command}")
    keys = recipe.take("sh")
    listening.run(keys)
    listening.serve(recipe.take("ini"))
    command = recipe.take("sh")
    joins_as(listening, "alice", command)
    listening.run(keys)
    is_refused(listening, command)


def test_your_own_address_decides_http_hook(recipe: Recipe, listening: Place) -> None:
    """A hook that is not there lets nobody in, and neither does one that does not take the server for its own."""
    name = recipe.take("python")
    config = recipe.take("ini")
    listening.serve(config)
    by_login, by_token = recipe.take("sh").splitlines()
    is_refused(listening, by_login, "auth_unavailable")
    listening.run_beside(f"python3 {listening.write(name)}")
    wait_until(lambda: "auth_unavailable" not in listening.run(by_login), "the hook being there")
    joins_as(listening, "alice", by_login)
    is_refused(listening, by_login.replace("wonderland", "guessed"))
    is_refused(listening, by_token.replace("4711", "4712"))
    assert "alice" in listening.run(by_token)
    listening.serve(config.replace("secret=", "secret=not "))
    is_refused(listening, by_login, "auth_unavailable")


def test_tokens_by_api_key(recipe: Recipe, listening: Place) -> None:
    """A revoked key's tokens are worth nothing. The page's part is what tests/test_client_js.py tests."""
    listening.serve()
    listening.run(recipe.take("sh"))
    known(Backend(listening.server, "default", listening.run("echo $KEY").strip()))
    answer = json.loads(listening.run(recipe.take("sh")).strip().splitlines()[-1])
    assert set(answer) == {"token", "expires_at"}
    join = f"python3 join.py token={answer['token']}"
    joins_as(listening, "alice", join)
    listening.run("notification-server key revoke default site")
    wait_until(lambda: "bad_credentials" in listening.run(join), "the key being revoked")
    assert "bell.connect()" in recipe.take("html")
