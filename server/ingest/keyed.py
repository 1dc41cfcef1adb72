"""Doors that nobody opens without a credential: being on this machine is none here."""

from __future__ import annotations

from server.errors import BadCredentials, NoCredentials, Refused
from server.grants import Grant
from server.ingest.base import DoorHandler
from server.publishers import Presented


class KeyedHandler(DoorHandler):
    async def admit(self, presented: Presented) -> Grant:
        """As `DoorHandler.admit`; who shows nothing is told what is needed."""
        try:
            return await super().admit(presented)
        except Refused as error:
            if presented.is_nothing and not isinstance(error, BadCredentials):
                raise NoCredentials(
                    f"a key with the scope {self.scope} is needed: make one with `notification-server key add`, and"
                    " send it as `Authorization: Api-Key …`"
                ) from None
            raise
