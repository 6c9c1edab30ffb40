"""Redis as it is deployed: one server, a cluster, or a primary that sentinels know."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis import exceptions as errors
from redis.asyncio.connection import parse_url
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from guerdon_server.platform import redis, redis_url
from guerdon_server.platform.redis import AnyClient, Client
from guerdon_server.platform.redis_cluster import Cluster
from guerdon_server.platform.redis_url import Address, RedisUrl

if TYPE_CHECKING:
    from guerdon_server.platform.failpoints import Failpoints


def connect(url: str, *, failpoints: Failpoints | None = None) -> AnyClient:
    """A client for any of `platform.redis_url.SCHEMES`, with the limits of `platform.redis.connect`; close it.

    Behind sentinels each new connection asks them for the primary; a connection is new after an error, a time-out,
    READONLY and NOREPLICAS. Raises ValueError for a URL that can't be.
    """
    parsed = redis_url.parse(url)
    if parsed.mode == "cluster":
        return Cluster(parsed.addresses, lambda address: redis.connect(parsed.at(*address), failpoints=failpoints))
    if parsed.mode == "sentinel":
        return _behind_sentinels(parsed, failpoints)
    return redis.connect(url, failpoints=failpoints)


def _behind_sentinels(url: RedisUrl, failpoints: Failpoints | None) -> Client:
    driver = redis.client_class(failpoints)
    primary = {**redis.connection_options(), **_arguments(url, url.addresses[0])}
    # A sentinel that doesn't answer costs this, on the way to the next one.
    impatient = redis.connection_options(answer_seconds_max=redis.CONNECT_SECONDS_MAX, reconnects_max=0)
    tls = {name: value for name, value in primary.items() if name.startswith("ssl")}
    own: dict[str, Any] = {**impatient, **tls, **url.sentinel_options}
    sentinels = _Sentinels([], **primary)  # type: ignore[no-untyped-call]
    sentinels.sentinels = [driver(host=host, port=port, **own) for host, port in url.addresses]

    class BehindSentinels(driver):  # type: ignore[misc, valid-type]
        async def aclose(self, close_connection_pool: bool | None = None) -> None:
            await asyncio.gather(super().aclose(close_connection_pool), sentinels.aclose())

    client = sentinels.master_for(
        url.service,
        BehindSentinels,
        SentinelConnectionPool,
        connection_class=_TlsToThePrimary if "ssl" in primary else _ToThePrimary,
        max_connections=redis.CONNECTIONS_MAX,
    )
    assert isinstance(client, redis.Client)
    return client


class _Sentinels(Sentinel):
    """Believes a sentinel about who the primary is, and not about whether it is up: connecting shows that.

    redis-py takes no address of a primary that the sentinel holds for down. After a pause of its machine a sentinel
    keeps its last opinion for 30 s (TILT), so that servers would do without a primary that has long been back.
    """

    def check_master_state(self, state: dict[str, Any], service_name: str) -> bool:
        return bool(state["is_master"])


class _AsksAgain(SentinelManagedConnection):
    """A primary without the replicas that it needs may be one that no sentinel reaches: they are asked again."""

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)
        except errors.ResponseError as error:
            if not str(error).startswith("NOREPLICAS"):
                raise
            await self.disconnect()
            raise errors.ConnectionError(str(error)) from error


class _ToThePrimary(_AsksAgain):
    pass


class _TlsToThePrimary(_AsksAgain, SentinelManagedSSLConnection):
    pass


def _arguments(url: RedisUrl, address: Address) -> dict[str, Any]:
    """User, password, database, TLS and options of the URL, as redis-py's arguments of a connection."""
    arguments: dict[str, Any] = dict(parse_url(url.at(*address)))
    for name in ("host", "port"):
        del arguments[name]
    if arguments.pop("connection_class", None) is not None:
        arguments["ssl"] = True
    return arguments
