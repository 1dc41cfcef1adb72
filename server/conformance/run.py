"""Checks all rules of a server, some at a time, each within its time; and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from server.conformance import inbox_rules, joining, other_doors, sync_rules
from server.conformance.client import Broken, Refused
from server.conformance.lines import Closed, Unreachable
from server.conformance.stage import DOORS, Rule, Stage
from server.conformance.target import CannotCheck, Target

RULES: Sequence[Rule] = (
    *joining.RULES,
    *inbox_rules.RULES,
    *sync_rules.RULES,
    *other_doors.RULES,
    *other_doors.REST_RULES,
)

RULE_WITHIN_S = 60.0
"""One rule at one door."""

TOGETHER = 4
"""Rules that are checked at once; with the users of the demo, who are always the same, one."""

KEPT, BROKEN, NOT_CHECKED = "kept", "broken", "not checked"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a rule at a door. `expected` and `seen`: where it is broken; `seen`: also why it was not checked."""

    rule: str
    text: str
    door: str
    result: str
    expected: str = ""
    seen: str = ""
    took_s: float = 0.0

    def fields(self) -> dict[str, Any]:
        return asdict(self) | {"took_s": round(self.took_s, 3)}


async def check(
    target: Target,
    *,
    doors: Collection[str] = DOORS,
    names: Collection[str] | None = None,
    within_s: float,
    tell: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """All rules of these `names` (None: all), at these doors; in their order. After `within_s` what is left is not
    checked. `tell` hears of each outcome at once. Raises `Unreachable` if there is no such server."""
    ends_at = time.monotonic() + within_s
    await _knock(target)
    turn = asyncio.Semaphore(TOGETHER if target.has_key else 1)
    chosen = [
        (rule, door)
        for rule in RULES
        for door in rule.doors
        if door in doors and (names is None or rule.name in names)
    ]

    async def outcome_of(rule: Rule, door: str) -> Outcome:
        async with turn:
            outcome = await _outcome(target, rule, door, min(RULE_WITHIN_S, ends_at - time.monotonic()))
        tell(outcome)
        return outcome

    return list(await asyncio.gather(*(outcome_of(rule, door) for rule, door in chosen)))


async def _knock(target: Target) -> None:
    """Whether it is there, and takes what the rules need. Raises `Unreachable`."""
    answer = await target.request("GET", "/healthz")
    if answer.code != 200:
        raise Unreachable(f"GET /healthz answered {answer.code}: is {target.url} a notification server?")
    stage = Stage(target, DOORS[0])
    try:
        await target.publish(await stage.user())
    except (Broken, Refused, Closed) as exc:
        raise Unreachable(f"nobody can join: {exc}") from exc
    finally:
        await stage.close()


async def _outcome(target: Target, rule: Rule, door: str, within_s: float) -> Outcome:
    began_at = time.monotonic()
    result, expected, seen = KEPT, "", ""
    if within_s <= 0:
        return Outcome(rule.name, rule.text, door, NOT_CHECKED, seen="the time was over")
    stage = Stage(target, door)
    try:
        async with asyncio.timeout(within_s):
            await rule.check(stage)
    except* CannotCheck as group:
        result, seen = NOT_CHECKED, str(_first(group))
    except* Broken as group:
        error = _first(group)
        result, expected, seen = BROKEN, error.expected, error.seen
    except* (Refused, Closed, Unreachable, TimeoutError) as group:
        result, expected, seen = BROKEN, "it going well", str(_first(group)) or "no end of it"
    except* Exception as group:
        # Whatever a server says, the other rules are checked.
        result, expected, seen = BROKEN, "what can be understood", repr(_first(group))
    finally:
        with contextlib.suppress(Closed):
            await stage.close()
    return Outcome(rule.name, rule.text, door, result, expected, seen, time.monotonic() - began_at)


def _first(group: BaseExceptionGroup[Any]) -> Any:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
