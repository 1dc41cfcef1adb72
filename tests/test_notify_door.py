"""POST /notify against the running server: every form of the request, every refusal, and what is left behind."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from tests.support.client import SocketClient
from tests.support.lane import PORTS
from tests.support.running_server import Response, RunningServer

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/json"}
KEY_REFUSED = b"<html><body>API Key refused</body></html>"
ALICE = '[{"id": "alice"}]'

BROKEN = [
    (b"{", "application/json"),
    (b"[]", "application/json"),
    (b'{"content": "\\ud800"}', "application/json"),
    (b"[" * 100_000, "application/json"),
    (b"\xff\xfe", "application/json"),
    (b"content=%ff", "application/x-www-form-urlencoded"),
    (b"--no", "multipart/form-data; boundary=edge"),
    (b"content=x", "multipart/form-data"),
    (b"&".join(b"a=b" for _ in range(5000)), "application/x-www-form-urlencoded"),
]


@pytest.fixture(scope="module", params=PORTS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    with request.param(tmp_path_factory.mktemp("notify")) as running:
        yield running


def post(server: RunningServer, fields: dict[str, str], **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.request("POST", "/notify", urlencode(fields).encode(), {**FORM, **named})


async def inbox(server: RunningServer, user: str = "alice") -> list[dict[str, Any]]:
    """What the user finds: newest first."""
    async with SocketClient(server) as client:
        await client.join(user)
        return await client.content(limit=100)


def problem(response: Response) -> dict[str, Any]:
    assert response.headers["Content-Type"] == "application/problem+json"
    answer = response.json()
    assert answer["status"] == response.status
    return answer


# -- what is accepted ----------------------------------------------------------------------------------------


async def test_a_form_is_stored_with_all_its_fields(server: RunningServer) -> None:
    """Success is 200 with an empty body, and the document holds what was sent."""
    fields = {name: f"the {name}" for name in ("type", "title", "content", "url", "icon", "image")}
    answer = post(server, {**fields, "users": ALICE})
    assert (answer.status, answer.body) == (200, b"")
    newest = (await inbox(server))[0]
    assert {name: newest[name] for name in fields} == fields
    assert newest["_userId"] == "alice"
    assert newest["seen"] is newest["delete"] is False


async def test_the_query_is_read_too_and_the_body_wins(server: RunningServer) -> None:
    """Fields may come in the query; of several values the last one wins, the body's over the query's."""
    query = urlencode([("title", "first"), ("title", "query"), ("type", "q"), ("users", ALICE)])
    body = urlencode([("content", "1"), ("content", "2"), ("type", "body")]).encode()
    assert server.request("POST", f"/notify?{query}", body, FORM).status == 200
    newest = (await inbox(server))[0]
    assert (newest["title"], newest["type"], newest["content"]) == ("query", "body", "2")


async def test_multipart_is_read(server: RunningServer) -> None:
    """multipart/form-data works as a form does."""
    parts = {"content": "in parts ✓", "users": ALICE}
    body = "".join(
        f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in parts.items()
    )
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    assert server.request("POST", "/notify", f"{body}--edge--\r\n".encode(), headers).status == 200
    assert (await inbox(server))[0]["content"] == "in parts ✓"


async def test_json_has_real_lists_and_booleans(server: RunningServer) -> None:
    """A JSON body takes the same fields, `users` as a list."""
    body = {"content": "json", "users": [{"id": "alice"}, {"id": 7, "email": None}], "email_send": False}
    assert server.request("POST", "/notify", json.dumps(body).encode(), JSON).status == 200
    assert (await inbox(server))[0]["content"] == "json"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "Grüße, 世界 😀 \u202eשלום",
        "a\u2028b\x00c\x07d",
        "</script><b>&amp;",
        "line\nbreak\ttab",
        "\\ \" '",
    ],
)
async def test_unicode_of_every_kind_comes_back_as_it_went_in(server: RunningServer, text: str) -> None:
    """Whatever is in the content, the inbox has the same."""
    assert post(server, {"content": text, "users": ALICE}).status == 200
    assert (await inbox(server))[0]["content"] == text


async def test_values_are_stripped(server: RunningServer) -> None:
    """Surrounding white space goes, as in the original."""
    assert post(server, {"content": "  x \n", "title": "\tt ", "users": f" {ALICE} "}).status == 200
    newest = (await inbox(server))[0]
    assert (newest["content"], newest["title"]) == ("x", "t")


async def test_the_same_user_twice_is_one_document(server: RunningServer) -> None:
    """1 and "1" are one user as well."""
    before = len(await inbox(server))
    users = json.dumps([{"id": "alice"}, {"id": "alice", "email": "a@example.test"}])
    assert post(server, {"content": "once", "users": users}).status == 200
    assert len(await inbox(server)) == before + 1


async def test_no_users_is_200_and_nothing_stored(server: RunningServer) -> None:
    """An empty list is not an error."""
    before = await inbox(server)
    assert post(server, {"content": "nobody"}).status == 200
    assert post(server, {"content": "nobody", "users": "[]"}).status == 200
    assert await inbox(server) == before


def test_ten_thousand_users_in_one_request(server: RunningServer) -> None:
    """The limit itself is allowed, one more is not."""
    users = [{"id": number} for number in range(10_000)]
    assert post(server, {"content": "x", "users": json.dumps(users)}).status == 200
    answer = post(server, {"content": "x", "users": json.dumps([*users, {"id": "one more"}])})
    assert answer.status == 413
    assert problem(answer)["field"] == "users"


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"users": ALICE}, "content"),
        ({"content": "x", "users": "nonsense"}, "users"),
        ({"content": "x", "users": '{"id": 1}'}, "users"),
        ({"content": "x", "users": "[1]"}, "users[0]"),
        ({"content": "x", "users": '[{"id": "a"}, {"email": "b@example.test"}]'}, "users[1].id"),
        ({"content": "x", "users": '[{"id": true}]'}, "users[0].id"),
        ({"content": "x", "users": '[{"id": "a", "email": "no address"}]'}, "users[0].email"),
        ({"content": "x", "users": ALICE, "email_subject": "a\r\nBcc: x@example.test"}, "email_subject"),
        ({"content": "x", "users": ALICE, "email_type": "image/png"}, "email_type"),
    ],
)
async def test_a_bad_field_is_400_and_named(
    server: RunningServer, fields: dict[str, str], field: str
) -> None:
    """Nothing is stored, and the problem says which field it is."""
    before = await inbox(server)
    answer = post(server, fields)
    assert answer.status == 400
    assert problem(answer)["field"] == field
    assert await inbox(server) == before


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"content": "x" * (64 * 1024 + 1)}, "content"), ({"content": "", "title": "é" * 1025}, "title")],
)
def test_an_overlong_field_is_413(server: RunningServer, fields: dict[str, str], field: str) -> None:
    """64 KiB for content, 2 KiB for other fields, in UTF-8."""
    answer = post(server, fields)
    assert answer.status == 413
    assert problem(answer)["field"] == field


@pytest.mark.parametrize("size", [4 * 1024 * 1024 + 1, 500 * 1024 * 1024])
def test_a_declared_body_over_the_limit_is_refused_unread(server: RunningServer, size: int) -> None:
    """The answer comes before the body is sent."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest("POST", "/notify")
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert b"4194304" in answer.read()
    connection.close()


def test_a_chunked_body_over_the_limit_is_refused(server: RunningServer) -> None:
    """Also where no length was declared."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as stream:
        stream.sendall(b"POST /notify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        try:
            for _ in range(8):
                stream.sendall(chunk)
        except OSError:
            pass  # it need not take more than the limit
        assert stream.recv(12) == b"HTTP/1.1 413"


@pytest.mark.parametrize(("body", "content_type"), BROKEN)
def test_a_broken_body_is_400(server: RunningServer, body: bytes, content_type: str) -> None:
    """Whatever is in it, it is the caller's error."""
    answer = server.request("POST", "/notify", body, {"Content-Type": content_type})
    assert answer.status == 400
    problem(answer)


@pytest.mark.parametrize("length", ["\u00b2", "-1", "x", "1,2", "99999999999999999999"])
def test_an_impossible_content_length_is_the_callers_error(server: RunningServer, length: str) -> None:
    """Also one of characters that only look like digits; nothing of it is an error of ours."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as stream:
        head = f"POST /notify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
        stream.sendall(head.encode("latin-1"))
        assert stream.recv(10) == b"HTTP/1.1 4"
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    "name", ["Application/X-WWW-Form-Urlencoded", "APPLICATION/x-www-form-urlencoded; charset=UTF-8"]
)
def test_media_types_have_no_letter_case(server: RunningServer, name: str) -> None:
    """RFC 9110 section 8.3.1."""
    assert server.request("POST", "/notify", b"content=x", {"Content-Type": name}).status == 200


def test_options_is_204_with_the_cors_headers(server: RunningServer) -> None:
    """The preflight of a page of another origin succeeds; there are no credentials beside `*`."""
    answer = server.request("OPTIONS", "/notify")
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers["Access-Control-Allow-Headers"] == "origin, content-type, accept, authorization"
    assert answer.headers["Access-Control-Allow-Methods"] == "GET, POST, PUT, DELETE, OPTIONS, HEAD"
    assert answer.headers["Access-Control-Max-Age"] == "1209600"
    assert "Access-Control-Allow-Credentials" not in answer.headers


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://localhost/notify", 200),
        ("HTTP://127.0.0.1:80/notify?content=x&users=[]", 200),
        ("http://localhost/notify?content=%FF", 400),
        ("http://localhost/notif", 404),
    ],
)
def test_the_target_may_be_a_whole_address(server: RunningServer, target: str, status: int) -> None:
    """RFC 9112 section 3.2.2."""
    body = b"" if "content" in target else b"content=x"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as stream:
        lines = [f"POST {target} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        stream.sendall("\r\n".join([*lines, f"Content-Type: {FORM['Content-Type']}", "", ""]).encode() + body)
        assert stream.recv(12) == f"HTTP/1.1 {status}".encode()


def test_other_methods_are_405(server: RunningServer) -> None:
    """Only POST publishes."""
    assert server.get("/notify?content=x&users=" + quote(ALICE)).status == 405


# -- without a key: from this machine only -------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Forwarded_For": "203.0.113.9"},
        {"X_Real_IP": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"Via": "1.1 proxy"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Host": "rebound.example:8587"},
    ],
)
async def test_who_may_not_be_on_this_machine_is_403(server: RunningServer, headers: dict[str, str]) -> None:
    """A proxy, a foreign page or a foreign name in the request: refused, saying what to set; nothing is stored."""
    before = await inbox(server)
    answer = post(server, {"content": "x", "users": ALICE}, **headers)
    assert answer.status == 403
    assert "notification-server key add" in problem(answer)["detail"]
    assert await inbox(server) == before


@pytest.mark.parametrize(
    ("query", "fields", "headers", "status"),
    [
        ("", {"apikey": "x"}, {"X_Forwarded_For": "203.0.113.9"}, 403),
        ("?apikey=x", {"apikey": ""}, {}, 400),
        ("?apikey=x", {}, {"X_Forwarded_For": "203.0.113.9"}, 400),
        ("", {"apikey": "x"}, {}, 400),
    ],
)
def test_a_key_in_a_field_where_there_are_none(
    server: RunningServer, query: str, fields: dict[str, str], headers: dict[str, str], status: int
) -> None:
    """The answer is the same on both ports, and whether the body comes with the head or after it."""
    body = urlencode({"content": "x", **fields}).encode()
    named = {name.replace("_", "-"): value for name, value in {**FORM, **headers}.items()}
    lines = [f"POST /notify{query} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in named.items()), "", ""]).encode()
    for parts in ([head + body], [head, body]):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as stream:
            for part in parts:
                stream.sendall(part)
                time.sleep(0.05)
            assert stream.recv(12) == f"HTTP/1.1 {status}".encode()


def test_our_own_page_may_publish(server: RunningServer) -> None:
    """Same origin, as a browser says it."""
    headers = {"Origin": f"http://127.0.0.1:{server.port}", "Sec_Fetch_Site": "same-origin"}
    assert post(server, {"content": "x"}, **headers).status == 200


def test_a_trusted_proxy_speaks_for_its_callers(tmp_path: Path) -> None:
    """Behind it, the address it names decides."""
    with RunningServer(tmp_path, NOTIFY_APPLICATION_TRUSTED_PROXIES="127.0.0.1") as server:
        assert post(server, {"content": "x"}, X_Forwarded_For="127.0.0.1").status == 200
        assert post(server, {"content": "x"}, X_Forwarded_For="203.0.113.9").status == 403
        assert post(server, {"content": "x"}, X_Forwarded_For="127.0.0.1, 203.0.113.9").status == 403


def test_in_release_publishing_without_a_key_must_be_switched_on(tmp_path: Path) -> None:
    """It is refused by default, with a sentence that says what to set."""
    settings = {"NOTIFY_APPLICATION_CONFIGURATION": "RELEASE", "NOTIFY_MONGODB_URL": "embedded"}
    with RunningServer(tmp_path, **settings) as server:
        answer = post(server, {"content": "x"})
        assert answer.status == 403
        assert "notification-server key add" in problem(answer)["detail"]
    with RunningServer(tmp_path, **settings, NOTIFY_APPLICATION_PUBLISH_WITHOUT_KEY="true") as server:
        assert post(server, {"content": "x"}).status == 200


# -- with a key ----------------------------------------------------------------------------------------------


def test_with_a_key_a_wrong_or_missing_one_is_always_400(tmp_path: Path) -> None:
    """C1's answer to the letter, from wherever; the right one publishes, also through a proxy and from a page."""
    with RunningServer(tmp_path, NOTIFY_APPLICATION_APIKEY="s3cret-é") as server:
        for fields in ({}, {"apikey": ""}, {"apikey": "wrong"}, {"apikey": "s3cret"}):
            answer = post(server, {"content": "x", **fields})
            assert (answer.status, answer.body) == (400, KEY_REFUSED)
            assert answer.headers["Content-Type"].startswith("text/html")
        headers = {"Origin": "https://shop.example", "X_Forwarded_For": "203.0.113.9"}
        assert post(server, {"content": "x", "apikey": " s3cret-é "}, **headers).status == 200
        for key, status in (("s3cret-é", 200), ("wrong", 400)):
            long = {"content": "x" * 60_000, "title": "é", "apikey": key}
            assert post(server, long, **headers).status == status
            assert server.request("POST", "/notify", json.dumps(long).encode(), JSON).status == status
        for body, kind in BROKEN:
            answer = server.request("POST", "/notify", body, {"Content-Type": kind})
            assert (answer.status, answer.body) == (400, KEY_REFUSED)
            answer = server.request(
                "POST", f"/notify?{urlencode({'apikey': 's3cret-é'})}", body, {"Content-Type": kind}
            )
            assert answer.status == 400
            problem(answer)
        assert "s3cret" not in server.log
