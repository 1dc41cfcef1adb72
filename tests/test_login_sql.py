"""server/logins/sql.py and sql_database.py, on the real databases: what counts as the same, and what happens when one
is slow or away."""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from server import passwords
from server.auth import Proof
from server.callers import Caller
from server.config.access import SQLLogin
from server.errors import AuthUnavailable, Busy, StartupError
from server.logins.sql import SQLLoginMethod
from server.messages import now
from server.passwords import DECOY, PasswordChecks, hash_password
from tests.support.mariadb import MariaDB
from tests.support.postgres import Postgres
from tests.support.processes import wait_until
from tests.support.servers import DatabaseServer
from tests.support.user_databases import USERS, MariaDBUsers, PostgresUsers, SQLiteUsers, UserDatabase

CALLER = Caller("192.0.2.1")

ALICE = Proof("1")

SECRET = "never-to-be-told"

SERVERS = [
    pytest.param("mariadb", marks=pytest.mark.servers),
    pytest.param("postgres", marks=pytest.mark.servers),
]


class CountingChecks(PasswordChecks):
    """Notes the hashes that were verified."""

    def __init__(self) -> None:
        super().__init__(workers=2, max_waiting=100)
        self.hashes: list[str] = []

    async def verify(self, hashed: str, password: str, *, user_id: str | None = None) -> bool:
        self.hashes.append(hashed)
        return await super().verify(hashed, password, user_id=user_id)


class Methods:
    """Makes methods, and closes them after the test."""

    def __init__(self) -> None:
        self.checks = CountingChecks()
        self._made: list[SQLLoginMethod] = []

    def __call__(self, settings: SQLLogin) -> SQLLoginMethod:
        method = SQLLoginMethod(settings, self.checks)
        self._made.append(method)
        return method

    async def close(self) -> None:
        for method in self._made:
            await method.close()
        self.checks.close()
        # aiosqlite's thread of a connection that failed ends by itself, and wants to tell the loop.
        for thread in workers():
            await asyncio.to_thread(thread.join)


def workers() -> list[threading.Thread]:
    """Those of aiosqlite, one for each connection."""
    return [thread for thread in threading.enumerate() if "_connection_worker_thread" in thread.name]


@pytest.fixture
async def methods() -> AsyncIterator[Methods]:
    made = Methods()
    yield made
    await made.close()


@pytest.fixture(params=[*SERVERS, "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UserDatabase]:
    made = _database(request.param, request, tmp_path)
    yield made
    made.drop()


def _database(kind: str, request: pytest.FixtureRequest, folder: Path) -> UserDatabase:
    if kind == "sqlite":
        return SQLiteUsers(folder)
    server = request.getfixturevalue(kind)
    return MariaDBUsers(server) if isinstance(server, MariaDB) else PostgresUsers(server)


@pytest.fixture
def mariadb_users(mariadb: MariaDB) -> Iterator[UserDatabase]:
    made = MariaDBUsers(mariadb)
    yield made
    made.drop()


@pytest.fixture
def postgres_users(postgres: Postgres) -> Iterator[UserDatabase]:
    made = PostgresUsers(postgres)
    yield made
    made.drop()


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """As the server logs at its most talkative. What a test does not expect (and clear) fails it; a secret always."""
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, "server")
    yield caplog
    messages = [record.getMessage() for record in caplog.get_records("call")]
    assert messages == []


def said(log: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """What was logged by now: level and message."""
    assert SECRET not in log.text
    lines = [(record.levelname, record.getMessage()) for record in log.records]
    log.clear()
    return lines


async def sign_in(method: SQLLoginMethod, login: str, password: str) -> Proof | None:
    """Without the time of the proof, which is when the database was asked."""
    asked_at = now()
    proof = await method.check_password(login, password, CALLER)
    if proof is None:
        return None
    assert proof.issued_at is not None and asked_at <= proof.issued_at <= now()
    assert proof.by_own_clock
    return replace(proof, issued_at=None, by_own_clock=False)


# --- passwords in plain text, as the original compared them


async def test_a_right_password_proves_the_id(database: UserDatabase, methods: Methods) -> None:
    """And nothing else does."""
    database.run(USERS)
    method = methods(database.settings())
    assert await sign_in(method, "alice", "wonderland") == ALICE
    for login, password in [
        ("alice", "builder"),
        ("alice", ""),
        ("alice", "wonderland "),
        ("alice", "WONDERLAND"),
        ("alice", "wönderland"),
        ("nobody", "wonderland"),
        ("", ""),
        ("alice ", "wonderland"),
        ("alicé", "wonderland"),
        ("alice\u200b", "wonderland"),
    ]:
        assert await sign_in(method, login, password) is None, (login, password)


async def test_upper_and_lower_case_of_a_login_are_as_the_database_has_it(
    database: UserDatabase, methods: Methods
) -> None:
    """MySQL's usual collations take them for the same."""
    database.run(USERS)
    proof = await sign_in(methods(database.settings()), "Alice", "wonderland")
    assert proof == (ALICE if database.kind == "mariadb" else None)


HOSTILE = [
    "' OR '1'='1",
    "' OR 1=1 -- ",
    "\\' OR 1=1 -- ",
    '" OR ""="',
    "alice'--",
    "alice' /*",
    "'; DROP TABLE users; --",
    "' UNION SELECT 1, 'alice', 'x' -- ",
    "%",
    "_____",
    "%s",
    "%(login)s",
    ":login",
    "$1",
    "?",
    "{}",
    "\\",
    "alice\\",
    "\0",
    "alice\0",
    "\ud800",
    "alice\udfff",
    "\ufffe\uffff",
    "\U0001f600",
    "ß" * 1024,
    "x" * 100_000,
    "0",
    "1 OR 1",
]


async def test_no_text_is_more_than_a_text(database: UserDatabase, methods: Methods) -> None:
    """Quotes, comments, wildcards, placeholders, what no database can store, and what is far too long: nobody's."""
    database.run(USERS)
    method = methods(database.settings())
    for text in HOSTILE:
        assert await sign_in(method, text, "wonderland") is None, text
        assert await sign_in(method, "alice", text) is None, text
        assert await sign_in(method, text, text) is None, text
    assert await sign_in(method, "alice", "wonderland") == ALICE


STORABLE = [
    "it's",
    'a "quote"',
    "50 %",
    "back\\slash",
    "\\'",
    "%s",
    ":x",
    "$1",
    "ünï",
    "日本",
    "\U0001f600",
    " x ",
    "--",
]


async def test_every_text_can_be_a_login_and_a_password(database: UserDatabase, methods: Methods) -> None:
    """Whatever it means elsewhere; and it proves its own id only."""
    database.run(USERS)
    for number, text in enumerate(STORABLE, 100):
        literal = text.replace("'", "''")
        if database.kind == "mariadb":
            literal = literal.replace("\\", "\\\\")
        database.run(f"INSERT INTO users VALUES ({number}, '{literal}', '{literal}', NULL);")
    method = methods(database.settings())
    for number, text in enumerate(STORABLE, 100):
        assert await sign_in(method, text, text) == Proof(str(number)), text


async def test_mysql_without_backslash_escapes_is_no_way_in(
    mariadb_users: UserDatabase, methods: Methods
) -> None:
    """Its driver writes values into the query itself, and must do so as this server reads them."""
    mariadb_users.run(USERS)
    mode = "?init_command=SET sql_mode='NO_BACKSLASH_ESCAPES'"
    method = methods(mariadb_users.settings(url=mariadb_users.url + mode))
    assert await sign_in(method, "alice", "wonderland") == ALICE
    for text in HOSTILE:
        assert await sign_in(method, text, "wonderland") is None, text
        assert await sign_in(method, "alice", text) is None, text
        assert await sign_in(method, "\\", text) is None, text


async def test_names_that_are_words_of_sql(database: UserDatabase, methods: Methods) -> None:
    """Table and columns are found by exactly their names."""
    quote = "`" if database.kind == "mariadb" else '"'
    database.run(
        'CREATE TABLE "Order" ("select" INTEGER, "from" VARCHAR(20), "Where" VARCHAR(20), "group" VARCHAR(20));'
        "INSERT INTO \"Order\" VALUES (1, 'alice', 'wonderland', 'acme');".replace('"', quote)
    )
    names = {"id_field": "select", "login_field": "from", "password_field": "Where", "tenant_field": "group"}
    method = methods(database.settings(table="Order", **names))
    await method.check()
    assert await sign_in(method, "alice", "wonderland") == Proof("1", "acme")


async def test_one_column_may_be_several_things(database: UserDatabase, methods: Methods) -> None:
    """Where the login is the id."""
    database.run(USERS)
    method = methods(database.settings(id_field="login"))
    assert await sign_in(method, "alice", "wonderland") == Proof("alice")


async def test_a_table_of_another_schema(postgres_users: UserDatabase, methods: Methods) -> None:
    """Its name has the schema in front."""
    postgres_users.run(USERS + 'CREATE SCHEMA "Crm"; ALTER TABLE users SET SCHEMA "Crm";')
    method = methods(postgres_users.settings(table="Crm.users"))
    assert await sign_in(method, "alice", "wonderland") == ALICE


async def test_several_rows_of_a_login_are_nobody(
    database: UserDatabase, methods: Methods, log: pytest.LogCaptureFixture
) -> None:
    """Which of them it is would be a guess; the log names them."""
    database.run(USERS + "INSERT INTO users VALUES (3, 'alice', 'wonderland', NULL);")
    assert await sign_in(methods(database.settings()), "alice", "wonderland") is None
    [(level, message)] = said(log)
    assert level == "WARNING" and "'1'" in message and "'3'" in message and "users" in message
    assert await sign_in(methods(database.settings()), "bob", "builder") == Proof("2")


async def test_a_row_without_an_id_or_a_password_is_no_user(database: UserDatabase, methods: Methods) -> None:
    """NULL, and the empty password of those who never had one."""
    database.run(
        USERS
        + "INSERT INTO users VALUES (NULL, 'carol', 'c', NULL), (4, 'dave', NULL, NULL), (5, 'erin', '', NULL),"
        " (6, NULL, 'f', NULL);"
    )
    method = methods(database.settings())
    for login, password in [
        ("carol", "c"),
        ("dave", ""),
        ("dave", "NULL"),
        ("erin", ""),
        ("", "f"),
        ("None", "f"),
    ]:
        assert await sign_in(method, login, password) is None, login


async def test_the_tenant_comes_from_its_field(database: UserDatabase, methods: Methods) -> None:
    """NULL is no tenant."""
    database.run(USERS)
    method = methods(database.settings(tenant_field="tenant"))
    assert await sign_in(method, "bob", "builder") == Proof("2", "acme")
    assert await sign_in(method, "alice", "wonderland") == Proof("1", None)


AN_UUID = "0b5d1f3e-6c1c-4d57-9d8c-0a2f5b1c7e55"

IDS = {
    "mariadb": {
        "BIGINT UNSIGNED": ("18446744073709551615", "18446744073709551615"),
        "DECIMAL(10,2)": ("7", "7"),
        "DOUBLE": ("7", "7"),
        "UUID": (f"'{AN_UUID}'", AN_UUID),
        "BINARY(16)": (f"x'{uuid.UUID(AN_UUID).hex}'", uuid.UUID(AN_UUID).hex),
        "VARCHAR(20)": ("'007'", "007"),
    },
    "postgres": {
        "BIGINT": ("9223372036854775807", "9223372036854775807"),
        "NUMERIC(10,2)": ("7", "7"),
        "DOUBLE PRECISION": ("7", "7"),
        "UUID": (f"'{AN_UUID}'", AN_UUID),
        "BYTEA": (r"'\x00ff'", "00ff"),
        "TEXT": ("'007'", "007"),
    },
    "sqlite": {
        "INTEGER": ("7", "7"),
        "REAL": ("7", "7"),
        "BLOB": ("x'00ff'", "00ff"),
        "TEXT": ("'007'", "007"),
    },
}


async def test_an_id_of_any_type_becomes_text(database: UserDatabase, methods: Methods) -> None:
    """Integers without a fraction, UUIDs with their dashes, bytes as hexadecimal digits."""
    for number, (column_type, (literal, expected)) in enumerate(IDS[database.kind].items()):
        database.run(
            f"CREATE TABLE u{number} (id {column_type}, login VARCHAR(20), password VARCHAR(20));"
            f"INSERT INTO u{number} VALUES ({literal}, 'alice', 'wonderland');"
        )
        method = methods(database.settings(table=f"u{number}"))
        assert await sign_in(method, "alice", "wonderland") == Proof(expected), column_type


async def test_mysql_compares_no_number_with_a_text(
    mariadb_users: UserDatabase, methods: Methods, log: pytest.LogCaptureFixture
) -> None:
    """To MySQL any text without digits is 0, and it warns with the text in full, which must not be logged."""
    mariadb_users.run(
        "CREATE TABLE users (id INT, login INT, password INT); INSERT INTO users VALUES (1, 0, 0);"
    )
    method = methods(mariadb_users.settings())
    assert await sign_in(method, "0", "0") == ALICE
    for login, password in [
        ("alice", SECRET),
        (SECRET, "0"),
        ("0", SECRET),
        ("0", "0.0"),
        ("00", "0"),
        ("", "0"),
    ]:
        assert await sign_in(method, login, password) is None, (login, password)
    assert said(log) == []


async def test_mysql_with_other_character_sets(mariadb_users: UserDatabase, methods: Methods) -> None:
    """latin1 cannot hold every login, and VARBINARY comes as bytes."""
    for name, column_type in {
        "l": "VARCHAR(20) CHARACTER SET latin1",
        "b": "VARBINARY(20)",
        "c": "CHAR(20)",
    }.items():
        mariadb_users.run(
            f"CREATE TABLE {name} (id INT, login {column_type}, password {column_type});"
            f"INSERT INTO {name} VALUES (1, 'zoë', 'ë');"
        )
        method = methods(mariadb_users.settings(table=name))
        assert await sign_in(method, "zoë", "ë") == ALICE, column_type
        assert await sign_in(method, "zoë", "e") is None, column_type
        assert await sign_in(method, "\U0001f600", "日本") is None, column_type


async def test_postgres_char_is_not_filled_up(postgres_users: UserDatabase, methods: Methods) -> None:
    """CHAR(n) means its text without the blanks at the end."""
    postgres_users.run(
        "CREATE TABLE users (id INT, login CHAR(20), password CHAR(20));"
        "INSERT INTO users VALUES (1, 'alice', 'wonderland');"
    )
    assert await sign_in(methods(postgres_users.settings()), "alice", "wonderland") == ALICE


# --- hashes

HASHES = {
    "argon2": hash_password("wonderland"),
    "bcrypt": bcrypt.hashpw(b"wonderland", bcrypt.gensalt(4)).decode(),
    "bcrypt of PHP": bcrypt.hashpw(b"wonderland", bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$"),
}

# From Django's own tests, for the password "lètmein".
DJANGO = "pbkdf2_sha256$260000$seasalt$YlZ2Vggtqdc61YjArZuoApoBh9JNGYoDRBUGu6tcJQo="


def add(database: UserDatabase, number: int, login: str, hashed: str) -> None:
    database.run(f"INSERT INTO users VALUES ({number}, '{login}', '{hashed}', NULL);")


@pytest.mark.parametrize("kind", HASHES)
async def test_a_hash_is_verified_here(database: UserDatabase, methods: Methods, kind: str) -> None:
    """Its password is right, another is not, and the hash itself least of all."""
    database.run(USERS)
    add(database, 10, "carol", HASHES[kind])
    method = methods(database.settings(check="hash"))
    assert await sign_in(method, "carol", "wonderland") == Proof("10")
    assert await sign_in(method, "carol", "Wonderland") is None
    assert await sign_in(method, "carol", HASHES[kind]) is None


async def test_a_proof_is_as_old_as_its_question(
    database: UserDatabase, methods: Methods, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks may have to wait. The password may change in the meantime, and the user be signed out for it."""
    database.run(USERS)
    add(database, 10, "carol", HASHES["bcrypt"])
    is_checking, may_go_on, matches = threading.Event(), threading.Event(), passwords.matches

    def held(*arguments: Any) -> bool:
        is_checking.set()
        may_go_on.wait(30)
        return matches(*arguments)

    monkeypatch.setattr(passwords, "matches", held)
    method = methods(database.settings(check="hash"))
    checking = asyncio.create_task(method.check_password("carol", "wonderland", CALLER))
    assert await asyncio.to_thread(is_checking.wait, 30)
    await asyncio.sleep(0.002)  # a millisecond is the unit of sign-outs
    signed_out_at = now()
    may_go_on.set()
    proof = await checking
    assert proof is not None and proof.issued_at is not None
    assert proof.issued_at < signed_out_at


async def test_a_hash_of_django(database: UserDatabase, methods: Methods) -> None:
    """As Django's own tests have it."""
    database.run(USERS)
    add(database, 10, "carol", DJANGO)
    method = methods(database.settings(check="hash"))
    assert await sign_in(method, "carol", "lètmein") == Proof("10")
    assert await sign_in(method, "carol", "letmein") is None


async def test_what_is_no_hash_matches_nothing(database: UserDatabase, methods: Methods) -> None:
    """A password in plain text, and what stands for "none"."""
    database.run(USERS)
    for number, text in enumerate(["!", "*", "!x$y", "$argon2id$", "$2b$", "pbkdf2_sha256$"]):
        add(database, number + 10, f"u{number}", text)
        method = methods(database.settings(check="hash"))
        assert await sign_in(method, f"u{number}", text) is None
    assert await sign_in(methods(database.settings(check="hash")), "alice", "wonderland") is None


async def test_an_unknown_login_costs_a_check_like_any_other(
    database: UserDatabase, methods: Methods
) -> None:
    """Of the kind that this table holds, from the first one on, so that the time does not tell which logins there
    are."""
    database.run(USERS)
    add(database, 10, "carol", HASHES["bcrypt"])
    add(database, 11, "dave", "!")
    method = methods(database.settings(check="hash"))
    for login in ["nobody", "dave", "alice", "carol", "\0", "\ud800", "x" * 5000]:
        assert await sign_in(method, login, "wrong") is None
    assert methods.checks.hashes == [HASHES["bcrypt"]] * 7


async def test_unknown_logins_cost_as_different_as_the_known(
    database: UserDatabase, methods: Methods
) -> None:
    """Where a table holds several kinds of hashes: each unknown login costs what it did before."""
    database.run(USERS)
    for number in range(20):
        add(database, number + 10, f"user-{number}", HASHES["bcrypt"] if number % 2 else HASHES["argon2"])
    method = methods(database.settings(check="hash"))
    costs: list[list[str]] = []
    for _ in range(2):
        for number in range(20):
            assert await sign_in(method, f"nobody-{number}", "x") is None
        costs.append(list(methods.checks.hashes))
        methods.checks.hashes.clear()
    assert costs[0] == costs[1]
    assert set(costs[0]) == {HASHES["bcrypt"], HASHES["argon2"]}


async def test_a_table_without_hashes(database: UserDatabase, methods: Methods) -> None:
    """An unknown login costs as much as one with a hash that this server makes, until there is another."""
    database.run(USERS)
    method = methods(database.settings(check="hash"))
    assert await sign_in(method, "nobody", "x") is None
    add(database, 10, "carol", HASHES["bcrypt"])
    assert await sign_in(method, "carol", "wrong") is None
    assert await sign_in(method, "nobody", "x") is None
    assert methods.checks.hashes == [DECOY, HASHES["bcrypt"], HASHES["bcrypt"]]


# --- a database that is slow, or away


async def test_a_locked_table_ends_in_time_and_leaves_the_connections_usable(
    database: UserDatabase, methods: Methods, log: pytest.LogCaptureFixture
) -> None:
    """The only connection is the one that was waiting; it is told once that the database is away, and once that it is
    back."""
    database.run(USERS)
    method = methods(database.settings(connections=1, timeout_s=0.5))
    assert await sign_in(method, "alice", "wonderland") == ALICE
    async with database.locked():
        for _ in range(3):
            with pytest.raises(AuthUnavailable):
                await sign_in(method, "alice", SECRET)
        with pytest.raises(AuthUnavailable):
            await method.check()
    assert await _until_it_answers(method, "alice", "wonderland") == ALICE
    for _ in range(3):
        assert await sign_in(method, "alice", "wonderland") == ALICE
    away, back = said(log)
    assert away[0] == "ERROR" and back == ("INFO", "the users' database answers again")


async def _until_it_answers(method: SQLLoginMethod, login: str, password: str) -> Proof | None:
    """SQLite's thread goes on waiting for as long as it was told to."""
    while True:
        try:
            return await sign_in(method, login, password)
        except AuthUnavailable:
            continue


async def test_a_caller_who_gives_up_takes_no_connection_with_them(
    database: UserDatabase, methods: Methods
) -> None:
    """Nor is it an outage."""
    database.run(USERS)
    method = methods(database.settings(connections=1))
    async with database.locked():
        waiting = [asyncio.create_task(sign_in(method, "alice", "wonderland")) for _ in range(3)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await asyncio.gather(*waiting)
    assert await sign_in(method, "alice", "wonderland") == ALICE


async def test_many_at_once_share_two_connections(database: UserDatabase, methods: Methods) -> None:
    """Each gets its own answer."""
    database.run(USERS)
    method = methods(database.settings(connections=2))
    logins = [
        ("alice", "wonderland"),
        ("bob", "builder"),
        ("alice", "builder"),
        ("nobody", "x"),
        ("bob", "Builder"),
    ]
    answers = await asyncio.gather(*(sign_in(method, *login) for login in logins * 10))
    assert answers == [ALICE, Proof("2"), None, None, None] * 10
    assert database.connections() == 2


async def test_not_everybody_may_wait(database: UserDatabase, methods: Methods) -> None:
    """Behind a slow database the line is bounded; those who are in it are answered."""
    database.run(USERS)
    method = methods(database.settings(connections=1))
    async with database.locked():
        waiting = [asyncio.create_task(sign_in(method, "alice", "wonderland")) for _ in range(201)]
        await asyncio.sleep(0)
        with pytest.raises(Busy) as refused:
            await sign_in(method, "alice", "wonderland")
        assert not isinstance(refused.value, AuthUnavailable)
    assert await asyncio.gather(*waiting) == [ALICE] * 201


async def test_closing_ends_what_is_waiting(database: UserDatabase, methods: Methods) -> None:
    """And nobody gets in by that."""
    database.run(USERS)
    method = methods(database.settings(timeout_s=1))
    async with database.locked():
        waiting = asyncio.create_task(sign_in(method, "alice", "wonderland"))
        await asyncio.sleep(0.1)
        await method.close()
        with pytest.raises(AuthUnavailable):
            await waiting


async def test_closing_leaves_no_connection(database: UserDatabase, methods: Methods) -> None:
    """Nor does who comes after it make one; closing twice is closing once."""
    database.run(USERS)
    method = methods(database.settings(connections=3))
    await asyncio.gather(*(sign_in(method, "alice", "wonderland") for _ in range(10)))
    assert database.connections() == 3
    await method.close()
    with pytest.raises(AuthUnavailable):
        await sign_in(method, "alice", "wonderland")
    await method.close()
    await asyncio.to_thread(wait_until, lambda: database.connections() == 0, "the connections ending")
    assert workers() == []


async def _error(task: asyncio.Task[Proof | None]) -> BaseException | None:
    await asyncio.wait({task})
    return task.exception()


@pytest.mark.parametrize("has_connected", [True, False])
async def test_closing_in_the_middle_leaves_no_connection(
    database: UserDatabase, methods: Methods, has_connected: bool
) -> None:
    """Of those that wait for an answer, and of those that are only being made."""
    database.run(USERS)
    method = methods(database.settings(connections=3, timeout_s=1))
    if has_connected:
        await asyncio.gather(*(sign_in(method, "alice", "wonderland") for _ in range(10)))
    async with database.locked():
        waiting = [asyncio.create_task(sign_in(method, "alice", "wonderland")) for _ in range(10)]
        await asyncio.sleep(0.1 if has_connected else 0)
        await method.close()
        assert {type(await _error(each)) for each in waiting} == {AuthUnavailable}
        # Their tracebacks hold on to cursors, and those to SQLite's connections.
        waiting.clear()
        if database.kind != "sqlite":
            # That of who holds the lock is left. (SQLite keeps all files open while one of the process is locked.)
            await asyncio.to_thread(wait_until, lambda: database.connections() == 1, "the others ending")
    await asyncio.to_thread(wait_until, lambda: workers() == [], "the threads ending")
    await asyncio.to_thread(wait_until, lambda: database.connections() == 0, "the files being closed")


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["own_mariadb", "own_postgres"])
@pytest.mark.parametrize("end", [DatabaseServer.stop, DatabaseServer.kill])
async def test_a_server_that_goes_and_comes_back(
    kind: str,
    end: Any,
    methods: Methods,
    request: pytest.FixtureRequest,
    log: pytest.LogCaptureFixture,
) -> None:
    """In the middle of many sign-ins: meanwhile nobody gets in, and then all do again, by themselves."""
    server: DatabaseServer = request.getfixturevalue(kind)
    database = (
        MariaDBUsers(server) if isinstance(server, MariaDB) else PostgresUsers(request.getfixturevalue(kind))
    )
    database.run(USERS)
    method = methods(database.settings(connections=3))
    proofs = 0
    enough, away = asyncio.Event(), asyncio.Event()

    async def keep_signing_in() -> None:
        nonlocal proofs
        while not away.is_set():
            try:
                assert await sign_in(method, "alice", "wonderland") == ALICE
            except AuthUnavailable as exc:
                assert str(exc) == "the users' database cannot be asked now; try again later"
                away.set()
            proofs += 1
            if proofs > 30:
                enough.set()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(keep_signing_in())
        await enough.wait()
        await asyncio.to_thread(getattr(server, end.__name__))
    with pytest.raises(AuthUnavailable):
        await sign_in(method, "alice", SECRET)
    server.start()
    assert await sign_in(method, "alice", "wonderland") == ALICE
    # Once each, but that some of its processes may outlive the others.
    levels = [level for level, _ in said(log)]
    assert levels
    assert levels == ["ERROR", "INFO"] * (len(levels) // 2)
    # And if it goes and comes back while nobody asks, nobody notices.
    server.stop()
    server.start()
    assert await sign_in(method, "alice", "wonderland") == ALICE


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["own_mariadb", "own_postgres"])
async def test_a_server_that_falls_silent(
    kind: str, methods: Methods, request: pytest.FixtureRequest, log: pytest.LogCaptureFixture
) -> None:
    """Its connections stay open and nothing answers: each sign-in ends in time, and closing does too."""
    server: DatabaseServer = request.getfixturevalue(kind)
    database = (
        MariaDBUsers(server) if isinstance(server, MariaDB) else PostgresUsers(request.getfixturevalue(kind))
    )
    database.run(USERS)
    method = methods(database.settings(connections=2, timeout_s=0.5))
    assert await sign_in(method, "alice", "wonderland") == ALICE
    server.freeze()
    answers = await asyncio.gather(
        *(sign_in(method, "alice", SECRET) for _ in range(5)), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [AuthUnavailable] * 5
    server.thaw()
    assert await _until_it_answers(method, "alice", "wonderland") == ALICE
    assert [level for level, _ in said(log)] == ["ERROR", "INFO"]
    server.freeze()
    with pytest.raises(AuthUnavailable):
        await sign_in(method, "alice", SECRET)
    await method.close()
    server.thaw()
    assert {level for level, _ in said(log)} <= {"ERROR", "WARNING"}


async def test_a_mistake_in_the_settings_is_told_by_name(
    database: UserDatabase, methods: Methods, log: pytest.LogCaptureFixture
) -> None:
    """The readiness check finds it, and nothing of what was typed in is told."""
    database.run(USERS)
    for changes, name in [({"table": "userz"}, "userz"), ({"password_field": "passwort"}, "passwort")]:
        method = methods(database.settings(**changes))
        with pytest.raises(AuthUnavailable):
            await method.check()
        [(level, message)] = said(log)
        assert level == "ERROR" and name in message
        with pytest.raises(AuthUnavailable) as refused:
            await sign_in(method, "alice", SECRET)
        assert SECRET not in str(refused.value)


async def test_the_readiness_check(database: UserDatabase, methods: Methods) -> None:
    """A database with its table is ready, even if nobody is in it."""
    database.run(USERS + "DELETE FROM users;")
    await methods(database.settings()).check()


@pytest.mark.servers
@pytest.mark.parametrize("kind", ["mariadb", "postgres"])
async def test_the_password_of_the_database_is_told_to_nobody(
    kind: str, methods: Methods, request: pytest.FixtureRequest, log: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Neither when it is refused, nor when the server is another."""
    database = _database(kind, request, tmp_path)
    url = database.url.replace("root@", f"nobody:{SECRET}@").replace("postgres@", f"nobody:{SECRET}@")
    method = methods(database.settings(url=url))
    with pytest.raises(AuthUnavailable) as refused:
        await method.check()
    assert SECRET not in repr(refused.value) and refused.value.__cause__ is None
    [(level, message)] = said(log)
    assert level == "ERROR" and "nobody" in message
    database.drop()


async def test_a_file_that_is_gone_is_not_made_anew(
    tmp_path: Path, methods: Methods, log: pytest.LogCaptureFixture
) -> None:
    """SQLite would, and then know nobody."""
    path = tmp_path / "users.db"
    method = methods(SQLLogin(url=f"sqlite+aiosqlite:///{path}", check="database"))
    with pytest.raises(AuthUnavailable):
        await sign_in(method, "alice", "wonderland")
    assert not path.exists()
    [(level, _)] = said(log)
    assert level == "ERROR"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "never-to-be-told",
        "mysql+asyncmy://u:never-to-be-told@host:port/db",
        "mysql+nothing://u:never-to-be-told@host/db",
        "sqlite:///never-to-be-told",
    ],
)
async def test_an_address_that_is_none_ends_the_start(url: str, methods: Methods) -> None:
    """In a sentence that names the setting and not the address."""
    with pytest.raises(StartupError, match=r"^\[SQL\] url: ") as refused:
        methods(SQLLogin(url=url))
    assert SECRET not in str(refused.value) and refused.value.__cause__ is None
