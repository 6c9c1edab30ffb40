"""Between the commit and its settlement the gate still takes a granted request for one in flight."""

from __future__ import annotations

from guerdon_server.core.stock.redis.store import keys
from guerdon_server.platform import postgres, redis
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, ask
from tests.issuing.proof import at_rest


async def test_a_grant_whose_settlement_is_late_is_replayed(
    desk: Desk, settings: Settings, pool: postgres.Pool, redis_client: redis.Client
) -> None:
    await desk.opens()
    await desk.coupon(stock=5)
    granted = await desk.grant(ask("r-1"))
    row = await pool.fetchrow("SELECT promotion, admission FROM guerdon.request WHERE request_id = 'r-1'")
    assert row is not None
    await at_rest(settings)  # else the settlement would come after all
    _, markers, _, _ = keys(row["promotion"])
    await redis.call(redis_client, "HSET", markers, "r-1", row["admission"])

    assert await desk.grant(ask("r-1"), replayed=True) == granted
    assert (await desk.became("r-1")).granted == granted
