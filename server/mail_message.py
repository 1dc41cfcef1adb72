"""From the mail of a notification to the message that goes over the wire. Pure: no clock, no network.

The message depends on nothing but the notification and the sender: whoever it goes to, and however often it is tried,
it is the same message with the same Message-ID (RFC 5322 section 3.6.4), so that mail systems recognize a repeat.
Recipients are not part of it: they travel in the envelope only.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from email import policy
from email.header import Header
from email.message import Message
from email.utils import format_datetime, formataddr, parseaddr

from server.messages import Mail

# CRLF line ends. Compat32, because the newer policies read a text that only looks like an encoded word as one.
_POLICY = policy.compat32.clone(linesep="\r\n")

_MAX_PLAIN_SUBJECT = 66
"""Characters that stand unencoded on one line of 78 after `Subject: ` (RFC 5322 section 2.1.1)."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SUBTYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
_WORD = r'[^\s@<>()\[\]",:;\\\x00-\x1f\x7f]+'
# Brackets only around a whole domain (RFC 5321 section 4.1.3): elsewhere what stands before one passes for all of it.
_ADDRESS = re.compile(rf"({_WORD})@({_WORD}|\[[0-9A-Za-z.-]+\])")
_MBOX_FROM = re.compile(rb"(?m)^From ")


@dataclass(frozen=True, slots=True)
class MailMessage:
    """What a mail transport hands over. `message_id` is without its angle brackets, `sender` the address for the
    envelope, `date` that of the header. `content`: header and body, 7-bit, CRLF line ends, no line over 78 octets."""

    message_id: str
    sender: str
    date: datetime
    content: bytes


@dataclass(frozen=True, slots=True)
class Sender:
    """Who the mails come from. `address` is pure ASCII, `name` may be empty."""

    name: str
    address: str

    @classmethod
    def parse(cls, text: str) -> Sender:
        """The sender in `a@b` or `Name <a@b>`. Raises ValueError with a sentence."""
        name, address = parseaddr(text)
        address = envelope_address(address)
        if not address.isascii():
            raise ValueError("the part before the @ may hold ASCII characters only")
        return cls(_header_text(name), address)

    @property
    def domain(self) -> str:
        return self.address.rpartition("@")[2]


def envelope_address(address: str) -> str:
    """The address as an SMTP envelope takes it: the domain in ASCII, the local part as it is (one that is not ASCII
    needs SMTPUTF8, RFC 6531). Raises ValueError with a sentence that does not repeat the address."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError("not an e-mail address")
    # Looked at once more: what is not in a domain may be in its normal form, such as the > of a fullwidth one.
    ascii_address = f"{match[1]}@{_ascii_domain(match[2])}"
    if not _ADDRESS.fullmatch(ascii_address):
        raise ValueError("not an e-mail address")
    return ascii_address


def _ascii_domain(domain: str) -> str:
    # Not Python's "idna" codec: that is IDNA 2003, which makes another domain of one with ß or ς in it.
    # The ideographic full stop is a dot, too (RFC 3490 section 3.1); others have become dots, or it, by then.
    labels = unicodedata.normalize("NFKC", domain.lower()).replace("。", ".").split(".")
    ascii_labels = [
        label if label.isascii() else "xn--" + label.encode("punycode").decode() for label in labels
    ]
    if any(not 0 < len(label) <= 63 for label in ascii_labels):
        raise ValueError("not an e-mail address: its domain has an empty or overlong part")
    return ".".join(ascii_labels)


def build_message(mail: Mail, nid: str, created_at: datetime, sender: Sender) -> MailMessage:
    """The message for the mail of notification `nid`, accepted at `created_at` (aware).

    Line breaks and other control characters in the subject become spaces; lone surrogates become U+FFFD. Everything
    else arrives as it is. Raises ValueError if the subtype is none.
    """
    if not _SUBTYPE.fullmatch(mail.subtype):
        raise ValueError("the subtype of the mail is not one")
    message_id = f"{nid}@{sender.domain}"
    payload, transfer_encoding = _encoded_body(mail.content)
    message: Message[str, str] = Message(policy=_POLICY)
    message["From"] = _from(sender)
    message["To"] = "undisclosed-recipients:;"
    message["Subject"] = _subject(mail.subject)
    message["Date"] = format_datetime(created_at)
    message["Message-ID"] = f"<{message_id}>"
    message["Auto-Submitted"] = "auto-generated"  # no "out of office" answers, please (RFC 3834 section 5)
    message["MIME-Version"] = "1.0"
    message["Content-Type"] = f'text/{mail.subtype}; charset="utf-8"'
    message["Content-Transfer-Encoding"] = transfer_encoding
    message.set_payload(payload)
    return MailMessage(message_id, sender.address, created_at, message.as_bytes())


def _from(sender: Sender) -> str:
    if sender.name.isascii():
        return formataddr((sender.name, sender.address))
    return f"{Header(sender.name, 'utf-8', header_name='From').encode()} <{sender.address}>"


def _subject(text: str) -> str:
    text = _header_text(text)
    if text.isascii() and len(text) <= _MAX_PLAIN_SUBJECT and "=?" not in text:
        return text
    return Header(text, "utf-8", header_name="Subject").encode()


def _header_text(text: str) -> str:
    return _CONTROL.sub(" ", _without_surrogates(text)).strip()


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _encoded_body(text: str) -> tuple[str, str]:
    """The text in ASCII lines of at most 76 characters, and the name of its transfer encoding (RFC 2045 section 6):
    the shorter of the two, unless a line would begin with `From `, which mailboxes of the mbox kind mangle."""
    lines = re.sub(r"\r\n?", "\n", _without_surrogates(text))
    if not lines.endswith("\n"):
        lines += "\n"
    octets = lines.encode()
    quoted = binascii.b2a_qp(octets)
    packed = base64.encodebytes(octets.replace(b"\n", b"\r\n"))
    if len(quoted) <= len(packed) and not _MBOX_FROM.search(quoted):
        return quoted.decode("ascii"), "quoted-printable"
    return packed.decode("ascii"), "base64"
