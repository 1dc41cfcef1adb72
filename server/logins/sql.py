"""Sign-in with a login and a password that are in a database of the operator's.

What counts as the same is decided here, not by the database: MySQL's collations take `alice`, `ALICE`, `àlice` and
`alice ` for one, and MySQL compares a number with any text that begins with it.
"""

from __future__ import annotations

import hmac
import logging
import math
import time
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Row

from server.auth import Proof
from server.callers import Caller
from server.config.access import SQLLogin
from server.errors import AuthUnavailable, Busy
from server.logins.sql_database import UserDatabase
from server.messages import now
from server.passwords import PasswordChecks, decoy, is_hash

logger = logging.getLogger(__name__)

SAMPLED = 50
"""Hashes that stand in for those of unknown logins."""

SAMPLED_EVERY_S = 3600.0
"""Sites change to dearer hashes now and then."""

SAMPLED_AGAIN_S = 60.0
"""Where there were none yet."""

# Nobody's login or password is longer, and a database need not hear of it.
_MAX_CHARS = 1024


class SQLLoginMethod:
    """A `PasswordMethod` of server.auth over one table.

    A login is the same if it is the same text, or, where the database finds it so, the same but for upper and lower
    case. With `check=database` the password must be the same text exactly, and not empty; with `check=hash` what is
    stored must be its hash. Several rows for one login are nobody: which of them would be a guess.
    """

    name = "sql"

    def __init__(self, settings: SQLLogin, checks: PasswordChecks) -> None:
        """Raises `StartupError` if the database's address cannot be one. Connects later, when first asked."""
        self._database = UserDatabase(settings)
        self._checks = checks
        self._has_hashes = settings.check == "hash"
        # What unknown logins are checked against: as dear as those of this table.
        self._decoys: tuple[str, ...] = ()
        self._sampled_at = float("-inf")
        self._has_tenants = settings.tenant_field is not None
        self._table = settings.table

    async def check_password(self, login: str, password: str, caller: Caller) -> Proof | None:
        """As in `PasswordMethod`. The id of the proof is the column's value as text: numbers without a fraction as
        integers, UUIDs with their dashes, bytes as hexadecimal digits. A tenant that is NULL is none."""
        if not (_can_be_stored(login) and _can_be_stored(password)):
            await self._nobody(login, "")
            return None
        # What is found may have changed by the time that it has been checked: a sign-out since then counts.
        asked_at = now()
        row = self._only_user(login, await self._database.rows(login, password))
        if row is None:
            await self._nobody(login, password)
            return None
        return self._proof(row, asked_at) if await self._is_right(row, password) else None

    async def check(self) -> None:
        """Whether the database answers, and has that table with those columns. Raises `AuthUnavailable`."""
        await self._database.rows("", "")

    async def close(self) -> None:
        """End what is being asked, and the connections."""
        await self._database.close()

    async def _is_right(self, row: Row[Any], password: str) -> bool:
        if not self._has_hashes:
            return hmac.compare_digest(row.password.encode(), password.encode())
        if not self._decoys and is_hash(row.password):
            self._decoys = (row.password,)
        return await self._checks.verify(row.password, password, user_id=_text(row.id))

    async def _nobody(self, login: str, password: str) -> None:
        """Take as long as it takes to find a password wrong."""
        if self._has_hashes:
            await self._sample()
            await self._checks.verify(decoy(login, self._decoys), password)

    async def _sample(self) -> None:
        """Know some hashes of the table: not only once somebody has signed in, or until then the time would tell which
        logins there are."""
        if time.monotonic() < self._sampled_at + (SAMPLED_EVERY_S if self._decoys else SAMPLED_AGAIN_S):
            return
        self._sampled_at = time.monotonic()
        try:
            found = await self._database.passwords(SAMPLED)
        except (AuthUnavailable, Busy):
            return  # as of a view that is slow when nothing is asked for: what is known is as good
        self._decoys = tuple(text for text in found if is_hash(text))

    def _only_user(self, login: str, rows: Sequence[Row[Any]]) -> Row[Any] | None:
        """The row of this login, if it is the only one and can sign in: it has an id, and a password that can match."""
        if len(rows) > 1:
            ids = " and ".join(repr(_text(row.id)) for row in rows)
            logger.warning("the rows %s of %s have the same login, so neither gets in", ids, self._table)
            return None
        for row in rows:
            if _text(row.id) and self._can_match(row.password) and _is_same(row.login, login):
                return row
        return None

    def _can_match(self, stored: str | None) -> bool:
        """Not so: NULL, an empty password, and what stands in place of a hash where a user has none (`!`, `*`)."""
        return bool(stored) and (not self._has_hashes or "$" in str(stored))

    def _proof(self, row: Row[Any], asked_at: datetime) -> Proof:
        tenant = _text(row.tenant) if self._has_tenants else None
        return Proof(_text(row.id) or "", tenant, issued_at=asked_at, by_own_clock=True)


def _can_be_stored(text: str) -> bool:
    """False for what no database takes as text, and would be an error there: NUL, halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return len(text) <= _MAX_CHARS and "\0" not in text


def _is_same(stored: str | None, login: str) -> bool:
    return stored is not None and stored.casefold() == login.casefold()


def _text(value: object) -> str | None:
    """A column's value; None: it has none."""
    if value is None:
        return None
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Decimal | float) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value)
