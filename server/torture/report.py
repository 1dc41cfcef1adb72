"""What the person at the terminal reads: how far it is, and a table at the end."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

from server.torture.faults import Fault
from server.torture.judging import KINDS, Finding

SHOWN = 20
"""Findings that are printed one by one."""

BAR_CHARS = 30


@dataclass(slots=True)
class Result:
    """All that came of a run."""

    seed: int
    plan: str
    store: str
    rounds: int = 0
    duration_s: float = 0.0
    left_out: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    requests: int = 0
    acknowledged: int = 0
    by_door: dict[str, int] = field(default_factory=dict)
    tries: int = 0
    documents: int = 0
    clients: int = 0
    reconnects: int = 0
    changes: int = 0
    mails: int = 0
    mails_repeated: int = 0
    passed_over: int = 0
    settled_s: float = 0.0
    holdings: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    folder: str | None = None
    """Where everything was kept, to look at; None: nothing was."""

    @property
    def counts(self) -> dict[str, int]:
        """Of findings, by their kind."""
        found = Counter(each.kind for each in self.findings)
        return {kind: found[kind] for kind in KINDS}

    @property
    def worst_recovery_s(self) -> float:
        return max((each.recovered_s or 0.0 for each in self.faults), default=0.0)

    def fields(self) -> dict[str, Any]:
        """As JSON has it."""
        faults = {
            kind: {"count": count, "worst_recovery_s": worst} for kind, count, worst in by_kind(self.faults)
        }
        return asdict(self) | {
            "faults": faults,
            "counts": self.counts,
            "worst_recovery_s": self.worst_recovery_s,
            "ok": not self.findings,
        }


def by_kind(faults: Sequence[Fault]) -> list[tuple[str, int, float]]:
    """Each kind, how often, and the longest recovery in seconds."""
    worst: dict[str, float] = {}
    for fault in faults:
        worst[fault.kind] = max(worst.get(fault.kind, 0.0), fault.recovered_s or 0.0)
    counts = Counter(fault.kind for fault in faults)
    return [(kind, counts[kind], round(worst[kind], 2)) for kind in sorted(counts)]


def table(result: Result) -> str:
    """All of it, to read."""
    counts = result.counts
    lines = ["", _row("FAULT", "TIMES", "WORST RECOVERY")]
    lines += [_row(kind, count, f"{worst:.1f} s") for kind, count, worst in by_kind(result.faults)]
    lines += [_row("all", len(result.faults), f"{result.worst_recovery_s:.1f} s"), ""]
    doors = ", ".join(f"{name} {count}" for name, count in sorted(result.by_door.items()))
    figures: Mapping[str, object] = {
        "requests acknowledged": f"{result.acknowledged} of {result.requests} ({doors})",
        "tries": result.tries,
        "documents in inboxes": result.documents,
        "clients, reconnects": f"{result.clients}, {result.reconnects}",
        "changes acknowledged": result.changes,
        "mails, sent again": f"{result.mails}, {result.mails_repeated} (same Message-ID, not avoidable)",
        "lost by Redis pub/sub": f"{result.passed_over} (it keeps nothing)",
        "all there after": f"{result.settled_s:.1f} s",
        **{name: value for name, value in result.holdings.items()},
        "lost": counts["lost"],
        "duplicated": counts["duplicated"],
        "else wrong": len(result.findings) - counts["lost"] - counts["duplicated"],
    }
    lines += [f"{name:<24} {value}" for name, value in figures.items()]
    lines += ["", f"seed {result.seed}, {result.rounds} rounds, {result.store}, {result.duration_s:.0f} s"]
    lines += [f"left out: {each}" for each in result.left_out]
    lines += [f"{each.kind.upper()}: {each.what}" for each in result.findings[:SHOWN]]
    if len(result.findings) > SHOWN:
        lines.append(f"… and {len(result.findings) - SHOWN} more")
    if result.folder:
        lines.append(f"kept to look at: {result.folder}")
    lines.append("NOTHING LOST, NOTHING TWICE" if not result.findings else "FAILED")
    return "\n".join(lines)


def _row(kind: object, times: object, worst: object) -> str:
    return f"{kind:<30}{times:>8}{worst:>18}"


class Progress:
    """A bar on a terminal; a line a step elsewhere."""

    def __init__(self, out: TextIO = sys.stderr) -> None:
        self._out = out
        self._began_at = time.monotonic()
        self._shown = ""

    def show(self, done: float, what: str) -> None:
        """`done`: from 0 to 1."""
        took = f"{time.monotonic() - self._began_at:5.0f} s"
        if not self._out.isatty():
            if what != self._shown:
                self._out.write(f"{took} {done:4.0%} {what}\n")
            self._shown = what
        else:
            full = round(BAR_CHARS * done)
            bar = "#" * full + "-" * (BAR_CHARS - full)
            self._out.write(f"\r[{bar}] {done:4.0%} {took} {what[:50]:<50}")
        self._out.flush()

    def end(self) -> None:
        if self._out.isatty():
            self._out.write("\r" + " " * (BAR_CHARS + 70) + "\r")
            self._out.flush()
