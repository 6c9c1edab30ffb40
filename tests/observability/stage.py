"""A loaded server on engines of its own, and the Prometheus that watches it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from guerdon.v1 import account_pb2 as account
from guerdon.v1 import prize_pb2 as prize
from guerdon_server.bootstrap import migration_sources
from guerdon_server.platform import postgres
from guerdon_server.platform.engines import Engines
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, ask, item, opened, outcome
from tests.observability.prometheus import Prometheus, scraping
from tests.running.processes import Process, serving

PROMOTION = "spring"
VARIABLES = {"$job": "guerdon", "$promotion": PROMOTION, "$__rate_interval": "5s", "$__range": "1h"}
"""What Grafana would fill into the queries of dashboards."""
CALLS_IN_FLIGHT_MAX = 64
CONNECTIONS_MAX = 6
# Quick to look, and slow to fence: an admission that a test leaves open has to stay so. And nothing is dropped unseen
# after a fault that stops the server: whoever asks for something then must get it.
_SERVER = {
    "GUERDON_INVARIANTS_INTERVAL_SECONDS": "1",
    "GUERDON_CAPACITY_INTERVAL_SECONDS": "0.5",
    "GUERDON_RECONCILE_INTERVAL_MS": "200",
    "GUERDON_LEASE_SECONDS": "3",
    "GUERDON_ADMISSION_AGE_MS_MAX": "3600000",
    "GUERDON_REQUESTS_IN_FLIGHT_MAX": str(CALLS_IN_FLIGHT_MAX),
    "GUERDON_CALLS_PER_CONNECTION_MAX": "1000",
    "GUERDON_POSTGRES_CONNECTIONS_MAX": str(CONNECTIONS_MAX),
    "GUERDON_BACKLOG_SECONDS_MAX": "60",
    "GUERDON_LOG_LEVEL": "error",
}
_CALLERS = 4
_CALL_SECONDS_MAX = 5.0
_PAUSE_SECONDS = 0.005
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Stage:
    """All that runs."""

    engines: Engines
    settings: Settings
    server: Process
    desk: Desk
    prometheus: Prometheus


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Stage]:
    """Engines, a server process, callers, Prometheus; all of them are gone after the block."""
    async with contextlib.AsyncExitStack() as stack:
        engines = await stack.enter_async_context(Engines(folder / "engines", durable=False))
        versioned, repeatable = migration_sources()
        await postgres.migrate(engines.postgres_dsn, versioned=versioned, repeatable=repeatable)
        settings = Settings(postgres_dsn=engines.postgres_dsn, redis_url=engines.redis_url, test_mode=True)
        server = await stack.enter_async_context(serving(settings, **_SERVER))
        desk = await stack.enter_async_context(opened(server.grpc))
        await _offer(desk)
        await stack.enter_async_context(_loaded(desk))
        prometheus = await stack.enter_async_context(scraping(folder / "prometheus", server.metrics))
        yield Stage(engines, settings, server, desk, prometheus)


async def _offer(desk: Desk) -> None:
    await desk.opens(PROMOTION, budgets={"COIN": 10_000_000, "USD/2": 50_000_000})
    await desk.coupon("welcome", stock=2_000_000)
    await desk.coupon("rare", stock=5)
    await desk.coupon("one-each", stock=None, limit=1)
    await desk.cashback("cashback")
    await desk.offers(
        "coins",
        promotion_id=PROMOTION,
        kind=prize.PRIZE_KIND_COIN,
        stock=prize.Stock(unlimited=True),
        value=prize.PrizeValue(asset="COIN", fixed_units=1),
    )


@asynccontextmanager
async def _loaded(desk: Desk) -> AsyncIterator[None]:
    callers = [asyncio.create_task(_call_for_ever(desk, random.Random(number))) for number in range(_CALLERS)]
    try:
        yield
    finally:
        for caller in callers:
            caller.cancel()
        ended = await asyncio.gather(*callers, return_exceptions=True)
    for end in ended:
        if not isinstance(end, asyncio.CancelledError):
            raise AssertionError("a caller gave up") from end


async def _call_for_ever(desk: Desk, rng: random.Random) -> None:
    """A day of a shop: what is granted, replayed, rejected, mistaken; whatever an outage answers is an answer, too."""
    last = ask()
    while True:
        number = next(_numbers)
        user = f"u-{rng.randrange(500)}"
        last, before = ask(f"r-{number}", user_id=user), last
        asked = [
            *(last, before),
            *(
                ask(f"{prize_id}-{number}", user_id=user, prize_id=prize_id)
                for prize_id in ("coins", "rare", "no-such")
            ),
            ask(f"cashback-{number}", user_id=user, prize_id="cashback", order_cents=rng.randrange(100, 20_000)),
            ask(f"one-each-{number}", user_id=user, prize_id="one-each"),
        ]
        for request in asked:
            await outcome(desk.issue(request, timeout=_CALL_SECONDS_MAX))
            await asyncio.sleep(_PAUSE_SECONDS)
        items = [item(f"batch-{number}-{place}", user_id=user) for place in range(rng.randrange(5, 50))]
        await outcome(desk.batch(items, timeout=_CALL_SECONDS_MAX))
        await outcome(desk.accounts.ListBalances(account.ListBalancesRequest(user_id=user), timeout=_CALL_SECONDS_MAX))
