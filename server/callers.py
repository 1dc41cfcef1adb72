"""Where a request comes from: its real address behind trusted proxies, and whether it is surely from this
very machine.

Two grades of "from this machine" stand in for a credential where none is configured, so both are decided
narrowly: a loopback address is not enough, since a web page in a browser on this machine, or a proxy on it,
has one too.

- *local* may publish without a key: no page but our own can be behind it.
- *loopback* may use the demo: a page from any port of this machine can be behind it (a developer's own front
  end).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

PROXY_HEADERS = ("forwarded", "via", "x-real-ip")
PROXY_HEADER_PREFIX = "x-forwarded-"

MAX_KEPT_CHARS = 255
"""Of a header by which callers are remembered: as long as a name of DNS may be."""

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
EVERY_ADDRESS = ("0.0.0.0", "[::]")  # noqa: S104  # compared, not bound
"""What a server that listens everywhere calls itself (`python3 -m http.server` does): a browser that opens it goes to
its own machine, and no DNS has a say in that."""


@dataclass(frozen=True, slots=True)
class Caller:
    """`address`: the IP address, for logs and limits. `why_not_local`: "" if the caller is surely on this
    machine, else a sentence that says what speaks against it. `is_loopback`: the weaker grade."""

    address: str
    why_not_local: str = ""
    is_loopback: bool = True

    @property
    def is_local(self) -> bool:
        return not self.why_not_local


@dataclass(frozen=True, slots=True)
class CallerPolicy:
    """`trusted_proxies`: networks whose `X-Forwarded-For` is believed. `hosts`: names beside those of
    loopback under which this server may be called (without port)."""

    trusted_proxies: tuple[IPNetwork, ...] = ()
    hosts: tuple[str, ...] = ()

    def identify(self, remote_ip: str, headers: Mapping[str, str]) -> Caller:
        """The caller behind a request from `remote_ip` (the peer of the socket) with these headers (any
        letter case)."""
        forwarded = [name for name in headers if _is_of_proxy(name)]
        host = headers.get("Host", "")
        if not forwarded and headers.get("Origin") is None and len(host) <= MAX_KEPT_CHARS:
            return _direct(self.hosts, remote_ip, host, headers.get("Sec-Fetch-Site", "")[:MAX_KEPT_CHARS])
        return self._identify(remote_ip, headers, forwarded)

    def _identify(self, remote_ip: str, headers: Mapping[str, str], forwarded: Sequence[str]) -> Caller:
        address = remote_ip
        if forwarded and self._is_trusted(remote_ip):
            chain = headers.get("X-Forwarded-For", "").split(",")
            hops = [_without_port(hop.strip()) for hop in chain if hop.strip()]
            # A proxy that names nobody leaves its own address, which says nothing about the caller's.
            if hops:
                address, forwarded = self._nearest_untrusted(hops), []
        elsewhere = self._why_not_loopback(remote_ip, address, forwarded, headers)
        return _caller(address, elsewhere or _why_foreign(headers), not elsewhere)

    def stands_for_many(self, address: str) -> bool:
        """Whether many may be behind this address of a socket: it is a trusted proxy's, or of this machine, where a
        proxy may run that nobody has named."""
        return self._is_trusted(address) or _is_loopback(address)

    def _why_not_loopback(
        self, remote_ip: str, address: str, forwarded: Sequence[str], headers: Mapping[str, str]
    ) -> str:
        if not _is_loopback(address):
            return f"the address {address} is not loopback"
        # What a proxy on another machine calls loopback is not this machine.
        if not _is_loopback(remote_ip):
            return f"the proxy at {remote_ip} is on another machine"
        if forwarded:
            return (
                f"the header {forwarded[0].title()} says that a proxy passed the request on; name it in"
                " trusted_proxies, and let it send X-Forwarded-For"
            )
        known = (*LOCAL_HOSTS, *self.hosts)
        # A name that somebody else's DNS resolves to 127.0.0.1 must not count as ours (DNS rebinding).
        if _host_name(headers.get("Host", "")) not in known:
            return "the Host header names a host that is neither loopback nor in hosts"
        origin = headers.get("Origin")
        if origin is not None and _host_name(_authority(origin)) not in (*known, *EVERY_ADDRESS):
            return "the Origin header names a foreign web page"
        return ""

    def _is_trusted(self, address: str) -> bool:
        parsed = _parsed(address)
        return parsed is not None and any(parsed in network for network in self.trusted_proxies)

    def _nearest_untrusted(self, hops: Sequence[str]) -> str:
        """The last address of the chain that is no trusted proxy (a client can write anything further left);
        the first one if all are."""
        return next((hop for hop in reversed(hops) if not self._is_trusted(hop)), hops[0])


@lru_cache(256)
def _direct(hosts: tuple[str, ...], remote_ip: str, host: str, site: str) -> Caller:
    """Who comes through no proxy and sends no more than this of what callers are known by; again and again the
    same."""
    return CallerPolicy(hosts=hosts)._identify(remote_ip, {"Host": host, "Sec-Fetch-Site": site}, ())


@lru_cache(1024)
def _caller(address: str, why_not_local: str, is_loopback: bool) -> Caller:
    # Mostly it is the same as that of the request before.
    return Caller(address, why_not_local, is_loopback)


def _why_foreign(headers: Mapping[str, str]) -> str:
    """What says that a page of another origin (RFC 6454) is behind the request; "" if nothing does."""
    origin = headers.get("Origin")
    if origin is not None and _authority(origin) != headers.get("Host", "").lower():
        return "the Origin header names a foreign web page"
    if headers.get("Sec-Fetch-Site", "").lower() in ("cross-site", "same-site"):
        return "the Sec-Fetch-Site header names a foreign web page"
    return ""


@lru_cache(1024)
def _is_of_proxy(header: str) -> bool:
    name = header.lower()
    return name in PROXY_HEADERS or name.startswith(PROXY_HEADER_PREFIX)


def _authority(origin: str) -> str:
    """The host and port of an origin; "" for an opaque one (`null`) and for garbage."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


@lru_cache(1024)
def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """One of IPv4 that is mapped into IPv6 is one of IPv4. None: it is no address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


@lru_cache(1024)
def _is_loopback(address: str) -> bool:
    parsed = _parsed(address)
    return parsed is not None and parsed.is_loopback


def _without_port(hop: str) -> str:
    """Some proxies name the port, too (`203.0.113.9:4711`, `[2001:db8::1]:4711`): another one for each connection of
    the same caller."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _host_name(host: str) -> str:
    """The host of a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()
