"""What became of a request can always be found out, and an absent one can be ruled out for ever."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from guerdon.v1 import prize_pb2 as prize
from guerdon_server import bootstrap
from guerdon_server.platform import postgres, redis
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, ask, eventually, item, kinds, opened, outcome, reason
from tests.issuing.proof import at_rest, open_admissions, proven


async def test_a_grant_is_found_by_its_id_and_by_its_request(desk: Desk) -> None:
    await desk.opens()
    await desk.coupon(days=1)
    granted = await desk.grant(ask("r-1", reference="order-1"), replayed=False)

    by_id = await desk.prizes.GetIssuance(prize.GetIssuanceRequest(issuance_id=granted.issuance_id))

    assert by_id.granted == granted
    assert (await desk.became("r-1")).granted == granted
    assert (await desk.became("r-1", cancel=True)).granted == granted
    assert await desk.grant(ask("r-1", reference="order-1"), replayed=True) == granted


async def test_absent_means_not_yet_and_cancelled_means_never(desk: Desk, other: Desk) -> None:
    await desk.opens()
    await desk.coupon(stock=5)

    absent = (await desk.became("r-1")).absent
    assert not absent.cancelled
    await desk.grant(ask("r-1"))
    assert (await desk.became("r-2", cancel=True)).absent.cancelled
    assert (await other.became("r-2")).absent.cancelled
    assert reason(await other.rejection(ask("r-2"))) == "CANCELLED"
    assert reason(await desk.rejection(ask("r-2", user_id="bob"))) == "CANCELLED"
    assert kinds(await desk.batch([item("r-2"), item("r-3")], together=True)) == ["CANCELLED", "BATCH_NOT_GRANTED"]
    await desk.goes("PAUSED")
    assert reason(await other.rejection(ask("r-2"))) == "CANCELLED"
    assert (await desk.stock()).issued_units == 1


async def test_an_unknown_issuance_is_absent(desk: Desk) -> None:
    for issuance_id in ("1", "99999999999999999999", "no-number", "0"):
        response = await desk.prizes.GetIssuance(prize.GetIssuanceRequest(issuance_id=issuance_id))
        assert response.WhichOneof("state") == "absent"
        assert not response.absent.cancelled


async def test_cancelling_races_issuing_and_both_tell_the_same(desk: Desk, other: Desk, settings: Settings) -> None:
    await desk.opens()
    await desk.coupon(stock=500)
    await asyncio.gather(desk.grant(ask()), other.grant(ask()))

    async def race(number: int) -> str:
        request_id = f"race-{number}"

        async def cancel() -> prize.GetIssuanceResponse:
            await asyncio.sleep(number % 10 * 0.001)
            return await other.became(request_id, cancel=True)

        issued, cancelled = await asyncio.gather(desk.issue(ask(request_id)), cancel())
        if issued.HasField("granted"):
            assert cancelled.granted == issued.granted
            return "granted"
        assert reason(issued.rejected) == "CANCELLED"
        assert cancelled.absent.cancelled
        return "cancelled"

    ends = await asyncio.gather(*(race(number) for number in range(200)))

    assert (await desk.stock()).issued_units == 2 + ends.count("granted")
    await at_rest(settings)


async def test_replays_survive_the_loss_of_redis_and_a_new_server(
    desk: Desk, settings: Settings, redis_client: redis.Client
) -> None:
    await desk.opens(budgets={"USD/2": 1000})
    await desk.coupon(stock=1, limit=1)
    await desk.cashback()
    requests = [ask(days=1), ask(prize_id="cashback", order_cents=999)]
    granted = [await desk.grant(request) for request in requests]

    await redis_client.flushdb()
    assert [await desk.grant(request, replayed=True) for request in requests] == granted
    async with bootstrap.running(settings) as endpoints, opened(endpoints.grpc) as new:
        assert [await new.grant(request, replayed=True) for request in requests] == granted
        await redis_client.flushdb()
        assert [await new.grant(request, replayed=True) for request in requests] == granted
        assert reason(await new.rejection(ask())) in {"SOLD_OUT", "LIMIT_REACHED"}


async def test_an_expiry_is_pinned_at_the_grant(desk: Desk) -> None:
    await desk.opens()
    await desk.coupon(days=2)
    request = ask()
    granted = await desk.grant(request)
    assert granted.expires_at.seconds - granted.issued_at.seconds == 2 * 86_400
    assert granted.expires_at.nanos == granted.issued_at.nanos

    await desk.updates_prize(["validity"], "welcome", validity=prize.Validity(days=5))

    assert (await desk.grant(request, replayed=True)).expires_at == granted.expires_at
    later = await desk.grant(ask())
    assert later.expires_at.seconds - later.issued_at.seconds == 5 * 86_400
    found = await desk.prizes.ListIssuances(prize.ListIssuancesRequest(user_id="ann"))
    assert [issuance.expires_at for issuance in found.issuances] == [later.expires_at, granted.expires_at]


async def test_a_validity_that_has_passed_is_a_rejection(desk: Desk) -> None:
    await desk.opens()
    await desk.coupon()
    past = prize.Validity()
    past.until.FromJsonString("2020-01-01T00:00:00Z")
    refused = await outcome(desk.updates_prize(["validity"], "welcome", validity=past))
    if refused is None:
        assert reason(await desk.rejection(ask())) == "VALIDITY_PASSED"
        assert kinds(await desk.batch([item(), item()], together=True)) == ["VALIDITY_PASSED", "VALIDITY_PASSED"]
    assert (await desk.stock()).issued_units == 0


async def test_an_attempt_in_flight_is_waited_for_and_then_told(settings: Settings) -> None:
    hasty = dataclasses.replace(settings, twin_wait_ms_max=50)
    async with (
        bootstrap.running(hasty) as one,
        bootstrap.running(hasty) as two,
        opened(one.grpc) as desk,
        opened(two.grpc) as other,
    ):
        await desk.opens()
        await desk.coupon(stock=10)
        await desk.grant(ask())
        connection = await postgres.connect(settings.postgres_dsn)
        await connection.execute("BEGIN; LOCK TABLE guerdon.request IN EXCLUSIVE MODE")
        first = asyncio.create_task(desk.grant(ask("slow")))

        async def in_flight() -> bool:
            return await open_admissions(settings) == 1

        await eventually(in_flight)
        for at in (desk, other):
            pending = await at.issue(ask("slow"))
            assert pending.pending.retry_after_ms > 0
            assert kinds(await at.batch([item("slow"), item(prize_id="nowhere")])) == ["pending", "PRIZE_NOT_FOUND"]
            assert kinds(await at.batch([item(), item("slow"), item()], together=True)) == ["pending"] * 3
        await eventually(in_flight)
        await connection.execute("ROLLBACK")
        await connection.close()
        granted = await first

        assert await other.grant(ask("slow"), replayed=True) == granted
        assert kinds(await other.batch([item(), item("slow"), item()], together=True)) == [
            "granted",
            "replayed",
            "granted",
        ]
    await proven(settings)


async def test_a_promotion_starts_and_ends_by_itself_on_every_server(
    desk: Desk, other: Desk, settings: Settings
) -> None:
    connection = await postgres.connect(settings.postgres_dsn)

    async def clock_ahead(hours: int) -> None:
        await connection.execute("UPDATE guerdon.clock SET offset_us = $1::bigint * 3600000000", hours)

    await desk.opens(active=False)
    await desk.coupon()
    now = await connection.fetchval("SELECT guerdon.now()")
    starts, ends = Timestamp(), Timestamp()
    starts.FromDatetime(now + dt.timedelta(hours=1))
    ends.FromDatetime(now + dt.timedelta(hours=3))
    await desk.updates_promotion(["starts_at", "ends_at"], starts_at=starts, ends_at=ends)
    assert reason(await other.rejection(ask())) == "PROMOTION_NOT_STARTED"
    await desk.goes("SCHEDULED")
    for at in (desk, other):
        assert reason(await at.rejection(ask())) == "PROMOTION_NOT_STARTED"
    await clock_ahead(2)
    request = ask()
    granted = await other.grant(request)
    await desk.grant(ask())
    await clock_ahead(4)
    for at in (desk, other):
        assert reason(await at.rejection(ask())) == "PROMOTION_ENDED"
        assert await at.grant(request, replayed=True) == granted
    await connection.close()


@pytest.mark.parametrize("milliseconds", [1, 4])
async def test_callers_who_leave_in_the_middle_leave_nothing_open(
    desk: Desk, settings: Settings, milliseconds: int
) -> None:
    await desk.opens()
    await desk.coupon(stock=100_000)
    await desk.grant(ask())
    requests = [ask(f"gone-{milliseconds}-{n}", user_id=f"u-{n % 11}") for n in range(400)]
    answers = []
    for start in range(0, len(requests), 100):
        answers += await asyncio.gather(
            *(
                outcome(desk.issue(request, timeout=(milliseconds + n % 7) / 1000))
                for n, request in enumerate(requests[start : start + 100])
            )
        )
    await at_rest(settings)

    issued = (await desk.stock()).issued_units
    kept = [answer for answer in answers if isinstance(answer, prize.IssuePrizeResponse)]
    assert issued >= 1 + len(kept)
    for request, answer in zip(requests, answers, strict=True):
        again = await desk.issue(request)
        if isinstance(answer, prize.IssuePrizeResponse):
            assert again.granted == answer.granted
    assert (await desk.stock()).issued_units == 1 + len(requests)
