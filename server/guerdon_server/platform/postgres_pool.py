"""A connection pool that knows who waits, and whose connections may be lost without taking an answer back."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import asyncpg
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from guerdon_server.platform.telemetry import LATENCY_SECONDS_BUCKETS, TallyHistogram, TallyHistogramFamily

if TYPE_CHECKING:
    BasePool = asyncpg.Pool[asyncpg.Record]
else:  # asyncpg's own classes cannot be subscripted
    BasePool = asyncpg.Pool

_log = logging.getLogger(__name__)


class WatchedPool(BasePool):
    """asyncpg's pool; `waiting` callers have no connection yet, `waits` is how long those before them had to wait.

    Arguments as of `asyncpg.create_pool`; to be awaited before use, as that one.
    """

    def __init__(self, dsn: str, **options: Any) -> None:
        # What create_pool would fill in.
        defaults = {"max_inactive_connection_lifetime": 300.0, "loop": None, "record_class": asyncpg.Record}
        super().__init__(dsn, **{**defaults, **options})
        self.waiting = 0
        self.waits = TallyHistogram(LATENCY_SECONDS_BUCKETS)

    def acquire(self, *, timeout: float | None = None) -> Any:
        """As asyncpg's: to be awaited, or entered; all of its other methods come through here."""
        return _Acquiring(self, super().acquire(timeout=timeout))

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        """Give a connection back. Never fails for one that was lost, which the pool replaces.

        A session may end between its answer and its return. asyncpg's error for that would reach whoever waits for the
        answer, and be read as if there were none: of a commit that is durable.
        """
        try:
            await super().release(connection, timeout=timeout)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            _log.info("a connection to PostgreSQL was lost after its answer", extra={"why": str(error)})


class _Acquiring:
    """What `acquire` gives: the pool's own, timed."""

    __slots__ = ("_acquiring", "_connection", "_pool")

    def __init__(self, pool: WatchedPool, acquiring: Any) -> None:
        self._pool = pool
        self._acquiring = acquiring
        self._connection: Any = None

    async def _acquired(self) -> Any:
        pool, asked = self._pool, time.perf_counter()
        pool.waiting += 1
        try:
            return await self._acquiring
        finally:
            pool.waiting -= 1
            pool.waits.observe(time.perf_counter() - asked)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._acquired().__await__()

    async def __aenter__(self) -> Any:
        self._connection = await self._acquired()
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        connection, self._connection = self._connection, None
        await self._pool.release(connection)


class PoolMetrics(Collector):
    """By pool: NAMESPACE_pool_connections (busy, idle, and the most there may be), _waiting and _wait_seconds."""

    def __init__(self, pools: Mapping[str, WatchedPool], *, registry: CollectorRegistry, namespace: str) -> None:
        self._pools = dict(pools)
        self._namespace = namespace
        waits = TallyHistogramFamily(
            f"{namespace}_pool_wait_seconds",
            "How long callers waited for a connection to PostgreSQL.",
            ("pool",),
            registry=registry,
        )
        for name, pool in self._pools.items():
            pool.waits = waits.child(name)
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        connections = GaugeMetricFamily(
            f"{self._namespace}_pool_connections", "Connections to PostgreSQL, by use.", labels=["pool", "state"]
        )
        most = GaugeMetricFamily(
            f"{self._namespace}_pool_connections_max", "The most connections that a pool may have.", labels=["pool"]
        )
        waiting = GaugeMetricFamily(
            f"{self._namespace}_pool_waiting", "Callers that wait for a connection now.", labels=["pool"]
        )
        for name, pool in self._pools.items():
            idle = pool.get_idle_size()
            connections.add_metric([name, "idle"], idle)
            connections.add_metric([name, "busy"], max(0, pool.get_size() - idle))
            most.add_metric([name], pool.get_max_size())
            waiting.add_metric([name], pool.waiting)
        yield from (connections, most, waiting)
