"""The figures that alerts rest on: from a whole server, as a scrape sees them."""

from __future__ import annotations

import asyncio
import dataclasses
import urllib.request
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from guerdon.v1 import prize_pb2 as prize
from guerdon_server import bootstrap
from guerdon_server.core.issuance.postgres.capacity_watch import ACCOUNTS_MAX, PROMOTIONS_MAX
from guerdon_server.platform import postgres
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, ask, eventually, fresh, opened, outcome
from tests.transports import on_both_transports

_CONNECTIONS = 3  # for reads: a third of all


@pytest_asyncio.fixture
async def settings(settings: Settings) -> Settings:
    """Background looks as often as they can be."""
    return dataclasses.replace(
        settings,
        capacity_interval_seconds=0.1,
        invariants_interval_seconds=1,
        postgres_connections_max=3 * _CONNECTIONS,
        requests_in_flight_max=1000,
        calls_per_connection_max=10_000,
    )


@pytest_asyncio.fixture
async def desk(endpoints: bootstrap.Endpoints) -> AsyncIterator[Desk]:
    async with opened(endpoints.grpc) as desk:
        yield desk


async def scrape(endpoints: bootstrap.Endpoints, name: str) -> list[tuple[Mapping[str, str], float]]:
    """Labels and values of a metric, by the name that it is queried by."""

    def read() -> str:
        with urllib.request.urlopen(f"http://{endpoints.metrics}/metrics") as response:
            return str(response.read().decode())

    families = text_string_to_metric_families(await asyncio.to_thread(read))
    return [(s.labels, s.value) for family in families for s in family.samples if s.name == name]


async def value(endpoints: bootstrap.Endpoints, name: str, **labels: str) -> float:
    """Of the one sample with these labels among its own."""
    (found,) = [v for known, v in await scrape(endpoints, name) if labels.items() <= known.items()]
    return found


async def test_used_capacity_is_shown_by_promotion_and_item(endpoints: bootstrap.Endpoints, desk: Desk) -> None:
    await desk.opens(budgets={"USD/2": 1000, "COIN": None})
    await desk.coupon(stock=4)
    await desk.coupon("endless", stock=None)
    await desk.cashback(basis_points=10_000)
    await desk.grant(ask(user_id="ann"))
    await desk.grant(ask(user_id="bob", prize_id="cashback", order_cents=250))

    async def shown() -> bool:
        issued = await scrape(endpoints, "guerdon_capacity_issued_units")
        return {(s["kind"], s["item"]): v for s, v in issued} == {("stock", "welcome"): 1, ("budget", "USD/2"): 250}

    await eventually(shown)
    assert await value(endpoints, "guerdon_capacity_units", promotion="spring", item="welcome") == 4
    assert await value(endpoints, "guerdon_capacity_units", promotion="spring", item="USD/2") == 1000

    await desk.goes("PAUSED")

    async def gone() -> bool:
        return not await scrape(endpoints, "guerdon_capacity_units")

    await eventually(gone)


async def test_used_capacity_is_bounded_and_shows_the_fullest(endpoints: bootstrap.Endpoints, desk: Desk) -> None:
    more = PROMOTIONS_MAX + 3
    for number in range(more):
        await desk.opens(f"p-{number:02}", active=number > 0)
        await desk.coupon(f"z-{number:02}", promotion_id=f"p-{number:02}", stock=100)
    for number in range(ACCOUNTS_MAX + 3):
        await desk.coupon(f"more-{number:02}", promotion_id="p-03", stock=100)
    for number, prize_id in enumerate(("more-05", "z-22", "z-20")):
        promotion_id = prize_id.replace("z", "p") if prize_id.startswith("z") else "p-03"
        for _ in range(3 - number):
            await desk.grant(ask(fresh(), user_id=fresh("u"), promotion_id=promotion_id, prize_id=prize_id))
    await desk.coupon("over", promotion_id="p-21", stock=1)
    await desk.grant(ask(fresh(), promotion_id="p-21", prize_id="over"))

    async def all_there() -> bool:
        found = await scrape(endpoints, "guerdon_capacity_issued_units")
        used = {labels["item"]: issued for labels, issued in found if issued}
        used.pop("over", None)  # at its end: shown last, or not at all
        return used == {"more-05": 3, "z-22": 2, "z-20": 1}

    await eventually(all_there)
    found = await scrape(endpoints, "guerdon_capacity_units")
    by_promotion: dict[str, int] = {}
    for labels, _ in found:
        by_promotion[labels["promotion"]] = by_promotion.get(labels["promotion"], 0) + 1
    assert len(by_promotion) == PROMOTIONS_MAX
    assert by_promotion["p-03"] == ACCOUNTS_MAX
    assert "p-00" not in by_promotion, "a draft is not running"


async def test_units_given_beyond_the_stock_are_counted(
    endpoints: bootstrap.Endpoints, desk: Desk, pool: postgres.Pool
) -> None:
    await desk.opens(budgets={"USD/2": 100}, active=False)
    await desk.coupon(stock=3)
    assert await value(endpoints, "guerdon_over_issued_units", kind="stock") == 0
    await pool.execute("ALTER TABLE guerdon.account DROP CONSTRAINT account_floor")
    await pool.execute("UPDATE guerdon.account SET debits = credits + 5 WHERE kind = 2")
    await pool.execute("UPDATE guerdon.account SET debits = credits + 7 WHERE kind = 5")

    async def found() -> bool:
        over = {labels["kind"]: units for labels, units in await scrape(endpoints, "guerdon_over_issued_units")}
        return over == {"stock": 5, "budget": 7}

    await eventually(found)
    assert await value(endpoints, "guerdon_invariant_violations") == 2


async def test_who_waits_for_a_connection_is_seen_and_how_long(
    endpoints: bootstrap.Endpoints, desk: Desk, pool: postgres.Pool
) -> None:
    await desk.opens()
    await desk.coupon()
    before = await value(endpoints, "guerdon_pool_wait_seconds_count", pool="reads")
    async with pool.acquire() as holder, holder.transaction():
        await holder.execute("LOCK TABLE guerdon.account IN ACCESS EXCLUSIVE MODE")
        reads = [asyncio.ensure_future(desk.stock()) for _ in range(_CONNECTIONS + 4)]

        async def some_wait() -> bool:
            return await value(endpoints, "guerdon_pool_waiting", pool="reads") >= 4

        await eventually(some_wait)
        assert await value(endpoints, "guerdon_pool_connections", pool="reads", state="busy") == _CONNECTIONS
    await asyncio.gather(*reads)
    assert await value(endpoints, "guerdon_pool_connections_max", pool="reads") == _CONNECTIONS
    assert await value(endpoints, "guerdon_pool_wait_seconds_count", pool="reads") > before + _CONNECTIONS


async def test_a_queue_that_waits_grows_old_and_refuses(settings: Settings, pool: postgres.Pool) -> None:
    quick = dataclasses.replace(settings, queue_ms_max=250)
    async with bootstrap.running(quick) as endpoints, opened(endpoints.grpc) as desk:
        await desk.opens()
        await desk.coupon()
        await desk.grant(ask())
        async with pool.acquire() as holder, holder.transaction():
            await holder.execute("LOCK TABLE guerdon.request IN ACCESS EXCLUSIVE MODE")
            asked = []

            async def refused() -> bool:
                asked.append(asyncio.ensure_future(outcome(desk.issue(ask(user_id=fresh("u"))))))
                return await value(endpoints, "guerdon_queue_refusals_total", stage="commit") > 0

            await eventually(refused)
            assert await value(endpoints, "guerdon_queue_age_seconds", stage="commit") > 0.25
        await asyncio.gather(*asked)

        async def empty() -> bool:
            return await value(endpoints, "guerdon_queue_age_seconds", stage="commit") == 0

        await eventually(empty)


@on_both_transports
async def test_a_call_that_runs_out_of_time_is_counted_as_such(
    endpoints: bootstrap.Endpoints, desk: Desk, pool: postgres.Pool
) -> None:
    async def handled(code: str) -> float:
        return await value(endpoints, "grpc_server_handled_total", grpc_method="GetPrizeStock", grpc_code=code)

    await desk.opens()
    await desk.coupon()
    request = prize.GetPrizeStockRequest(prize_id="welcome")
    async with pool.acquire() as holder, holder.transaction():
        await holder.execute("LOCK TABLE guerdon.account IN ACCESS EXCLUSIVE MODE")
        late: Any = await outcome(desk.prizes.GetPrizeStock(request, timeout=0.2))
        assert late.code == grpc.StatusCode.DEADLINE_EXCEEDED.name
        gone = desk.prizes.GetPrizeStock(request, timeout=60)
        await asyncio.sleep(0)

        async def both() -> bool:
            gone.cancel()
            return await handled("DEADLINE_EXCEEDED") == 1

        await eventually(both)
    assert await handled("UNAVAILABLE") == 0, "it is there before it happens, so that a rate sees the first one"


async def test_an_engine_that_answers_is_not_silent(endpoints: bootstrap.Endpoints) -> None:
    for engine in ("postgres", "redis"):

        async def answered(engine: str = engine) -> bool:
            return await value(endpoints, "guerdon_engine_answer_seconds_count", engine=engine) > 0

        await eventually(answered)
        assert await value(endpoints, "guerdon_engine_silent_seconds", engine=engine) < 10
    assert await value(endpoints, "guerdon_redis_memory_bytes") > 0
    assert await value(endpoints, "guerdon_redis_memory_max_bytes") >= 0


async def test_rounds_of_the_sweeper_are_counted_by_their_end(endpoints: bootstrap.Endpoints) -> None:
    async def swept() -> bool:
        return await value(endpoints, "guerdon_sweeps_total", result="done") > 2

    await eventually(swept)
