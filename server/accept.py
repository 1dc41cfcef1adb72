"""Which of several forms of an answer a client likes best (RFC 9110 section 12.5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_RANGES = 32
"""Ranges beyond are not looked at."""


@dataclass(frozen=True, slots=True)
class _Range:
    """A media range: `text/plain`, `text/*` or `*/*`, and how much it is liked (0..1; 0: not at all)."""

    pattern: str
    quality: float

    def exactness(self, media_type: str) -> int:
        """How exactly it speaks of a media type: 3 by name, 0 not at all."""
        if self.pattern == media_type:
            return 3
        if self.pattern == media_type.partition("/")[0] + "/*":
            return 2
        return int(self.pattern == "*/*")


def best_offer(accept: str, offers: Sequence[str]) -> str:
    """The offered media type (lower-case, without parameters) that the header `Accept` likes best. Of equals the one
    that it names more exactly, then the first; the first also if none is acceptable, or the header is empty."""
    ranges = [_parse(part) for part in accept.split(",", MAX_RANGES)[:MAX_RANGES]]
    rated = [(_rate(offer, ranges), -index, offer) for index, offer in enumerate(offers)]
    (quality, _), _, best = max(rated)
    return best if quality else offers[0]


def _rate(offer: str, ranges: Sequence[_Range]) -> tuple[float, int]:
    """How much it is liked, says the range that speaks of it most exactly; and how exactly that is. A range may stand
    there several times, with different parameters: the best one counts."""
    exactness, quality = max(((each.exactness(offer), each.quality) for each in ranges), default=(0, 0.0))
    return (quality, exactness) if exactness else (0.0, 0)


def _parse(part: str) -> _Range:
    pattern, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            quality = _quality(value.strip())
    return _Range(pattern, quality)


def _quality(text: str) -> float:
    """0..1 with at most three decimals; what is neither is as if it were not liked."""
    if len(text) > 5 or not text.replace(".", "", 1).isdigit() or not text.isascii():
        return 0.0
    return min(float(text), 1.0)
