from __future__ import annotations

import re
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.mail_message import MailMessage, Sender, build_message, envelope_address
from server.messages import Mail

NID = "65f2c0ffee00000000000001"
CREATED_AT = datetime(2024, 3, 14, 9, 26, 53, 589000, tzinfo=UTC)
SENDER = Sender("Notifications", "notify@example.org")

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=400)
TRICKY_TEXT = st.text('ab .=?_-\t\n\r"<@,:é😀\x00\x0b\x85\u2028', max_size=300)


def build(
    subject: str = "s", content: str = "c", subtype: str = "html", sender: Sender = SENDER
) -> MailMessage:
    return build_message(Mail(subject, content, subtype), NID, CREATED_AT, sender)


def parse(message: MailMessage) -> EmailMessage:
    """As a mail reader sees it; a defect in the message is a failure."""
    parsed = message_from_bytes(message.content, policy=policy.default)
    assert isinstance(parsed, EmailMessage)
    assert parsed.defects == []
    return parsed


def as_one_line(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", text).strip()


def with_unix_line_ends(text: str) -> str:
    text = re.sub(r"\r\n?", "\n", text)
    return text if text.endswith("\n") else text + "\n"


@given(ANY_TEXT | TRICKY_TEXT)
@example("")
@example("=?utf-8?q?not_encoded?=")
@example("x" * 3000)
@example("word " * 400)
@example("ü" * 2000)
@example("a" * 70 + "     " + "é")
@example("two  spaces and more    of them")
def test_subject_comes_back(subject: str) -> None:
    """Any Unicode subject arrives as it was written, on one line."""
    assert str(parse(build(subject=subject))["Subject"]) == as_one_line(subject)


@given(ANY_TEXT | TRICKY_TEXT)
@example("")
@example(".\n..\n.leading dot\r\n.\r\n")
@example("From here\nFrom there\n>From nowhere")
@example("trailing blank \n tab\t\n last ")
@example("<p>" + "x" * 100_000 + "</p>")
@example("語" * 50_000)
@example("\x00\x1b\x7f\x85\u2028\ufeff")
def test_content_comes_back(content: str) -> None:
    """Any Unicode content of any line length arrives as it was written, but for the form of its line ends."""
    assert with_unix_line_ends(parse(build(content=content)).get_content()) == with_unix_line_ends(content)


@given(ANY_TEXT | TRICKY_TEXT, ANY_TEXT | TRICKY_TEXT)
@example("é" * 500, "x" * 5000)
@example("a", "From me")
def test_wire_form(subject: str, content: str) -> None:
    """Every line is short, 7-bit, ended by CRLF, and none begins in a way that a relay or a mailbox would change."""
    octets = build(subject, content).content
    assert octets.isascii() and b"\0" not in octets
    assert octets.endswith(b"\r\n")
    assert octets.replace(b"\r\n", b"").count(b"\r") == octets.replace(b"\r\n", b"").count(b"\n") == 0
    head, _, body = octets.partition(b"\r\n\r\n")
    assert max(len(line) for line in octets.split(b"\r\n")) <= 78
    assert not any(line.startswith(b"From ") or line == b"." for line in body.split(b"\r\n"))
    # Not one header more than ours.
    names = [line.partition(b":")[0] for line in head.split(b"\r\n") if not line.startswith((b" ", b"\t"))]
    assert names == [
        b"From", b"To", b"Subject", b"Date", b"Message-ID", b"Auto-Submitted",
        b"MIME-Version", b"Content-Type", b"Content-Transfer-Encoding",
    ]  # fmt: skip


def test_headers() -> None:
    """The header says who, when and what, that a machine wrote it, and to nobody in particular."""
    parsed = parse(build("Hello", "<p>Hi</p>"))
    assert parsed["From"] == "Notifications <notify@example.org>"
    assert parsed["To"] == "undisclosed-recipients:;"
    assert parsed["Subject"] == "Hello"
    assert parsed["Date"].datetime == CREATED_AT.replace(microsecond=0)
    assert parsed["Message-ID"] == f"<{NID}@example.org>"
    assert parsed["MIME-Version"] == "1.0"
    assert parsed["Auto-Submitted"] == "auto-generated"
    assert parsed.get_content_type() == "text/html"
    assert parsed.get_content_charset() == "utf-8"
    assert parsed["Bcc"] is None and parsed["Cc"] is None


@pytest.mark.parametrize(
    ("subject", "line"),
    [
        ("Build passed", b"Subject: Build passed"),
        ("x" * 66, b"Subject: " + b"x" * 66),
        ("=?utf-8?q?no?=", b"Subject: =?utf-8?b?PT91dGYtOD9xP25vPz0=?="),
        ("Grüße", b"Subject: =?utf-8?b?R3LDvMOfZQ==?="),
    ],
)
def test_what_need_not_be_encoded_is_readable(subject: str, line: bytes) -> None:
    """To logs and filters, too."""
    sender = Sender.parse('"Doe, Jane" <jane@example.org>')
    lines = build(subject, sender=sender).content.split(b"\r\n")
    assert line in lines
    assert b'From: "Doe, Jane" <jane@example.org>' in lines


def test_same_message_every_time() -> None:
    """A repeat is the same message to the octet, so that mail systems can tell."""
    assert build("s", "c") == build("s", "c")
    assert build().message_id == f"{NID}@example.org"


def test_transfer_encoding_fits_the_text() -> None:
    """Mostly ASCII stays readable in transit; other scripts take the shorter form."""
    assert (
        parse(build(content="<p>Grüße aus Köln am Rhein.</p>"))["Content-Transfer-Encoding"]
        == "quoted-printable"
    )
    assert parse(build(content="こんにちは世界"))["Content-Transfer-Encoding"] == "base64"


def test_plain_text() -> None:
    """The subtype is the notification's."""
    assert parse(build(subtype="plain")).get_content_type() == "text/plain"


@pytest.mark.parametrize("subtype", ["", "html\r\nBcc: eve@example.org", "html; charset=latin-1", "ht ml"])
def test_no_header_through_the_subtype(subtype: str) -> None:
    """What is not a subtype does not get into a header."""
    with pytest.raises(ValueError, match="subtype"):
        build(subtype=subtype)


@pytest.mark.parametrize("break_", ["\r\n", "\n", "\r", "\x0b", "\x85", "\u2028"])
def test_no_header_through_the_subject(break_: str) -> None:
    """A line break in the subject begins no new header."""
    parsed = parse(build(subject=f"Hello{break_}Bcc: eve@example.org"))
    assert parsed["Bcc"] is None
    assert "Bcc: eve@example.org" in parsed["Subject"]


def test_lone_surrogates() -> None:
    """Half a character becomes the replacement character, and the mail goes out."""
    parsed = parse(build(subject="a\ud800b", content="c\udfffd"))
    assert parsed["Subject"] == "a\ufffdb"
    assert parsed.get_content().strip() == "c\ufffdd"


# -- the sender ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "address"),
    [
        ("a@example.org", "", "a@example.org"),
        ("<a@example.org>", "", "a@example.org"),
        ("The Server <a@example.org>", "The Server", "a@example.org"),
        ('"Server, The" <a@example.org>', "Server, The", "a@example.org"),
        ("Grüße vom Server <a@bücher.example>", "Grüße vom Server", "a@xn--bcher-kva.example"),
        ("notify@localhost", "", "notify@localhost"),
    ],
)
def test_sender(text: str, name: str, address: str) -> None:
    """A sender is an address, with or without a name; both reach the From header whole."""
    sender = Sender.parse(text)
    assert sender == Sender(name, address)
    mailbox = parse(build(sender=sender))["From"].addresses[0]
    assert (mailbox.display_name, mailbox.addr_spec) == (name, address)


@pytest.mark.parametrize(
    "text", ["", "nobody", "Server, The <a@example.org>", "a@", "@b", "Name <a b@c>", "ä@example.org"]
)
def test_bad_sender(text: str) -> None:
    """What is no ASCII address is refused before the first mail."""
    with pytest.raises(ValueError):
        Sender.parse(text)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=120))
def test_any_sender_name(name: str) -> None:
    """Any name of the sender comes back, and the lines stay short."""
    sender = Sender(as_one_line(name), "a@example.org")
    message = build(sender=sender)
    assert max(len(line) for line in message.content.split(b"\r\n")) <= 998
    mailbox = parse(message)["From"].addresses[0]
    assert mailbox.addr_spec == "a@example.org"
    shown = mailbox.display_name
    if not sender.name.isascii():
        # This parser sets a blank between two encoded words, where RFC 2047 has none (section 6.2).
        decoded = str(make_header(decode_header(message_from_bytes(message.content)["From"])))
        shown = decoded.removesuffix("<a@example.org>")
    assert shown.split() == sender.name.split()


# -- addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "envelope"),
    [
        ("a@example.org", "a@example.org"),
        ("First.Last+tag@Example.ORG", "First.Last+tag@example.org"),
        ("a..b@example.org", "a..b@example.org"),
        ("user@bücher.example", "user@xn--bcher-kva.example"),
        ("user@BÜCHER.example", "user@xn--bcher-kva.example"),
        ("user@straße.example", "user@xn--strae-oqa.example"),
        ("user@例え.テスト", "user@xn--r8jz45g.xn--zckzah"),
        ("user@例え。テスト", "user@xn--r8jz45g.xn--zckzah"),
        ("user@例え｡テスト", "user@xn--r8jz45g.xn--zckzah"),
        ("user@例え．テスト", "user@xn--r8jz45g.xn--zckzah"),
        ("jörg@example.org", "jörg@example.org"),
        ("root@localhost", "root@localhost"),
        ("user@[192.0.2.1]", "user@[192.0.2.1]"),
    ],
)
def test_envelope_address(address: str, envelope: str) -> None:
    """A domain in any script becomes the ASCII one that DNS knows; the local part is the mail server's own affair."""
    assert envelope_address(address) == envelope


@pytest.mark.parametrize(
    "address",
    ["", "a", "a@", "@b", "a@b@c", "a b@c", "a@b c", "a@b\r\nRCPT TO:<eve@c>", "<a@b>", "a@b,c@d", "a@.b", "a@b..c",
     "a@" + "x" * 64, "a@b\0", '"a"@b', "a@b＞.c", "a@b＠c.d", "a@b＞´size=1.c", "a@b´c.d",
     "root[x]@b.c", "a@b]c.d", "a@b[c", "a@["],
)  # fmt: skip
def test_not_an_address(address: str) -> None:
    """What could end an address in the envelope, or begin another command, never gets there."""
    with pytest.raises(ValueError, match="^not an e-mail address"):
        envelope_address(address)
