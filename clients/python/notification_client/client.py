"""The clients: httpx does the I/O, `protocol` all the rest. No other module waits or opens a connection."""

from __future__ import annotations

import os
import ssl
from asyncio import sleep as sleep_async
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from time import sleep
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from notification_client import protocol
from notification_client.errors import AnswerLost, NotificationError, Unreachable
from notification_client.protocol import (
    DEFAULT_RETRIES,
    Answer,
    Call,
    Delivery,
    Fields,
    Recipient,
    Retries,
    Token,
)

T = TypeVar("T")

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


def _failure(error: httpx.RequestError) -> NotificationError:
    """Why there is no answer. Whatever is not known to have failed before the first byte was sent may have arrived."""
    if isinstance(error, _NOT_SENT):
        failure: NotificationError = Unreachable(
            f"no connection to the server: {error or type(error).__name__}"
        )
    else:
        failure = AnswerLost(f"no answer from the server: {type(error).__name__}", maybe_done=True)
    failure.__cause__ = error
    return failure


class _Base:
    """What both clients are made of."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = 10.0,
        retries: Retries = DEFAULT_RETRIES,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._url = protocol.base_url(url)
        self._headers = protocol.headers(key)
        self._timeout = protocol.seconds(timeout)
        self._retries = retries
        self._tls = tls
        self._inherited: list[httpx.Client] = []
        self._connect()

    def _connect(self) -> None:
        raise NotImplementedError

    def _settings(self) -> dict[str, Any]:
        verify = True if self._tls is None else self._tls
        return {"headers": self._headers, "timeout": self._timeout, "verify": verify}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"


class Client(_Base):
    """Publishes at one server, with one key. May be used by any number of threads at once, and after a fork.

    `url`: of the server, with the path it is mounted at, if any. `key`: an API key; None where the server asks for
    none. `timeout`: seconds, for each of connecting, sending and waiting for (more of) the answer. `tls`: whom to
    trust, and the own certificate, where the usual certificate authorities are not enough.

    Connections are kept and used again: make one client, keep it, and close it at the end (or use it in `with`). Every
    method raises `NotificationError` (see `errors`), and repeats what failed as `retries` says: then nobody is notified
    twice, as each call has an idempotency key. `idempotency_key`: your own (1 to 255 characters of visible ASCII), so
    that the same call is known again also when your program makes it anew; for a day, unless the server is configured
    otherwise.
    """

    def notify(
        self,
        content: str,
        *,
        users: Iterable[str | int | Recipient],
        idempotency_key: str | None = None,
        **fields: Unpack[Fields],
    ) -> None:
        """Store a notification for each of the users, show it on their screens, and mail it if the fields say so. When
        this returns, it is stored. `users`: ids, or `{"id": …, "email": …}`; nobody: nothing happens."""
        return self._run(protocol.notify(content, users, fields, idempotency_key))

    def notify_user_by_id(
        self, user_id: str | int, message: Any, *, idempotency_key: str | None = None
    ) -> None:
        """The same for one user and any JSON but null, as the Django service took it."""
        return self._run(protocol.notify_user_by_id(user_id, message, idempotency_key))

    def send(
        self,
        user_ids: Iterable[str | int],
        payload: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
    ) -> str:
        """The same for a payload and at least one user; the id of the notification, for `deliveries`."""
        return self._run(protocol.send(user_ids, payload, idempotency_key))

    def broadcast(
        self, title: str, message: str, data: Any = None, *, idempotency_key: str | None = None
    ) -> str:
        """Notify every user of the key's tenant; the id of the notification. When this returns, it is sure that all of
        them will get it. `data`: any JSON."""
        return self._run(protocol.broadcast(title, message, data, idempotency_key))

    def token(self, user_id: str | int, expires_in: float | None = None) -> Token:
        """What the user can join by, for as many seconds (None: as long as the server allows). Takes a key of the scope
        `listen`."""
        return self._run(protocol.token(user_id, expires_in))

    def sign_out(self, user_id: str | int) -> None:
        """End all connections of the user, and void the tokens made for them so far. Takes a key of the scope
        `admin`."""
        return self._run(protocol.sign_out(user_id))

    def deliveries(self, id: str) -> Iterator[Delivery]:
        """How far a notification got, user by user, in the order of their ids; asked for page by page as you go on."""
        after: str | None = None
        while True:
            page, after = self._run(protocol.deliveries(id, after))
            yield from page
            if after is None:
                return

    def close(self) -> None:
        """Close the connections. The client cannot be used any more."""
        if self._pid == os.getpid():
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- I/O -------------------------------------------------------------------------------------------------
    """Those of the processes that this one was forked from."""

    def _connect(self) -> None:
        self._http = httpx.Client(**self._settings())
        # Last: until then other threads of a forked process know that the connections are not theirs.
        self._pid = os.getpid()

    def _run(self, call: Call[T]) -> T:
        steps = protocol.exchange(call, self._retries)
        delay_s = next(steps)
        while True:
            if delay_s:
                sleep(delay_s)
            outcome = self._attempt(call)
            try:
                delay_s = steps.send(outcome)
            except StopIteration as done:
                result: T = done.value
                return result

    def _attempt(self, call: Call[Any]) -> Answer | NotificationError:
        if self._pid != os.getpid():
            # After a fork the connections are the parent's: two answers would mix on one socket. Kept, since Python
            # warns of sockets that are dropped without being closed.
            self._inherited.append(self._http)
            self._connect()
        try:
            answer = self._http.request(
                call.method, self._url + call.path, content=call.body, headers=call.headers
            )
        except httpx.RequestError as exc:
            return _failure(exc)
        return Answer(answer.status_code, answer.headers, answer.content)


class AsyncClient(_Base):
    """As `Client`, for asyncio: the same arguments, methods and errors. Belongs to the event loop that first used it,
    and does not survive a fork. A call that was cancelled may have been carried out."""

    async def notify(
        self,
        content: str,
        *,
        users: Iterable[str | int | Recipient],
        idempotency_key: str | None = None,
        **fields: Unpack[Fields],
    ) -> None:
        """See `Client.notify`."""
        return await self._run(protocol.notify(content, users, fields, idempotency_key))

    async def notify_user_by_id(
        self, user_id: str | int, message: Any, *, idempotency_key: str | None = None
    ) -> None:
        """See `Client.notify_user_by_id`."""
        return await self._run(protocol.notify_user_by_id(user_id, message, idempotency_key))

    async def send(
        self,
        user_ids: Iterable[str | int],
        payload: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
    ) -> str:
        """See `Client.send`."""
        return await self._run(protocol.send(user_ids, payload, idempotency_key))

    async def broadcast(
        self, title: str, message: str, data: Any = None, *, idempotency_key: str | None = None
    ) -> str:
        """See `Client.broadcast`."""
        return await self._run(protocol.broadcast(title, message, data, idempotency_key))

    async def token(self, user_id: str | int, expires_in: float | None = None) -> Token:
        """See `Client.token`."""
        return await self._run(protocol.token(user_id, expires_in))

    async def sign_out(self, user_id: str | int) -> None:
        """See `Client.sign_out`."""
        return await self._run(protocol.sign_out(user_id))

    async def deliveries(self, id: str) -> AsyncIterator[Delivery]:
        """See `Client.deliveries`; for `async for`."""
        after: str | None = None
        while True:
            page, after = await self._run(protocol.deliveries(id, after))
            for delivery in page:
                yield delivery
            if after is None:
                return

    async def close(self) -> None:
        """Close the connections. The client cannot be used any more."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- I/O -------------------------------------------------------------------------------------------------
    def _connect(self) -> None:
        self._http = httpx.AsyncClient(**self._settings())

    async def _run(self, call: Call[T]) -> T:
        steps = protocol.exchange(call, self._retries)
        delay_s = next(steps)
        while True:
            if delay_s:
                await sleep_async(delay_s)
            outcome = await self._attempt(call)
            try:
                delay_s = steps.send(outcome)
            except StopIteration as done:
                result: T = done.value
                return result

    async def _attempt(self, call: Call[Any]) -> Answer | NotificationError:
        try:
            answer = await self._http.request(
                call.method, self._url + call.path, content=call.body, headers=call.headers
            )
        except httpx.RequestError as exc:
            return _failure(exc)
        return Answer(answer.status_code, answer.headers, answer.content)
