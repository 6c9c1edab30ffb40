"""Batches: each item for itself, or all together or not at all, whatever one of them is."""

from __future__ import annotations

import asyncio

from guerdon.v1 import prize_pb2 as prize
from tests.issuing.desk import Desk, Refusal, ask, fresh, item, kinds, reason
from tests.transports import on_both_transports

pytestmark = on_both_transports


async def test_one_bad_item_of_each_kind_does_not_disturb_the_others(desk: Desk) -> None:
    await desk.opens(budgets={"USD/2": None})
    await desk.coupon(stock=3)
    await desk.cashback()
    await desk.opens("autumn", entrances=("door",))
    await desk.coupon("leaf", promotion_id="autumn")
    reused = fresh()
    await desk.grant(ask(reused, user_id="bob"))

    results = await desk.batch(
        [
            item(),
            item(prize_id="nowhere"),
            item(prize_id="leaf"),
            item(reused, user_id="ann"),
            item(user_id="two words"),
            item(prize_id="cashback"),
            item(prize_id="cashback", order_cents=0),
            item(prize_id="cashback", order_cents=-1),
            item(prize_id="cashback", order_cents=1000),
            item(reused, user_id="bob", prize_id="welcome") if False else item(),
            item(),
        ]
    )

    assert kinds(results) == [
        "granted",
        "PRIZE_NOT_FOUND",
        "PRIZE_NOT_IN_PROMOTION",
        "REQUEST_ID_REUSED",
        "INVALID_FIELD",
        "ATTRIBUTE_MISSING",
        "VALUE_ZERO",
        "INVALID_FIELD",
        "granted",
        "granted",
        "SOLD_OUT",
    ]
    assert Refusal.of(results[4].error).fields.keys() == {"items[4].user_id"}
    assert (await desk.stock()).issued_units == 3


async def test_together_nothing_is_granted_when_a_request_id_was_granted_to_somebody_else(desk: Desk) -> None:
    await desk.opens()
    await desk.coupon(stock=5)
    reused = ask()
    await desk.grant(reused)

    results = await desk.batch([item(), item(reused.request_id, user_id="bob"), item()], together=True)

    assert kinds(results) == ["BATCH_NOT_GRANTED", "REQUEST_ID_REUSED", "BATCH_NOT_GRANTED"]
    assert (await desk.stock()).issued_units == 1


async def test_together_the_whole_batch_is_replayed(desk: Desk) -> None:
    await desk.opens(budgets={"USD/2": 1000})
    await desk.coupon(stock=3, limit=1)
    await desk.cashback()
    items = [item(), item(user_id="bob"), item(prize_id="cashback", order_cents=990)]
    first = await desk.batch(items, together=True)
    assert kinds(first) == ["granted"] * 3

    again = await desk.batch(items, together=True)

    assert kinds(again) == ["replayed"] * 3
    assert [result.granted for result in again] == [result.granted for result in first]
    assert kinds(await desk.batch(list(reversed(items)))) == ["replayed"] * 3
    await desk.goes("PAUSED")
    assert kinds(await desk.batch(items, together=True)) == ["replayed"] * 3


async def test_together_one_that_may_not_keeps_all_from_it(desk: Desk) -> None:
    await desk.opens(budgets={"USD/2": 100})
    await desk.coupon(stock=3, limit=2)
    await desk.cashback()
    cashback = item(prize_id="cashback", order_cents=1000)

    for bad, why in [
        (item(prize_id="nowhere"), "PRIZE_NOT_FOUND"),
        (item(user_id="a b"), "INVALID_FIELD"),
        (item(prize_id="cashback"), "ATTRIBUTE_MISSING"),
        (item(prize_id="cashback", order_cents=1), "VALUE_ZERO"),
        (item(prize_id="cashback", order_cents=1020), "BUDGET_EXHAUSTED"),
    ]:
        found = kinds(await desk.batch([item(), cashback, bad, item(user_id="bob")], together=True))
        assert found == ["BATCH_NOT_GRANTED", "BATCH_NOT_GRANTED", why, "BATCH_NOT_GRANTED"]
    assert kinds(await desk.batch([item() for _ in range(3)], together=True)) == [
        "BATCH_NOT_GRANTED",
        "BATCH_NOT_GRANTED",
        "LIMIT_REACHED",
    ]
    over = [item(user_id=f"u-{n}") for n in range(4)]
    assert kinds(await desk.batch(over, together=True)) == ["BATCH_NOT_GRANTED"] * 3 + ["SOLD_OUT"]
    assert (await desk.stock()).issued_units == 0

    assert kinds(await desk.batch(over[:3], together=True)) == ["granted"] * 3


async def test_together_replays_and_new_ones_may_be_mixed(desk: Desk) -> None:
    await desk.opens()
    await desk.coupon(stock=3)
    old = [item(), item(user_id="bob")]
    await desk.batch(old)

    assert kinds(await desk.batch([old[0], item(), old[1]], together=True)) == ["replayed", "granted", "replayed"]
    assert kinds(await desk.batch([old[0], item(), old[1]], together=True)) == ["replayed", "SOLD_OUT", "replayed"]
    assert (await desk.stock()).issued_units == 3


async def test_each_for_itself_replays_and_new_ones_and_refusals_are_mixed(desk: Desk) -> None:
    await desk.opens()
    await desk.coupon(stock=2)
    old = item()
    await desk.batch([old])

    found = kinds(await desk.batch([item(), old, item(), item("", user_id="bob"), old_twin(old)]))

    assert found == ["granted", "replayed", "SOLD_OUT", "SOLD_OUT", "PRIZE_NOT_FOUND"]


def old_twin(old: prize.BatchItem) -> prize.BatchItem:
    """Another item at a prize that there is not."""
    return item(f"{old.request_id}-2", prize_id="nowhere")


async def test_together_the_same_batch_at_the_same_moment_is_granted_once(desk: Desk, other: Desk) -> None:
    await desk.opens()
    await desk.coupon(stock=400)
    for number in range(8):
        items = [item(f"g{number}-{n}", user_id=f"u-{n}") for n in range(20)]
        shifted = items[7:] + items[:7]

        answers = await asyncio.gather(
            *(at.batch(batch, together=True) for at, batch in ((desk, items), (other, shifted), (other, items)))
        )

        for answer in answers:
            assert set(kinds(answer)) <= {"granted", "replayed"}, kinds(answer)
        assert sum(kinds(answer).count("granted") for answer in answers) == 20
    assert (await desk.stock()).issued_units == 160


async def test_together_overlapping_groups_are_whole_or_nothing(desk: Desk, other: Desk) -> None:
    await desk.opens()
    await desk.coupon(stock=100)
    for number in range(6):
        shared = [item(f"o{number}-{n}", user_id="ann") for n in range(3)]
        mine = [*shared, item(f"o{number}-mine")]
        theirs = [item(f"o{number}-theirs"), *reversed(shared)]

        answers = await asyncio.gather(desk.batch(mine, together=True), other.batch(theirs, together=True))

        assert [set(kinds(answer)) <= {"granted", "replayed"} for answer in answers] == [True, True]
    assert (await desk.stock()).issued_units == 30


async def test_a_group_meets_a_single_twin(desk: Desk, other: Desk) -> None:
    await desk.opens()
    await desk.coupon(stock=100)
    for number in range(20):
        items = [item(f"s{number}-{n}") for n in range(5)]

        group, single = await asyncio.gather(desk.batch(items, together=True), other.issue(ask(f"s{number}-3")))

        assert set(kinds(group)) <= {"granted", "replayed"}, kinds(group)
        assert single.granted == group[3].granted
    assert (await desk.stock()).issued_units == 100


async def test_a_thousand_items_are_answered_in_order(desk: Desk) -> None:
    await desk.opens()
    await desk.coupon(stock=990, limit=100)
    items = [item(f"k-{n}", user_id=f"u-{n % 10}") for n in range(1000)]

    results = await desk.batch(items)

    assert kinds(results) == ["granted"] * 990 + ["SOLD_OUT"] * 10
    assert [r.granted.request_id for r in results[:990]] == [i.request_id for i in items[:990]]
    assert kinds(await desk.batch(items, together=True)) == ["replayed"] * 990 + ["SOLD_OUT"] * 10


async def test_who_was_refused_is_not_refused_again_for_what_that_attempt_held(desk: Desk) -> None:
    await desk.opens()
    await desk.coupon(stock=2, limit=1)
    for number in range(40):
        users = [f"u-{number}", f"v-{number}"]
        over = [item(user_id=user) for user in (*users, users[0])]
        assert kinds(await desk.batch(over, together=True))[:2] == ["BATCH_NOT_GRANTED"] * 2
        cancelled = ask(user_id=users[0])
        await desk.became(cancelled.request_id, cancel=True)
        assert reason(await desk.rejection(cancelled)) == "CANCELLED"

        assert kinds(await desk.batch([item(user_id=user) for user in users], together=True)) == ["granted"] * 2
        await desk.adjusts_stock(2)
