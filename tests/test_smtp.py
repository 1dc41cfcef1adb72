from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest

from server import smtp
from server.config import Email
from server.errors import StartupError
from server.mail_message import MailMessage, Sender, build_message
from server.mail_transport import MAX_REASON_CHARS, Handover
from server.messages import Mail
from server.smtp import SMTPTransport
from tests.support.ports import free_port
from tests.support.smtp_sink import CertificateAuthority, SMTPSink

ANN, BEN, CAT = "ann@example.org", "ben@example.org", "cat@example.org"
PASSWORD = "open-sesame-ä"


def message(content: str = "<p>Hello</p>") -> MailMessage:
    mail = Mail("Subject", content)
    return build_message(
        mail, "65f2c0ffee00000000000001", datetime(2024, 3, 14, tzinfo=UTC), Sender("", "notify@example.org")
    )


def email(sink: SMTPSink | int, **settings: Any) -> Email:
    port = sink if isinstance(sink, int) else sink.port
    return Email(**({"host": "127.0.0.1", "port": port, "security": "none", "timeout_s": 10.0} | settings))


async def send(
    settings: Email, *addresses: str, content: str = "<p>Hello</p>", within_s: float = 20
) -> Handover:
    transport = SMTPTransport(settings)
    try:
        return await transport.send(message(content), addresses or (ANN,), within_s)
    finally:
        await transport.close()


@pytest.fixture
async def sink() -> Any:
    with SMTPSink() as sink:
        yield sink


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("authority"))


def refusals(handover: Handover) -> dict[str, tuple[int, bool]]:
    return {address: (refusal.code, refusal.is_temporary) for address, refusal in handover.refused.items()}


# -- connections ---------------------------------------------------------------------------------------------


async def test_a_connection_serves_several_mails(sink: SMTPSink) -> None:
    """One after the other; two at the same time need two."""
    transport = SMTPTransport(email(sink))
    for _ in range(3):
        assert await transport.send(message(), [ANN], 20) == Handover({})
    assert sink.connections == 1
    await asyncio.gather(*(transport.send(message(), [each], 20) for each in (ANN, BEN)))
    assert sink.connections == 2
    assert len(sink.mails) == 5
    await transport.close()


async def test_a_connection_that_the_server_ended_is_not_missed(sink: SMTPSink) -> None:
    """The next mail goes out over a new one, without a word of an outage."""
    transport = SMTPTransport(email(sink))
    assert await transport.send(message(), [ANN], 20) == Handover({})
    sink.hang_up()
    assert await transport.send(message(), [BEN], 20) == Handover({})
    assert sink.connections == 2
    await transport.close()


async def test_no_connection_serves_for_ever(sink: SMTPSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many messages a new one is made."""
    monkeypatch.setattr(smtp, "MAX_MESSAGES", 3)
    transport = SMTPTransport(email(sink))
    for _ in range(7):
        assert await transport.send(message(), [ANN], 20) == Handover({})
    assert sink.connections == 3
    await transport.close()


async def test_a_connection_is_not_kept_for_long(sink: SMTPSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """When no mail comes it is ended as SMTP has it."""
    monkeypatch.setattr(smtp, "KEEP_S", 0.01)
    transport = SMTPTransport(email(sink, timeout_s=5.0))
    assert await transport.send(message(), [ANN], 20) == Handover({})
    async with asyncio.timeout(20):
        await sink.quitted.wait()
    await transport.close()


async def test_a_connection_on_which_something_broke_is_not_used_again(sink: SMTPSink) -> None:
    """Whatever state the server left it in."""
    transport = SMTPTransport(email(sink))
    assert await transport.send(message(), [ANN], 20) == Handover({})
    sink.replies["MAIL"] = "451 not now"
    assert (await transport.send(message(), [BEN], 20)).outage is not None
    sink.replies.clear()
    assert await transport.send(message(), [BEN], 20) == Handover({})
    assert (
        sink.connections == 3
    )  # the second one was to show whether the server or the first one was at its end
    await transport.close()


@pytest.mark.parametrize("reply", ["451 not now", "500 what is that", "421 closing", ""])
async def test_a_kept_connection_that_cannot_begin_anew_is_let_go(sink: SMTPSink, reply: str) -> None:
    """The mail goes over one kept before, or a new one: it is no outage."""
    transport = SMTPTransport(email(sink))
    await asyncio.gather(*(transport.send(message(), [each], 20) for each in (ANN, BEN)))
    assert sink.connections == 2
    sink.rset_replies = [reply]
    assert await transport.send(message(), [ANN], 20) == Handover({})
    assert (sink.connections, sink.rset_replies) == (2, [])
    sink.rset_replies = [reply]
    assert await transport.send(message(), [BEN], 20) == Handover({})
    assert (sink.connections, sink.rset_replies) == (3, [])
    assert len(sink.mails) == 4
    await transport.close()
    await sink.left()


@pytest.mark.parametrize("reply", ["451 not now", "421 closing", ""])
async def test_after_a_refusal_others_are_not_kept_from_their_mail(sink: SMTPSink, reply: str) -> None:
    """Though the connection cannot go on: they are mailed over another one."""
    sink.replies = {ANN: "550 5.1.1 no such user"}
    sink.rset_replies = [reply]
    transport = SMTPTransport(email(sink, recipients_per_message=1))
    handover = await transport.send(message(), [ANN, BEN], 20)
    assert (refusals(handover), handover.outage) == ({ANN: (550, False)}, None)
    assert [mail.recipients for mail in sink.mails] == [[BEN]]
    assert (sink.connections, sink.rset_replies) == (2, [])
    await transport.close()


async def test_a_server_that_takes_few_messages_on_a_connection(sink: SMTPSink) -> None:
    """Those that do not go over one go over the next, whether they are of several mails or of one: it is no outage."""
    sink.max_messages = 2
    transport = SMTPTransport(email(sink, recipients_per_message=1))
    for _ in range(3):
        assert await transport.send(message(), [ANN], 20) == Handover({})
    assert sink.connections == 2
    assert await transport.send(message(), [ANN, BEN, CAT, "jörg@example.org"], 20) == Handover({})
    assert sink.connections == 4
    assert len(sink.mails) == 7
    sink.max_messages = 0
    assert (await transport.send(message(), [ANN], 20)).outage is not None
    await transport.close()


# -- what arrives --------------------------------------------------------------------------------------------


async def test_recipients_only_in_the_envelope(sink: SMTPSink) -> None:
    """All recipients get one message, and none of them can see another."""
    handover = await send(email(sink), ANN, BEN, CAT)
    assert handover == Handover({})
    [mail] = sink.mails
    assert mail.recipients == [ANN, BEN, CAT]
    assert mail.sender == "notify@example.org"
    assert b"ann" not in mail.content and b"ben" not in mail.content
    assert sink.connections == 1


@pytest.mark.parametrize(
    "content",
    [
        ".\r\n..\r\n.x\n.\n",
        "From me\nFrom you",
        "x" * 20_000,
        "語" * 20_000,
        "\x00\x01 \u2028",
        "",
        "trailing  \n\n",
    ],
)
async def test_content_survives_the_wire(sink: SMTPSink, content: str) -> None:
    """What could end the mail early, or be too long for a line, reaches the reader as it was."""
    await send(email(sink), content=content)
    [mail] = sink.mails
    assert mail.content == message(content).content
    parsed: Any = message_from_bytes(mail.content, policy=policy.default)
    assert parsed.get_content().replace("\r\n", "\n").rstrip("\n") == content.replace("\r\n", "\n").rstrip(
        "\n"
    )


async def test_our_name_is_a_full_name_or_an_address(sink: SMTPSink, monkeypatch: pytest.MonkeyPatch) -> None:
    """EHLO carries a name that RFC 5321 allows."""
    monkeypatch.setattr("socket.gethostname", lambda: "laptop")
    await send(email(sink))
    monkeypatch.setattr("socket.gethostname", lambda: "node1.example.org")
    await send(email(sink))
    monkeypatch.setattr("socket.gethostname", lambda: "bücher.example.org")
    await send(email(sink))
    assert sink.ehlo_names == ["[127.0.0.1]", "node1.example.org", "[127.0.0.1]"]


async def test_a_server_without_extensions(sink: SMTPSink) -> None:
    """One that knows no EHLO hears HELO, and nothing of sizes; who needs an extension cannot be mailed by it."""
    sink.replies = {"EHLO": "502 5.5.1 command not implemented"}
    handover = await send(email(sink), ANN, "jörg@example.org")
    assert refusals(handover) == {"jörg@example.org": (0, False)} and handover.outage is None
    [mail] = sink.mails
    assert (mail.recipients, mail.options) == ([ANN], [])
    sink.replies = {"EHLO": "421 4.3.2 not now"}
    assert refusals(await send(email(sink), ANN)) == {ANN: (421, True)}


async def test_size_is_declared(sink: SMTPSink) -> None:
    """A server that limits sizes hears the size before the content."""
    await send(email(sink))
    assert f"SIZE={len(message().content)}" in sink.mails[0].options


# -- some are refused ----------------------------------------------------------------------------------------


async def test_some_recipients_refused(sink: SMTPSink) -> None:
    """The others get their mail; each refusal carries the server's code and words."""
    sink.replies = {BEN: "550 5.1.1 no such user", CAT: "450 4.2.1 try again later"}
    handover = await send(email(sink), ANN, BEN, CAT)
    assert refusals(handover) == {BEN: (550, False), CAT: (450, True)}
    assert handover.refused[BEN].reason == "5.1.1 no such user"
    assert handover.outage is None
    assert sink.mails[0].recipients == [ANN]


async def test_a_recipient_accepted_in_other_words(sink: SMTPSink) -> None:
    """Gets the mail, and so must not be tried again."""
    sink.replies = {BEN: "251 2.1.5 will forward", CAT: "252 2.1.5 cannot verify, but will try"}
    handover = await send(email(sink), ANN, BEN, CAT)
    assert (handover.refused, handover.outage) == ({}, None)
    assert sink.mails[0].recipients == [ANN, BEN, CAT]


async def test_all_recipients_refused(sink: SMTPSink) -> None:
    """Then there is no mail, and it is nobody's outage."""
    sink.replies = {ANN: "550 no", BEN: "550 no"}
    handover = await send(email(sink, recipients_per_message=1), ANN, BEN, CAT)
    assert refusals(handover) == {ANN: (550, False), BEN: (550, False)}
    assert [mail.recipients for mail in sink.mails] == [[CAT]]
    assert sink.connections == 1


@pytest.mark.parametrize(
    ("reply", "is_temporary"), [("451 4.3.0 busy", True), ("554 5.7.1 looks like spam", False)]
)
@pytest.mark.parametrize("stage", ["DATA", "end"])
async def test_content_refused(sink: SMTPSink, stage: str, reply: str, is_temporary: bool) -> None:
    """A refused content is refused for all of the recipients that were accepted before it."""
    sink.replies = {stage: reply, CAT: "550 no such user"}
    handover = await send(email(sink, recipients_per_message=2), ANN, CAT, BEN)
    code = int(reply[:3])
    assert refusals(handover) == {ANN: (code, is_temporary), CAT: (550, False), BEN: (code, is_temporary)}
    assert handover.outage is None and sink.mails == []


@pytest.mark.parametrize("stage", ["DATA", "end"])
async def test_a_server_that_shuts_down_refuses_no_content(sink: SMTPSink, stage: str) -> None:
    """It says that of the connection: nothing more goes over it, and those who were not come to were not tried."""
    sink.replies = {stage: "421 4.3.2 shutting down"}
    handover = await send(email(sink, recipients_per_message=1), ANN, BEN)
    assert refusals(handover) == {ANN: (421, True), BEN: (421, True)}
    assert [handover.refused[each].is_untried for each in (ANN, BEN)] == [False, True]
    assert handover.outage and not handover.outage.needs_operator
    assert sink.connections == 1


async def test_a_cut_says_nothing_about_those_not_come_to(sink: SMTPSink) -> None:
    """Those of the transaction that broke were tried; those of the next ones were not, and those before have theirs."""
    sink.cut_recipients = {BEN}
    handover = await send(
        email(sink, recipients_per_message=2), "zoe@example.org", "yan@example.org", ANN, BEN, CAT
    )
    assert [mail.recipients for mail in sink.mails] == [["zoe@example.org", "yan@example.org"]]
    assert {address: refusal.is_untried for address, refusal in handover.refused.items()} == {
        ANN: False,
        BEN: False,
        CAT: True,
    }
    assert all(refusal.is_temporary for refusal in handover.refused.values())


async def test_too_big(sink: SMTPSink) -> None:
    """A message over the server's size limit is given up, and the server said why."""
    sink.replies = {"MAIL": "552 5.3.4 message too big"}
    handover = await send(email(sink), ANN, BEN)
    assert refusals(handover) == {ANN: (552, False), BEN: (552, False)}
    assert handover.outage is None


async def test_long_answers_are_cut(sink: SMTPSink) -> None:
    """A server's words are kept on one line of bounded length."""
    sink.replies = {ANN: "550-first\r\n550-" + "x" * 2000 + "\r\n550 last"}
    reason = (await send(email(sink))).refused[ANN].reason
    assert reason.startswith("first xxx") and len(reason) == MAX_REASON_CHARS
    sink.replies = {"MAIL": "550-first\r\n550 last"}
    outage = (await send(email(sink))).outage
    assert outage and outage.reason.endswith("550 first last")


async def test_a_code_that_smtp_does_not_know(sink: SMTPSink) -> None:
    """Refuses nobody for good, and is not kept."""
    sink.replies = {ANN: "999 odd"}
    assert refusals(await send(email(sink), ANN, BEN)) == {ANN: (0, True)}
    assert sink.mails[0].recipients == [BEN]


# -- limits on recipients ------------------------------------------------------------------------------------


async def test_split_by_our_limit(sink: SMTPSink) -> None:
    """More recipients than one message may have get several, over one connection, all the same."""
    addresses = [f"user{number}@example.org" for number in range(7)]
    assert (await send(email(sink, recipients_per_message=3), *addresses)).refused == {}
    assert [mail.recipients for mail in sink.mails] == [addresses[:3], addresses[3:6], addresses[6:]]
    assert len({mail.content for mail in sink.mails}) == 1
    assert sink.connections == 1


@pytest.mark.parametrize("reply", ["452 4.5.3 too many recipients", "552 5.5.3 too many recipients"])
async def test_split_by_the_servers_limit(sink: SMTPSink, reply: str) -> None:
    """A server that takes fewer at a time gets the rest in the next transactions."""
    sink.max_recipients, sink.too_many_reply = 2, reply
    addresses = [f"user{number}@example.org" for number in range(5)]
    assert (await send(email(sink), *addresses)).refused == {}
    assert [mail.recipients for mail in sink.mails] == [addresses[:2], addresses[2:4], addresses[4:]]


async def test_full_mailbox_is_not_a_limit(sink: SMTPSink) -> None:
    """A recipient whose mailbox stays full is refused in the end, and stops nobody."""
    sink.replies = {ANN: "452 4.2.2 mailbox full"}
    handover = await send(email(sink), ANN, BEN)
    assert refusals(handover) == {ANN: (452, True)}
    assert [mail.recipients for mail in sink.mails] == [[BEN]]


# -- addresses in other scripts ------------------------------------------------------------------------------


async def test_international_address(sink: SMTPSink) -> None:
    """An address that needs SMTPUTF8 gets its mail apart: the others' mail does not ask for the extension."""
    assert (await send(email(sink), ANN, "jörg@example.org", BEN)).refused == {}
    assert [(mail.recipients, "SMTPUTF8" in mail.options) for mail in sink.mails] == [
        ([ANN, BEN], False),
        (["jörg@example.org"], True),
    ]


async def test_international_address_without_smtputf8() -> None:
    """A server without SMTPUTF8 can never take such an address: that is final, with the reason."""
    with SMTPSink(smtputf8=False) as sink:
        handover = await send(email(sink), ANN, "jörg@example.org")
    assert refusals(handover) == {"jörg@example.org": (0, False)}
    assert "SMTPUTF8" in handover.refused["jörg@example.org"].reason
    assert sink.mails[0].recipients == [ANN]


@pytest.mark.parametrize(
    ("reply", "is_temporary"), [("555 5.5.4 SMTPUTF8 not supported", False), ("451 4.3.0 later", True)]
)
async def test_international_address_where_smtputf8_is_offered_and_refused(
    sink: SMTPSink, reply: str, is_temporary: bool
) -> None:
    """What is said for good counts for these addresses, and is no outage: other mail goes out."""
    sink.smtputf8_reply = reply
    international = ("jörg@example.org", "jürgen@example.org")
    handover = await send(email(sink, recipients_per_message=1), ANN, *international)
    assert refusals(handover) == dict.fromkeys(international, (int(reply[:3]), is_temporary))
    assert (handover.outage is not None) is is_temporary
    assert [mail.recipients for mail in sink.mails] == [[ANN]]
    # What is said of these addresses says nothing of the connection; an outage is tried over another one.
    assert sink.connections == (2 if is_temporary else 1)


async def test_a_sender_refused_for_an_international_address(sink: SMTPSink) -> None:
    """As it is for every other: that does not count for the address."""
    sink.replies = {"MAIL": "550 5.7.1 not allowed to send as this"}
    handover = await send(email(sink), "jörg@example.org")
    assert refusals(handover) == {"jörg@example.org": (550, True)}
    assert handover.outage and handover.outage.needs_operator


# -- TLS and login -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("security", ["tls", "starttls"])
async def test_encrypted_and_logged_in(authority: CertificateAuthority, security: Any, host: str) -> None:
    """With either kind of TLS the certificate is verified, then we log in, then the mail goes out."""
    with SMTPSink(**{security: authority.server_context()}, logins={"us": PASSWORD}) as sink:
        settings = email(
            sink, host=host, security=security, ca=authority.ca_file, login="us", password=PASSWORD
        )
        assert await send(settings) == Handover({})
    assert sink.mails[0].is_encrypted
    assert sink.mails[0].login == "us"


@pytest.mark.parametrize("security", ["tls", "starttls"])
@pytest.mark.parametrize("fault", ["unknown authority", "other name", "expired"])
async def test_bad_certificate(
    authority: CertificateAuthority, tmp_path: Path, security: Any, fault: str
) -> None:
    """A certificate that does not prove the server's name stops all mail; none is lost, and the operator hears why."""
    context = {
        "unknown authority": lambda: CertificateAuthority(tmp_path).server_context(),
        "other name": lambda: authority.server_context(["mail.example.org"]),
        "expired": lambda: authority.server_context(valid_days=-1),
    }[fault]()
    with SMTPSink(**{security: context}, logins={"us": PASSWORD}) as sink:
        settings = email(sink, security=security, ca=authority.ca_file, login="us", password=PASSWORD)
        handover = await send(settings)
    assert refusals(handover) == {ANN: (0, True)}
    assert handover.outage and handover.outage.needs_operator
    assert "certificate" in handover.outage.reason and PASSWORD not in handover.outage.reason
    assert sink.mails == []


async def test_the_systems_authorities(authority: CertificateAuthority) -> None:
    """Without a file of authorities those of the system count, and they do not know ours."""
    with SMTPSink(tls=authority.server_context()) as sink:
        handover = await send(email(sink, security="tls"))
    assert handover.outage and "certificate" in handover.outage.reason


async def test_never_silently_plain(sink: SMTPSink) -> None:
    """A server that does not offer STARTTLS gets no mail where STARTTLS is configured."""
    handover = await send(email(sink, security="starttls"))
    assert refusals(handover) == {ANN: (0, True)}
    assert handover.outage and handover.outage.needs_operator and "STARTTLS" in handover.outage.reason
    assert sink.mails == []


async def test_tls_on_a_plain_port(sink: SMTPSink) -> None:
    """TLS from the first byte, said to a server that does not speak it, is told to the operator."""
    handover = await send(email(sink, security="tls"))
    assert handover.outage and handover.outage.needs_operator and "TLS" in handover.outage.reason


async def test_wrong_password(authority: CertificateAuthority) -> None:
    """A refused login loses no mail; the operator hears of it, and nobody of the password."""
    with SMTPSink(starttls=authority.server_context(), logins={"us": "another"}) as sink:
        settings = email(sink, security="starttls", ca=authority.ca_file, login="us", password=PASSWORD)
        handover = await send(settings)
        await sink.left()
    assert refusals(handover) == {ANN: (535, True)}
    assert handover.outage and handover.outage.needs_operator
    assert "login" in handover.outage.reason and PASSWORD not in handover.outage.reason


async def test_a_login_that_cannot_be_checked_now(authority: CertificateAuthority) -> None:
    """As of a server whose users' database is away (RFC 4954 section 6): that passes without an operator."""
    with SMTPSink(starttls=authority.server_context(), logins={"us": PASSWORD}) as sink:
        sink.replies = {"AUTH": "454 4.7.0 temporary authentication failure"}
        settings = email(sink, security="starttls", ca=authority.ca_file, login="us", password=PASSWORD)
        handover = await send(settings)
    assert refusals(handover) == {ANN: (454, True)}
    assert handover.outage and not handover.outage.needs_operator


async def test_login_missing(sink: SMTPSink) -> None:
    """A server that wants a login where none is configured loses no mail, either."""
    sink.replies = {ANN: "530 5.7.0 authentication required"}
    handover = await send(email(sink), ANN, BEN)
    assert refusals(handover) == {ANN: (530, True), BEN: (530, True)}
    assert handover.outage and handover.outage.needs_operator


async def test_login_not_offered(sink: SMTPSink) -> None:
    """A login that the server has no use for is told to the operator."""
    handover = await send(email(sink, login="us", password=PASSWORD))
    assert handover.outage and handover.outage.needs_operator
    assert PASSWORD not in handover.outage.reason


def test_ca_without_certificates(tmp_path: Path) -> None:
    """A file of authorities that holds none stops the start, by name."""
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(StartupError, match="ca.pem holds no certificates"):
        SMTPTransport(email(25, security="tls", ca=tmp_path / "ca.pem"))


@pytest.mark.parametrize(
    ("security", "name"),
    [
        ("tls", "SMTP mail.example.org:465 (TLS)"),
        ("starttls", "SMTP mail.example.org:465 (STARTTLS)"),
        ("none", "SMTP mail.example.org:465 (not encrypted)"),
    ],
)
def test_name(security: Any, name: str) -> None:
    """The name says where mail goes and how it is protected, and no secret."""
    settings = email(465, host="mail.example.org", security=security, login="us", password=PASSWORD)
    assert SMTPTransport(settings).name == name


# -- when the connection breaks ------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["EHLO", "MAIL", "RCPT", "DATA", "content"])
async def test_connection_cut(sink: SMTPSink, stage: str) -> None:
    """A connection cut before the mail was taken leaves all of it to be tried again."""
    sink.cut_at = stage
    handover = await send(email(sink), ANN, BEN)
    assert refusals(handover) == {ANN: (0, True), BEN: (0, True)}
    assert handover.outage and not handover.outage.needs_operator
    assert sink.mails == []


async def test_connection_cut_before_the_last_answer(sink: SMTPSink) -> None:
    """A mail whose answer was lost counts as not taken: a repeat is better than a loss."""
    sink.cut_at = "end"
    assert refusals(await send(email(sink))) == {ANN: (0, True)}
    assert len(sink.mails) == 1


async def test_a_kept_connection_cut_before_the_last_answer(sink: SMTPSink) -> None:
    """The same: it is not sent again at once over another one, as where nothing was taken yet. Nor are those who were
    to come after it, over what may be the same."""
    transport = SMTPTransport(email(sink, recipients_per_message=1))
    assert await transport.send(message(), [ANN], 20) == Handover({})
    sink.cut_at = "end"
    assert refusals(await transport.send(message(), [BEN, CAT], 20)) == {BEN: (0, True), CAT: (0, True)}
    assert [mail.recipients for mail in sink.mails] == [[ANN], [BEN]]
    await transport.close()


async def test_connection_cut_after_the_last_answer(sink: SMTPSink) -> None:
    """What breaks when all is said and done breaks nothing."""
    sink.cut_at = "QUIT"
    assert await send(email(sink)) == Handover({})


async def test_connection_cut_between_two_parts(sink: SMTPSink) -> None:
    """What was taken before the cut is done; only the rest is tried again."""
    sink.replies = {BEN: "421 4.3.2 shutting down"}
    handover = await send(email(sink, recipients_per_message=1), ANN, BEN, CAT)
    assert refusals(handover) == {BEN: (421, True), CAT: (421, True)}
    assert handover.outage and not handover.outage.needs_operator
    assert [mail.recipients for mail in sink.mails] == [[ANN]]


@pytest.mark.parametrize("stage", ["EHLO", "RCPT"])
async def test_silent_server(sink: SMTPSink, stage: str) -> None:
    """A server that falls silent is left after the time-out."""
    sink.hang_at = stage
    handover = await send(email(sink, timeout_s=0.2))
    assert refusals(handover) == {ANN: (0, True)}
    assert handover.outage and "in time" in handover.outage.reason


async def test_a_server_that_looks_at_the_content_for_long(sink: SMTPSink) -> None:
    """It takes the mail in the end, so it is waited for: who left it would send it again and again."""
    sink.looks_for_s = 3.0
    assert await send(email(sink, timeout_s=2.0)) == Handover({})
    assert len(sink.mails) == 1


async def test_nothing_is_begun_for_which_there_may_be_no_time(
    sink: SMTPSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who were not come to are left for the next time, also if the server did not take them for this one; it is
    no outage."""
    monkeypatch.setattr("server.smtp.BEGIN_SHARE", 0.0)
    sink.max_recipients = 1
    handover = await send(email(sink, recipients_per_message=2), ANN, BEN, CAT, "jörg@example.org")
    assert [mail.recipients for mail in sink.mails] == [[ANN]]
    assert refusals(handover) == dict.fromkeys((BEN, CAT, "jörg@example.org"), (0, True))
    assert all(refusal.is_untried for refusal in handover.refused.values())
    assert handover.outage is None


async def test_within_the_time_given(sink: SMTPSink) -> None:
    """However long the time-out of a single answer, the whole ends in the time given."""
    sink.hang_at = "end"
    handover = await send(email(sink, timeout_s=60), within_s=0.2)
    assert refusals(handover) == {ANN: (0, True)}
    await sink.left()


@pytest.mark.parametrize(("quit_timeout_s", "within_s"), [(0.1, 20), (20, 0.5)])
async def test_silent_goodbye(
    sink: SMTPSink, monkeypatch: pytest.MonkeyPatch, quit_timeout_s: float, within_s: float
) -> None:
    """A server that does not answer QUIT has the mail all the same, whichever time runs out first."""
    monkeypatch.setattr("server.smtp.QUIT_TIMEOUT_S", quit_timeout_s)
    sink.hang_at = "QUIT"
    assert await send(email(sink), within_s=within_s) == Handover({})
    await sink.left()


async def test_a_goodbye_in_other_words(sink: SMTPSink, caplog: pytest.LogCaptureFixture) -> None:
    """Is one, too: the connection is ended, and nobody hears of it."""
    sink.replies = {"QUIT": "500 what is that"}
    assert await send(email(sink)) == Handover({})
    await sink.left()
    assert not [record for record in caplog.records if record.name.startswith("server")]


async def test_a_goodbye_to_a_silent_server_does_not_take_long(
    sink: SMTPSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as long as an answer may take: the connection has served."""
    monkeypatch.setattr(smtp, "KEEP_S", 0.01)
    monkeypatch.setattr(smtp, "QUIT_TIMEOUT_S", 0.1)
    sink.hang_at = "QUIT"
    transport = SMTPTransport(email(sink, timeout_s=300.0))
    assert await transport.send(message(), [ANN], 20) == Handover({})
    await sink.stuck.wait()
    await sink.left()
    await transport.close()


@pytest.fixture
def swallowing() -> Iterator[int]:
    """A port at 127.0.0.2 that takes no connection, and refuses none."""
    with socket.socket() as listening, socket.socket() as first:
        listening.bind(("127.0.0.2", 0))
        listening.listen(0)
        first.connect(listening.getsockname())  # now its backlog is full
        yield listening.getsockname()[1]


async def test_an_address_that_swallows_all(
    sink: SMTPSink, swallowing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one of the mail server is tried; if none is left, it is an outage."""
    addresses = [("127.0.0.2", swallowing), ("127.0.0.1", free_port()), ("127.0.0.1", sink.port)]

    async def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    assert await send(email(sink)) == Handover({})
    addresses.pop()
    async with asyncio.timeout(60):  # long before there is no time left
        handover = await send(email(sink, timeout_s=0.5), within_s=3600)
    assert refusals(handover) == {ANN: (0, True)}
    assert handover.outage


async def test_nobody_listens() -> None:
    """A mail server that is not there is an outage, named by host and port."""
    port = free_port()
    handover = await send(email(port))
    assert refusals(handover) == {ANN: (0, True)}
    assert handover.outage and f"127.0.0.1:{port}" in handover.outage.reason
    assert not handover.outage.needs_operator


@pytest.mark.parametrize("host", ["mail.invalid", "mail..invalid"])
async def test_unknown_host(host: str) -> None:
    """A host that has no address is an outage, too; so is what cannot be the name of one."""
    handover = await send(email(25, host=host))
    assert refusals(handover) == {ANN: (0, True)}
    assert handover.outage and host in handover.outage.reason


@pytest.mark.parametrize(
    ("reply", "needs_operator"),
    [
        ("550 5.7.1 not allowed to send as this", True),
        ("451 4.3.0 busy", False),
        ("452 4.3.1 insufficient storage", False),
    ],
)
async def test_sender_refused(sink: SMTPSink, reply: str, needs_operator: bool) -> None:
    """A refused sender would be so in every mail: none is given up for it."""
    sink.replies = {"MAIL": reply}
    handover = await send(email(sink))
    assert refusals(handover) == {ANN: (int(reply[:3]), True)}
    assert handover.outage and handover.outage.needs_operator is needs_operator


@pytest.fixture
async def strange_server(request: pytest.FixtureRequest) -> Any:
    """Says one line to each caller, and waits for it to go."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(request.param)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("strange_server", "code"),
    [
        (b"554 no mail service here\r\n", 554),
        (b"421 too busy\r\n", 421),
        (b"hello?\r\n", 0),
        (b"999 odd\r\n", 0),
    ],
    indirect=["strange_server"],
)
async def test_strange_greeting(strange_server: int, code: int) -> None:
    """A server that does not let us in, or speaks another language, loses no mail."""
    assert refusals(await send(email(strange_server))) == {ANN: (code, True)}


async def test_cancelled(sink: SMTPSink) -> None:
    """Cancelling ends the sending at once and lets the connection go."""
    sink.hang_at = "MAIL"
    task = asyncio.create_task(send(email(sink, timeout_s=60)))
    await sink.stuck.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
