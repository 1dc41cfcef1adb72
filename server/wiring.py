"""From the configuration to the parts that need more of it than a record: the store, and the rules for backends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from server.backplane import Backplane, LocalBackplane
from server.certificates import parse_subject
from server.config import Config
from server.grants import Grant
from server.publishers import CertificateHolder, PublisherRules, missing_tenant
from server.rooms import Rooms
from server.store import Store

if TYPE_CHECKING:
    from server.store.mongo_beside import MongoBeside
    from server.store.sqlite_beside import SQLiteBeside

EMBEDDED_FILE = "notifications.sqlite3"


def make_store(config: Config) -> Store:
    """The store that the configuration names. Imported here, so that nobody pays for the other one."""
    mongodb = config.mongodb
    if mongodb.url is None:
        from server.store.sqlite import SQLiteStore

        return SQLiteStore(config.application.data / EMBEDDED_FILE)
    from server.store.mongo import MongoStore

    return MongoStore(
        mongodb.url,
        mongodb.db,
        collection=mongodb.collection,
        timeout_s=mongodb.timeout_s,
        legacy_timezone=mongodb.legacy_timezone,
    )


def make_backplane(config: Config, rooms: Rooms, store: Store) -> Backplane:
    """The backplane that the configuration names. Imported here, as stores are."""
    cluster = config.cluster
    if cluster.backplane == "local":
        return LocalBackplane(rooms)
    from server.cluster.backplane import ClusterBackplane, new_node_id
    from server.cluster.link import Link

    node = new_node_id()
    if cluster.backplane == "redis":
        from server.cluster.redis import RedisLink

        link: Link = RedisLink(cluster, node, lambda: store.epoch)
    else:
        from server.cluster.mongodb import MongoLink

        link = MongoLink(cluster, config.mongodb, node, lambda: store.epoch)
    return ClusterBackplane(rooms, link, node)


@asynccontextmanager
async def open_beside(config: Config) -> AsyncIterator[SQLiteBeside | MongoBeside]:
    """The `directory` and the `outbox` of that store, beside the servers that may be running on it. Raises
    `StartupError`, `StoreUnavailable`."""
    mongodb = config.mongodb
    if mongodb.url is None:
        from server.store.sqlite_beside import SQLiteBeside

        place: SQLiteBeside | MongoBeside = SQLiteBeside(config.application.data / EMBEDDED_FILE)
    else:
        from server.store.mongo_beside import MongoBeside

        place = MongoBeside(
            mongodb.url, mongodb.db, collection=mongodb.collection, timeout_s=mongodb.timeout_s
        )
    await place.open()
    try:
        yield place
    finally:
        await place.close()


def publisher_rules(config: Config) -> PublisherRules:
    application = config.application
    return PublisherRules(
        application.apikey,
        application.publish_without_key,
        application.default_tenant,
        tuple(
            CertificateHolder(
                each.name,
                parse_subject(each.subject),
                Grant(each.tenant, each.scopes, f"certificate {each.name}"),
            )
            for each in config.certificates
        ),
    )


def missing_tenants(config: Config) -> list[str]:
    """A sentence for each setting that names a tenant which is not in the embedded store, if there is one that can be
    read. A MongoDB is not asked."""
    if config.mongodb.url is not None:
        return []
    from server.store.sqlite_beside import active_tenants

    known = active_tenants(config.application.data / EMBEDDED_FILE)
    named = publisher_rules(config).named_tenants
    return [
        missing_tenant(where, tenant)
        for where, tenant in named.items()
        if known is not None and tenant not in known
    ]
