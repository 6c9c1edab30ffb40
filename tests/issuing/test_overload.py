"""More than it can do is refused before any work, with a time to come back; nothing is half done."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections import Counter

import grpc
import grpc.aio
import pytest

from guerdon.v1 import prize_pb2, prize_pb2_grpc
from guerdon_server import bootstrap
from guerdon_server.platform import postgres
from guerdon_server.platform.failpoints import Failpoints
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, Refusal, ask, item, kinds, opened, outcome
from tests.issuing.proof import at_rest, proven
from tests.transports import on_both_transports
from tests.transports.elsewhere import elsewhere

pytestmark = on_both_transports

_RETRIES = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "ABORTED", "CANCELLED", "RESOURCE_EXHAUSTED"],
            },
        }
    ]
}

_RETRYING = (("grpc.service_config", json.dumps(_RETRIES)), ("grpc.use_local_subchannel_pool", 1))


async def test_calls_beyond_those_in_flight_are_refused_and_the_others_served(settings: Settings) -> None:
    tiny = dataclasses.replace(settings, requests_in_flight_max=4, calls_per_connection_max=1000)
    async with bootstrap.running(tiny) as endpoints, opened(endpoints.grpc) as desk:
        await desk.opens()
        await desk.coupon()
        answers = await asyncio.gather(*(outcome(desk.issue(ask())) for _ in range(300)))

        refused = [answer for answer in answers if isinstance(answer, Refusal)]
        granted = [answer for answer in answers if not isinstance(answer, Refusal)]
        assert refused
        assert granted
        for refusal in refused:
            assert (refusal.code, refusal.reason, refusal.domain) == ("RESOURCE_EXHAUSTED", "OVERLOADED", "guerdon.dev")
            assert refusal.retry_after_ms
        assert all(answer.HasField("granted") for answer in granted)
        assert (await desk.stock()).issued_units == len(granted)
        await at_rest(settings)
    await proven(settings)


@pytest.mark.parametrize("together", [False, True], ids=["each for itself", "together"])
async def test_items_beyond_the_queues_are_refused_and_given_back(settings: Settings, together: bool) -> None:
    tiny = dataclasses.replace(
        settings,
        admit_queue_items_max=1000,
        commit_queue_items_max=1000,
        admit_batches_in_flight_max=1,
        commit_batches_in_flight_max=1,
    )
    async with bootstrap.running(tiny) as endpoints, opened(endpoints.grpc) as desk:
        await desk.opens()
        await desk.coupon(stock=1_000_000)
        await desk.grant(ask())
        batches = [[item(user_id=f"u-{n % 50}") for n in range(700)] for _ in range(12)]

        answers = await asyncio.gather(*(outcome(desk.batch(items, together=together)) for items in batches))

        found: Counter[str] = Counter()
        for answer in answers:
            if isinstance(answer, Refusal):  # once for all 700 items
                assert (answer.code, answer.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
                assert answer.retry_after_ms
                found[answer.reason] += 1
                continue
            seen = kinds(answer)
            found.update(seen)
            assert len(set(seen)) == 1, Counter(seen)
            for result in answer:
                if result.HasField("error"):
                    refusal = Refusal.of(result.error)
                    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
                    assert refusal.retry_after_ms
        assert found.keys() == {"granted", "OVERLOADED"}, found
        assert (await desk.stock()).issued_units == 1 + found["granted"]
        await at_rest(settings)

        for items in batches:
            assert set(kinds(await desk.batch(items, together=together))) <= {"granted", "replayed"}
        assert (await desk.stock()).issued_units == 1 + 700 * 12
    await proven(settings)


async def test_while_commits_stand_still_new_calls_are_refused_instead_of_waiting(
    settings: Settings, pool: postgres.Pool
) -> None:
    tiny = dataclasses.replace(settings, queue_ms_max=50, commit_batches_in_flight_max=1)
    async with bootstrap.running(tiny) as endpoints, opened(endpoints.grpc) as desk:
        await desk.opens()
        await desk.coupon()
        await desk.grant(ask())
        async with pool.acquire() as session, session.transaction():
            await session.execute("SELECT FROM guerdon.account FOR UPDATE")
            stuck = [asyncio.create_task(outcome(desk.issue(ask())))]  # in flight
            await asyncio.sleep(0.1)
            stuck.append(asyncio.create_task(outcome(desk.issue(ask()))))  # queued behind it
            await asyncio.sleep(0.2)
            refusals = [await outcome(desk.issue(ask())) for _ in range(20)]
            assert not any(task.done() for task in stuck)
        for refusal in refusals:
            assert isinstance(refusal, Refusal)
            assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
            assert refusal.metadata["queue"] == "commit"
            assert refusal.retry_after_ms
        for answer in await asyncio.gather(*stuck):
            assert not isinstance(answer, Refusal), answer
            assert answer.HasField("granted")
        await desk.grant(ask())
        assert (await desk.stock()).issued_units == 4
        await at_rest(settings)
    await proven(settings)


async def test_more_calls_of_one_connection_than_may_be_are_refused_unseen_and_can_be_repeated(
    settings: Settings,
) -> None:
    """What gRPC's client keeps back, grpcio refuses all the same: it counts streams until they are put away."""
    tiny = dataclasses.replace(settings, calls_per_connection_max=16)
    async with bootstrap.running(tiny) as endpoints, opened(endpoints.grpc) as desk:
        await desk.opens()
        await desk.coupon()
        asked = [ask() for _ in range(300)]
        answers = await asyncio.gather(*(outcome(desk.issue(one)) for one in asked))
        refused = [answer for answer in answers if isinstance(answer, Refusal)]
        assert {refusal.code for refusal in refused} == ({"UNAVAILABLE"} if settings.transport == "grpcio" else set())
        assert (await desk.stock()).issued_units == len(asked) - len(refused)

        left, tries = asked, 0
        async with grpc.aio.insecure_channel(endpoints.grpc, options=_RETRYING) as channel:
            while left:
                again = await asyncio.gather(*(outcome(Desk(channel).issue(one)) for one in left))
                answered = list(zip(left, again, strict=True))
                assert all(isinstance(answer, Refusal) or answer.HasField("granted") for _, answer in answered)
                left = [one for one, answer in answered if isinstance(answer, Refusal)]
                tries += 1
                assert tries < 50, "repeating gets nowhere"
        assert (await desk.stock()).issued_units == len(asked)
        await at_rest(settings)
    await proven(settings)


async def test_errors_of_a_moment_are_repeated_by_the_retry_policy_of_grpc(settings: Settings) -> None:
    """It repeats what came in trailers only: an answer that began with headers is one that it has to hand on."""
    failpoints = Failpoints("redis.gate.admit.before=error@2")
    async with bootstrap.running(settings, failpoints=failpoints) as endpoints:
        async with opened(endpoints.grpc) as desk:
            await desk.opens()
            await desk.coupon()
            await desk.grant(ask())
        async with grpc.aio.insecure_channel(endpoints.grpc, options=_RETRYING) as channel:
            await Desk(channel).grant(ask())
    assert failpoints.fired["redis.gate.admit.before"] == 1


def test_calls_that_nobody_looked_at_in_time_are_dropped(settings: Settings) -> None:
    """The loop of the server stands still for longer than they may wait; that of the caller is another one."""
    tiny = dataclasses.replace(settings, backlog_seconds_max=1)
    with (
        elsewhere(tiny) as (endpoints, loop),
        grpc.insecure_channel(endpoints.grpc) as channel,
        grpc.insecure_channel(endpoints.grpc, options=_RETRYING) as patient,
    ):
        service, repeated = prize_pb2_grpc.PrizeServiceStub(channel), prize_pb2_grpc.PrizeServiceStub(patient)
        with pytest.raises(grpc.RpcError) as known:
            service.IssuePrize(ask(), timeout=20)
        assert known.value.code() is grpc.StatusCode.NOT_FOUND
        loop.call_soon_threadsafe(time.sleep, 3)
        # More than grpcio's server has asked for: those it takes over, however long it stood still.
        calls = [service.IssuePrize.future(ask(), timeout=20) for _ in range(80)]
        repeating = [repeated.IssuePrize.future(ask(), timeout=20) for _ in range(20)]
        codes = Counter(map(_code, calls))
        # grpcio resets the stream; native, where a refusal is cheap, says what it is.
        dropped = "CANCELLED" if settings.transport == "grpcio" else "RESOURCE_EXHAUSTED"
        assert codes.keys() <= {dropped, "NOT_FOUND"}, codes
        assert codes[dropped] >= 40, codes
        assert set(map(_code, repeating)) == {"NOT_FOUND"}


def _code(call: grpc.Future[prize_pb2.IssuePrizeResponse]) -> str:
    """Of one that failed."""
    error = call.exception()
    assert isinstance(error, grpc.RpcError), error
    return str(error.code().name)
