"""What one configuration value may be: its text made a value, and a value shown as its text.

A parser gets the text without surrounding blanks, never empty, and raises ValueError with a reason that can
follow the key's name. Reasons of kinds that may hold a secret do not repeat the text.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from server.callers import IPNetwork
from server.grants import NO_TENANT, is_name
from server.rates import Rate


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value. `show(parse(text))` is a text that parses to the same value. `none`: the word that is parsed
    to None; "" where None means that nothing is written."""

    parse: Callable[[str], Any]  # Any: each kind has its own type, that of the field it fills
    show: Callable[[Any], str] = str
    none: str = ""


def checked_text(text: str) -> str:
    """The text, of one line and without control characters."""
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError("holds a control character or goes on in the next line (an indented line does that)")
    return text


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0"):
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def _within(number: float, low: float, high: float) -> None:
    if not low <= number <= high:
        raise ValueError(f"{number:.15g} is not within {low:.15g} to {high:.15g}")


def _number(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def integer(low: int, high: int) -> Kind:
    """A whole number from `low` to `high`."""

    def parse(text: str) -> int:
        number = _number(text)
        _within(number, low, high)
        return number

    return Kind(parse)


_UNITS = {"": 1, "kib": 1024, "mib": 1024 * 1024}


def size(low: int, high: int) -> Kind:
    """A number of bytes: `262144`, `256 KiB`, `4 MiB`."""

    def parse(text: str) -> int:
        match = re.fullmatch(r"([0-9]{1,15})\s*([a-z]*)", text.lower())
        if match is None or match[2] not in _UNITS:
            raise ValueError(f"{text!r} is not a number of bytes, such as 65536, 64 KiB or 4 MiB")
        number = int(match[1]) * _UNITS[match[2]]
        _within(number, low, high)
        return number

    return Kind(parse, _show_size)


def _show_size(number: int) -> str:
    for unit, factor in (("MiB", 1024 * 1024), ("KiB", 1024)):
        if number and number % factor == 0:
            return f"{number // factor} {unit}"
    return str(number)


def seconds(low: float, high: float) -> Kind:
    """A number of seconds, fractions allowed."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"{text!r} is not a number of seconds")
        _within(number, low, high)
        return number

    return Kind(parse, lambda number: f"{number:.15g}")


_DURATION_UNITS = {"w": 7 * 86_400, "d": 86_400, "h": 3600, "m": 60, "s": 1}


def duration(low: int, high: int) -> Kind:
    """A number of seconds as people say it: `90d`, `12w`."""

    def parse(text: str) -> int:
        match = re.fullmatch(r"([0-9]{1,10})\s*([wdhms])", text.lower())
        if match is None:
            raise ValueError(f"{text!r} is not a time such as 90d or 12w")
        number = int(match[1]) * _DURATION_UNITS[match[2]]
        if not low <= number <= high:
            raise ValueError(f"{text!r} is not within {show_duration(low)} to {show_duration(high)}")
        return number

    return Kind(parse, show_duration)


def show_duration(number: int) -> str:
    """As `duration` reads it; in days rather than weeks."""
    unit = next(unit for unit, factor in _DURATION_UNITS.items() if unit != "w" and number % factor == 0)
    return f"{number // _DURATION_UNITS[unit]}{unit}"


def choice(values: dict[str, Any]) -> Kind:
    """One of the words of `values` (any letter case). A value that several words stand for is shown as the
    first."""

    def parse(text: str) -> Any:  # Any: as in Kind
        try:
            return values[text.lower()]
        except KeyError:
            raise ValueError(f"{text!r} is none of: {', '.join(values)}") from None

    return Kind(parse, lambda value: next(word for word, meant in values.items() if meant == value))


def or_none(word: str, kind: Kind) -> Kind:
    """`kind`, or None, for which `word` stands (any letter case)."""
    return Kind(lambda text: None if text.lower() == word else kind.parse(text), kind.show, word)


def several(*known: str) -> Kind:
    """A list of some of the words `known` (any letter case), each once, in the order of the text."""
    by_lower = {word.lower(): word for word in known}

    def parse(text: str) -> tuple[str, ...]:
        found = words(text.lower())
        for word in found:
            if word not in by_lower:
                raise ValueError(f"{word!r} is none of: {', '.join(known)}")
        return tuple(by_lower[word] for word in found)

    return Kind(parse, _join)


_RATE = re.compile(r"([0-9]{1,10})\s*/\s*([0-9]{1,6}(?:\.[0-9]{1,6})?)?\s*([smh])")
_RATE_UNITS = {"h": 3600, "m": 60, "s": 1}


def _rate(text: str) -> Rate:
    match = _RATE.fullmatch(text.lower())
    if match is None:
        raise ValueError(f"{text!r} is not a rate such as 5/s, 2000/10s, 600/m or 100/h, nor 'off'")
    quota, window_s = int(match[1]), round(float(match[2] or 1) * _RATE_UNITS[match[3]], 6)
    _within(quota, 1, 10**9)
    _within(window_s, 0.1, 86_400)
    return Rate(quota, window_s)


def _show_rate(rate: Rate) -> str:
    unit = next((unit for unit, factor in _RATE_UNITS.items() if rate.window_s % factor == 0), "s")
    number = rate.window_s / _RATE_UNITS[unit]
    return f"{rate.quota}/{'' if number == 1 else f'{number:.15g}'}{unit}"


def _tenant(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"{text!r} is not a tenant's name (up to 64 of a-z 0-9 . _ -), nor 'none'")
    return text


def words(text: str) -> tuple[str, ...]:
    """A list: words divided by commas, blanks or lines; each is kept once."""
    return tuple(dict.fromkeys(re.split(r"[\s,]+", text.strip(" \t\r\n,"))))


def _origins(text: str) -> tuple[str, ...]:
    origins = words(text.lower())
    if "*" in origins and len(origins) > 1:
        raise ValueError("'*' allows every origin; name the others only without it")
    for origin in origins:
        if not origin.isascii():
            raise ValueError(
                f"{origin!r} is not what browsers send; write it with the host in ASCII (xn--...)"
            )
        if origin != "*" and not _is_origin(origin):
            raise ValueError(
                f"{origin!r} is not an origin such as https://example.org or http://localhost:3000"
            )
    return origins


def _is_origin(origin: str) -> bool:
    """Scheme, host and port (RFC 6454 section 6.2): what a browser sends, which ends without a slash."""
    try:
        parts = urlsplit(origin)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return (
        port_is_valid
        and bool(parts.hostname)
        and origin == f"{parts.scheme}://{parts.netloc}"
        and "@" not in origin
    )


def is_host(text: str) -> bool:
    """Whether `text` is a host name or an IP address (IPv6 without brackets)."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?\.?", text) is not None
    return True


def is_loopback(host: str) -> bool:
    """Whether `host` (name or address) is this machine itself and nothing that others reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _address(text: str) -> str:
    address = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not is_host(address):
        raise ValueError(
            f"{text!r} is not an address of this machine, such as 127.0.0.1, 0.0.0.0 (all) or ::1"
        )
    return address


def _ports(text: str) -> tuple[int, ...]:
    words = text.replace(",", " ").split()
    if not all(word.isascii() and word.isdigit() and 0 < int(word) < 65536 for word in words):
        raise ValueError("must be port numbers from 1 to 65535, with blanks between them")
    return tuple(dict.fromkeys(map(int, words)))


def _hosts(text: str) -> tuple[str, ...]:
    hosts = words(text.lower())
    for host in hosts:
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not is_host(bare) or (":" in bare and bare == host):
            raise ValueError(f"{host!r} is not a host such as example.org or [2001:db8::1] (without a port)")
    return hosts


def _networks(text: str) -> tuple[IPNetwork, ...]:
    networks = []
    for word in words(text):
        try:
            network = ipaddress.ip_network(word)
        except ValueError as exc:
            raise ValueError(f"{exc} (write such as 10.0.0.5 or 10.0.0.0/8)") from None
        mapped = getattr(network.network_address, "ipv4_mapped", None)
        if mapped is not None:  # addresses are compared as what they are in IPv4
            network = ipaddress.ip_network((mapped, network.prefixlen - 96))
        if network.prefixlen == 0:
            raise ValueError(f"{word!r} is everybody; write only whom you mean")
        networks.append(network)
    return tuple(networks)


def _time_zone(text: str) -> ZoneInfo:
    try:
        return ZoneInfo(text)
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{text!r} is not a time zone this machine knows, such as Europe/Paris") from None


def _join(values: tuple[object, ...]) -> str:
    return ", ".join(map(str, values))


def matching(pattern: str, reason: str) -> Kind:
    """A text that matches `pattern` as a whole; `reason` says what one that does not match is, without
    repeating it."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(reason)
        return text

    return Kind(parse)


TEXT = Kind(checked_text)
RATE = or_none("off", Kind(_rate, _show_rate))
DEFAULT_TENANT = or_none(NO_TENANT, Kind(_tenant))
BOOLEAN = Kind(_boolean, lambda value: "true" if value else "false")
PORT = integer(1, 65535)
PORTS = Kind(_ports, _join)
# What the system gives when asked for port 0; for a listening port only.
LISTENING_PORT = integer(0, 65535)
PATH = Kind(lambda text: Path(checked_text(text)))
ADDRESS = Kind(_address)
ORIGINS = Kind(_origins, _join)
HOSTS = Kind(_hosts, _join)
NETWORKS = Kind(_networks, _join)
TIME_ZONE = Kind(_time_zone)
LOG_LEVEL = choice(
    {
        "debug": logging.DEBUG,
        "info": logging.INFO,
        "information": logging.INFO,
        "warn": logging.WARNING,
        "warning": logging.WARNING,
        "error": logging.ERROR,
        "err": logging.ERROR,
    }
)
