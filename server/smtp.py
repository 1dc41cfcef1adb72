"""Handing mail to an SMTP server (RFC 5321), by aiosmtplib, encrypted as configured.

A connection on which all went well is kept for the next mail, for a few seconds: in a burst the greeting, TLS and the
login are worth more than the mail. One on which anything went wrong is not used again.

Never silently plain: where TLS is configured, nothing is said without it and without a valid certificate.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiosmtplib
from aiohappyeyeballs import start_connection

from server.config import Email
from server.errors import StartupError
from server.mail_message import MailMessage
from server.mail_transport import BEGIN_SHARE, MAX_REASON_CHARS, NO_TIME_LEFT, Handover, Outage, Refusal
from server.tasks import Tasks

QUIT_TIMEOUT_S = 2.0
"""For the good-bye, when everything is said."""

KEEP_S = 5.0
"""How long a connection is kept for the next mail. Servers give an idle one some minutes, and have few."""

MAX_MESSAGES = 100
"""On one connection: many servers end it after so many."""

NEXT_ADDRESS_AFTER_S = 0.25
"""How long an address of the mail server is waited for before the next one is tried beside it (RFC 8305 section 5)."""

SMTPUTF8 = "SMTPUTF8"

CLOSING = 421
LOGIN_NEEDED = 530  # RFC 4954 section 6
MESSAGE_TOO_BIG = 552  # in answer to MAIL; RFC 1870 section 6.1

TOO_MANY_RECIPIENTS = (452, 552)
"""Said to RCPT by a server that takes no more in this transaction; 552 by an old mistake (RFC 5321 section 4.5.3.1.10).
Both are said of a full mailbox, too: then they are said again."""

_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


class SMTPTransport:
    """The `MailTransport` to the configured mail server. Raises `StartupError` if the file `ca` is not to be used."""

    def __init__(self, email: Email) -> None:
        secured = {"tls": "TLS", "starttls": "STARTTLS", "none": "not encrypted"}[email.security]
        self.name = f"SMTP {email.host}:{email.port} ({secured})"
        self._email = email
        self._tls = None if email.security == "none" else _tls_context(email)
        # the one used last comes last; each with the timer that ends it
        self._kept: list[_Kept] = []
        self._goodbyes = Tasks()

    async def send(self, message: MailMessage, addresses: Sequence[str], within_s: float) -> Handover:
        """See `MailTransport`. Recipients go into as many transactions as our limit and the server's ask for."""
        report = _Report(addresses, time.monotonic() + BEGIN_SHARE * within_s)
        outage = None
        try:
            async with asyncio.timeout(within_s):
                await self._deliver(message, report)
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as exc:
            # What breaks after the last answer breaks nothing.
            if report.waiting:
                outage = self._outage(exc)
                report.refuse_rest(_reply_code(exc), outage.reason)
        report.refuse_rest(0, NO_TIME_LEFT)
        return Handover(report.refused, outage)

    async def close(self) -> None:
        """Say good-bye on the connections that are kept."""
        while self._kept:
            self._let_go(self._kept[-1])
        await self._goodbyes.finish(QUIT_TIMEOUT_S)

    # -- connections -----------------------------------------------------------------------------------------
    @asynccontextmanager
    async def _connection(self, kept: tuple[aiosmtplib.SMTP, int] | None) -> AsyncIterator[aiosmtplib.SMTP]:
        """A connection on which mail may be sent: the one that was kept, or a new one, encrypted and logged in, as
        configured."""
        client, messages = kept or (await self._connect(), 0)
        try:
            yield client
        except BaseException:
            client.close()
            raise
        if messages + 1 < MAX_MESSAGES:
            self._keep(client, messages + 1)
        else:
            self._goodbyes.start(_say_goodbye(client), "SMTP good-bye")

    async def _take_kept(self) -> tuple[aiosmtplib.SMTP, int] | None:
        """One that is kept and still good, and how many messages went over it; None: there is none."""
        while self._kept:
            kept = self._kept.pop()
            kept.timer.cancel()
            with suppress(aiosmtplib.SMTPException, OSError, TimeoutError):
                await kept.client.rset(timeout=KEEP_S)
                return kept.client, kept.messages
            kept.client.close()
        return None

    def _keep(self, client: aiosmtplib.SMTP, messages: int) -> None:
        loop = asyncio.get_running_loop()
        kept = _Kept(client, messages)
        kept.timer = loop.call_later(KEEP_S, self._let_go, kept)
        self._kept.append(kept)

    def _let_go(self, kept: _Kept) -> None:
        kept.timer.cancel()
        self._kept.remove(kept)
        self._goodbyes.start(_say_goodbye(kept.client), "SMTP good-bye")

    async def _connect(self) -> aiosmtplib.SMTP:
        email = self._email
        client = aiosmtplib.SMTP(
            hostname=email.host,
            sock=await _reach(email),
            timeout=email.timeout_s,
            use_tls=email.security == "tls",
            start_tls=False,  # not by itself: first it has to know our name
            tls_context=self._tls,
            local_hostname=socket.gethostname(),
        )
        try:
            await client.connect()
            client.local_hostname = _our_name(client)
            if email.security == "starttls":
                await client.starttls()
            await _say_hello(client)
            if email.login:
                await client.login(email.login, email.password)
        except BaseException:
            client.close()
            raise
        return client

    # -- handing over ----------------------------------------------------------------------------------------
    async def _deliver(self, message: MailMessage, report: _Report) -> None:
        """Over as many connections as it takes: one that served, and ends before the next message is begun, has had as
        many as its server allows, or its time. Only a new one tells whether mail goes out."""
        while True:
            kept = await self._take_kept()
            before = len(report.waiting)
            try:
                async with self._connection(kept) as client:
                    return await self._hand_over(client, message, report)
            except (aiosmtplib.SMTPException, OSError):
                has_served = kept is not None or len(report.waiting) < before
                if not has_served or not report.waiting or report.is_under_way():
                    raise

    async def _hand_over(self, client: aiosmtplib.SMTP, message: MailMessage, report: _Report) -> None:
        options = [f"SIZE={len(message.content)}"] if client.supports_extension("size") else []
        plain = [address for address in report.waiting if address.isascii()]
        await self._hand_over_in_parts(client, message, plain, options, report)
        # Apart from the others, whose mail no relay further on should refuse for want of SMTPUTF8 (RFC 6531).
        international = [address for address in report.waiting if not address.isascii()]
        if client.supports_extension("smtputf8"):
            await self._hand_over_in_parts(client, message, international, [*options, SMTPUTF8], report)
        else:
            reason = "the mail server does not take addresses with other than ASCII characters (SMTPUTF8)"
            report.refuse(international, Refusal(0, reason, is_temporary=False))

    async def _hand_over_in_parts(
        self,
        client: aiosmtplib.SMTP,
        message: MailMessage,
        addresses: list[str],
        options: list[str],
        report: _Report,
    ) -> None:
        size = self._email.recipients_per_message
        while addresses and report.may_begin():
            part, addresses = addresses[:size], addresses[size:]
            # Each transaction settles at least one address for good, so this ends.
            addresses = await _transaction(client, message, part, options, report) + addresses

    def _outage(self, exc: Exception) -> Outage:
        """What broke the connection, in words for the operator."""
        host = f"{self._email.host}:{self._email.port}"
        cause = exc if isinstance(exc, ssl.SSLError) else exc.__cause__
        match cause if isinstance(cause, ssl.SSLError) else exc:
            case ssl.SSLCertVerificationError() as error:
                return Outage(f"the certificate of {host} is not valid: {error.verify_message}", True)
            case ssl.SSLError() as error:
                return Outage(f"no TLS with {host}: {error.reason or 'the handshake failed'}", True)
            case aiosmtplib.SMTPAuthenticationError() as error:
                return Outage(f"{host} refused the login: {_reply(error)}", _is_permanent(error.code))
            case aiosmtplib.SMTPSenderRefused() as error:
                return Outage(f"{host} refused the sender: {_reply(error)}", _is_permanent(error.code))
            case aiosmtplib.SMTPResponseException() as error:
                return Outage(f"{host} answered {_reply(error)}", _is_permanent(error.code))
            case aiosmtplib.SMTPServerDisconnected() | ConnectionResetError() | BrokenPipeError():
                return Outage(f"{host} closed the connection")
            case TimeoutError():
                return Outage(f"{host} did not answer in time")
            case OSError():
                return Outage(f"no connection to {host}: {_words(str(cause or exc))}")
            case _:  # what the server does not offer: STARTTLS, AUTH, a way to log in
                return Outage(f"{host}: {_words(str(exc))}", True)


@dataclass(slots=True, eq=False)
class _Kept:
    """A connection that waits for the next mail, and how many messages went over it."""

    client: aiosmtplib.SMTP
    messages: int
    timer: asyncio.TimerHandle = field(init=False)


async def _say_hello(client: aiosmtplib.SMTP) -> None:
    """And hear what the server can do; one that knows no EHLO can do nothing more (RFC 5321 section 3.2)."""
    try:
        await client.ehlo()
    except aiosmtplib.SMTPHeloError as exc:
        if not _is_permanent(exc.code):
            raise
        await client.helo()


async def _say_goodbye(client: aiosmtplib.SMTP) -> None:
    try:
        with suppress(aiosmtplib.SMTPException, OSError, TimeoutError):
            await client.quit(timeout=QUIT_TIMEOUT_S)
    finally:
        client.close()  # also when cancelled, as `close` does with who has not answered


class _Report:
    """What became of each address so far. No message but the first is begun after `begin_until` (monotonic)."""

    def __init__(self, addresses: Collection[str], begin_until: float) -> None:
        self._begin_until = begin_until
        self.waiting = dict.fromkeys(addresses)
        self.tried: set[str] = set()
        self.refused: dict[str, Refusal] = {}

    def may_begin(self) -> bool:
        return not self.tried or time.monotonic() < self._begin_until

    def is_under_way(self) -> bool:
        """Whether some were named to the server, and it has not said what becomes of them."""
        return any(address in self.tried for address in self.waiting)

    def accept(self, addresses: Collection[str]) -> None:
        for address in addresses:
            del self.waiting[address]

    def refuse(self, addresses: Collection[str], refusal: Refusal) -> None:
        self.accept(addresses)
        self.refused |= dict.fromkeys(addresses, refusal)

    def refuse_rest(self, code: int, reason: str) -> None:
        """For now. If the connection broke, it may have been one of those it was used for."""
        for address in list(self.waiting):
            is_untried = address not in self.tried
            self.refuse([address], Refusal(code, reason, is_temporary=True, is_untried=is_untried))


async def _transaction(
    client: aiosmtplib.SMTP, message: MailMessage, addresses: list[str], options: list[str], report: _Report
) -> list[str]:
    """One mail transaction (RFC 5321 section 3.3); the addresses that belong into the next one. Raises what ends the
    connection, or makes it useless."""
    try:
        await client.mail(message.sender, options=options, encoding="utf-8")
    except aiosmtplib.SMTPSenderRefused as exc:
        is_of_this = exc.code == MESSAGE_TOO_BIG or (
            SMTPUTF8 in options
            and _is_permanent(exc.code)
            and await _takes(client, message.sender, [option for option in options if option != SMTPUTF8])
        )
        if not is_of_this:
            raise  # it would be said of every mail: no reason to give this one up
        report.refuse(addresses, _refusal(exc))
        return []
    report.tried |= set(addresses)
    refused = await _name_recipients(client, addresses)
    accepted = [address for address in addresses if address not in refused]
    postponed = [
        address for address, refusal in refused.items() if accepted and refusal.code in TOO_MANY_RECIPIENTS
    ]
    for address in refused.keys() - set(postponed):
        report.refuse([address], refused[address])
    if accepted:
        try:
            # For as long as there is time: who has looked at the content for minutes (RFC 5321 section 4.5.3.2.6) takes
            # it, and would be sent it again, and take it again, at every retry.
            await client.data(message.content, timeout=None)
        except aiosmtplib.SMTPDataError as exc:
            _raise_if_useless(exc)
            report.refuse(accepted, _refusal(exc))
            accepted = []
    report.accept(accepted)
    report.tried.difference_update(postponed)
    if not accepted and report.waiting:
        await client.rset()
    return postponed


async def _reach(email: Email) -> socket.socket:
    """A connection to the address of the mail server that takes it first. Raises OSError, TimeoutError."""
    async with asyncio.timeout(email.timeout_s):
        loop = asyncio.get_running_loop()
        try:
            addresses = await loop.getaddrinfo(email.host, email.port, type=socket.SOCK_STREAM)
        except UnicodeError:  # as of `mail..example.org`
            raise OSError("this is no name of a host") from None
        return await start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_AFTER_S)


async def _takes(client: aiosmtplib.SMTP, sender: str, options: list[str]) -> bool:
    """Whether a transaction may begin with these."""
    try:
        await client.mail(sender, options=options, encoding="utf-8")
    except aiosmtplib.SMTPSenderRefused as exc:
        _raise_if_useless(exc)
        return False
    await client.rset()
    return True


async def _name_recipients(client: aiosmtplib.SMTP, addresses: Sequence[str]) -> dict[str, Refusal]:
    """Tell the server who the mail is for; those it refuses."""
    refused = {}
    for address in addresses:
        try:
            await client.rcpt(address, encoding="utf-8")
        except aiosmtplib.SMTPRecipientRefused as exc:
            # Whatever begins with 2 is a yes (RFC 5321 section 4.2.1): such as 252, "cannot verify, but will try".
            if exc.code // 100 == 2:
                continue
            _raise_if_useless(exc)
            refused[address] = _refusal(exc)
    return refused


def _raise_if_useless(exc: aiosmtplib.SMTPResponseException) -> None:
    """An answer about the connection says nothing about this mail."""
    if exc.code in (CLOSING, LOGIN_NEEDED):
        raise exc


def _refusal(exc: aiosmtplib.SMTPResponseException) -> Refusal:
    return Refusal(_reply_code(exc), _words(exc.message), is_temporary=not _is_permanent(exc.code))


def _reply_code(exc: Exception) -> int:
    """The server's code; 0 if it gave none, or none that SMTP knows."""
    code = exc.code if isinstance(exc, aiosmtplib.SMTPResponseException) else 0
    return code if 200 <= code <= 599 else 0


def _reply(exc: aiosmtplib.SMTPResponseException) -> str:
    return f"{exc.code} {_words(exc.message)}"


def _is_permanent(code: int) -> bool:
    return 500 <= code <= 599


def _words(text: str) -> str:
    """A foreign text on one line, fit for a log and a store."""
    return _UNPRINTABLE.sub(" ", text).strip()[:MAX_REASON_CHARS]


def _our_name(client: aiosmtplib.SMTP) -> str:
    """For EHLO: this machine's name if it is a full one, else its address (RFC 5321 section 4.1.3). Never from DNS: a
    slow resolver would hold up every mail."""
    name = socket.gethostname()
    if "." in name and name.isascii():
        return name
    address: str = client.get_transport_info("sockname")[0]
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def _tls_context(email: Email) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=email.ca)
    except (OSError, ValueError) as exc:
        raise StartupError(f"[EMAIL] ca: {email.ca} holds no certificates in PEM form ({exc})") from exc
