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

_DATABASE = "model"
_BOOKS_DATABASE = "model_books"
_REDIS_DATABASE = 15
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


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def stage(engines: Engines, migrated_template: str, hypothesis_home: None) -> AsyncIterator[Stage]:
    """A stage for all tests; when they are over the gate comes to rest, and the books are proven."""
    admin = await postgres.connect(engines.postgres_dsn)
    await admin.execute(f"CREATE DATABASE {_DATABASE} TEMPLATE {migrated_template} STRATEGY wal_log")
    settings = Settings(
        postgres_dsn=engines.postgres.dsn_for(_DATABASE),
        redis_url=f"{engines.redis_url.rsplit('/', 1)[0]}/{_REDIS_DATABASE}",
        grpc_port=0,
        metrics_port=0,
        postgres_connections_max=4,
        # As in production: what one server changed the other does not know for a second, unless it asks.
        catalogue_poll_ms=1000,
        reconcile_interval_ms=1000,
        test_mode=True,
    )
    async with staged(settings) as stage:
        yield stage
        await at_rest(settings)
        await proven(settings)
    await admin.execute(f"DROP DATABASE {_DATABASE} WITH (FORCE)")
    await admin.close()


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def ledger_pool(engines: Engines, migrated_template: str) -> AsyncIterator[postgres.Pool]:
    """A database of its own without servers; when all is over its books are proven."""
    admin = await postgres.connect(engines.postgres_dsn)
    await admin.execute(f"CREATE DATABASE {_BOOKS_DATABASE} TEMPLATE {migrated_template} STRATEGY wal_log")
    pool = await postgres.create_pool(
        engines.postgres.dsn_for(_BOOKS_DATABASE), size_min=1, size_max=4, application_name="model"
    )
    await pool.execute("INSERT INTO guerdon.principal (principal) VALUES ('tests')")
    yield pool
    failed = [check for check in await invariants.verify(pool) if not check.ok]
    pool.terminate()
    await admin.execute(f"DROP DATABASE {_BOOKS_DATABASE} WITH (FORCE)")
    await admin.close()
    assert not failed, failed
