"""TCP ports of 127.0.0.1 that lead to others, until they are cut: a network between processes of one machine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from server.torture.children import free_port

CHUNK_BYTES = 65536


class Relay:
    """One port that leads to `target`. `names`: what stands in the answers -> what its clients are to read there, each
    of the same length: so members of a replica set, which tell where they all are, name the relays to them."""

    def __init__(
        self, target: int, names: Mapping[bytes, bytes] | None = None, port: int | None = None
    ) -> None:
        self.port = port or free_port()
        self._target = target
        self._names = dict(names or {})
        if any(len(old) != len(new) for old, new in self._names.items()):
            raise ValueError("a name and the one in its place differ in length")
        self._server: asyncio.Server | None = None
        self._is_cut = False
        self._may_pass = asyncio.Event()
        self._may_pass.set()
        self._ends: set[asyncio.StreamWriter] = set()

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._ends)

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", self.port)

    async def close(self) -> None:
        """Idempotent."""
        if self._server is not None:
            self._server.close()
        self.cut()

    # -- the network -----------------------------------------------------------------------------------------
    def cut(self) -> None:
        """All connections end at once, and no new ones can be made."""
        self._is_cut = True
        self._may_pass.set()
        for end in self._ends:
            end.transport.abort()

    def silence(self) -> None:
        """Connections stay, and can be made, but nothing arrives: nobody is told that the other one is gone."""
        self._may_pass.clear()

    def mend(self) -> None:
        """As before; what was held back arrives now."""
        self._is_cut = False
        self._may_pass.set()

    # -- connections -----------------------------------------------------------------------------------------
    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.add(writer)
        there = None
        try:
            if self._is_cut:
                return
            far, there = await asyncio.open_connection("127.0.0.1", self._target)
            self._ends.add(there)
            await asyncio.wait(
                [
                    asyncio.ensure_future(self._pass(reader, there, {})),
                    asyncio.ensure_future(self._pass(far, writer, self._names)),
                ]
            )
        except OSError:
            pass  # nobody is there
        finally:
            for end in (writer, there):
                if end is not None:
                    end.transport.abort()
                    self._ends.discard(end)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, names: Mapping[bytes, bytes]
    ) -> None:
        held = b""
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._may_pass.wait()
                data, held = _without_beginning(held + data, names)
                for old, new in names.items():
                    data = data.replace(old, new)
                writer.write(data)
                await writer.drain()
        await self._may_pass.wait()
        with contextlib.suppress(OSError):
            writer.write(held)
            await writer.drain()
        # What it was told last it is to read; a half-open connection is of no use to anybody here.
        writer.close()


def _without_beginning(data: bytes, names: Mapping[bytes, bytes]) -> tuple[bytes, bytes]:
    """All but what may be the beginning of a name, and that."""
    for size in range(min(len(data), max(map(len, names), default=0)), 0, -1):
        tail = data[-size:]
        if any(len(tail) < len(name) and name.startswith(tail) for name in names):
            return data[:-size], tail
    return data, b""
