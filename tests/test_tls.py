"""Tests of server/tls.py: the server speaks TLS by itself, in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from server.config import TLS
from server.tls import expired, make_context
from tests.support.backends import add_tenant, known
from tests.support.certificates import CertificateAuthority, Pair
from tests.support.feeds import metrics
from tests.support.processes import wait_until
from tests.support.secure_server import SecureServer, Streaming

RELEASE = {"NOTIFY_APPLICATION_CONFIGURATION": "RELEASE", "NOTIFY_MONGODB_URL": "embedded"}


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path / "authority")


@pytest.fixture
def server(tmp_path: Path, authority: CertificateAuthority) -> Iterator[SecureServer]:
    with SecureServer(tmp_path, authority) as running:
        yield running


# -- the walk ------------------------------------------------------------------------------------------------


async def test_publishing_and_listening_under_tls(server: SecureServer) -> None:
    """POST /notify over https reaches a client over wss. The address that is announced says https."""
    assert f"https://127.0.0.1:{server.port}/" in server.log
    async with server.place().client() as client:
        await client.join("alice")
        server.must_notify("alice", content="private")
        assert (await client.next("notification"))[0]["content"] == "private"


@pytest.mark.parametrize("transport", ["xhr_streaming", "eventsource", "htmlfile", "xhr", "jsonp"])
async def test_sockjs_without_websocket(server: SecureServer, transport: str) -> None:
    """Every transport over https."""
    async with Streaming(server.place(), transport, "s1") as stream:
        await stream.start()
        await stream.until("o")
        await stream.send("join", {"login": "alice", "password": "alice"})
        await stream.receive("unseen")
        await asyncio.to_thread(server.must_notify, "alice", content="private")
        await stream.receive("private")


def test_strict_transport_security_in_release(tmp_path: Path, authority: CertificateAuthority) -> None:
    """Browsers come by TLS from then on; in DEBUG the host has other servers."""
    with SecureServer(tmp_path, authority) as server:
        assert "Strict-Transport-Security" not in server.get("/healthz").headers
    with SecureServer(tmp_path, authority, **RELEASE) as server:
        for path in ("/healthz", "/none", "/notification/info"):
            assert server.get(path).headers["Strict-Transport-Security"] == "max-age=31536000"


# -- what the handshake takes --------------------------------------------------------------------------------


def test_tls_1_2_and_later_only(server: SecureServer, authority: CertificateAuthority) -> None:
    """And HTTP/1.1 is what is spoken inside."""
    context = authority.client_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context.minimum_version = context.maximum_version = version
        with (
            socket.create_connection(("127.0.0.1", server.port)) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            assert secured.version() == version.name.replace("_", ".")
            assert secured.selected_alpn_protocol() == "http/1.1"
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.options &= ~(ssl.OP_NO_TLSv1 | ssl.OP_NO_TLSv1_1)
    with pytest.warns(DeprecationWarning):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", server.port)) as plain,
        pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION|protocol version"),
    ):
        old.wrap_socket(plain)


def test_who_speaks_no_tls_is_disconnected(server: SecureServer) -> None:
    """Without an answer in the clear, and without harm to the others."""
    for said in (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x00" * 64, b"SSH-2.0-x\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain:
            plain.sendall(said)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while chunk := plain.recv(4096):
                    answer += chunk
            assert b"HTTP" not in answer
    assert server.get("/healthz").status == 200
    assert "Traceback" not in server.log


def test_a_handshake_that_never_ends_is_ended(tmp_path: Path, authority: CertificateAuthority) -> None:
    """Who connects and says nothing holds no file for ever."""
    fault = """
import server.tls
server.tls.HANDSHAKE_TIMEOUT_S = 0.3
"""
    (tmp_path / "sitecustomize.py").write_text(fault)
    root = Path(__file__).resolve().parents[1]
    with SecureServer(tmp_path, authority, PYTHONPATH=f"{tmp_path}:{root}") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as silent:
            assert silent.recv(1) == b""
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as broken_off:
            broken_off.sendall(b"\x16\x03\x01\x02\x00\x01")  # a ClientHello that goes no further
            assert broken_off.recv(1) == b""
        assert server.get("/healthz").status == 200


# -- certificates of backends --------------------------------------------------------------------------------


@pytest.fixture
def mutual(tmp_path: Path, authority: CertificateAuthority) -> Iterator[SecureServer]:
    """A server in RELEASE that knows the certificate of one backend, and one that may only listen."""
    settings = {
        "NOTIFY_TLS_CLIENT_CA": str(authority.ca_file),
        "NOTIFY_CERTIFICATES_billing": "acme publish CN=billing,O=Example",
        "NOTIFY_CERTIFICATES_reader": "acme listen CN=reader",
        "NOTIFY_CERTIFICATES_gone": "nobody publish CN=gone",
    }
    with SecureServer(tmp_path, authority, **RELEASE, **settings) as running:
        yield running


async def test_a_certificate_publishes_for_its_tenant(
    mutual: SecureServer, authority: CertificateAuthority
) -> None:
    """And for no other: the same user id of the default tenant gets nothing."""
    acme = known(await asyncio.to_thread(add_tenant, mutual, "acme"))
    token = acme.token("alice")
    billing = mutual.place(authority.client_pair("billing", "Example"))
    async with mutual.place().client() as client:
        await client.join_by_token(token)
        answer = await asyncio.to_thread(billing.notify, "alice", content="by certificate")
        assert answer.status == 200
        assert (await client.next("notification"))[0]["content"] == "by certificate"
    metrics = await asyncio.to_thread(
        mutual.place().request, "GET", "/metrics", None, {"Accept": "text/plain", **acme.credentials}
    )
    assert metrics.status == 200


def test_who_may_not_publish_by_certificate(mutual: SecureServer, authority: CertificateAuthority) -> None:
    """A subject that is not mapped, one without the scope, one of a tenant that is not there: refused, each with its
    status; a key that is right beside a certificate that is not is taken."""
    acme = known(add_tenant(mutual, "acme"))

    def status(common_name: str, organization: str | None = None, **headers: str) -> int:
        pair = authority.client_pair(common_name, organization)
        return mutual.place(pair).notify("alice", content="x", headers=headers).status

    assert status("billing", "Example") == 200
    assert status("billing") == 400  # as CONTRACT C1 has it for wrong credentials
    assert status("billing", "Other") == 400
    assert status("gone") == 400
    assert status("reader") == 403
    assert status("billing", **acme.credentials) == 200
    assert mutual.place().notify("alice", content="x").status == 403  # no certificate, no key
    assert mutual.place().notify("alice", content="x", headers=acme.credentials).status == 200


@pytest.mark.parametrize("kind", ["of another authority", "expired", "for servers"])
def test_a_certificate_that_does_not_verify_ends_the_handshake(
    mutual: SecureServer, authority: CertificateAuthority, tmp_path: Path, kind: str
) -> None:
    """Whatever its subject says: nothing is read of such a client."""
    pairs: dict[str, Callable[[], Pair]] = {
        # Of the same name: it is the key that counts.
        "of another authority": lambda: CertificateAuthority(tmp_path / "other").client_pair(
            "billing", "Example"
        ),
        "expired": lambda: authority.client_pair("billing", "Example", valid_days=-1),
        "for servers": lambda: authority.server_pair(["billing"], file="billing"),
    }
    with pytest.raises((ssl.SSLError, ConnectionError)):
        mutual.place(pairs[kind]()).notify("alice", content="x")
    assert "refused" not in mutual.log and "Traceback" not in mutual.log
    assert mutual.get("/healthz").status == 200


def test_a_certificate_that_expires_on_an_open_connection(
    mutual: SecureServer, authority: CertificateAuthority
) -> None:
    """Is no credential from then on."""
    known(add_tenant(mutual, "acme"))
    pair = authority.client_pair("billing", "Example", valid_days=3 / 86400)
    ends_at = ssl.cert_time_to_seconds(_not_after(pair))
    place = mutual.place(pair)
    request = (
        b"POST /notify?users=%5B%7B%22id%22%3A%22a%22%7D%5D&content=x HTTP/1.1\r\n"
        b"Host: localhost\r\nContent-Length: 0\r\n\r\n"
    )
    with (
        socket.create_connection(("127.0.0.1", mutual.port), timeout=30) as plain,
        place.context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):

        def status() -> bytes:
            secured.sendall(request)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += secured.recv(65536)
            head, _, body = answer.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            while len(body) < length:
                body += secured.recv(65536)
            return head.split()[1]

        assert status() == b"200"
        wait_until(lambda: time.time() > ends_at + 1, "the certificate's end")
        assert status() == b"403"


def _not_after(pair: Pair) -> str:
    not_after = ssl._ssl._test_decode_cert(str(pair.cert))["notAfter"]  # type: ignore[attr-defined]
    assert isinstance(not_after, str)
    return not_after


# -- starting ------------------------------------------------------------------------------------------------


def test_check_config_sees_a_missing_file(tmp_path: Path, authority: CertificateAuthority) -> None:
    """Before the server is started with it; and `serve` says the same. Exit code 2."""
    server = SecureServer(tmp_path, authority)
    server.pair.key.unlink()
    checked = server.run("check-config")
    assert checked.returncode == 2
    assert str(server.pair.key) in checked.stderr and "Traceback" not in checked.stderr
    server.launch()
    assert server.wait() == 2
    assert str(server.pair.key) in server.log and "Traceback" not in server.log


def test_an_expired_certificate_is_told(tmp_path: Path, authority: CertificateAuthority) -> None:
    """By `check-config`, at the start and at a reload, until it is renewed; the server serves with it all the same."""
    server = SecureServer(tmp_path, authority, authority.server_pair(valid_days=-1))
    sentence = f"[TLS] cert: {server.pair.cert} expired on "
    checked = server.run("check-config")
    assert checked.returncode == 0
    assert f"notification-server: warning: {sentence}" in checked.stderr
    server.launch()
    try:
        wait_until(lambda: server.log.count(sentence) == 1, "the warning")
        _reread(server, times=1)
        assert server.log.count(sentence) == 2
        server.pair.replace(authority.server_pair(file="renewed"))
        _reread(server, times=2)
        assert server.request("GET", "/healthz").status == 200
        assert server.log.count(sentence) == 2
        assert "expired" not in server.run("check-config").stderr
    finally:
        server.stop()


def test_the_figures_say_until_when_the_certificate_is_valid(
    server: SecureServer, authority: CertificateAuthority
) -> None:
    """The one in use: that of the start, then the renewed one."""
    first = ssl.cert_time_to_seconds(_not_after(server.pair))
    assert _expiry_in_metrics(server) == first
    server.pair.replace(authority.server_pair(valid_days=2, file="renewed"))
    renewed = ssl.cert_time_to_seconds(_not_after(server.pair))
    _reread(server, times=1)
    wait_until(lambda: _expiry_in_metrics(server) == renewed, "the new figure")
    assert renewed > first


def test_a_certificate_that_only_openssl_can_read_is_no_reason_not_to_serve(
    authority: CertificateAuthority,
) -> None:
    """Nor is one that is gone by the time its end is looked for."""
    pair = authority.server_pair(valid_days=-1)
    config = TLS(cert=pair.cert, key=pair.key)
    assert len(expired(config)) == 1
    der = ssl.PEM_cert_to_DER_cert(pair.cert.read_text())
    version = bytes.fromhex("a003020102")  # 3, as all have
    assert der.count(version) == 1
    pair.cert.write_text(ssl.DER_cert_to_PEM_cert(der.replace(version, bytes.fromhex("a003020105"))))
    make_context(config)
    assert expired(config) == []
    pair.cert.unlink()
    assert expired(config) == []


def _expiry_in_metrics(server: SecureServer) -> float:
    """Of the certificate, as Unix time."""
    name = "notification_tls_certificate_expiry_timestamp_seconds"
    (value,) = re.findall(rf"^{name} (\S+)$", metrics(server), re.MULTILINE)
    return float(value)


def _reread(server: SecureServer, times: int) -> None:
    server.signal(signal.SIGHUP)
    wait_until(lambda: server.log.count("were reread") == times, "the reload")


def _other_key(pair: Pair, authority: CertificateAuthority) -> None:
    shutil.copy(authority.server_pair(file="other").key, pair.key)


def _passphrase(pair: Pair, authority: CertificateAuthority) -> None:
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"open sesame")
    pair.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    )


def _der(pair: Pair, authority: CertificateAuthority) -> None:
    pair.cert.write_bytes(pair.der)


def _swapped(pair: Pair, authority: CertificateAuthority) -> None:
    cert, key = pair.cert.read_bytes(), pair.key.read_bytes()
    pair.cert.write_bytes(key)
    pair.key.write_bytes(cert)


def _damaged(pair: Pair, authority: CertificateAuthority) -> None:
    lines = pair.cert.read_text().splitlines()
    pair.cert.write_text("\n".join([lines[0], *lines[2:]]))


def _no_authority(pair: Pair, authority: CertificateAuthority) -> None:
    authority.ca_file.write_text("none")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_other_key, "the key does not belong to the certificate"),
        (_passphrase, "the key is protected by a passphrase; take it off"),
        (_der, "[TLS] cert: there is no certificate in"),
        (_swapped, "[TLS] cert: there is no certificate in"),
        (_damaged, "a part of it is damaged"),
        (_no_authority, "[TLS] client_ca: there is no certificate in"),
    ],
)
def test_files_that_cannot_be_used_are_one_clear_sentence(
    tmp_path: Path,
    authority: CertificateAuthority,
    spoil: Callable[[Pair, CertificateAuthority], None],
    sentence: str,
) -> None:
    """With the file; the server does not start, and asks nobody for a passphrase. `check-config` says the same."""
    server = SecureServer(tmp_path, authority, NOTIFY_TLS_CLIENT_CA=str(authority.ca_file))
    spoil(server.pair, authority)
    server.launch()
    assert server.wait() == 1
    last = server.log.strip().splitlines()[-1]
    checked = server.run("check-config")
    assert (checked.returncode, checked.stdout, checked.stderr) == (2, "", f"{last}\n")
    assert last.startswith("notification-server: [TLS] ") and sentence in last, last
    assert str(tmp_path) in last
    assert "Traceback" not in server.log and "BEGIN" not in server.log
