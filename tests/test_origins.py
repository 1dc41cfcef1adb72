"""server/transports/origins.py."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from tornado.httputil import HTTPHeaders

from server.transports.origins import Origins

LISTED = Origins(("https://shop.example", "https://with.port:443", "http://[2001:db8::1]:8080"))


@dataclass(frozen=True)
class Request:
    host: str
    headers: HTTPHeaders


def allows(origins: Origins, host: str, **headers: str) -> bool:
    """Whether a request to this host is let in, which says what else it says."""
    fields = HTTPHeaders({name.replace("_", "-"): value for name, value in headers.items()})
    return origins.allows(Request(host, fields))


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        ("https://shop.example", True),
        ("https://SHOP.example", True),
        ("https://shop.example/", True),
        ("https://shop.example:443", True),
        ("https://with.port", True),
        ("https://shop.example:8443", False),
        ("https://shop.example:80", False),
        ("http://shop.example", False),
        ("https://shop.example.evil", False),
        ("https://evil@shop.example", False),
        ("https://shop.example, https://evil.example", False),
        ("http://[2001:DB8::1]:8080", True),
        ("http://[2001:db8::1]", False),
        ("null", False),
        ("[", False),
        ("http://[", False),
        ("shop.example", False),
    ],
)
def test_of_other_origins_the_listed_ones_come_in(origin: str, is_allowed: bool) -> None:
    """However they are written: the port that goes without saying may be named, in the list, too."""
    assert allows(LISTED, "server.example", Origin=origin) is is_allowed


@pytest.mark.parametrize(
    ("host", "origin", "is_own"),
    [
        ("server.example", "https://server.example", True),
        ("server.example", "http://server.example", True),
        ("SERVER.example", "https://server.example", True),
        ("server.example:8587", "http://server.example:8587", True),
        ("server.example:443", "https://server.example", True),
        ("server.example:80", "http://server.example", True),
        ("server.example:80", "https://server.example", False),
        ("server.example:443", "http://server.example", False),
        ("server.example", "http://server.example:8587", False),
        ("server.example:8587", "http://server.example", False),
        ("[::1]:8587", "http://[::1]:8587", True),
        ("[::1]:80", "http://[::1]", True),
        ("server.example", "server.example", False),
        ("", "null", False),
        ("", "server.example", False),
    ],
)
def test_our_own_origin_comes_in(host: str, origin: str, is_own: bool) -> None:
    """A proxy may name the port that browsers leave out; what has no host is not ours because we have none either."""
    assert allows(LISTED, host, Origin=origin) is is_own


@pytest.mark.parametrize(
    ("headers", "is_allowed"),
    [
        ({}, True),
        ({"Origin": ""}, True),
        ({"Sec_Fetch_Site": "none"}, True),
        ({"Sec_Fetch_Site": "same-origin"}, True),
        ({"Sec_Fetch_Site": "same-site"}, False),
        ({"Sec_Fetch_Site": "cross-site"}, False),
        ({"Referer": "https://server.example/page"}, True),
        ({"Referer": "https://server.example:443/page", "Sec_Fetch_Site": "cross-site"}, True),
        ({"Referer": "https://shop.example/page", "Sec_Fetch_Site": "cross-site"}, True),
        ({"Referer": "http://shop.example/page"}, False),
        ({"Referer": "https://evil.example/https://shop.example"}, False),
        ({"Referer": "http://[", "Sec_Fetch_Site": "same-origin"}, False),
        ({"Referer": "about:blank", "Sec_Fetch_Site": "cross-site"}, False),
        ({"Referer": "about:blank"}, True),
        ({"Origin": "https://evil.example", "Referer": "https://shop.example/"}, False),
        ({"Origin": "null", "Sec_Fetch_Site": "same-origin"}, False),
    ],
)
def test_who_says_no_origin_is_known_by_the_page(headers: dict[str, str], is_allowed: bool) -> None:
    """By `Referer`, else by what the browser says of it; who says nothing is no page of others."""
    assert allows(LISTED, "server.example", **headers) is is_allowed


def test_all_may_come_in_where_no_origin_is_named() -> None:
    for origin in ("https://evil.example", "null", "["):
        assert allows(Origins(("*",)), "server.example", Origin=origin)


def test_what_frames_may_be_around_is_as_it_is_listed() -> None:
    """`null` is no source that a policy knows."""
    assert Origins(("https://b.example", "null", "https://a.example:443")).frame_ancestors == (
        "frame-ancestors 'self' https://a.example https://b.example"
    )
