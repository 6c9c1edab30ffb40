"""Batches: each item for itself, or all together or not at all, whatever one of them is."""

from __future__ import annotations

from guerdon.v1 import prize_pb2 as prize
from tests.issuing.desk import Desk, Refusal, ask, fresh, item, kinds


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
