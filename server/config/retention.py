"""How long things are kept: the section `[RETENTION]`."""

from __future__ import annotations

from dataclasses import dataclass

from server.config import values
from server.config.keys import DAY_S, setting

_DURATION = values.or_none("forever", values.duration(DAY_S, 36_500 * DAY_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """For how many seconds; None: for ever. `documents`: notifications, after they were created. `deleted`: those that
    their users deleted, after that. A tenant may have others (`grants.Keep`)."""

    # What is in an inbox is its user's: nobody loses anything unless the operator says so.
    documents_s: int | None = setting(None, _DURATION, key="documents", live=True)
    # So long a delete can be taken back, and so long a client may be away and is told of it when it is back; then it
    # reads its inbox anew. What somebody has deleted is not kept for ever.
    tombstones_s: int | None = setting(90 * DAY_S, _DURATION, key="deleted", live=True)
