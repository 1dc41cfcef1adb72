"""What can be wrong in a file of the embedded store: how it is found, and mended. See `sqlite_fsck`."""

# ruff: noqa: S608  # statements are put together from texts of this module only

from __future__ import annotations

from dataclasses import dataclass

from server.grants import DEFAULT_TENANT
from server.store.fsck import HORIZON_REMEDY, TENANTS_REMEDY

_NOW = "CAST(86400000 * (julianday('now') - 2440587.5) AS INTEGER)"

_NEVER = (1 << 63) - 1

_LATEST_REV = 1 << 62
"""In the year 4199; beyond it there is no number for the next ones."""

_LATEST_MS = _LATEST_REV >> 16


def _is_instant(column: str) -> str:
    return f"(typeof({column}) = 'integer' AND {column} BETWEEN 0 AND {_LATEST_MS})"


def _is_rev(column: str) -> str:
    return f"(typeof({column}) = 'integer' AND {column} BETWEEN 0 AND {_LATEST_REV})"


def _is_id(column: str) -> str:
    return f"(typeof({column}) = 'blob' AND length({column}) = 12)"


def _is_none_or_instant(column: str) -> str:
    return f"({column} IS NULL OR {_is_instant(column)})"


def _else(is_right: str, column: str, otherwise: str) -> str:
    """An assignment that changes only what is not right."""
    return f"{column} = CASE WHEN {is_right} THEN {column} ELSE {otherwise} END"


_TEXTS = ("type", "title", "content", "url", "icon", "image")
_HAS_NO_TEXT = " OR ".join(f"typeof({name}) <> 'text'" for name in _TEXTS)
_IS_JSON = "(data IS NULL OR (typeof(data) = 'text' AND json_valid(data)))"
_BAD_NOTIFICATION = f"""
    NOT ({_is_id("nid")} AND {_is_instant("created_at")} AND {_IS_JSON} AND typeof(tenant) = 'text')
    OR {_HAS_NO_TEXT}
"""
_BAD_DOCUMENT = f"""
    NOT ({_is_id("id")} AND {_is_instant("updated_at")} AND {_is_none_or_instant("deleted_at")}
    AND {_is_none_or_instant("acked_at")} AND typeof(marks) = 'integer' AND seen IN (0, 1))
"""
_RECIPIENT_TIMES = ("leased_until", "failing_since", "failed_at")
_BAD_RECIPIENT = (
    f"NOT ({_is_instant('due_at')} AND {' AND '.join(map(_is_none_or_instant, _RECIPIENT_TIMES))})"
)
_BAD_MAIL = f"NOT ({_is_none_or_instant('due_at')} AND {_is_none_or_instant('leased_until')})"
_BAD_KEY = f"""
    NOT ({_is_id("nid")} AND typeof(fingerprint) = 'blob' AND {_is_instant("created_at")}
    AND {_is_instant("expires_at")})
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """`find`: selects an example of each thing that is wrong, as `example`; `mend`: statements, in order."""

    code: str
    sentence: str
    remedy: str
    find: str
    mend: tuple[str, ...]


_ORPHAN_MAIL = "notification NOT IN (SELECT key FROM notifications)"
_UNUSED = """
    NOT EXISTS (SELECT 1 FROM documents d WHERE d.notification = n.key)
    AND NOT EXISTS (SELECT 1 FROM broadcasts b WHERE b.notification = n.key)
"""
_OTHER_TYPE = """
    documents d JOIN notifications n ON n.key = d.notification
    WHERE d.type IS NOT n.type OR d.created_at <> n.created_at
"""
_TWICE = """
    documents d WHERE d.deleted_at IS NULL AND EXISTS (
        SELECT 1 FROM documents o WHERE o.notification = d.notification AND o.user = d.user AND o.id < d.id
    )
"""
_RECIPIENTS = "FROM mail_recipients r WHERE r.notification = m.notification AND"
_DUE = f"(SELECT min(due_at) {_RECIPIENTS} r.leased_until IS NULL)"
_LEASED = f"(SELECT min(leased_until) {_RECIPIENTS} r.leased_until > {_NOW})"
# Those of removed tenants are held back. A lease that has run out may or may not be looked through already.
_OTHER_TIMES = f"""
    mails m JOIN notifications n ON n.key = m.notification
    WHERE n.tenant NOT IN (SELECT name FROM tenants WHERE removed_at IS NOT NULL)
    AND (coalesce(m.due_at, {_NEVER}) > {_DUE} OR coalesce(m.leased_until, {_NEVER}) > {_LEASED})
"""
_NO_TENANT = """
    SELECT tenant FROM users UNION SELECT tenant FROM notifications UNION SELECT tenant FROM api_keys
    UNION SELECT tenant FROM broadcasts UNION SELECT tenant FROM ways UNION SELECT tenant FROM once
    EXCEPT SELECT name FROM tenants
"""
# A broadcast is gone when it has come to all whom its tenant knew by then; if those were nobody, it had its effect.
_NO_EFFECT = f"""
    once o WHERE o.expires_at > {_NOW}
    AND NOT EXISTS (SELECT 1 FROM notifications n WHERE n.nid = o.nid AND n.tenant = o.tenant)
    AND EXISTS (SELECT 1 FROM users u WHERE u.tenant = o.tenant AND u.first_seen_at <= o.created_at)
"""

KINDS = (
    Kind(
        "clock-unreadable",
        "clocks that no rev can follow",
        "it is set to the highest rev that there is, or to now",
        f"SELECT value AS example FROM meta WHERE name = 'last_rev' AND NOT {_is_rev('value')}",
        (
            f"UPDATE meta SET value = max({_NOW} << 16, (SELECT coalesce(max(rev), 0) FROM documents"
            f" WHERE {_is_rev('rev')})) WHERE name = 'last_rev'",
        ),
    ),
    Kind(
        "revs-unreadable",
        "documents with a rev that is none",
        "they get the next one: clients hear of them again",
        f"SELECT hex(id) AS example FROM documents WHERE NOT {_is_rev('rev')}",
        (
            "UPDATE meta SET value = 1 + max(value, (SELECT coalesce(max(rev), 0) FROM documents"
            f" WHERE {_is_rev('rev')})) WHERE name = 'last_rev'",
            "UPDATE documents SET rev = (SELECT value FROM meta WHERE name = 'last_rev')"
            f" WHERE NOT {_is_rev('rev')}",
        ),
    ),
    Kind(
        "notifications-unreadable",
        "notifications with values that cannot be read: the inboxes that have them cannot be read either",
        "what cannot be read is left out; the time is that of their documents, or now",
        f"SELECT key AS example FROM notifications WHERE {_BAD_NOTIFICATION}",
        (
            "UPDATE notifications AS n SET "
            + ", ".join(
                [
                    _else(_is_id("nid"), "nid", "randomblob(12)"),
                    _else(_IS_JSON, "data", "NULL"),
                    _else(
                        _is_instant("created_at"),
                        "created_at",
                        "coalesce((SELECT min(d.created_at) FROM documents d WHERE d.notification = n.key"
                        f" AND {_is_instant('d.created_at')}), {_NOW})",
                    ),
                    _else(
                        "typeof(tenant) = 'text'",
                        "tenant",
                        "coalesce((SELECT u.tenant FROM documents d JOIN users u ON u.key = d.user"
                        " WHERE d.notification = n.key LIMIT 1), 'default')",
                    ),
                    *(_else(f"typeof({name}) = 'text'", name, "''") for name in _TEXTS),
                ]
            )
            + f" WHERE {_BAD_NOTIFICATION}",
        ),
    ),
    Kind(
        "mail-unreadable",
        "mails with times that cannot be read: they hold up all others",
        "they are due now, and in nobody's hand",
        f"SELECT email AS example FROM mail_recipients WHERE {_BAD_RECIPIENT}"
        f" UNION ALL SELECT notification FROM mails WHERE {_BAD_MAIL}"
        f" UNION ALL SELECT email FROM refused_mail WHERE NOT {_is_instant('refused_at')}",
        (
            "UPDATE mail_recipients SET "
            + ", ".join(
                [
                    _else(_is_instant("due_at"), "due_at", _NOW),
                    *(_else(_is_none_or_instant(name), name, "NULL") for name in _RECIPIENT_TIMES),
                    # A lease without an end would be one in part.
                    _else(_is_instant("leased_until"), "lease", "NULL"),
                ]
            )
            + f" WHERE {_BAD_RECIPIENT}",
            "UPDATE mails SET "
            + ", ".join(_else(_is_none_or_instant(name), name, "NULL") for name in ("due_at", "leased_until"))
            + f" WHERE {_BAD_MAIL}",
            f"UPDATE refused_mail SET refused_at = {_NOW} WHERE NOT {_is_instant('refused_at')}",
        ),
    ),
    Kind(
        "keys-unreadable",
        "idempotency keys with values that cannot be read",
        "they are forgotten: the same request is carried out when it comes again",
        f"SELECT key AS example FROM once WHERE {_BAD_KEY}",
        (f"DELETE FROM once WHERE {_BAD_KEY}",),
    ),
    Kind(
        "documents-without-notification",
        "documents without their notification",
        "they are removed: nothing is known of what they said",
        "SELECT hex(id) AS example FROM documents WHERE notification NOT IN (SELECT key FROM notifications)",
        ("DELETE FROM documents WHERE notification NOT IN (SELECT key FROM notifications)",),
    ),
    Kind(
        "documents-without-user",
        "documents of users that are not there",
        "they are removed: nobody can see them",
        "SELECT hex(id) AS example FROM documents WHERE user NOT IN (SELECT key FROM users)",
        ("DELETE FROM documents WHERE user NOT IN (SELECT key FROM users)",),
    ),
    Kind(
        "documents-twice",
        "documents of which their users have another one of the same notification",
        "the later ones are deleted, as if by their users",
        f"SELECT hex(d.id) AS example FROM {_TWICE}",
        (
            "UPDATE meta SET value = value + 1 WHERE name = 'last_rev'",
            f"UPDATE documents SET deleted_at = {_NOW}, updated_at = {_NOW},"
            " rev = (SELECT value FROM meta WHERE name = 'last_rev')"
            f" WHERE (user, id) IN (SELECT d.user, d.id FROM {_TWICE})",
        ),
    ),
    Kind(
        "documents-unlike-notification",
        "documents whose type or time is not that of their notification, by which they are counted and ordered",
        "they get those of the notification",
        f"SELECT hex(d.id) AS example FROM {_OTHER_TYPE}",
        (
            "UPDATE documents SET (type, created_at) ="
            " (SELECT n.type, n.created_at FROM notifications n WHERE n.key = notification)"
            f" WHERE (user, id) IN (SELECT d.user, d.id FROM {_OTHER_TYPE})",
        ),
    ),
    Kind(
        "documents-unreadable",
        "documents with values that cannot be read: the inboxes that have them cannot be read either",
        "what cannot be read is left out: they are unseen, as new as their notification, and deleted now if at all",
        f"SELECT hex(id) AS example FROM documents WHERE {_BAD_DOCUMENT}",
        (
            "UPDATE documents SET "
            + ", ".join(
                [
                    _else(_is_id("id"), "id", "randomblob(12)"),
                    _else(_is_instant("updated_at"), "updated_at", "created_at"),
                    _else(_is_none_or_instant("deleted_at"), "deleted_at", _NOW),
                    _else(_is_none_or_instant("acked_at"), "acked_at", "NULL"),
                    _else("typeof(marks) = 'integer'", "marks", "0"),
                    _else("seen IN (0, 1)", "seen", "0"),
                ]
            )
            + f" WHERE {_BAD_DOCUMENT}",
        ),
    ),
    Kind(
        "revs-beyond-clock",
        "documents with a rev that is not given out yet, and will be given out again",
        "the clock is set forward",
        "SELECT hex(id) AS example FROM documents WHERE rev > (SELECT value FROM meta WHERE name = 'last_rev')",
        ("UPDATE meta SET value = (SELECT max(rev) FROM documents) WHERE name = 'last_rev'",),
    ),
    Kind(
        "broadcasts-without-notification",
        "open broadcasts without their notification",
        "they are removed",
        f"SELECT notification AS example FROM broadcasts WHERE {_ORPHAN_MAIL}",
        (f"DELETE FROM broadcasts WHERE {_ORPHAN_MAIL}",),
    ),
    Kind(
        "notifications-without-documents",
        "notifications that nobody has",
        "they are removed, with their mail",
        f"SELECT hex(n.nid) AS example FROM notifications n WHERE {_UNUSED}",
        (f"DELETE FROM notifications AS n WHERE {_UNUSED}",),
    ),
    Kind(
        "mail-without-notification",
        "mails without their notification",
        "they are removed",
        f"SELECT notification AS example FROM mails WHERE {_ORPHAN_MAIL}"
        f" UNION SELECT notification FROM mail_recipients WHERE {_ORPHAN_MAIL}"
        f" UNION SELECT notification FROM refused_mail WHERE {_ORPHAN_MAIL}",
        (
            f"DELETE FROM mails WHERE {_ORPHAN_MAIL}",
            f"DELETE FROM mail_recipients WHERE {_ORPHAN_MAIL}",
            f"DELETE FROM refused_mail WHERE {_ORPHAN_MAIL}",
        ),
    ),
    Kind(
        "mail-without-text",
        "recipients of mails whose text is not there",
        "they are owed it no longer",
        "SELECT email AS example FROM mail_recipients"
        " WHERE notification NOT IN (SELECT notification FROM mails)",
        ("DELETE FROM mail_recipients WHERE notification NOT IN (SELECT notification FROM mails)",),
    ),
    Kind(
        "mail-without-recipients",
        "mails for nobody",
        "they are removed",
        "SELECT notification AS example FROM mails m"
        " WHERE NOT EXISTS (SELECT 1 FROM mail_recipients r WHERE r.notification = m.notification)"
        " AND NOT EXISTS (SELECT 1 FROM refused_mail r WHERE r.notification = m.notification)",
        (
            "DELETE FROM mails WHERE notification NOT IN (SELECT notification FROM mail_recipients)"
            " AND notification NOT IN (SELECT notification FROM refused_mail)",
        ),
    ),
    Kind(
        "leases-in-part",
        "leases of mail or of a broadcast without an end, or without a holder: nobody else would get it",
        "they end",
        "SELECT email AS example FROM mail_recipients WHERE (lease IS NULL) <> (leased_until IS NULL)"
        " UNION ALL SELECT notification FROM broadcasts WHERE (lease IS NULL) <> (leased_until IS NULL)",
        (
            "UPDATE mail_recipients SET lease = NULL, leased_until = NULL"
            " WHERE (lease IS NULL) <> (leased_until IS NULL)",
            "UPDATE broadcasts SET lease = NULL, leased_until = NULL"
            " WHERE (lease IS NULL) <> (leased_until IS NULL)",
        ),
    ),
    Kind(
        "mail-at-wrong-times",
        "mails that are due later than their recipients, or never",
        "they get the times of their recipients",
        f"SELECT m.notification AS example FROM {_OTHER_TIMES}",
        (
            # What a lease holds that has run out is due, too.
            f"UPDATE mails AS m SET due_at = (SELECT min(due_at) {_RECIPIENTS} NOT"
            f" coalesce(r.leased_until > {_NOW}, 0)), leased_until = {_LEASED}"
            f" WHERE notification IN (SELECT m.notification FROM {_OTHER_TIMES})",
        ),
    ),
    Kind(
        "keys-without-effect",
        "idempotency keys of requests whose notification is not there",
        "they are forgotten: the same request is carried out when it comes again",
        f"SELECT o.key AS example FROM {_NO_EFFECT}",
        (f"DELETE FROM once WHERE (tenant, key) IN (SELECT o.tenant, o.key FROM {_NO_EFFECT})",),
    ),
    Kind(
        "tenants-unknown",
        "tenants that are not there, but have something",
        TENANTS_REMEDY,
        f"SELECT tenant AS example FROM ({_NO_TENANT})",
        (
            f"INSERT INTO tenants SELECT tenant, {_NOW}, CASE WHEN tenant <> '{DEFAULT_TENANT}' THEN {_NOW} END"
            f" FROM ({_NO_TENANT})",
            "UPDATE meta SET value = value + 1 WHERE name = 'access_sequence'",
        ),
    ),
    Kind(
        "horizon-ahead",
        "tenants whose inboxes begin in the future: their clients drop everything, or read anew each time",
        HORIZON_REMEDY,
        f"SELECT tenant AS example FROM retention WHERE floor > {_NOW} + 60000"
        f" OR oldest_rev >> 16 > {_NOW} + 60000 OR NOT {_is_rev('oldest_rev')}",
        (
            f"UPDATE retention SET floor = NULL, oldest_rev = {_NOW} << 16 WHERE floor > {_NOW}",
            f"UPDATE retention SET oldest_rev = min(oldest_rev, {_NOW} << 16)",
        ),
    ),
)
