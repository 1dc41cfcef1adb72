"""The database of the login by SQL: `[SQL]`, or `[MYSQL]` as the original wrote it."""

from __future__ import annotations

import re
from urllib.parse import quote

from server.config.access import SQLLogin
from server.config.reader import Reading, Values
from server.config.schema import SECTIONS
from server.config.values import is_host

# The drivers that wait without blocking, by the databases that have one here.
DRIVERS = {"mysql": "asyncmy", "mariadb": "asyncmy", "postgresql": "asyncpg", "sqlite": "aiosqlite"}

# Without these the original could not look anybody up.
_MYSQL_NEEDED = ("db", "table", "idfield", "loginfield", "passwordfield")


def sql(reading: Reading) -> SQLLogin | None:
    """None: neither of the two sections is complete."""
    values, original = reading.values("SQL"), reading.values("MYSQL")
    missing = [SECTIONS["MYSQL"].keys[name].name for name in _MYSQL_NEEDED if name not in original]
    if original and missing:
        reading.warn("MYSQL", "", f"is not used, since {', '.join(missing)} is not set")
    elif original and values:
        reading.problem("MYSQL", "", "contradicts [SQL]; remove one of them")
    elif original:
        return _of_original(reading, original)
    if not values:
        return None
    if not reading.is_written("SQL", "url"):
        reading.problem("SQL", "url", "is missing, so there is no database to ask")
    values["url"] = _complete(reading, values.get("url", ""))
    record = SQLLogin(**reading.fields("SQL", values))
    if record.check == "database":
        reason = "database compares passwords as they are stored, which only works if that is in plain text"
        reading.warn("SQL", "check", reason)
    return record


def section_of_sql(reading: Reading) -> str:
    """Which of the two it is."""
    return "SQL" if reading.is_written("SQL", "url") else "MYSQL"


def _of_original(reading: Reading, values: Values) -> SQLLogin:
    """As the original asked it: MySQL itself compares the password."""
    host, db = values.get("host", "127.0.0.1"), values["db"]
    if not is_host(host):
        reading.problem("MYSQL", "host", "is not a host such as mysql.example.org")
    if re.search(r"[?#/\s]", db):
        reading.problem("MYSQL", "db", "is not a name that fits into a database's address")
    user, password = (quote(values.get(name, ""), safe="") for name in ("user", "password"))
    login = f"{user}:{password}@" if password else f"{user}@" if user else ""
    place = f"[{host}]" if ":" in host else host
    reason = (
        "its users may join, and the database compares their passwords as they are stored, as the original did; "
        "[SQL] with check=hash verifies hashes instead"
    )
    reading.warn("MYSQL", "", reason)
    return SQLLogin(
        url=f"mysql+asyncmy://{login}{place}:{values.get('port', 3306)}/{db}",
        table=values["table"],
        id_field=values["idfield"],
        login_field=values["loginfield"],
        password_field=values["passwordfield"],
        check="database",
    )


def _complete(reading: Reading, url: str) -> str:
    """With the driver, and the path of a file absolute. SQLAlchemy's form: the fourth slash begins an absolute path."""
    if not url:
        return ""
    match = re.fullmatch(r"([a-z]+)(?:\+([a-z0-9]+))?://(.*)", url)
    if match is None or match[1] not in DRIVERS:
        # Not repeated: it may hold a password.
        reading.problem(
            "SQL", "url", f"does not begin with one of: {', '.join(f'{name}://' for name in DRIVERS)}"
        )
        return ""
    database, driver, rest = match.groups()
    if driver not in (None, DRIVERS[database]):
        reading.problem("SQL", "url", f"needs the driver {DRIVERS[database]}; leave it out")
    if database == "sqlite":
        rest = _file(reading, rest)
    elif not rest:
        reading.problem("SQL", "url", "names no database")
    return f"{database}+{DRIVERS[database]}://{rest}"


def _file(reading: Reading, rest: str) -> str:
    """SQLite would make the file that is missing, and then find nobody in it."""
    name, mark, options = rest.removeprefix("/").partition("?")
    path = reading.base / name
    if not rest.startswith("/") or not name or name.startswith(":"):
        reading.problem(
            "SQL", "url", "names no file; write sqlite:///users.db or sqlite:////var/lib/users.db"
        )
    elif not path.is_file():
        reading.problem("SQL", "url", f"there is no file {path}")
    return f"/{path}{mark}{options}"
