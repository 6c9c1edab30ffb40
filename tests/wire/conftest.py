from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from guerdon_server import bootstrap
from guerdon_server.platform import postgres, redis
from guerdon_server.platform.engines import Engines
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, ask, fresh, opened
from tests.issuing.proof import at_rest, proven
from tests.transports import TRANSPORTS

# All that says what was configured and what was given; not who serves and who leads, which changes by itself.
_TABLES = (
    *("asset", "entrance", "promotion", "promotion_entrance", "prize", "account", "subject", "principal", "batch"),
    *("transfer", "request", "operation"),
)


@dataclass(frozen=True, slots=True)
class House:
    """One server with a small catalogue, and a look behind the counter."""

    desk: Desk
    target: str
    settings: Settings

    async def everything(self) -> dict[str, Any]:
        """Each row of the ledger and the catalogue, and each field of the gate."""
        pool = await postgres.create_pool(self.settings.postgres_dsn, size_min=1, size_max=1, application_name="look")
        client = redis.connect(self.settings.redis_url)
        try:
            found: dict[str, Any] = {
                table: [tuple(row) for row in await pool.fetch(f"SELECT * FROM guerdon.{table} ORDER BY 1, 2")]  # noqa: S608
                for table in _TABLES
            }
            for key in sorted(await client.keys("guerdon:*")):
                found[str(key)] = await client.hgetall(key)
        finally:
            await client.aclose()
            pool.terminate()
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=TRANSPORTS)
async def house(request: pytest.FixtureRequest, engines: Engines, migrated_template: str) -> AsyncIterator[House]:
    """Served to a whole module, since nothing that is refused may leave a trace."""
    name = fresh("wire").replace("-", "_")
    connection = await postgres.connect(engines.postgres_dsn)
    await connection.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template} STRATEGY wal_log")
    url = engines.redis_url.rsplit("/", 1)[0] + "/15"
    client = redis.connect(url)
    await client.flushdb()
    await client.aclose()
    settings = Settings(
        postgres_dsn=engines.postgres.dsn_for(name),
        redis_url=url,
        grpc_port=0,
        metrics_port=0,
        transport=request.param,
        message_bytes_max=1 << 20,
        reconcile_interval_ms=60_000,
        test_mode=True,
    )
    async with bootstrap.running(settings) as endpoints, opened(endpoints.grpc) as desk:
        await _furnish(desk)
        await at_rest(settings)
        yield House(desk, endpoints.grpc, settings)
        await proven(settings)
    await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()


async def _furnish(desk: Desk) -> None:
    """Promotion spring (checkout): welcome, cashback; promotion autumn (door): leaf; one grant, r-given, to ann."""
    await desk.opens(budgets={"USD/2": 10_000})
    await desk.coupon(stock=10, limit=5)
    await desk.cashback()
    await desk.opens("autumn", entrances=("door",))
    await desk.coupon("leaf", promotion_id="autumn", stock=10)
    await desk.grant(ask("r-given"))
    await desk.grant(ask("r-given", promotion_id="autumn", entrance_id="door", prize_id="leaf"))
