"""A real mail server for tests: aiosmtpd in a thread of its own, which keeps what it takes and misbehaves on demand."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from tests.support.certificates import CertificateAuthority

__all__ = ["STAGES", "CertificateAuthority", "SMTPSink", "SunkMail"]

STAGES = ("EHLO", "MAIL", "RCPT", "DATA", "content", "end", "QUIT")
"""Where the sink may cut the connection or fall silent: before its answer to this command, in the middle of the
content, or at the `end`, when it has taken the mail and not yet said so."""


@dataclass(frozen=True)
class SunkMail:
    """A mail that the sink took. `login` is None if nobody logged in."""

    sender: str
    recipients: list[str]
    content: bytes
    options: list[str]
    is_encrypted: bool
    login: str | None


@dataclass
class SMTPSink:
    """A mail server on a free port of 127.0.0.1, from `with` (inside the test's event loop) to its end.

    `tls`: TLS from the first byte; `starttls`: offered. `logins`: name -> password; if given, nobody gets on without.
    All other settings may be changed while it runs. `replies`: what to answer instead of accepting, to `EHLO`, `MAIL`,
    `DATA`, the `end` of the content, `AUTH`, `QUIT`, or a recipient (by address). `smtputf8_reply`: to `MAIL` with
    SMTPUTF8, which is offered. `max_recipients`: of one transaction; more are answered by `too_many_reply`.
    `max_messages`: of one connection; more are answered by 421. `cut_at`, `hang_at`: one of `STAGES`.
    `cut_recipients`: addresses at which the connection is cut. `looks_for_s`: how long it looks at a content before it
    takes it. `rset_replies`: to the next RSETs, one after the other; at "" the connection is cut.
    """

    tls: ssl.SSLContext | None = None
    starttls: ssl.SSLContext | None = None
    logins: dict[str, str] | None = None
    smtputf8: bool = True
    smtputf8_reply: str | None = None
    port: int = 0
    replies: dict[str, str] = field(default_factory=dict)
    max_recipients: int | None = None
    too_many_reply: str = "452 4.5.3 too many recipients"
    max_messages: int | None = None
    cut_recipients: set[str] = field(default_factory=set)
    cut_at: str | None = None
    hang_at: str | None = None
    looks_for_s: float = 0.0
    rset_replies: list[str] = field(default_factory=list)
    mails: list[SunkMail] = field(default_factory=list)
    connections: int = 0
    ehlo_names: list[str] = field(default_factory=list)

    def __enter__(self) -> SMTPSink:
        self._loop = asyncio.get_running_loop()
        self._arrivals: asyncio.Queue[SunkMail] = asyncio.Queue()
        self.stuck = asyncio.Event()
        """Set when the sink cuts a connection, or falls silent."""
        self.quitted = asyncio.Event()
        """Set when a client has said good-bye."""
        self._controller = _Controller(self)
        self._controller.start()
        self.connections = 0  # the controller's own try does not count
        self.port = self._controller.port
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # From Python 3.12 on, a server's end waits for its connections.
        self.hang_up()
        self._controller.stop()

    def hang_up(self) -> None:
        """End all connections."""
        self._controller.loop.call_soon_threadsafe(self._controller.abort_connections)

    async def left(self) -> None:
        """Return when no client is connected any more."""
        async with asyncio.timeout(20):
            while self._controller.is_connected:  # noqa: ASYNC110  # it happens in another thread
                await asyncio.sleep(0.01)

    def said_goodbye(self) -> None:
        self._loop.call_soon_threadsafe(self.quitted.set)

    async def next_mail(self) -> SunkMail:
        """The next mail that is taken, in the order of arrival."""
        async with asyncio.timeout(20):
            return await self._arrivals.get()

    def got_stuck(self) -> None:
        self._loop.call_soon_threadsafe(self.stuck.set)

    def take(self, mail: SunkMail) -> None:
        self.mails.append(mail)
        self._loop.call_soon_threadsafe(self._arrivals.put_nowait, mail)

    def authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: LoginPassword
    ) -> AuthResult:
        if "AUTH" in self.replies:
            return AuthResult(success=False, handled=False, message=self.replies["AUTH"])
        login, password = data.login.decode(), data.password.decode()
        if self.logins and self.logins.get(login) == password:
            return AuthResult(success=True, auth_data=login)
        return AuthResult(success=False, handled=False)


class _Controller(Controller):
    def __init__(self, sink: SMTPSink) -> None:
        self._sink = sink
        self._servers: list[_Server] = []
        super().__init__(_Handler(sink), hostname="127.0.0.1", port=sink.port, ssl_context=sink.tls)

    def abort_connections(self) -> None:
        for server in self._servers:
            if server.transport is not None:
                server.transport.abort()

    @property
    def is_connected(self) -> bool:
        return any(server.transport is not None for server in self._servers)

    def factory(self) -> SMTP:
        sink = self._sink
        sink.connections += 1
        server = _Server(
            self.handler,
            hostname="sink.example",
            enable_SMTPUTF8=sink.smtputf8,
            tls_context=sink.starttls,
            require_starttls=sink.starttls is not None,
            auth_require_tls=sink.starttls is not None,
            authenticator=sink.authenticate,
        )
        self._servers.append(server)
        return server

    def _trigger_server(self) -> None:
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


class _Server(SMTP):
    """Misbehaves where a handler's hook comes too late. `messages`: how many were begun."""

    messages = 0

    async def smtp_DATA(self, arg: str) -> None:
        handler = self.event_handler
        await handler.misbehave("DATA", self)
        if "DATA" in handler.sink.replies:
            await self.push(handler.sink.replies["DATA"])
        elif handler.sink.cut_at == "content":
            await self.push("354 go on")
            await self._reader.readexactly(100)
            await handler.misbehave("content", self)
        else:
            await super().smtp_DATA(arg)

    async def smtp_RSET(self, arg: str) -> None:
        replies = self.event_handler.sink.rset_replies
        if not replies:
            await super().smtp_RSET(arg)
        elif reply := replies.pop(0):
            await self.push(reply)
        else:
            self.transport.abort()

    async def smtp_QUIT(self, arg: str) -> None:
        await self.event_handler.misbehave("QUIT", self)
        self.event_handler.sink.said_goodbye()
        if "QUIT" in self.event_handler.sink.replies:
            await self.push(self.event_handler.sink.replies["QUIT"])
        else:
            await super().smtp_QUIT(arg)


class _Handler:
    def __init__(self, sink: SMTPSink) -> None:
        self.sink = sink

    async def misbehave(self, stage: str, server: SMTP) -> None:
        if self.sink.cut_at == stage:
            server.transport.abort()
        if stage in (self.sink.cut_at, self.sink.hang_at):
            self.sink.got_stuck()
            await asyncio.Event().wait()  # until the connection is gone

    async def handle_EHLO(
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        await self.misbehave("EHLO", server)
        session.host_name = hostname
        self.sink.ehlo_names.append(hostname)
        return [self.sink.replies["EHLO"]] if "EHLO" in self.sink.replies else responses

    async def handle_MAIL(
        self, server: _Server, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        await self.misbehave("MAIL", server)
        # aiosmtpd's own demand for a login does not know of TLS from the first byte.
        if self.sink.logins is not None and not session.authenticated:
            return "530 5.7.0 authentication required"
        if "MAIL" in self.sink.replies:
            return self.sink.replies["MAIL"]
        if self.sink.smtputf8_reply is not None and "SMTPUTF8" in options:
            return self.sink.smtputf8_reply
        if self.sink.max_messages is not None and server.messages >= self.sink.max_messages:
            return "421 too many messages in this connection"
        server.messages += 1
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        await self.misbehave("RCPT", server)
        if address in self.sink.cut_recipients:
            server.transport.abort()
            await asyncio.Event().wait()  # until the connection is gone
        reply = self.sink.replies.get(address, "250 OK")
        if not reply.startswith("2"):
            return reply
        if len(envelope.rcpt_tos) == self.sink.max_recipients:
            return self.sink.too_many_reply
        envelope.rcpt_tos.append(address)
        return reply

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content: Any = envelope.original_content
        reply = self.sink.replies.get("end", "250 2.0.0 taken")
        await asyncio.sleep(self.sink.looks_for_s)
        if reply.startswith("2"):
            self.sink.take(
                SunkMail(
                    sender=str(envelope.mail_from),
                    recipients=list(envelope.rcpt_tos),
                    content=bytes(content),
                    options=list(envelope.mail_options),
                    is_encrypted=server.transport.get_extra_info("sslcontext") is not None,
                    login=session.auth_data if session.authenticated else None,
                )
            )
        await self.misbehave("end", server)
        return reply
