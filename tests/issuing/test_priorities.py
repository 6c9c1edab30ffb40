"""Who may take what from whom when there is too much: reads nothing from issuing, nobody anything from operators."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from guerdon.v1 import account_pb2 as account
from guerdon.v1 import prize_pb2 as prize
from guerdon_server import bootstrap
from guerdon_server.platform import postgres
from guerdon_server.platform.failpoints import Failpoints
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, Refusal, ask, eventually, opened, outcome, reason
from tests.issuing.proof import at_rest, proven
from tests.transports import on_both_transports
from tests.transports.test_calls import figure

pytestmark = on_both_transports

_TRIAL_BALANCE_HANGS = "postgres.select.account.asset.kind.before=delay:600"
_OVERLOADED = ("RESOURCE_EXHAUSTED", "OVERLOADED")


def trial_balance(desk: Desk, *, timeout: float | None = None) -> Awaitable[account.GetTrialBalanceResponse]:
    """A read that can be held up, and no other with it."""
    return desk.accounts.GetTrialBalance(account.GetTrialBalanceRequest(), timeout=timeout)


@asynccontextmanager
async def held(endpoints: bootstrap.Endpoints, calls: Sequence[Awaitable[Any]], priority: str) -> AsyncIterator[None]:
    """While the block runs these are in flight and wait for something; then they are given up."""
    tasks = [asyncio.ensure_future(outcome(call)) for call in calls]

    async def in_flight(calls: int) -> bool:
        return await figure(endpoints, "guerdon_calls_in_flight", priority=priority) == calls

    await eventually(lambda: in_flight(len(tasks)))
    try:
        yield
        assert not [task.result() for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await eventually(lambda: in_flight(0))


async def test_reads_that_hang_are_bounded_and_take_nothing_from_issuing_and_operators(settings: Settings) -> None:
    patient = dataclasses.replace(settings, reads_in_flight_max=12, read_seconds_max=300)
    failpoints = Failpoints(_TRIAL_BALANCE_HANGS)
    async with (
        bootstrap.running(patient, failpoints=failpoints) as endpoints,
        opened(endpoints.grpc) as desk,
        opened(endpoints.grpc) as reader,
    ):
        await desk.opens()
        await desk.coupon()
        await desk.grant(ask("known"))
        async with held(endpoints, [trial_balance(reader) for _ in range(12)], "reading"):
            for read in (trial_balance(desk, timeout=20), desk.stock(), trial_balance(reader, timeout=20)):
                refused = await outcome(read)
                assert isinstance(refused, Refusal)
                assert (refused.code, refused.reason, refused.domain) == (*_OVERLOADED, "guerdon.dev")
                assert refused.retry_after_ms
            assert await figure(endpoints, "guerdon_calls_shed", priority="reading") == 3

            granted = await desk.grant(ask())
            assert (await desk.became(granted.request_id)).granted == granted
            named = prize.GetIssuanceRequest(issuance_id=granted.issuance_id)
            by_id = await desk.prizes.GetIssuance(named, timeout=20)
            assert by_id.granted == granted

            await desk.goes("PAUSED")
            assert reason(await desk.rejection(ask())) == "PROMOTION_PAUSED"
            await desk.grant(ask("known"), replayed=True)  # found in the ledger
            assert await figure(endpoints, "guerdon_calls_shed", priority="issuing") == 0
        assert (await desk.stock()).issued_units == 2
        await at_rest(settings)
    await proven(settings)


async def test_a_pause_goes_through_while_issuing_is_at_its_limit(settings: Settings, pool: postgres.Pool) -> None:
    small = dataclasses.replace(settings, requests_in_flight_max=8, commit_seconds_max=300)
    async with (
        bootstrap.running(small) as endpoints,
        opened(endpoints.grpc) as desk,
        opened(endpoints.grpc) as caller,
    ):
        await desk.opens()
        await desk.opens("summer", entrances=())
        await desk.coupon()
        await desk.grant(ask())
        async with pool.acquire() as session, session.transaction():
            await session.execute("SELECT FROM guerdon.account FOR UPDATE")
            async with held(endpoints, [caller.issue(ask(), timeout=None) for _ in range(8)], "issuing"):
                for desperate in (desk, caller):
                    refused = await outcome(desperate.issue(ask()))
                    assert isinstance(refused, Refusal)
                    assert (refused.code, refused.reason) == _OVERLOADED
                    assert refused.retry_after_ms
                assert await figure(endpoints, "guerdon_calls_shed", priority="issuing") == 2

                await desk.goes("PAUSED", "summer")
                assert (await desk.stock()).issued_units == 1  # and the operator sees what he does
                assert await figure(endpoints, "guerdon_calls_shed", priority="operating") == 0
        await at_rest(settings)
    await proven(settings)


async def test_operators_who_wait_for_locks_take_nothing_from_issuing_and_reads(
    settings: Settings, pool: postgres.Pool
) -> None:
    async with (
        bootstrap.running(settings) as endpoints,
        opened(endpoints.grpc) as desk,
        opened(endpoints.grpc) as operator,
    ):
        await desk.opens()
        await desk.coupon()
        await desk.opens("summer", entrances=())
        await desk.grant(ask("known"))
        await desk.goes("PAUSED")
        async with pool.acquire() as session, session.transaction():
            await session.execute("SELECT FROM guerdon.promotion WHERE promotion_id = 'summer' FOR UPDATE")
            changes = [operator.updates_promotion(["display_name"], "summer", display_name=f"n{n}") for n in range(20)]
            async with held(endpoints, changes, "operating"):
                await desk.grant(ask("known"), replayed=True)
                assert (await desk.stock()).issued_units == 1
                trial: account.GetTrialBalanceResponse = await trial_balance(desk, timeout=20)
                assert trial.balanced


async def test_issuing_and_a_pause_go_through_a_flood_of_lists(settings: Settings) -> None:
    """Three connections each ask for 50 lists at once, again and again."""
    busy = dataclasses.replace(settings, calls_per_connection_max=1000, reads_in_flight_max=32)
    async with bootstrap.running(busy) as endpoints, opened(endpoints.grpc) as desk:
        await desk.opens()
        await desk.coupon()
        known = [await desk.grant(ask()) for _ in range(20)]
        answers: Counter[str] = Counter()
        over = asyncio.Event()

        async def floods(reader: Desk) -> None:
            lists = prize.ListIssuancesRequest(promotion_id="spring", page_size=10)
            while not over.is_set():
                for answer in await asyncio.gather(*(outcome(reader.prizes.ListIssuances(lists)) for _ in range(50))):
                    answers[answer.reason if isinstance(answer, Refusal) else "listed"] += 1

        async with opened(endpoints.grpc) as one, opened(endpoints.grpc) as two, opened(endpoints.grpc) as three:
            flood = [asyncio.create_task(floods(reader)) for reader in (one, two, three)]
            await eventually(lambda: answers["OVERLOADED"] > 0)
            for _ in range(20):
                await desk.grant(ask())
            await desk.goes("PAUSED")
            for issuance in known:
                assert await desk.grant(ask(issuance.request_id), replayed=True) == issuance
            over.set()
            await asyncio.gather(*flood)
        assert answers.keys() == {"listed", "OVERLOADED"}, answers
        assert await figure(endpoints, "guerdon_calls_shed", priority="reading") == answers["OVERLOADED"]
        assert (await desk.stock()).issued_units == 40
        await at_rest(settings)
    await proven(settings)


async def test_when_to_come_back_is_told_to_the_retries_of_grpc(settings: Settings) -> None:
    """They know no RetryInfo, and would come back after a millisecond here."""
    failpoints = Failpoints()
    once = "redis.gate.admit.before=error@1"
    async with bootstrap.running(settings, failpoints=failpoints) as endpoints:
        async with opened(endpoints.grpc) as desk:
            await desk.opens()
            await desk.coupon()
            await desk.grant(ask())
            call = desk.prizes.IssuePrize(ask())
            with failpoints.armed(once):
                refused = await outcome(call)
            assert isinstance(refused, Refusal)
            assert refused.retry_after_ms
            trailers = dict(tuple(await call.trailing_metadata()))
            if settings.transport == "native":  # it keeps names that begin with grpc- to itself
                assert "grpc-retry-pushback-ms" not in trailers
                return
            assert trailers["grpc-retry-pushback-ms"] == str(refused.retry_after_ms)
            await desk.grant(ask())
        policy = (
            '{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 2, "initialBackoff": "0.001s",'
            ' "maxBackoff": "0.001s", "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"]}}]}'
        )
        async with grpc.aio.insecure_channel(endpoints.grpc, options=(("grpc.service_config", policy),)) as channel:
            started = time.monotonic()
            with failpoints.armed(once):
                await Desk(channel).grant(ask())
            assert time.monotonic() - started >= refused.retry_after_ms / 1000
