"""The database of the users: one query over a few connections, which never waits for ever and never tells a secret."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from sqlalchemy import ColumnClause, Row, Select, String, Text, bindparam, cast, column, select, table
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.sql import quoted_name

from server.config.access import SQLLogin
from server.errors import AuthUnavailable, Busy, StartupError

logger = logging.getLogger(__name__)

# So many per connection wait for their turn; those who come after them hear that it is too much now.
_MAX_WAITING_PER_CONNECTION = 200

# For taking leave of a database, beyond the time for an answer.
_LEAVE_S = 1.0

# MySQL's driver logs what its server warns of, and that may be a password ("Truncated incorrect DECIMAL value: …").
logging.getLogger("asyncmy").setLevel(logging.CRITICAL)

# It logs each connection that breaks, with a traceback; that the database is away is said here, once.
logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)

# MySQL's errors about a text that the column's character set does not have: nobody has such a login.
_FOREIGN_TEXT = {1267, 1270, 1271, 1300, 1366, 3854, 3988}

# Those of MySQL whose message names parts of the database and nothing of what was asked: no such database, column,
# table; not allowed. The text of others may repeat the query, in which MySQL's drivers write the values out.
_NAMES_ONLY = {1044, 1049, 1054, 1142, 1143, 1146}


class UserDatabase:
    """Asks for the rows of one login. Connects at the first question; what breaks is connected anew by itself."""

    def __init__(self, settings: SQLLogin) -> None:
        """Raises `StartupError` if the address cannot be one."""
        self._timeout_s = settings.timeout_s
        self._engine = _engine(settings)
        self._statement, self._sample = _statements(settings)
        self._questions: set[asyncio.Task[Sequence[Row[Any]]]] = set()
        self._max_questions = settings.connections * (1 + _MAX_WAITING_PER_CONNECTION)
        self._is_down = False
        self._is_closed = False

    async def rows(self, login: str, password: str) -> Sequence[Row[Any]]:
        """At most two rows that the database holds to be of this login (and of this password, if it is the one to
        compare them). Each has `id`, `login` and `password` as text, and `tenant` if there is such a field; any may be
        None. A text that the database cannot hold is nobody's. Raises `Busy` when too many wait already,
        `AuthUnavailable`, also once closed."""
        return await self._rows(self._statement, {"login": login, "password": password})

    async def passwords(self, limit: int) -> Sequence[str]:
        """What stands in the password's field of some users; raises as `rows`."""
        return [row.password for row in await self._rows(self._sample.limit(limit), {})]

    async def _rows(self, statement: Select[Any], values: Mapping[str, str]) -> Sequence[Row[Any]]:
        if self._is_closed:
            # It would connect anew, and nobody would end that.
            raise self._unavailable("it is closed")
        if len(self._questions) >= self._max_questions:
            raise Busy("too many sign-ins at this moment; try again")
        was_down = self._is_down
        try:
            rows = await self._within_time(statement, values)
        except TimeoutError as exc:
            raise self._unavailable(f"no answer within {self._timeout_s:g} s") from exc
        except (SQLAlchemyError, OSError, EOFError) as exc:
            if not _is_about_the_text(exc):
                # Without `exc`: where it is logged one day, it might repeat the query.
                raise self._unavailable(_why(exc)) from None
            rows = ()
        # What was asked before the outage may be answered in the middle of it.
        if self._is_down and was_down:
            self._is_down = False
            logger.info("the users' database answers again")
        return rows

    async def close(self) -> None:
        """End what is being asked, and the connections. Idempotent."""
        self._is_closed = True
        questions = list(self._questions)
        for question in questions:
            _end(question)
        try:
            async with asyncio.timeout(self._timeout_s + _LEAVE_S):
                # Each gives back its connection. A silent database holds that up; SQLite ends its waiting by itself.
                if questions:
                    await asyncio.wait(questions)
                await self._engine.dispose()
        except TimeoutError:
            logger.warning("the users' database does not answer; its connections end with this process")

    async def _within_time(self, statement: Select[Any], values: Mapping[str, str]) -> Sequence[Row[Any]]:
        question = asyncio.create_task(self._ask(statement, values), name="SQL login")
        self._questions.add(question)
        question.add_done_callback(self._forget)
        try:
            done, _ = await asyncio.wait({question}, timeout=self._timeout_s)
        finally:
            # It goes on alone: taking leave of a silent server, or of SQLite in the middle of a query, takes time,
            # for which its connection counts as taken.
            _end(question)
        if not done or question.cancelled():
            raise TimeoutError
        return question.result()

    async def _ask(self, statement: Select[Any], values: Mapping[str, str]) -> Sequence[Row[Any]]:
        async with self._engine.connect() as connection:
            rows: Sequence[Row[Any]] = (await connection.execute(statement, values)).all()
        return rows

    def _forget(self, question: asyncio.Task[Sequence[Row[Any]]]) -> None:
        self._questions.discard(question)
        if not question.cancelled():
            # Looked at, or asyncio would log what nobody waited for any more, with the query.
            question.exception()

    def _unavailable(self, why: str) -> AuthUnavailable:
        if not (self._is_down or self._is_closed):
            self._is_down = True
            logger.error("the users' database ([SQL]) cannot be asked, so nobody signs in by it: %s", why)
        return AuthUnavailable("the users' database cannot be asked now; try again later")


def _end(question: asyncio.Task[Any]) -> None:
    # Once only: a second time would break off the orderly end of a connection, which aiosqlite never gets over.
    if not question.cancelling():
        question.cancel()


def _engine(settings: SQLLogin) -> AsyncEngine:
    try:
        url = make_url(settings.url)
        connect_args: dict[str, Any] = {}
        if url.get_backend_name() == "sqlite":
            url = _existing_file(url)
            # For how long it waits for a writer; its thread cannot be stopped from outside.
            connect_args["timeout"] = settings.timeout_s
        return create_async_engine(
            url,
            connect_args=connect_args,
            pool_size=settings.connections,
            max_overflow=0,
            pool_timeout=settings.timeout_s,
            # A connection that has died in the pool is found out before it is used.
            pool_pre_ping=True,
            # One query, no transaction: neither BEGIN nor ROLLBACK has to travel.
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
        )
    except (SQLAlchemyError, ImportError, TypeError, ValueError):
        # Without the address, and without what the library says of it: it holds a password.
        raise StartupError(
            "[SQL] url: is not the address of a database that can be asked from here"
        ) from None


def _existing_file(url: URL) -> URL:
    """SQLite's address such that a file that is not there is an error, not made: by its `file:` form."""
    if url.database is None or url.database.startswith("file:"):
        return url
    return url.set(database=f"file:{quote(url.database)}").update_query_dict({"uri": "true", "mode": "rw"})


def _statements(settings: SQLLogin) -> tuple[Select[Any], Select[Any]]:
    """That for a login is as the original's: `SELECT id FROM table WHERE login = … AND password = …`, and what is
    compared here again. The other one is for the passwords of anybody."""
    schema, _, name = settings.table.rpartition(".")
    fields = [settings.id_field, settings.login_field, settings.password_field, settings.tenant_field]
    columns: list[ColumnClause[Any]] = [
        column(_quoted(field)) for field in dict.fromkeys(fields) if field is not None
    ]
    # Columns of the table, written `users."password"`: SQLite takes a lone "passwort" that is no column for a text.
    users = table(_quoted(name), *columns, schema=_quoted(schema) if schema else None)
    login, password = users.c[settings.login_field], users.c[settings.password_field]
    found = [
        users.c[settings.id_field].label("id"),
        # As text: numbers, MySQL's VARBINARY, and PostgreSQL's CHAR(n), which would come filled up with blanks.
        cast(login, Text).label("login"),
        cast(password, Text).label("password"),
    ]
    if settings.tenant_field is not None:
        found.append(users.c[settings.tenant_field].label("tenant"))
    # The values are bound with a type, or a driver might choose one by the column.
    statement = select(*found).where(login == bindparam("login", type_=String())).limit(2)
    if settings.check == "database":
        statement = statement.where(password == bindparam("password", type_=String()))
    return statement, select(cast(password, Text).label("password")).where(password.is_not(None))


def _quoted(name: str) -> quoted_name:
    """Exactly this name, whatever its case and even if it is a word of SQL."""
    return quoted_name(name, quote=True)


def _is_about_the_text(error: BaseException) -> bool:
    """Whether the database only could not make anything of what was asked for."""
    if not isinstance(error, DBAPIError):
        return False
    # SQLSTATE class 22 (ISO 9075): data exception.
    return str(_sqlstate(error) or "").startswith("22") or _mysql_code(error) in _FOREIGN_TEXT


def _why(error: BaseException) -> str:
    """For the log; without anything that a user has typed in."""
    if not isinstance(error, DBAPIError):
        # From the network, or from the pool.
        return f"{type(error).__name__}: {error}"
    cause = error.orig
    code = _mysql_code(error)
    is_safe = error.statement is None or code is None or code in _NAMES_ONLY
    return f"{type(cause).__name__}: {cause}" if is_safe else f"{type(cause).__name__} {code}"


def _sqlstate(error: DBAPIError) -> object:
    return getattr(error.orig, "sqlstate", None)


def _mysql_code(error: DBAPIError) -> int | None:
    """The number that MySQL's errors begin with; None: it is another's."""
    cause = error.orig
    arguments = cause.args if cause is not None else ()
    return arguments[0] if arguments and isinstance(arguments[0], int) else None
