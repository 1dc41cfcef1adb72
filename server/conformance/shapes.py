"""The frames of dialect 2, as docs/protocol.md has them: which fields each has, and what may stand in them. No I/O.

Further fields are no mistake: a client passes over what it does not know."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]

MAX_DOCUMENTS = 100
"""In one frame."""

MAX_TYPES = 100
"""That are counted one by one."""


def _matches(pattern: str) -> Check:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _is(kind: type) -> Check:
    return lambda value: isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _natural(value: Any) -> bool:
    return _is(int)(value) and value >= 0


def _object(fields: Mapping[str, Check]) -> Check:
    return lambda value: problem_of(value, fields) is None


_text, _truth = _is(str), _is(bool)
_id = _matches(r"[0-9a-f]{24}")
_rev = _matches(r"[0-9a-f]{16}")
_instant = _matches(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_since = _matches(r"(?s).{1,256}")

DOCUMENT: Mapping[str, Check] = {
    "_id": _id,
    "_userId": _text,
    "nid": _id,
    **dict.fromkeys(("type", "title", "content", "url", "icon", "image"), _text),
    "createdAt": _instant,
    "updatedAt": _instant,
    "deletedAt": _or_null(_instant),
    "delete": _truth,
    "seen": _truth,
    "rev": _rev,
    "data?": lambda value: value is not None,
}

_documents = _list_of(_object(DOCUMENT))
_counted = {"unseen": _natural, "total": _natural}


def _are_counts(value: Any) -> bool:
    """With sums that are right."""
    if problem_of(value, _counted) or not isinstance(value.get("types"), dict):
        return False
    types = value["types"].values()
    if any(problem_of(each, _counted) for each in types) or value["unseen"] > value["total"]:
        return False
    # Where there are more types than are counted one by one, the rest is in the totals alone.
    is_all = len(types) < MAX_TYPES
    sums = [(sum(each[name] for each in types), value[name]) for name in _counted]
    return all(part == whole if is_all else part <= whole for part, whole in sums)


_CHANGED = {"ids": _list_of(_id), "rev": _or_null(_rev)}
_ALL = {"all": lambda value: value is True, "upto": _rev}
_PAGE = {"documents": _documents, "older": _truth}
_SYNC = {
    "documents": _documents,
    "more": _truth,
    "upto": _since,
    "floor": _or_null(_instant),
    "reset": _truth,
    "ticket?": _or_null(_text),
}

ANSWERS: Mapping[str, list[Mapping[str, Check]]] = {
    "joined": [
        {
            "v": lambda value: value == 2,
            "user": _text,
            "since": _or_null(_since),
            "counts": _are_counts,
            "floor": _or_null(_instant),
            "ticket": _or_null(_text),
            "heartbeat_s": lambda value: _is(int)(value) or _is(float)(value),
            "more": _truth,
        }
    ],
    "sync": [_SYNC],
    "content": [_PAGE],
    "counts": [{"": _are_counts}],
    "seen": [{**_CHANGED, "more": _truth}, {**_ALL, "changed": _natural}],
    **{name: [{**_CHANGED, "more": _truth}] for name in ("unseen", "delete", "restore")},
    "ack": [{"ids": _list_of(_id)}],
    "pong": [{}],
    "leave": [{}],
    "error": [
        {
            "code": _text,
            "message": _text,
            "retryable": _truth,
            "field?": _text,
            "retry_ms?": _natural,
        }
    ],
}
"""By their names; each of the forms that their data may have. The key "" stands for the data as a whole, and "?" at the
end of one for a field that may be missing."""

_TOLD = {"ids": lambda value: bool(value) and _list_of(_id)(value), "rev": _rev}

PUSHES: Mapping[str, list[Mapping[str, Check]]] = {
    "notification": [DOCUMENT],
    "restored": [DOCUMENT],
    "seen": [_TOLD, _ALL],
    "unseen": [_TOLD],
    "delete": [_TOLD],
    "counts": [{"": _are_counts}],
    "sync": [_SYNC],
    "joined": ANSWERS["joined"],
    "delayed": [{"code": _text, "message": _text}],
    "missed": [{}],
    "bye": [{"retry_ms": _natural}],
    "error": ANSWERS["error"],
}
"""`joined`: over Server-Sent Events, where nothing is asked."""

REST: Mapping[str, Mapping[str, Check]] = {
    "page": _PAGE,
    "first page": {**_PAGE, "since": _since, "counts": _are_counts, "floor": _or_null(_instant)},
    "changes": _SYNC,
    "changed": _CHANGED,
    "all": {**_ALL, "changed": _natural},
    "problem": {"type": _text, "title": _text, "status": _natural, "detail": _text, "field?": _text},
}


def problem_of(value: Any, fields: Mapping[str, Check]) -> str | None:
    """The field that is missing or wrong; None: all is well."""
    if not isinstance(value, dict):
        return "not an object"
    for key, check in fields.items():
        name = key.removesuffix("?")
        if name and name not in value:
            if name == key:
                return f"{name}: missing"
        elif not check(value[name] if name else value):
            return f"{name}: {value[name]!r:.80}" if name else "sums that are wrong, or no numbers"
    return None


def frame_problem(frame: Any) -> str | None:
    """What is wrong with the form of a frame; None: nothing, or its name is not known."""
    if not isinstance(frame, dict) or not isinstance(frame.get("name"), str):
        return "not an object with a name"
    if not isinstance(frame.get("data"), dict):
        return "data: not an object"
    forms = (ANSWERS if "id" in frame else PUSHES).get(frame["name"], [{}])
    problems = [problem_of(frame["data"], fields) for fields in forms]
    return None if None in problems else " or ".join(str(each) for each in problems)
