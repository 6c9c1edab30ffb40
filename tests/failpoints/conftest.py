from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from guerdon_server.platform import postgres, redis
from guerdon_server.platform.engines import Engines
from guerdon_server.settings import Settings
from tests.issuing.desk import fresh

_REDIS_DATABASE = 15


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def books(engines: Engines, migrated_template: str) -> AsyncIterator[Settings]:
    """Settings of servers on a database of this module: quick to notice things, and not patient."""
    name = fresh("failpoints").replace("-", "_")
    connection = await postgres.connect(engines.postgres_dsn)
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template} STRATEGY wal_log")
    redis_url = engines.redis_url.rsplit("/", 1)[0] + f"/{_REDIS_DATABASE}"
    client = redis.connect(redis_url)
    await client.flushdb()
    await client.aclose()
    yield Settings(
        postgres_dsn=engines.postgres.dsn_for(name),
        redis_url=redis_url,
        grpc_port=0,
        metrics_port=0,
        postgres_connections_max=6,
        reconcile_interval_ms=50,
        catalogue_poll_ms=100,
        lease_seconds=1,
        invariants_interval_seconds=1,
        capacity_interval_seconds=1,
        admission_age_ms_max=1000,
        commit_seconds_max=0.3,
        drain_seconds_max=2,
        test_mode=True,
        # A starved machine is no overload; tests of overload set these.
        backlog_seconds_max=60,
        queue_ms_max=30_000,
        log_level="error",
    )
    await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()
