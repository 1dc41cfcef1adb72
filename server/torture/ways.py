"""What lies between one node and what it shares with the others: the ways to Redis and to MongoDB, which can be cut."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from server.torture.children import free_port
from server.torture.relay import Relay


class Ways:
    """Of one node. `redis`: the port of Redis; `members`: those of the members of the replica set `set_name`. None and
    (): nothing stands between. `new_port`: one that is free."""

    def __init__(
        self,
        redis: int | None,
        members: Sequence[int],
        set_name: str,
        new_port: Callable[[], int] = free_port,
    ) -> None:
        self._set_name = set_name
        ports = {port: new_port() for port in members}
        names = {_address(port): _address(near) for port, near in ports.items()}
        self._relays = {
            "redis": [Relay(redis, port=new_port())] if redis is not None else [],
            "mongod": [Relay(port, names, near) for port, near in ports.items()],
        }

    @property
    def redis_url(self) -> str:
        [relay] = self._relays["redis"]
        return f"redis://127.0.0.1:{relay.port}/0"

    @property
    def mongodb_url(self) -> str:
        addresses = ",".join(f"127.0.0.1:{port}" for port in self.mongodb_ports)
        return f"mongodb://{addresses}/?replicaSet={self._set_name}"

    @property
    def mongodb_ports(self) -> tuple[int, ...]:
        return tuple(relay.port for relay in self._relays["mongod"])

    @property
    def places(self) -> tuple[str, ...]:
        """What the node can be cut off from."""
        return tuple(place for place, relays in self._relays.items() if relays)

    async def open(self) -> None:
        for relay in self._all(self.places):
            await relay.open()

    async def close(self) -> None:
        """Idempotent."""
        for relay in self._all(self.places):
            await relay.close()

    def cut(self, places: Collection[str], *, is_silent: bool) -> None:
        """`is_silent`: see `Relay.silence`."""
        for relay in self._all(places):
            if is_silent:
                relay.silence()
            else:
                relay.cut()

    def mend(self) -> None:
        for relay in self._all(self.places):
            relay.mend()

    def _all(self, places: Collection[str]) -> list[Relay]:
        return [relay for place in places for relay in self._relays[place]]


def _address(port: int) -> bytes:
    return b"127.0.0.1:%d" % port
