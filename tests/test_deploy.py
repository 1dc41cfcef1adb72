"""The files of deploy/ for nginx and Caddy, run in front of a server in RELEASE."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from tests.support.certificates import CertificateAuthority
from tests.support.client import SocketClient
from tests.support.event_streams import EventStream
from tests.support.feeds import SETTINGS, hub_path, service_path, tenant_path, user_token
from tests.support.passwords import cheap_hash
from tests.support.processes import wait_until
from tests.support.proxies import NAME, OTHER_NAME, Caddy, Nginx, Proxy, advised_settings
from tests.support.running_server import RunningServer
from tests.support.secure_server import SecurePlace, Streaming

ROOT = Path(__file__).resolve().parents[1]

KEY = "key-of-the-backend"
HEADERS = {"Authorization": f"Api-Key {KEY}"}

NGINX, CADDY = (pytest.param(kind, marks=pytest.mark.servers) for kind in (Nginx, Caddy))
BOTH = pytest.mark.parametrize("kind", [NGINX, CADDY], scope="module")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("authority") / "authority")


def release(folder: Path, application: str, **settings: str) -> RunningServer:
    """A server in RELEASE where alice's password is her name. `application`: the section of that name."""
    text = f"{application}configuration=RELEASE\napikey={KEY}\n"
    text += f"[MONGODB]\nurl=embedded\n[USERS]\nalice={cheap_hash('alice')}\n"
    (folder / "config.ini").write_text(text)
    return RunningServer(folder, **settings)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, kind: type[Proxy]) -> Iterator[RunningServer]:
    """Configured as the file of the proxy says. For all tests that leave it as it is."""
    with release(tmp_path_factory.mktemp("server"), advised_settings(kind.file), **SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(server: RunningServer, kind: type[Proxy], authority: CertificateAuthority) -> Iterator[Proxy]:
    with kind(server.port, authority) as running:
        yield running


async def opened(stream: Streaming) -> None:
    """Open the session, and read that it is."""
    if stream.is_polling:
        await stream.receive("o")
    else:
        await stream.start()
        await stream.until("o")


# -- listening -----------------------------------------------------------------------------------------------


@BOTH
async def test_raw_websocket(proxy: Proxy) -> None:
    """POST /notify by https reaches a client by wss."""
    async with proxy.place().client() as client:
        await client.join("alice")
        assert proxy.place().notify("alice", content="through it", headers=HEADERS).status == 200
        assert (await client.next("notification"))[0]["content"] == "through it"


@BOTH
async def test_websocket_of_sockjs(proxy: Proxy) -> None:
    """With its frames."""
    async with proxy.place().client("/notification/000/a-websocket/websocket") as client:
        received = client.socket.recv
        assert await received() == "o"
        join = {"name": "join", "data": {"login": "alice", "password": "alice"}}
        await client.socket.send(json.dumps([json.dumps(join)]))
        while "unseen" not in str(await received()):
            pass
        proxy.place().notify("alice", content="through it", headers=HEADERS)
        assert "through it" in str(await received())


@BOTH
@pytest.mark.parametrize("transport", ["xhr_streaming", "eventsource", "htmlfile", "xhr", "jsonp"])
async def test_sockjs_without_websocket(proxy: Proxy, transport: str) -> None:
    """Each frame comes while the response is still open: nothing holds it back until there is more."""
    place = proxy.place()
    async with Streaming(place, transport, transport) as stream:
        await opened(stream)
        await stream.send("join", {"login": "alice", "password": "alice"})
        await stream.receive("unseen")
        for number in range(3):
            content = f"push {number} by {transport}"
            await asyncio.to_thread(place.notify, "alice", content=content, headers=HEADERS)
            await stream.receive(content)
        assert "content-length" not in stream.head.lower()


@BOTH
@pytest.mark.parametrize("path_of", [hub_path, service_path], ids=["hub", "service"])
async def test_the_other_sockets(proxy: Proxy, path_of: Callable[[str], str]) -> None:
    """A token in the address is all that their clients show."""
    async with proxy.place().client(path_of("bob")) as client:
        proxy.place().notify("bob", content="through it", headers=HEADERS)
        while "through it" not in str(await client.socket.recv()):
            pass


@BOTH
async def test_the_socket_of_dialect_2(proxy: Proxy) -> None:
    """By its own path."""
    async with proxy.place().client("/ws/v2") as client:
        await client.socket.send(
            json.dumps({"name": "join", "id": 1, "data": {"token": user_token("carol")}})
        )
        assert json.loads(await client.socket.recv())["name"] == "joined"


@BOTH
async def test_who_listens_to_a_tenant(proxy: Proxy) -> None:
    """Is refused by the server, where the key is wrong, and not by the proxy."""
    with pytest.raises(InvalidStatus) as refused:
        async with proxy.place().client(tenant_path("wrong")):
            pass
    assert refused.value.response.status_code == 403


@BOTH
async def test_events(proxy: Proxy) -> None:
    """What was missed, and at once what is new; by a ticket, as a browser does it."""
    place = proxy.place()
    await asyncio.to_thread(place.notify, "dave", content="missed", headers=HEADERS)
    bearer = {"Authorization": f"Bearer {user_token('dave')}"}
    answer = await asyncio.to_thread(place.request, "POST", "/events/ticket", b"", bearer)
    async with place.open() as (reader, writer):
        path = f"/events?ticket={answer.json()['ticket']}"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {place.name}\r\n\r\n".encode())
        stream = EventStream(reader, writer)
        await stream.read_head()
        missed, _ = await stream.caught_up()
        assert missed.data["content"] == "missed"
        await asyncio.to_thread(place.notify, "dave", content="new", headers=HEADERS)
        assert (await stream.next("notification")).data["content"] == "new"


@BOTH
async def test_socketio(proxy: Proxy) -> None:
    """By polling and by WebSocket; each begins with a packet that opens the session."""
    place = proxy.place()
    answer = await asyncio.to_thread(place.request, "GET", "/socket.io/?EIO=4&transport=polling")
    assert answer.body.startswith(b'0{"sid":')
    async with place.client("/socket.io/?EIO=4&transport=websocket") as client:
        assert str(await client.socket.recv()).startswith('0{"sid":')


@BOTH
async def test_a_heartbeat_comes_through_at_once(
    tmp_path: Path, kind: type[Proxy], authority: CertificateAuthority
) -> None:
    """A stream on which nothing else happens lives by it."""
    settings = advised_settings(kind.file)
    with (
        release(tmp_path, settings, NOTIFY_CONNECTIONS_HEARTBEAT_S="0.2") as server,
        kind(server.port, authority) as proxy,
    ):
        async with Streaming(proxy.place(), "xhr_streaming", "s1") as stream:
            await stream.start()
            for _ in range(3):
                await stream.until("\nh\n")


@BOTH
async def test_who_goes_away_is_gone(proxy: Proxy, server: RunningServer) -> None:
    """The server hears of it, whichever way the client was connected."""

    def connected() -> int:
        count: int = server.get("/health").json()["websocket"]["active_connections"]
        return count

    await asyncio.to_thread(wait_until, lambda: connected() == 0, "those of other tests having gone")
    async with proxy.place().client() as client, Streaming(proxy.place(), "xhr_streaming", "goes") as stream:
        await client.join("alice")
        await opened(stream)
        await asyncio.to_thread(wait_until, lambda: connected() == 2, "both being counted")
    await asyncio.to_thread(wait_until, lambda: connected() == 0, "the server hearing of it")


@BOTH
def test_a_browser_has_all_its_streams_on_one_connection(
    proxy: Proxy, authority: CertificateAuthority
) -> None:
    """It opens six of HTTP/1.1 at most, for all its tabs."""
    context = authority.client_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", proxy.port)) as plain,
        context.wrap_socket(plain, server_hostname=NAME) as connection,
    ):
        assert connection.selected_alpn_protocol() == "h2"


# -- publishing ----------------------------------------------------------------------------------------------


@BOTH
def test_a_request_has_one_id(proxy: Proxy, server: RunningServer) -> None:
    """The proxy's, whatever the client says: in the answer, in the server's log, and in that of nginx, where no key
    is."""
    answer = proxy.place().request("POST", "/notify?apikey=wr0ng", b"", {"X-Request-ID": "mine"})
    assert answer.status == 400
    [id_] = [value for name, value in answer.headers.items() if name.lower() == "x-request-id"]
    assert re.fullmatch("[0-9a-f-]{32,36}", id_)
    assert f"(request {id_})" in server.log
    if isinstance(proxy, Nginx):
        # It is written after the answer.
        wait_until(lambda: proxy.access_log.read_text().endswith(f" {id_}\n"), "the line of the request")
        log = proxy.access_log.read_text()
        assert '"POST /notify" 400' in log and "wr0ng" not in log
    assert "wr0ng" not in server.log


@BOTH
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_what_is_too_large(proxy: Proxy, server: RunningServer, is_chunked: bool) -> None:
    """Is answered by the server in its own words; what is beyond the limit of nginx, by that. The connections between
    proxy and server are in order afterwards."""
    for _ in range(5):
        status, body = await _upload(proxy.place(), 5_000_000, is_chunked)
        assert status == 413 and b"over the 4194304 bytes allowed" in body, (status, body)
    status, _ = await _upload(proxy.place(), 9_000_000, is_chunked)
    assert status == 413
    for number in range(20):
        assert proxy.place().notify("alice", content=str(number), headers=HEADERS).status == 200


async def _upload(place: SecurePlace, size: int, is_chunked: bool) -> tuple[int, bytes]:
    """POST /notify of so many bytes, of which as many are sent as are taken; status and body of the answer."""
    framing = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {size}"
    head = f"POST /notify HTTP/1.1\r\nHost: {place.name}\r\nAuthorization: Api-Key {KEY}\r\n{framing}\r\n\r\n"
    async with place.open() as (reader, writer):

        async def send() -> None:
            writer.write(head.encode())
            for _ in range(size // 50_000):
                writer.write(b"c350\r\n" + b"x" * 50_000 + b"\r\n" if is_chunked else b"x" * 50_000)
                await writer.drain()
            writer.write(b"0\r\n\r\n" if is_chunked else b"")

        sending = asyncio.create_task(send())
        async with asyncio.timeout(30):
            answer = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(re.search(r"(?i)content-length: (\d+)", answer)[1])  # type: ignore[index]
            body = await reader.readexactly(length)
        sending.cancel()
        await asyncio.wait([sending])
        return int(answer.split()[1]), body


@BOTH
def test_a_large_notification_passes(proxy: Proxy) -> None:
    """As large as the server takes them."""
    users = [f"user-{number:06}" for number in range(10_000)]
    assert proxy.place().notify(*users, content="x" * 64_000, headers=HEADERS).status == 200


INSIDE = (
    "/",
    "/metrics",
    "/readyz",
    "/health",
    "/demo/users",
    "/example/page.js",
    "/notify/x",
)

OUTSIDE = ("/healthz", "/client/notifications.js", "/client/sockjs.min.js", "/notification/info")


@BOTH
def test_what_is_for_inside_is_not_there(proxy: Proxy, server: RunningServer) -> None:
    """It is the proxy that says so, and not the server."""
    for path in INSIDE:
        answer = proxy.place().request("GET", path)
        assert answer.status == 404, path
        assert answer.body != server.get(path).body, path


@BOTH
def test_what_is_for_everybody(proxy: Proxy) -> None:
    """By https only, and browsers are told so, once."""
    for path in OUTSIDE:
        answer = proxy.place().request("GET", path)
        assert answer.status == 200, path
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536000", path


# -- who is calling ------------------------------------------------------------------------------------------

LIES: list[dict[str, str]] = [
    {"X-Forwarded-For": "203.0.113.9"},
    {"X-Forwarded-For": "127.0.0.1"},
    {"X-Forwarded-For": "127.0.0.1, 203.0.113.9", "X-Real-IP": "203.0.113.9"},
    {"Forwarded": "for=203.0.113.9", "X-Forwarded-Host": "localhost", "X-Forwarded-Proto": "http"},
]


@BOTH
async def test_the_address_is_the_clients(proxy: Proxy, server: RunningServer) -> None:
    """In the log: neither the proxy's nor what the client says of itself."""
    place = proxy.place(source="127.0.0.5")
    for lie in LIES:
        before = len(server.log)
        headers = {**lie, "Content-Type": "text/plain"}
        join = json.dumps(
            [json.dumps({"name": "join", "data": {"login": "x", "password": "wrong"}})]
        ).encode()
        path = f"/notification/000/s{before}"
        assert place.request("POST", f"{path}/xhr", b"", headers).status == 200
        assert place.request("POST", f"{path}/xhr_send", b"no JSON", headers).status == 500
        assert place.request("POST", f"{path}/xhr_send", join, headers).status == 204
        assert place.request("POST", "/notify", b"", {**lie, "Authorization": "Api-Key wrong"}).status == 400
        await asyncio.to_thread(wait_until, lambda at=before: "a sign-in" in server.log[at:], "the sign-in")
        log = server.log[before:]
        assert "a sign-in from 127.0.0.5 failed" in log
        assert "broken JSON over HTTP from 127.0.0.5" in log
        await asyncio.to_thread(
            wait_until, lambda at=before: "POST /notify (" in server.log[at:], "the request"
        )
        log = server.log[before:]
        assert "POST /notify (127.0.0.5)" in log
        assert "127.0.0.1" not in log and "203.0.113" not in log


@BOTH
def test_limits_count_the_clients(tmp_path: Path, kind: type[Proxy], authority: CertificateAuthority) -> None:
    """One who has used theirs up, whatever they say of themselves, takes nothing from another. Who comes by a proxy
    that nobody trusts is counted together with all others behind it."""

    def status(source: str, **headers: str) -> int:
        # By a name that the server does not know: by its own, who is on this machine is not limited.
        place = proxy.place(OTHER_NAME, source)
        return place.request("POST", "/notify", b"", {"Authorization": "Api-Key wrong", **headers}).status

    trusted = advised_settings(kind.file)
    limits = {"NOTIFY_LIMITS_REQUESTS_PER_ADDRESS": "3/h"}
    with release(tmp_path, trusted, **limits) as server, kind(server.port, authority) as proxy:
        assert [status("127.0.0.5", **lie) for lie in LIES] == [400, 400, 400, 429]
        assert status("127.0.0.6") == 400
    untrusted = trusted.replace("trusted_proxies=127.0.0.1", "trusted_proxies=192.0.2.1")
    with release(tmp_path, untrusted, **limits) as server, kind(server.port, authority) as proxy:
        assert [status(f"127.0.0.{number}") for number in (5, 6, 7, 8)] == [400, 400, 400, 429]


@BOTH
async def test_nobody_is_on_this_machine_by_saying_so(
    tmp_path: Path, kind: type[Proxy], authority: CertificateAuthority
) -> None:
    """Where callers on this machine need no key, those of the proxy do, if the proxy is not named as one."""
    with RunningServer(tmp_path) as server, kind(server.port, authority) as proxy:
        assert server.notify("alice", content="by curl").status == 200
        for lie in ({}, *LIES):
            for name in (NAME, "localhost", "127.0.0.1"):
                place = proxy.place()
                answer = place.notify("alice", content=str(lie), headers={**lie, "Host": name})
                # Caddy does not pass on what is for none of its names.
                assert answer.status == 403 or (name != NAME and not answer.body), (lie, name, answer)
        async with SocketClient(server) as client:
            assert [document["content"] for document in await client.join("alice")] == ["by curl"]


# -- while it runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [NGINX], scope="module")
async def test_nginx_is_reloaded(proxy: Nginx, server: RunningServer) -> None:
    """Open connections live on, new ones see the renewed certificate, and the server is left with as many connections
    as there are clients."""

    def connected() -> int:
        count: int = server.get("/health").json()["websocket"]["active_connections"]
        return count

    place = proxy.place()
    await asyncio.to_thread(wait_until, lambda: connected() == 0, "those of other tests having gone")
    async with place.client() as old, Streaming(place, "eventsource", "reloaded") as stream:
        await old.join("alice")
        await opened(stream)
        await stream.send("join", {"login": "alice", "password": "alice"})
        await stream.receive("unseen")
        first = proxy.shown_certificate()
        renewed = proxy.renew_certificate()
        workers = proxy.workers
        await asyncio.to_thread(proxy.reload)
        assert proxy.shown_certificate() == renewed != first
        async with place.client() as new:
            await new.join("alice")
            place.notify("alice", content="for all", headers=HEADERS)
            assert (await old.next("notification"))[0]["content"] == "for all"
            await stream.receive("for all")
            assert (await new.next("notification"))[0]["content"] == "for all"
            await asyncio.to_thread(wait_until, lambda: connected() == 3, "all being counted")
    await asyncio.to_thread(wait_until, lambda: connected() == 0, "all having gone")
    await asyncio.to_thread(wait_until, lambda: not workers & proxy.workers, "the old workers having ended")
    assert place.notify("alice", content="after", headers=HEADERS).status == 200


@BOTH
async def test_the_server_is_restarted_behind_it(proxy: Proxy, server: RunningServer) -> None:
    """Clients are told so, callers meanwhile get an error of the proxy, and all is well once the server is back."""
    async with proxy.place().client() as client:
        await client.join("alice")
        assert await asyncio.to_thread(server.stop) == 0
        assert await client.closed() == (1001, "going away")
    assert proxy.place().notify("alice", content="lost", headers=HEADERS).status == 502
    await asyncio.to_thread(server.start)
    assert proxy.place().notify("alice", content="back", headers=HEADERS).status == 200
    async with proxy.place().client() as client:
        assert (await client.join("alice"))[-1]["content"] == "back"
