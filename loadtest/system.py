"""What is loaded: a system of the run's own, or one that runs somewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
from redis.exceptions import RedisError

from guerdon_server import bootstrap
from guerdon_server.bench.child import Child
from guerdon_server.core.ledger.invariants import Check as Invariant
from guerdon_server.platform import config, postgres, redis
from guerdon_server.platform.engines import Engines
from guerdon_server.platform.masking import mask_passwords
from guerdon_server.settings import Settings
from loadtest.errors import LoadTestError

SERVER = "server"


@dataclass(frozen=True, slots=True)
class System:
    """`pids` of its processes by name, as far as they are ours; `stores` None: the books can't be looked at."""

    target: str
    stores: Settings | None
    pids: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    server: Child | None = None

    async def verify(self) -> list[Invariant] | None:
        """`guerdon verify`; None where the stores are not known."""
        return None if self.stores is None else await bootstrap.verify(self.stores)

    async def check_stores(self) -> None:
        """Before a long run: raises LoadTestError if the books could not be looked at after it."""
        if self.stores is None:
            return
        try:
            connection = await postgres.connect(self.stores.postgres_dsn)
            await connection.close()
            client = redis.connect(self.stores.redis_url)
            try:
                await client.ping()
            finally:
                await client.aclose()
        except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError, RedisError) as error:
            why = mask_passwords(str(error)) or type(error).__name__
            raise LoadTestError(
                f"the stores can't be reached: {why}. Look at --postgres-dsn and --redis-url."
            ) from None

    def check_alive(self) -> None:
        """Raises BenchError, with the end of its log, if a server of ours has ended."""
        if self.server is not None:
            self.server.check_alive()


def deployed(target: str, *, postgres_dsn: str, redis_url: str) -> System:
    """One that runs already; its books can be looked at if both stores are named."""
    if not (postgres_dsn and redis_url):
        return System(target, None)
    stores = {"postgres_dsn": postgres_dsn, "redis_url": redis_url}
    try:
        return System(target, config.load(Settings, env={}, overrides=stores).settings)
    except config.SettingsError as error:
        raise LoadTestError(str(error)) from None


@asynccontextmanager
async def embedded(folder: Path, logs: Path) -> AsyncIterator[System]:
    """PostgreSQL (fsync on), Valkey and one server as our children; the data in `folder`."""
    async with AsyncExitStack() as stack:
        engines = await stack.enter_async_context(Engines(folder))
        versioned, repeatable = bootstrap.migration_sources()
        await postgres.migrate(engines.postgres_dsn, versioned=versioned, repeatable=repeatable)
        stores = {"GUERDON_POSTGRES_DSN": engines.postgres_dsn, "GUERDON_REDIS_URL": engines.redis_url}
        settings = {
            **stores,
            "GUERDON_GRPC_PORT": "0",
            "GUERDON_METRICS_PORT": "0",
            "GUERDON_LOG_FORMAT": "json",
            "GUERDON_LOG_LEVEL": "warning",
        }
        child = Child(SERVER, ["-m", "guerdon_server", "serve", "--json"], folder=logs, settings=settings)
        server = await stack.enter_async_context(child)
        yield System(
            target=server.target,
            stores=config.load(Settings, env=stores).settings,
            pids={SERVER: server.pid, **engines.pids},
            versions=engines.versions,
            server=server,
        )
