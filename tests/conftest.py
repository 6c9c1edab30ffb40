"""Real engines for every test: one PostgreSQL and one Valkey per session, a fresh database per test."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal, cast

import pytest
import pytest_asyncio

from guerdon_server import bootstrap
from guerdon_server.platform import postgres, redis
from guerdon_server.platform.engines import Engines
from guerdon_server.settings import Settings

_TEMPLATE = "guerdon_template"
_REDIS_DATABASES = 15  # of 16: the last one is tests/model's, whose servers live while other files are run
_numbers = itertools.count(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logged may be any text; what one process of a run tells the other may not."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def sql_sources() -> tuple[Traversable, Sequence[Traversable]]:
    """The folders of the versioned and of the repeatable SQL."""
    return bootstrap.migration_sources()


@pytest.fixture(scope="session")
def short_tmp() -> Iterator[Path]:
    """A folder of this session, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="guerdon-tests-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engines(short_tmp: Path) -> AsyncIterator[Engines]:
    """PostgreSQL and Valkey, fast and not durable. Don't kill these: start your own for that."""
    async with Engines(short_tmp / "engines", durable=False, debug_command=True) as engines:
        yield engines


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def migrated_template(engines: Engines, sql_sources: tuple[Traversable, Sequence[Traversable]]) -> str:
    """Name of a database that has been migrated; no one may connect to it while it is being copied."""
    connection = await postgres.connect(engines.postgres_dsn)
    await connection.execute(f"CREATE DATABASE {_TEMPLATE}")
    await connection.close()
    versioned, repeatable = sql_sources
    await postgres.migrate(engines.postgres.dsn_for(_TEMPLATE), versioned=versioned, repeatable=repeatable)
    return _TEMPLATE


@pytest_asyncio.fixture(loop_scope="session")
async def empty_database(engines: Engines) -> AsyncIterator[str]:
    """DSN of a fresh database without the schema."""
    async for dsn in _fresh_database(engines, "template0"):
        yield dsn


@pytest_asyncio.fixture(loop_scope="session")
async def database(engines: Engines, migrated_template: str) -> AsyncIterator[str]:
    """DSN of a fresh, migrated database; dropped afterwards, whoever is still connected."""
    async for dsn in _fresh_database(engines, migrated_template):
        yield dsn


async def _fresh_database(engines: Engines, template: str) -> AsyncIterator[str]:
    name = f"test_{next(_numbers)}"
    connection = await postgres.connect(engines.postgres_dsn)
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY wal_log")
        yield engines.postgres.dsn_for(name)
        await _disconnect_all(connection, name)
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


async def _disconnect_all(connection: postgres.Connection, name: str) -> None:
    # DROP … FORCE does it too, but looks only every 100 ms whether they are gone.
    for _ in range(200):
        left = await connection.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        if not left:
            return
        await asyncio.sleep(0.005)


@pytest_asyncio.fixture(loop_scope="session")
async def pool(database: str) -> AsyncIterator[postgres.Pool]:
    """A pool on the fresh database."""
    pool = await postgres.create_pool(database, size_min=1, size_max=10, application_name="test")
    yield pool
    pool.terminate()  # a test that failed may have left connections out


@pytest_asyncio.fixture(loop_scope="session")
async def redis_url(engines: Engines) -> str:
    """URL of an empty database of the session's Valkey, its own among the last 15 tests. FLUSHALL is your right too."""
    url = engines.redis_url.rsplit("/", 1)[0] + f"/{next(_numbers) % _REDIS_DATABASES}"
    client = redis.connect(url)
    await client.flushdb()
    await client.aclose()
    return url


@pytest_asyncio.fixture(loop_scope="session")
async def redis_client(redis_url: str) -> AsyncIterator[redis.Client]:
    """A client on it."""
    client = redis.connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def transport(request: pytest.FixtureRequest) -> Literal["grpcio", "native"]:
    """What carries the calls of the test's servers; tests/transports has marks for both."""
    return cast('Literal["grpcio", "native"]', getattr(request, "param", "grpcio"))


@pytest_asyncio.fixture
async def settings(database: str, redis_url: str, transport: Literal["grpcio", "native"]) -> Settings:
    """Settings of a server on the fresh database, quick to notice things."""
    return Settings(
        postgres_dsn=database,
        redis_url=redis_url,
        grpc_port=0,
        metrics_port=0,
        transport=transport,
        postgres_connections_max=6,
        reconcile_interval_ms=50,
        catalogue_poll_ms=100,
        lease_seconds=1,
        test_mode=True,
        # A starved machine is no overload; tests of overload set these.
        backlog_seconds_max=60,
        queue_ms_max=30_000,
    )


@pytest_asyncio.fixture
async def endpoints(settings: Settings) -> AsyncIterator[bootstrap.Endpoints]:
    """A whole server inside the tests' event loop."""
    async with bootstrap.running(settings) as endpoints:
        yield endpoints


@pytest_asyncio.fixture
async def server_target(endpoints: bootstrap.Endpoints) -> str:
    """HOST:PORT of it."""
    return endpoints.grpc
