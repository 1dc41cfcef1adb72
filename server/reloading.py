"""Taking over a changed configuration while the server runs: all of it is prepared before anything is used, so that a
mistake changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable

from server import logs, tls
from server.config import Config
from server.config.changes import changed_keys, with_live_keys
from server.consumers import Consumers
from server.doors import Doors
from server.errors import InvalidConfig, StartupError
from server.limits import Limits
from server.publishers import Publishers
from server.retention import Retention
from server.rooms import Rooms
from server.sign_in import SignIn
from server.tasks import Tasks
from server.wire import SIGNED_OUT
from server.wiring import publisher_rules

logger = logging.getLogger(__name__)


class Reloads:
    """The configuration in force, and what has to know when it changes."""

    def __init__(
        self,
        config: Config,
        secured: ssl.SSLContext | None,
        *,
        sign_in: SignIn,
        publishers: Publishers,
        limits: Limits,
        rooms: Rooms,
        doors: Doors,
        consumers: Consumers,
        retention: Retention,
    ) -> None:
        self.config = config
        self.tls = secured
        """For the connections that come from now on; None: TLS is not ours."""
        self.certificate_until = tls.valid_until(config.tls)
        """As `tls.valid_until`, of the certificate in use."""
        self._sign_in = sign_in
        self._publishers = publishers
        self._limits = limits
        self._rooms = rooms
        self._doors = doors
        self._consumers = consumers
        self._retention = retention
        self._tasks = Tasks()
        self._turn = asyncio.Lock()
        self._is_due = False

    def soon(self, reread: Callable[[], Config]) -> None:
        """Take over what can be changed without a restart, of the configuration that `reread` returns. Asked for again
        while that is under way, it is done once more."""
        if self._is_due:
            return
        self._is_due = True
        self._tasks.start(self._in_turn(reread), "reload")

    async def cancel(self) -> None:
        """End what is under way."""
        await self._tasks.cancel()

    async def _in_turn(self, reread: Callable[[], Config]) -> None:
        # Two at once could leave some parts with the older configuration, and some with the newer one.
        async with self._turn:
            self._is_due = False
            await self._reload(reread)

    async def _reload(self, reread: Callable[[], Config]) -> None:
        old = self.config
        try:
            new = reread()
            config = with_live_keys(old, new)
            secured = tls_context(config)
            async with contextlib.AsyncExitStack() as undo:
                prepared = self._sign_in.prepare(config)
                undo.push_async_callback(prepared.close)
                logs.setup(config.log)  # the last one that can fail
                undo.pop_all()
        except InvalidConfig as error:
            logger.error("the configuration is wrong, so nothing was changed: %s", "; ".join(error.problems))
            return
        except StartupError as error:
            logger.error("the configuration cannot be used, so nothing was changed: %s", error)
            return
        self.config = config
        self.tls = secured
        self.certificate_until = tls.valid_until(config.tls)
        await self._sign_in.apply(config, prepared)
        self._publishers.apply(publisher_rules(config), self._sign_in.service_tokens)
        self._publishers.warn_of_missing_tenants()
        self._limits.apply(config.limits)
        self._doors.apply(config)
        self._consumers.apply(config)
        self._retention.rules = config.retention
        self._sign_out_changed(old, config)
        for warning in new.warnings:
            if warning not in old.warnings:
                logger.warning("%s", warning)
        for warning in tls.expired(config.tls):
            logger.warning("%s", warning)
        changes = changed_keys(old, new)
        changed = ", ".join(changes.live) or "none"
        logger.info("the configuration and the files that it names were reread; changed keys: %s", changed)
        if changes.at_restart:
            logger.warning("these wait for a restart: %s", ", ".join(changes.at_restart))

    def _sign_out_changed(self, old: Config, new: Config) -> None:
        """Who has another password, or is no user any more (of that tenant), has to come back with what is right
        now."""
        tenant = old.application.default_tenant
        users = new.users if new.application.default_tenant == tenant else {}
        changed = {name for name, hashed in old.users.items() if users.get(name) != hashed}
        rooms = [(tenant, name) for name in changed if tenant is not None]
        self._rooms.close_in(rooms, lambda *_: SIGNED_OUT)


def tls_context(config: Config) -> ssl.SSLContext | None:
    """None: TLS is not ours. Raises `StartupError`."""
    return None if config.tls is None else tls.make_context(config.tls)
