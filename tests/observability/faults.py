"""Real faults, one for each alert: what is broken while the block lasts."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TypeAlias

import psutil

from guerdon.v1 import prize_pb2 as prize
from guerdon_server.core.stock.redis.store import keys
from guerdon_server.platform import postgres, redis
from tests.issuing.desk import ask, fresh, outcome
from tests.observability.stage import CALLS_IN_FLIGHT_MAX, CONNECTIONS_MAX, PROMOTION, Stage

Fault: TypeAlias = Callable[[Stage], AbstractAsyncContextManager[None]]
FAULTS: dict[str, tuple[Fault, frozenset[str]]] = {}
"""By name: the fault, and the alerts that must fire while it lasts. Those of burn rates come first: the others, too,
make calls slow or fail, and these alerts look back longest."""


def _fires(*alerts: str) -> Callable[[Callable[[Stage], AsyncIterator[None]]], Fault]:
    def register(function: Callable[[Stage], AsyncIterator[None]]) -> Fault:
        fault = asynccontextmanager(function)
        FAULTS[function.__name__.lstrip("_").replace("_", " ")] = fault, frozenset(alerts)
        return fault

    return register


# --- what is away, slow or full ---------------------------------------------------------------------------------------


@_fires("GuerdonLatencyBurn")
async def _redis_slow(stage: Stage) -> AsyncIterator[None]:
    """Answers only now and then."""
    async with _redis(stage) as client, _meanwhile(lambda: _pause(client)):
        yield


async def _pause(client: redis.Client) -> None:
    await redis.call(client, "CLIENT", "PAUSE", 1500, "ALL")  # less than the server waits for an answer
    await asyncio.sleep(1.52)


@_fires("GuerdonEngineAway", "GuerdonAvailabilityBurn", "GuerdonSweeperStuck", "GuerdonBooksNotLookedAt")
async def _engines_frozen(stage: Stage) -> AsyncIterator[None]:
    async with _frozen(stage.engines.pids.values()):
        yield


@_fires("GuerdonRedisNearlyFull")
async def _redis_nearly_full(stage: Stage) -> AsyncIterator[None]:
    async with _redis(stage) as client:

        async def squeeze() -> None:
            memory = await redis.memory(client)
            await redis.call(client, "CONFIG", "SET", "maxmemory", int(memory.used_bytes * 1.1))
            await asyncio.sleep(0.2)

        async with _meanwhile(squeeze):
            yield
        await redis.call(client, "CONFIG", "SET", "maxmemory", 0)


@_fires("GuerdonLoadShed")
async def _crowd(stage: Stage) -> AsyncIterator[None]:
    """Many times more calls at once than may be in flight."""

    async def rush() -> None:
        requests = [ask(user_id=fresh("crowd")) for _ in range(6 * CALLS_IN_FLIGHT_MAX)]
        await asyncio.gather(*(outcome(stage.desk.issue(request)) for request in requests))

    async with _meanwhile(rush):
        yield


@_fires("GuerdonEventLoopLate")
async def _little_cpu(stage: Stage) -> AsyncIterator[None]:
    """The server is stopped for most of the time."""

    async def stutter() -> None:
        stage.server.signal(signal.SIGSTOP)
        await asyncio.sleep(1.0)
        stage.server.signal(signal.SIGCONT)
        await asyncio.sleep(0.15)

    async with _meanwhile(stutter):
        yield
    stage.server.signal(signal.SIGCONT)


@_fires("GuerdonConnectionsExhausted")
async def _accounts_locked(stage: Stage) -> AsyncIterator[None]:
    """By somebody in PostgreSQL, so that every read of a balance holds its connection."""
    connection = await postgres.connect(stage.engines.postgres_dsn)

    async def read() -> None:
        await outcome(stage.desk.prizes.GetPrizeStock(prize.GetPrizeStockRequest(prize_id="welcome"), timeout=5))

    try:
        async with connection.transaction(), asyncio.TaskGroup() as group:
            await connection.execute("LOCK TABLE guerdon.account IN ACCESS EXCLUSIVE MODE")
            readers = [group.create_task(read()) for _ in range(3 * CONNECTIONS_MAX)]
            yield
            for reader in readers:
                reader.cancel()
    finally:
        await connection.close()


# --- what is wrong ----------------------------------------------------------------------------------------------------


@_fires("GuerdonBudgetNearlyBurnt")
async def _budget_used(stage: Stage) -> AsyncIterator[None]:
    """90 of 100 coins."""
    promotion_id, prize_id = fresh("thrifty"), fresh("ten")
    await stage.desk.opens(promotion_id, budgets={"COIN": 100})
    await stage.desk.offers(
        prize_id,
        promotion_id=promotion_id,
        kind=prize.PRIZE_KIND_COIN,
        stock=prize.Stock(unlimited=True),
        value=prize.PrizeValue(asset="COIN", fixed_units=10),
    )
    for _ in range(9):
        await stage.desk.grant(ask(fresh("ten"), promotion_id=promotion_id, prize_id=prize_id))
    yield
    await stage.desk.goes("ENDED", promotion_id)


@_fires("GuerdonGateDrift")
async def _drift(stage: Stage) -> AsyncIterator[None]:
    """Somebody writes to Redis: less of everything is used than the ledger says."""
    group = await _group(stage)
    async with _redis(stage) as client:
        meta = keys(group)[0]
        used = [name for name in await redis.call(client, "HKEYS", meta) if name.startswith(b"u:")]
        assert used
        for name in used:
            await redis.call(client, "HINCRBY", meta, name, -1000)
        yield


@_fires("GuerdonAdmissionsUnresolved")
async def _admission_left_open(stage: Stage) -> AsyncIterator[None]:
    """One of a worker that lives, and two minutes old."""
    group = await _group(stage)
    connection = await postgres.connect(stage.engines.postgres_dsn)
    incarnation = await connection.fetchval("SELECT max(incarnation) FROM guerdon.worker WHERE stopped_at IS NULL")
    await connection.close()
    admission = str(1 << 20 | incarnation)
    record = f"{time.time_ns() // 1_000_000 - 120_000} left-open -"
    async with _redis(stage) as client:
        await client.hset(keys(group)[2], admission, record)
        yield
        await client.hdel(keys(group)[2], admission)


@_fires("GuerdonOverIssued", "GuerdonBooksViolated")
async def _books_tampered_with(stage: Stage) -> AsyncIterator[None]:
    """Somebody drops the constraint and takes 5 units more out of a stock than there are."""
    promotion_id, prize_id = fresh("tampered"), fresh("three")
    await stage.desk.opens(promotion_id, active=False)
    await stage.desk.coupon(prize_id, promotion_id=promotion_id, stock=3)
    take = """UPDATE guerdon.account SET debits = debits + $2
        WHERE id = (SELECT stock_account FROM guerdon.prize WHERE prize_id = $1)"""
    connection = await postgres.connect(stage.engines.postgres_dsn)
    constraint = await connection.fetchval(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'account_floor'"
    )
    await connection.execute("ALTER TABLE guerdon.account DROP CONSTRAINT account_floor")
    await connection.execute(take, prize_id, 3 + 5)
    yield
    await connection.execute(take, prize_id, -(3 + 5))
    await connection.execute(f"ALTER TABLE guerdon.account ADD CONSTRAINT account_floor {constraint}")
    await connection.close()


@_fires("GuerdonServerDown")
async def _server_frozen(stage: Stage) -> AsyncIterator[None]:
    async with _frozen([stage.server.child.pid]):
        yield


@asynccontextmanager
async def _frozen(pids: Iterable[int]) -> AsyncIterator[None]:
    """These processes and all that they started."""
    stopped = []
    for pid in pids:
        process = psutil.Process(pid)
        stopped += [process, *process.children(recursive=True)]
    for process in stopped:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in stopped:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)


@asynccontextmanager
async def _meanwhile(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Again and again beside the block; the last round is ended."""
    over = False

    async def repeat() -> None:
        while not over:
            await work()

    async with asyncio.TaskGroup() as group:
        group.create_task(repeat())
        try:
            yield
        finally:
            over = True


@asynccontextmanager
async def _redis(stage: Stage) -> AsyncIterator[redis.Client]:
    client = redis.connect(stage.engines.redis_url)
    try:
        yield client
    finally:
        await client.aclose()


async def _group(stage: Stage) -> int:
    connection = await postgres.connect(stage.engines.postgres_dsn)
    try:
        return int(await connection.fetchval("SELECT sid FROM guerdon.promotion WHERE promotion_id = $1", PROMOTION))
    finally:
        await connection.close()
