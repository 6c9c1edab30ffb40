"""Two servers side by side on one ledger and one gate: one truth."""

from __future__ import annotations

import asyncio
from collections import Counter

from guerdon.v1 import prize_pb2 as prize
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, Refusal, ask, eventually, item, kinds, outcome, reason
from tests.issuing.proof import at_rest


async def test_twins_at_the_same_moment_get_one_grant(desk: Desk, other: Desk) -> None:
    await desk.opens()
    await desk.coupon(stock=100)
    await asyncio.gather(desk.grant(ask()), other.grant(ask()))
    requests = [ask(f"twin-{n}", user_id=f"u-{n}") for n in range(30)]

    answers = await asyncio.gather(*(d.issue(r) for r in requests for d in (desk, other, desk, other)))

    for n, request in enumerate(requests):
        twins = answers[4 * n : 4 * n + 4]
        assert {answer.WhichOneof("outcome") for answer in twins} == {"granted"}, request
        assert len({answer.granted.SerializeToString(deterministic=True) for answer in twins}) == 1
        assert [answer.replayed for answer in twins].count(False) == 1
    assert (await desk.stock()).issued_units == 32


async def test_twins_with_other_contents_get_one_grant_and_a_refusal(desk: Desk, other: Desk) -> None:
    await desk.opens()
    await desk.coupon()
    pairs = [(ask(f"twin-{n}", user_id="ann"), ask(f"twin-{n}", user_id="bob")) for n in range(20)]

    answers = await asyncio.gather(
        *(outcome(d.issue(r)) for pair in pairs for d, r in zip((desk, other), pair, strict=True))
    )

    for n in range(len(pairs)):
        twins = answers[2 * n : 2 * n + 2]
        refused = [twin for twin in twins if isinstance(twin, Refusal)]
        assert [r.reason for r in refused] == ["REQUEST_ID_REUSED"], twins
        assert refused[0].metadata["field"] == "user_id"
    assert (await desk.stock()).issued_units == len(pairs)


async def test_what_one_server_created_another_uses_at_once(desk: Desk, other: Desk) -> None:
    for n in range(5):
        promotion_id = f"p{n}"
        await desk.opens(promotion_id)
        await desk.coupon(f"first-{n}", promotion_id=promotion_id)
        await other.grant(ask(promotion_id=promotion_id, prize_id=f"first-{n}"))
        await desk.coupon(f"second-{n}", promotion_id=promotion_id, stock=1)
        await other.grant(ask(promotion_id=promotion_id, prize_id=f"second-{n}"))
        await desk.adjusts_stock(1, f"second-{n}")
        await other.grant(ask(promotion_id=promotion_id, prize_id=f"second-{n}"))
        await desk.updates_prize(["limit_per_user"], f"first-{n}", limit_per_user=1)
        refused = await other.rejection(ask(promotion_id=promotion_id, prize_id=f"first-{n}"))
        assert reason(refused) == "LIMIT_REACHED"


async def test_after_an_acknowledged_pause_nothing_more_is_granted_anywhere(desk: Desk, other: Desk) -> None:
    await desk.opens()
    await desk.coupon()
    await asyncio.gather(desk.grant(ask()), other.grant(ask()))
    going = True
    found: Counter[str] = Counter()

    async def clerk(number: int) -> None:
        while going:
            answer = await other.batch([item(user_id=f"u-{number}") for _ in range(5)])
            found.update(kinds(answer))

    clerks = [asyncio.create_task(clerk(n)) for n in range(8)]
    for _ in range(5):
        until = found["granted"] + 50
        while found["granted"] < until:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await desk.goes("PAUSED")
        acknowledged = (await desk.stock()).issued_units
        until = found["PROMOTION_PAUSED"] + 50
        while found["PROMOTION_PAUSED"] < until:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert (await desk.stock()).issued_units == acknowledged
        await desk.goes("ACTIVE")
    going = False
    await asyncio.gather(*clerks)

    assert found.keys() <= {"granted", "PROMOTION_PAUSED"}, found
    assert (await desk.stock()).issued_units == found["granted"] + 2


async def test_stock_moves_under_load_and_is_never_over_issued(desk: Desk, other: Desk, settings: Settings) -> None:
    await desk.opens()
    await desk.coupon(stock=50)
    going = True
    granted: set[str] = set()
    strange: list[object] = []

    async def clerk(at: Desk, number: int) -> None:
        while going:
            items = [item(user_id=f"u-{number}") for _ in range(4)]
            for asked, result in zip(items, await at.batch(items), strict=True):
                if result.HasField("granted"):
                    granted.add(asked.request_id)
                elif kinds([result]) != ["SOLD_OUT"]:
                    strange.append(result)

    async def keeper() -> int:
        capacity = 50
        for delta in (20, -5, 30, -40, 10, -15, 25, -60, 40, 5):
            stock = await outcome(desk.adjusts_stock(delta))
            if not isinstance(stock, Refusal):
                capacity += delta
                assert stock.units == capacity
            await asyncio.sleep(0.02)
        return capacity

    clerks = [asyncio.create_task(clerk(d, n)) for n, d in enumerate((desk, other) * 3)]
    capacity = await keeper()

    async def sold_out() -> bool:
        return bool((await desk.stock()).remaining_units == 0)

    await eventually(sold_out)
    going = False
    await asyncio.gather(*clerks)

    assert not strange
    assert len(granted) == capacity
    stock = await desk.stock()
    assert (stock.units, stock.issued_units, stock.remaining_units) == (capacity, capacity, 0)
    await at_rest(settings)


async def test_a_limit_holds_over_both_servers(desk: Desk, other: Desk) -> None:
    await desk.opens()
    await desk.coupon(limit=3)

    answers = await asyncio.gather(*(d.issue(ask(user_id=f"u-{n % 10}")) for n in range(80) for d in (desk, other)))

    given = Counter(a.granted.user_id for a in answers if a.HasField("granted"))
    assert given == {f"u-{n}": 3 for n in range(10)}
    assert {reason(a.rejected) for a in answers if a.HasField("rejected")} == {"LIMIT_REACHED"}


async def test_a_budget_is_spent_to_what_is_too_little_for_anybody(desk: Desk, other: Desk) -> None:
    await desk.opens(budgets={"USD/2": 10_007})
    await desk.cashback()
    orders = [(n * 7919) % 40_000 + 200 for n in range(120)]

    answers = await asyncio.gather(
        *(
            d.issue(ask(user_id=f"u-{n % 9}", prize_id="cashback", order_cents=cents))
            for n, cents in enumerate(orders)
            for d in (desk, other)
        )
    )

    spent = sum(a.granted.value.units for a in answers if a.HasField("granted"))
    refused = [int(a.rejected.threshold) for a in answers if a.HasField("rejected")]
    assert {reason(a.rejected) for a in answers if a.HasField("rejected")} == {"BUDGET_EXHAUSTED"}
    assert 0 <= 10_007 - spent < min(refused)
    assert (await outcome(desk.prizes.GetPrizeStock(prize.GetPrizeStockRequest(prize_id="cashback")))).issued_units
