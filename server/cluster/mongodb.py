"""The way between nodes over the MongoDB that they share anyway, which has to be a replica set or a sharded cluster:
change streams need one. For small clusters: every node hears of everything.

Nothing here is cancelled while pymongo is at work: a call that is cut off while it waits for a server may leave its
client locked for ever (with Python 3.11). All calls have a time limit; what is to end ends at the next one.

    PREFIX_events     what nodes tell each other; each node follows it by a change stream; gone after a minute
    PREFIX_nodes      when each node last gave a sign of life, by the clock of MongoDB
    PREFIX_online     the users who have a connection on a node

In each document `epoch` is that of the store, so that deployments may share a database.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from typing import Any

import pymongo
from bson import Binary
from pymongo import ASCENDING, AsyncMongoClient, DeleteOne, IndexModel, ReplaceOne
from pymongo.asynchronous.change_stream import AsyncChangeStream
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from server.cluster.link import (
    ACCESS_REFUSED,
    BEAT_S,
    LEFTOVERS_S,
    LIFE_S,
    LOOKUP_S,
    Ears,
    Link,
    LinkDown,
    Message,
    Patience,
)
from server.config import Cluster, MongoDB
from server.rooms import Room

Raw = dict[str, Any]
"""A document as BSON has it; its values are of many types."""

KEEP_S = 60
"""How long events stay: longer than any node is without the stream and can go on in it."""

AWAIT_S = 1.0
"""MongoDB answers after so long, also when there is nothing new."""

MAX_ROOMS = 1000
"""In one command."""

TURN = 64
"""Messages after which others get a turn."""

_AUTHENTICATION_CODES = frozenset({13, 18})
_NOT_A_REPLICA_SET = 40573


class MongoLink(Link):
    """`epoch`: that of the store; asked for when `run` begins."""

    shards = 1

    def __init__(self, settings: Cluster, mongodb: MongoDB, node: str, epoch: Callable[[], str]) -> None:
        self._settings = settings
        self._mongodb = mongodb
        self._node = node
        self._epoch_of = epoch
        self._epoch = ""
        self._client: AsyncMongoClient[Raw] | None = None
        self._database: AsyncDatabase[Raw] | None = None
        self.name = "MongoDB"
        self._patience = Patience(self.name, _reason_of)
        self._rooms: set[Room] = set()
        # those of whom MongoDB does not know yet what has become of them
        self._unsaid: set[Room] = set()
        self._wake = asyncio.Event()
        # where the stream goes on after it was cut off; all that was sent until then has come
        self._token: Any = None
        self._heard_at = datetime.now(UTC)
        self._tidied_at = float("-inf")
        self._is_stopped = False
        # of the attempt
        self._is_ending = False
        self._failure: Exception | None = None

    def note(self, room: Room) -> None:
        if room in self._rooms:
            self._rooms.discard(room)
        else:
            self._rooms.add(room)
        self._unsaid.add(room)
        self._wake.set()

    async def run(self, ears: Ears) -> None:
        self._epoch = self._epoch_of()
        self._heard_at = datetime.now(UTC)
        self._open()
        await self._patience.keep(lambda: self._attempt(ears))

    def _open(self) -> None:
        timeout_ms = round(self._settings.timeout_s * 1000)
        self._client = AsyncMongoClient(
            self._mongodb.url,
            tz_aware=True,
            appname="notification-server backplane",
            connectTimeoutMS=timeout_ms,
            serverSelectionTimeoutMS=timeout_ms,
            # Not by cancelling: what pymongo has in hand then is left open.
            socketTimeoutMS=timeout_ms + round(1000 * AWAIT_S),
        )
        # What a failover may take back is told to nobody.
        self._database = self._client.get_database(
            self._mongodb.db, read_concern=ReadConcern("majority"), write_concern=WriteConcern("majority")
        )

    def _collection(self, name: str) -> Any:  # Any: generic in a type that differs from release to release
        if self._database is None:
            raise LinkDown("not connected")
        return self._database[f"{self._settings.prefix}_{name}"]

    def stop(self) -> None:
        self._patience.stop()
        self._is_stopped = self._is_ending = True
        self._wake.set()

    async def _attempt(self, ears: Ears) -> None:
        """Connect, and follow the other nodes until that fails."""
        async with AsyncExitStack() as streams:
            await self._make_indexes()
            stream = await streams.enter_async_context(await self._watch(ears))
            self._unsaid |= self._rooms
            ears.connected()
            await self._beat(ears)
            self._patience.well()
            self._is_ending, self._failure = self._is_stopped, None
            await asyncio.gather(
                self._until_the_end(self._listen(stream, ears)),
                self._until_the_end(self._keep_beating(ears)),
                self._until_the_end(self._keep_saying_who_is_online()),
            )
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    async def _until_the_end(self, part: Coroutine[Any, Any, None]) -> None:
        """Of the attempt: when one part ends, the others do. What it raises ends the attempt, a little later."""
        try:
            await part
        except Exception as error:
            self._failure = self._failure or error
        finally:
            self._is_ending = True
            self._wake.set()

    async def _make_indexes(self) -> None:
        await self._collection("events").create_indexes(
            [IndexModel([("at", ASCENDING)], name="expired", expireAfterSeconds=KEEP_S)]
        )
        await self._collection("online").create_indexes(
            [
                IndexModel([("room", ASCENDING), ("node", ASCENDING)], name="room"),
                IndexModel([("node", ASCENDING)], name="node"),
            ]
        )

    # -- listening -------------------------------------------------------------------------------------------
    async def _watch(self, ears: Ears) -> AsyncChangeStream[Raw]:
        """The stream, from where it was cut off; from now on where it cannot go on."""
        if self._token is not None:
            try:
                return await self._stream(self._token)
            except OperationFailure as error:
                if error.code in _AUTHENTICATION_CODES:
                    raise
                self._token = None  # too old, or of a collection that was dropped
        stream = await self._stream(None)
        ears.missed(list(self._rooms), self._heard_at)
        return stream

    async def _stream(self, token: Any) -> AsyncChangeStream[Raw]:
        for_us = {
            "operationType": "insert",
            "fullDocument.epoch": self._epoch,
            "fullDocument.from": {"$ne": self._node},
            "fullDocument.to": {"$in": [None, self._node]},
        }
        stream: AsyncChangeStream[Raw] = await self._collection("events").watch(
            [{"$match": for_us}], resume_after=token, max_await_time_ms=round(AWAIT_S * 1000)
        )
        return stream

    async def _listen(self, stream: AsyncChangeStream[Raw], ears: Ears) -> None:
        turn = 0
        while not self._is_ending:
            change = await stream.try_next()
            if not stream.alive:
                self._token = None
                raise LinkDown("the change stream has ended")
            self._token = stream.resume_token
            if change is None:
                self._heard_at = datetime.now(UTC)
            else:
                # It may have been on its way for long, and more of it may still be.
                self._heard_at = change["clusterTime"].as_datetime()
                body = change["fullDocument"].get("body")
                ears.received(body if isinstance(body, bytes) else b"")
                await ears.ready()
                turn = (turn + 1) % TURN
                if not turn:
                    await asyncio.sleep(0)

    async def send(self, messages: Sequence[Message]) -> None:
        at = datetime.now(UTC)
        documents = [
            {
                "at": at,
                "epoch": self._epoch,
                "from": self._node,
                "to": each.to if isinstance(each.to, str) else None,
                "body": Binary(each.body),
            }
            for each in messages
        ]
        try:
            with pymongo.timeout(self._settings.timeout_s):
                await self._collection("events").insert_many(documents)
        except PyMongoError as error:
            raise LinkDown(_reason_of(error) or "failed") from error

    async def probe(self) -> None:
        self._patience.check()

    # -- who is alive, and who is online ---------------------------------------------------------------------
    async def _keep_beating(self, ears: Ears) -> None:
        while not self._is_ending:
            await asyncio.sleep(BEAT_S)
            await self._beat(ears)
            if time.monotonic() - self._tidied_at > LEFTOVERS_S / 2:
                self._tidied_at = time.monotonic()
                await self._tidy()

    async def _beat(self, ears: Ears) -> None:
        with pymongo.timeout(self._settings.timeout_s):
            nodes = self._collection("nodes")
            mine = {"_id": self._node}
            now = [{"$set": {"epoch": self._epoch, "at": "$$NOW"}}]
            known = await nodes.find_one_and_update(mine, now, upsert=True)
            alive = [each["_id"] async for each in nodes.find(self._since(LIFE_S), {"_id": 1})]
        ears.heard_of({self._node, *alive})
        if known is None:  # for the first time, or others took us for dead
            self._unsaid |= self._rooms
        if self._unsaid:
            self._wake.set()

    def _since(self, age_s: float) -> Raw:
        """The filter for nodes that gave a sign of life within so many seconds."""
        since = {"$subtract": ["$$NOW", round(age_s * 1000)]}
        return {"epoch": self._epoch, "$expr": {"$gt": ["$at", since]}}

    async def _tidy(self) -> None:
        """Remove what dead nodes have left behind."""
        with pymongo.timeout(self._settings.timeout_s):
            nodes = self._collection("nodes")
            known = [each["_id"] async for each in nodes.find(self._since(LEFTOVERS_S), {"_id": 1})]
            gone = {"epoch": self._epoch, "node": {"$nin": [self._node, *known]}}
            await self._collection("online").delete_many(gone)
            await nodes.delete_many({"epoch": self._epoch, "_id": {"$nin": [self._node, *known]}})

    async def _keep_saying_who_is_online(self) -> None:
        while not self._is_ending:
            await self._wake.wait()
            self._wake.clear()
            unsaid, self._unsaid = self._unsaid, set()
            try:
                await self._say_who_is_online(list(unsaid))
            except BaseException:
                self._unsaid |= unsaid
                raise

    async def _say_who_is_online(self, rooms: Sequence[Room]) -> None:
        for start in range(0, len(rooms), MAX_ROOMS):
            changes: list[ReplaceOne[Raw] | DeleteOne] = []
            for room in rooms[start : start + MAX_ROOMS]:
                which = {"_id": f"{self._node}/{self._key(room)}"}
                found = {"epoch": self._epoch, "node": self._node, "room": self._key(room)}
                changes.append(
                    ReplaceOne(which, found, upsert=True) if room in self._rooms else DeleteOne(which)
                )
            with pymongo.timeout(self._settings.timeout_s):
                await self._collection("online").bulk_write(changes, ordered=False)

    async def online(self, rooms: Collection[Room], nodes: Collection[str]) -> set[Room]:
        by_key = {self._key(room): room for room in rooms}
        keys, found = list(by_key), set()
        try:
            with pymongo.timeout(LOOKUP_S):
                for start in range(0, len(keys), MAX_ROOMS):
                    which = {"room": {"$in": keys[start : start + MAX_ROOMS]}, "node": {"$in": list(nodes)}}
                    async for each in self._collection("online").find(which, {"_id": 0, "room": 1}):
                        found.add(by_key[each["room"]])
        except PyMongoError as error:
            raise LinkDown(_reason_of(error) or "failed") from error
        return found

    def _key(self, room: Room) -> str:
        return f"{self._epoch}/{room[0]}/{room[1]}"

    async def leave(self) -> None:
        try:
            # Now it may be cancelled, since nothing comes behind it; but looking for a server ends by itself before.
            async with asyncio.timeout(self._settings.timeout_s + AWAIT_S):
                await self._collection("nodes").delete_one({"_id": self._node})
                await self._collection("online").delete_many({"node": self._node})
        except (PyMongoError, LinkDown, TimeoutError):
            pass  # others tidy up
        client, self._client, self._database = self._client, None, None
        with suppress(PyMongoError, TimeoutError):
            async with asyncio.timeout(self._settings.timeout_s + AWAIT_S):
                if client is not None:
                    await client.close()


def _reason_of(error: Exception) -> str | None:
    """What an error means, for the log: no secrets. None: it was not to be expected."""
    if isinstance(error, OperationFailure):
        if error.code in _AUTHENTICATION_CODES:
            return ACCESS_REFUSED
        if error.code == _NOT_A_REPLICA_SET:
            return "the server is not a member of a replica set, so that it has no change streams"
        return f"error {error.code}"
    if isinstance(error, ConnectionFailure):
        return "it cannot be reached, or has no primary"
    if isinstance(error, PyMongoError) and error.timeout:
        return "no answer in time"
    return str(error) if isinstance(error, LinkDown) else None
