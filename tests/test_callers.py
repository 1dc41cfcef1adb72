"""Tests of server/callers.py."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders

from server.callers import Caller, CallerPolicy

DIRECT = CallerPolicy()
PROXIED = CallerPolicy(
    trusted_proxies=(ip_network("127.0.0.1/32"), ip_network("10.0.0.0/8"), ip_network("fd00::/8")),
    hosts=("notify.example.test",),
)


def _identify(policy: CallerPolicy, remote_ip: str, host: str = "localhost:8587", **headers: str) -> Caller:
    """Header names are written with underscores here."""
    return policy.identify(
        remote_ip,
        HTTPHeaders({"Host": host} | {name.replace("_", "-"): value for name, value in headers.items()}),
    )


# -- callers without a proxy ---------------------------------------------------------------------------------
@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost", "LocalHost:8587", "127.0.0.1:8587", "[::1]", "[::1]:8587"])
def test_a_program_on_this_machine_is_local(address: str, host: str) -> None:
    """A loopback address that calls us by a name of loopback, and no header that speaks against it."""
    caller = _identify(DIRECT, address, host)
    assert caller == Caller(address, "", is_loopback=True)
    assert caller.is_local


@pytest.mark.parametrize(
    "address", ["192.0.2.1", "10.0.0.1", "2001:db8::1", "::ffff:192.0.2.1", "", "@", "localhost"]
)
def test_another_address_is_not_local(address: str) -> None:
    """Nor is what is no address at all (a Unix socket has none)."""
    caller = _identify(DIRECT, address)
    assert not caller.is_loopback
    assert address in caller.why_not_local
    assert caller.address == address


@pytest.mark.parametrize(
    "host",
    [
        "",
        "example.test",
        "example.test:8587",
        "localhost.example.test",
        "127.0.0.2",
        "[::2]:1",
        "0.0.0.0:8587",
    ],
)
def test_a_name_that_is_not_ours_is_not_local(host: str) -> None:
    """A page whose name somebody's DNS resolves to 127.0.0.1 (DNS rebinding) gains nothing."""
    caller = _identify(DIRECT, "127.0.0.1", host)
    assert not caller.is_loopback
    assert "Host" in caller.why_not_local


def test_a_request_without_a_host_is_not_local() -> None:
    """HTTP/1.0 need not name any: then nothing says that it means us."""
    assert not DIRECT.identify("127.0.0.1", HTTPHeaders()).is_local


def test_names_from_the_configuration_are_ours() -> None:
    """With or without a port; loopback's names stay ours beside them."""
    for host in ("notify.example.test", "NOTIFY.example.test:443", "localhost"):
        assert _identify(PROXIED, "127.0.0.1", host).is_local


# -- web pages -----------------------------------------------------------------------------------------------
def test_our_own_page_is_local() -> None:
    """The browser names the very host and port that it calls."""
    caller = _identify(DIRECT, "127.0.0.1", Origin="http://LOCALHOST:8587", Sec_Fetch_Site="same-origin")
    assert caller.is_local


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000",
        "http://127.0.0.1:8587",
        "https://localhost",
        "http://[::1]:8587",
        # As `python3 -m http.server` names itself, by the system that it runs on.
        "http://0.0.0.0:8000",
        "http://[::]:8000",
    ],
)
def test_a_page_of_another_port_of_this_machine_is_loopback_but_not_local(origin: str) -> None:
    """A developer's own front end may use the demo, and may not publish without a key."""
    caller = _identify(DIRECT, "127.0.0.1", Origin=origin)
    assert caller.is_loopback
    assert "Origin" in caller.why_not_local


@pytest.mark.parametrize(
    "origin",
    ["https://example.test", "http://localhost.example.test", "null", "", "file://", "http://[", "x"],
)
def test_a_foreign_page_is_neither(origin: str) -> None:
    """Opaque origins and garbage count as foreign."""
    caller = _identify(DIRECT, "127.0.0.1", Origin=origin)
    assert not caller.is_loopback
    assert "Origin" in caller.why_not_local


@pytest.mark.parametrize(
    ("site", "is_local"), [("cross-site", False), ("same-site", False), ("same-origin", True), ("none", True)]
)
def test_a_browser_that_says_so_is_believed(site: str, is_local: bool) -> None:
    """A form post or an image of a foreign page has no Origin, but the browser says where it comes from."""
    caller = _identify(DIRECT, "127.0.0.1", Sec_Fetch_Site=site)
    assert caller.is_local is is_local
    assert ("Sec-Fetch-Site" in caller.why_not_local) is not is_local


# -- proxies -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "header",
    [
        "X_Forwarded_For",
        "X_Forwarded_Host",
        "X_Forwarded_Proto",
        "X_Forwarded_Port",
        "X_Real_Ip",
        "Forwarded",
        "Via",
    ],
)
@pytest.mark.parametrize("value", ["127.0.0.1", ""])
def test_behind_a_proxy_that_is_not_trusted_nobody_is_local(header: str, value: str) -> None:
    """The proxy on this machine has a loopback address; the headers, even empty, say that it is not the caller."""
    caller = _identify(DIRECT, "127.0.0.1", **{header: value})
    assert not caller.is_loopback
    assert header.replace("_", "-") in caller.why_not_local
    assert "trusted_proxies" in caller.why_not_local
    assert caller.address == "127.0.0.1"


def test_a_header_is_named_alike_however_it_is_written() -> None:
    """What is said does not depend on who has read the headers."""
    written = ("X-Forwarded-For", "x-forwarded-for", "X-FORWARDED-FOR")
    said = {
        DIRECT.identify("127.0.0.1", {"Host": "localhost", name: "1.2.3.4"}).why_not_local for name in written
    }
    assert len(said) == 1
    assert "X-Forwarded-For says" in said.pop()


def test_a_trusted_proxy_names_the_caller() -> None:
    """Its X-Forwarded-For is believed, for local callers and others."""
    assert _identify(PROXIED, "127.0.0.1", X_Forwarded_For="203.0.113.9").address == "203.0.113.9"
    assert not _identify(PROXIED, "127.0.0.1", X_Forwarded_For="203.0.113.9").is_loopback
    local = _identify(
        PROXIED, "127.0.0.1", X_Forwarded_For="127.0.0.1", X_Forwarded_Proto="https", Via="1.1 proxy"
    )
    assert (local.address, local.is_local) == ("127.0.0.1", True)


def test_a_proxy_on_another_machine_makes_nobody_local() -> None:
    """Whatever it, or a caller through it, names: what is loopback there is not this machine."""
    caller = _identify(PROXIED, "10.1.2.3", X_Forwarded_For="127.0.0.1")
    assert (caller.is_local, caller.is_loopback) == (False, False)
    assert "another machine" in caller.why_not_local


@pytest.mark.parametrize("header", ["X_Real_Ip", "X_Forwarded_Proto", "Forwarded", "Via"])
def test_a_trusted_proxy_that_does_not_name_the_caller_makes_nobody_local(header: str) -> None:
    """All that is known is the proxy's own address: on this machine that is loopback, whoever called it."""
    caller = _identify(PROXIED, "127.0.0.1", **{header: "127.0.0.1"})
    assert not caller.is_loopback
    assert "X-Forwarded-For" in caller.why_not_local


@pytest.mark.parametrize("forwarded_for", ["", " ", ",", " , "])
def test_an_empty_chain_names_nobody(forwarded_for: str) -> None:
    """As if the header were missing."""
    assert not _identify(PROXIED, "127.0.0.1", X_Forwarded_For=forwarded_for).is_loopback


@pytest.mark.parametrize(
    ("forwarded_for", "address"),
    [
        ("127.0.0.1, 203.0.113.9", "203.0.113.9"),
        ("127.0.0.1, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("203.0.113.9 ,10.0.0.2,10.0.0.3", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("127.0.0.1, unknown", "unknown"),
        ("127.0.0.1, 203.0.113.9:4711", "203.0.113.9"),
        ("203.0.113.9:4711, 10.0.0.2:80", "203.0.113.9"),
        ("[2001:db8::1]:4711, [fd00::7]", "2001:db8::1"),
        ("203.0.113.9, ::ffff:10.0.0.2", "203.0.113.9"),
        ("127.0.0.1, :4711", ""),
        ("10.0.0.9, 10.0.0.2", "10.0.0.9"),
        ("2001:db8::1, fd00::7", "2001:db8::1"),
    ],
)
def test_the_caller_is_the_nearest_who_is_no_trusted_proxy(forwarded_for: str, address: str) -> None:
    """What stands further left can be written by anybody; what is no address is nobody's on this machine."""
    caller = _identify(PROXIED, "10.0.0.1", X_Forwarded_For=forwarded_for)
    assert caller.address == address
    assert not caller.is_loopback


def test_a_chain_in_several_headers_is_one_chain() -> None:
    """Proxies may add a header of their own instead of a comma (RFC 9110 section 5.2)."""
    headers = HTTPHeaders({"Host": "localhost"})
    headers.add("X-Forwarded-For", "127.0.0.1")
    headers.add("X-Forwarded-For", "203.0.113.9")
    assert PROXIED.identify("127.0.0.1", headers).address == "203.0.113.9"


def test_the_chain_of_an_untrusted_peer_is_not_even_read() -> None:
    """Anybody can send the header."""
    caller = _identify(PROXIED, "192.0.2.1", X_Forwarded_For="127.0.0.1")
    assert caller.address == "192.0.2.1"
    assert not caller.is_loopback


def test_a_caller_on_the_machine_of_a_trusted_proxy_needs_no_headers() -> None:
    """Trusting a proxy takes nothing from who calls us directly."""
    assert _identify(PROXIED, "127.0.0.1").is_local


addresses = st.ip_addresses().map(str) | st.sampled_from(["127.0.0.1", "10.0.0.7", "unknown", ""])


@given(st.lists(addresses, max_size=5), st.ip_addresses(v=4).filter(lambda ip: not ip.is_loopback).map(str))
def test_nothing_in_front_of_a_proxys_own_entry_changes_the_caller(forged: list[str], real: str) -> None:
    """Whatever chain a caller makes up, the trusted proxy's entry behind it decides."""
    policy = CallerPolicy(trusted_proxies=(ip_network("127.0.0.1/32"),))
    caller = _identify(policy, "127.0.0.1", X_Forwarded_For=", ".join([*forged, real]))
    assert caller.address == real
    assert not caller.is_loopback


@given(st.text(), st.text(), st.text(), st.text())
@example("127.0.0.1", "[", "http://[", "[")
def test_whatever_the_headers_hold_there_is_an_answer(
    address: str, host: str, origin: str, chain: str
) -> None:
    """Nothing that a caller sends raises."""
    headers = {"Host": host, "Origin": origin, "X-Forwarded-For": chain}
    assert isinstance(PROXIED.identify(address, headers).why_not_local, str)
    assert isinstance(PROXIED.identify("127.0.0.1", headers).why_not_local, str)
