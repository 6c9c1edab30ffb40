"""A gate that does not know a grant, and a fence that is far ahead: the ledger's answer is the answer."""

from __future__ import annotations

import dataclasses

import pytest

from guerdon_server import bootstrap
from guerdon_server.core.issuance.pipeline import AdmissionIds
from guerdon_server.core.stock.redis.store import keys
from guerdon_server.platform import postgres, redis
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, ask, eventually, opened, reason
from tests.issuing.proof import at_rest, proven

_FAR_MS = 4_000_000_000_000


@pytest.mark.parametrize("full", ["stock", "limit", "budget"])
async def test_a_refusal_by_a_gate_that_was_just_rebuilt_does_not_hide_a_grant(
    desk: Desk, settings: Settings, pool: postgres.Pool, redis_client: redis.Client, full: str
) -> None:
    """Until the backfill has marked every grant; here it stands still."""
    await desk.opens(budgets={"USD/2": 50})
    await desk.coupon(stock=1 if full == "stock" else None, limit=1 if full == "limit" else 0)
    await desk.cashback()
    request = ask("r-1", prize_id="cashback", order_cents=1000) if full == "budget" else ask("r-1")
    granted = await desk.grant(request)
    await at_rest(settings)  # its settlement would mark it again
    sid = await pool.fetchval("SELECT sid FROM guerdon.promotion")
    meta, markers, _, _ = keys(sid)
    await redis.call(redis_client, "HDEL", markers, "r-1")
    await redis.call(redis_client, "HSET", meta, "complete", "0", "touched", _FAR_MS)

    assert await desk.grant(request, replayed=True) == granted
    other = ask(prize_id=request.prize_id, order_cents=1000)
    expected = {"stock": "SOLD_OUT", "limit": "LIMIT_REACHED", "budget": "BUDGET_EXHAUSTED"}
    assert reason(await desk.rejection(other)) == expected[full]


async def test_a_retry_goes_above_the_fence_of_a_worker_whose_clock_is_ahead(desk: Desk, pool: postgres.Pool) -> None:
    await desk.opens()
    await desk.coupon(stock=5)
    await desk.grant(ask())
    sid = await pool.fetchval("SELECT sid FROM guerdon.promotion")
    ahead = AdmissionIds(7, now_ms=_FAR_MS).next()
    await pool.execute("SELECT * FROM guerdon.fence_requests($1, $2, $3)", [sid], ["r-1"], [ahead])

    await desk.grant(ask("r-1"))

    admission = await pool.fetchval("SELECT admission FROM guerdon.request WHERE request_id = 'r-1'")
    assert admission > ahead
    assert (await desk.stock()).issued_units == 2


async def test_a_request_that_the_gate_has_forgotten_is_let_in_and_not_granted_again(
    desk: Desk, settings: Settings, pool: postgres.Pool, redis_client: redis.Client
) -> None:
    await desk.opens()
    await desk.coupon(stock=5)
    granted = await desk.grant(ask("r-1"))
    _, markers, _, _ = keys(await pool.fetchval("SELECT sid FROM guerdon.promotion"))
    for _ in range(2):
        await at_rest(settings)  # its settlement would mark it again
        await redis.call(redis_client, "HDEL", markers, "r-1")

        assert await desk.grant(ask("r-1"), replayed=True) == granted
    assert (await desk.stock()).issued_units == 1


async def test_an_epoch_that_was_replaced_elsewhere_is_noticed_at_the_commit(
    settings: Settings, pool: postgres.Pool
) -> None:
    """By the call that meets it, not by a background job: here none comes."""
    seldom = dataclasses.replace(settings, reconcile_interval_ms=60_000)
    async with bootstrap.running(seldom) as endpoints, opened(endpoints.grpc) as desk:
        await desk.opens()
        await desk.coupon(stock=5)
        await desk.grant(ask())
        before = await pool.fetchval("SELECT gate_epoch FROM guerdon.promotion")
        await pool.execute("SELECT guerdon.open_epoch(sid, gate_epoch, 7, gate_run_id) FROM guerdon.promotion")

        await desk.grant(ask("r-1"))

        assert await pool.fetchval("SELECT gate_epoch FROM guerdon.promotion") > before
        assert (await desk.stock()).issued_units == 2
    await proven(settings)


async def test_a_fenced_request_is_granted_after_the_gate_was_rebuilt(
    desk: Desk, pool: postgres.Pool, redis_client: redis.Client
) -> None:
    """The backfill marks what was granted, and nothing else that the ledger holds under a request's key."""
    await desk.opens()
    await desk.coupon(stock=5)
    granted = await desk.grant(ask("r-1"))
    sid = await pool.fetchval("SELECT sid FROM guerdon.promotion")
    await pool.execute("SELECT * FROM guerdon.fence_requests($1, $2, $3)", [sid], ["r-2"], [1])
    await redis_client.flushdb()
    await desk.grant(ask())
    meta, _, _, _ = keys(sid)

    async def backfilled() -> bool:
        return bool(await redis.call(redis_client, "HGET", meta, "complete") == b"1")

    await eventually(backfilled)
    await desk.grant(ask("r-2"))
    assert await desk.grant(ask("r-1"), replayed=True) == granted
