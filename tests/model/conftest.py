"""Two servers on a database of their own for the whole folder, because starting them for every program costs most."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import hypothesis
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, configuration

from guerdon_server import bootstrap
from guerdon_server.core.ledger.postgres import invariants
from guerdon_server.platform import postgres, redis
from guerdon_server.platform.engines import Engines
from guerdon_server.settings import Settings
from tests.issuing.desk import opened
from tests.issuing.proof import at_rest, proven
from tests.model.calls import Clock
from tests.model.stage import Stage

_quiet = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
    "phases": [Phase.explicit, Phase.generate, Phase.shrink],
}
EXAMPLES = int(os.environ.get("GUERDON_MODEL_EXAMPLES", "0"))
"""Programs for each machine; 0: the few that every run takes, always the same ones."""


def machine(examples: int, **more: object) -> hypothesis.settings:
    """Settings of a machine that takes so many programs by default: the same each time. With GUERDON_MODEL_EXAMPLES
    so many others, from the seed of `--hypothesis-seed` or a new one, which is printed where it matters."""
    return hypothesis.settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        **{**_quiet, **more},  # type: ignore[arg-type]
    )


@pytest.fixture(scope="package", autouse=True)
def hypothesis_home() -> Iterator[None]:
    """What Hypothesis writes for itself does not go into the checkout."""
    with tempfile.TemporaryDirectory(prefix="guerdon-model-") as folder:
        configuration.set_hypothesis_home_dir(folder)
        yield
        configuration.set_hypothesis_home_dir(None)


@asynccontextmanager
async def staged(settings: Settings) -> AsyncIterator[Stage]:
    """Two servers side by side."""
    client = redis.connect(settings.redis_url)
    await client.flushdb()
    await client.aclose()
    async with AsyncExitStack() as stack:
        desks = []
        for _ in range(2):
            endpoints = await stack.enter_async_context(bootstrap.running(settings))
            desks.append(await stack.enter_async_context(opened(endpoints.grpc)))
        pool = await postgres.create_pool(settings.postgres_dsn, size_min=1, size_max=2, application_name="model")
        stack.callback(pool.terminate)
        stage = Stage(desks, pool, settings, Clock(float(round(time.time()))))
        await stage.furnish()
        yield stage


@asynccontextmanager
async def fresh_database(engines: Engines, template: str, name: str) -> AsyncIterator[str]:
    """DSN of a migrated database that lives as long as the block."""
    admin = await postgres.connect(engines.postgres_dsn)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY wal_log")
        yield engines.postgres.dsn_for(name)
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


def served(engines: Engines, dsn: str, redis_database: int) -> Settings:
    """Settings of servers on it. What one server changed the other does not know for a second, unless it asks: as in
    production."""
    return Settings(
        postgres_dsn=dsn,
        redis_url=f"{engines.redis_url.rsplit('/', 1)[0]}/{redis_database}",
        grpc_port=0,
        metrics_port=0,
        postgres_connections_max=6,
        test_mode=True,
    )


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def stage(engines: Engines, migrated_template: str, hypothesis_home: None) -> AsyncIterator[Stage]:
    """A stage for all tests; when they are over the gate comes to rest, and the books are proven."""
    async with fresh_database(engines, migrated_template, "model") as dsn:
        settings = served(engines, dsn, 15)
        async with staged(settings) as stage:
            yield stage
            await at_rest(settings)
            await proven(settings)


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def ledger_pool(engines: Engines, migrated_template: str) -> AsyncIterator[postgres.Pool]:
    """A database of its own without servers; when all is over its books are proven."""
    async with fresh_database(engines, migrated_template, "model_books") as dsn:
        pool = await postgres.create_pool(dsn, size_min=1, size_max=4, application_name="model")
        await pool.execute("INSERT INTO guerdon.principal (principal) VALUES ('tests')")
        yield pool
        failed = [check for check in await invariants.verify(pool) if not check.ok]
        pool.terminate()
    assert not failed, failed
