"""A request id is for one reward: for anything else it is refused, and the field that differs is named."""

from __future__ import annotations

import pytest

from guerdon.v1 import prize_pb2 as prize
from tests.issuing.desk import Desk, ask, item, kinds, refusal


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("user_id", {"user_id": "bob"}),
        ("prize_id", {"prize_id": "welcome"}),
        ("entrance_id", {"entrance_id": "door"}),
        ("attributes[order_cents]", {"order_cents": 1001}),
    ],
)
async def test_an_id_that_was_used_for_something_else_names_the_field(
    desk: Desk, field: str, other: dict[str, str | int]
) -> None:
    await desk.opens(entrances=("checkout", "door"), budgets={"USD/2": None})
    await desk.coupon()
    await desk.cashback()
    same = {"request_id": "r-same", "prize_id": "cashback", "order_cents": 1000}
    granted = await desk.grant(ask(**same))  # type: ignore[arg-type]

    refused = await refusal(desk.issue(ask(**{**same, **other})))  # type: ignore[arg-type]

    assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "REQUEST_ID_REUSED")
    assert refused.metadata == {"field": field, "request_id": "r-same", "issuance_id": granted.issuance_id}


async def test_a_missing_attribute_is_another_request_too(desk: Desk) -> None:
    await desk.opens(budgets={"USD/2": None})
    await desk.cashback()
    await desk.grant(ask("r-same", prize_id="cashback", order_cents=1000))

    refused = await refusal(desk.issue(ask("r-same", prize_id="cashback")))

    assert refused.metadata["field"] == "attributes[order_cents]"


async def test_what_does_not_make_the_reward_may_differ(desk: Desk) -> None:
    await desk.opens(budgets={"USD/2": None})
    await desk.cashback()
    granted = await desk.grant(ask("r-same", prize_id="cashback", order_cents=1000, reference="first", other=1))

    again = ask("r-same", prize_id="cashback", order_cents=1000, reference="second", other=2)

    assert await desk.grant(again, replayed=True) == granted
    response = await desk.issue(again, principal="somebody-else")
    assert response.replayed
    assert response.granted.principal == "anonymous"


async def test_the_same_id_in_another_promotion_is_another_request(desk: Desk) -> None:
    await desk.opens()
    await desk.opens("autumn")
    await desk.coupon()
    await desk.coupon("leaf", promotion_id="autumn")

    first = await desk.grant(ask("r-same"))
    second = await desk.grant(ask("r-same", promotion_id="autumn", prize_id="leaf"))

    assert first.issuance_id != second.issuance_id


@pytest.mark.parametrize("after", ["at once", "paused", "sold out", "unbound"])
async def test_a_reused_id_is_told_whatever_else_is_wrong(desk: Desk, after: str) -> None:
    await desk.opens()
    await desk.coupon(stock=1 if after == "sold out" else 5)
    await desk.grant(ask("r-same"))
    if after == "paused":
        await desk.goes("PAUSED")
    if after == "unbound":
        await desk.updates_promotion(["entrance_ids"], entrance_ids=[])

    assert (await refusal(desk.issue(ask("r-same", user_id="bob")))).reason == "REQUEST_ID_REUSED"
    assert kinds(await desk.batch([item("r-same", user_id="bob")])) == ["REQUEST_ID_REUSED"]


async def test_values_follow_their_rule_to_the_unit(desk: Desk) -> None:
    await desk.opens(budgets={"USD/2": None})
    roundings = {"half-up": 1, "half-even": 2, "down": 3, "up": 4}
    for name, rounding in roundings.items():
        await desk.cashback(name, rounding=rounding)
    await desk.cashback("bounded", floor_units=10, cap_units=500)
    expected = {
        ("half-up", 10): 1,  # 0.5
        ("half-even", 10): 0,
        ("half-even", 30): 2,  # 1.5
        ("half-even", 50): 2,  # 2.5
        ("half-up", 50): 3,
        ("down", 39): 1,  # 1.95
        ("up", 21): 2,  # 1.05
        ("up", 0): 0,
        ("half-up", 9): 0,  # 0.45
        ("bounded", 10): 10,
        ("bounded", 9): 0,
        ("bounded", 0): 0,
        ("bounded", 9_999): 500,
        ("bounded", 10_010): 500,
        ("bounded", 2**62): 500,
        ("half-up", 2**53): 450_359_962_737_050,  # 450359962737049.6
    }
    results = await desk.batch([item(prize_id=name, order_cents=cents) for name, cents in expected])

    found = [r.granted.value.units if r.WhichOneof("outcome") == "granted" else 0 for r in results]
    assert found == list(expected.values())
    assert {prize.RejectionReason.Name(r.rejected.reason) for r in results if r.HasField("rejected")} <= {
        "REJECTION_REASON_VALUE_ZERO"
    }
