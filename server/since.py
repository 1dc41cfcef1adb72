"""How far a client is: the token `since`, which only the server makes and reads. Without any I/O.

To clients it is opaque. It names an inbox by its epoch (revs of another one mean nothing here) and a rev of it; one
that was given in the middle of a sync also says where exactly that goes on, and up to where it will lead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from server.revs import to_wire

MAX_CHARS = 256

_FORM = re.compile(r"(.*?)\.([0-9a-f]{16})(?:\.([0-9a-f]{24})\.([0-9a-f]{16}))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Since:
    """All changes of `epoch` up to `rev` are known, but for those that become visible late (see
    `Store.changes_overlap_s`). With `id`: of one sync that leads up to `upto`, those up to `(rev, id)` are known, in
    the order of `Store.changes`."""

    epoch: str
    rev: int
    id: str = ""
    upto: int = 0

    def __str__(self) -> str:
        token = f"{self.epoch}.{to_wire(self.rev)}"
        return f"{token}.{self.id}.{to_wire(self.upto)}" if self.id else token


def parse_since(text: str) -> Since | None:
    """What a token says; None: it is none of ours."""
    found = _FORM.fullmatch(text) if len(text) <= MAX_CHARS else None
    if found is None:
        return None
    epoch, rev, id_, upto = found.groups()
    return Since(epoch, int(rev, 16), id_ or "", int(upto or "0", 16))
