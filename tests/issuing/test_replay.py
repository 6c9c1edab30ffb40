"""A grant is the answer to its request id for ever, whatever became of its promotion and its prize."""

from __future__ import annotations

from typing import Any

import pytest

from guerdon.v1 import prize_pb2 as prize
from tests.issuing.desk import Desk, ask, reason, refusal


def _rate(attribute: str) -> prize.PrizeValue:
    rule = prize.ValueRate(attribute=attribute, basis_points=1, rounding=prize.ROUNDING_DOWN)
    return prize.PrizeValue(asset="USD/2", rate=rule)


async def test_a_grant_is_replayed_whatever_happens_to_its_promotion(desk: Desk) -> None:
    await desk.opens()
    await desk.coupon(stock=1, days=30)
    request = ask(reference="order-1")
    granted = await desk.grant(request)

    assert await desk.grant(request, replayed=True) == granted
    assert reason(await desk.rejection(ask())) == "SOLD_OUT"
    assert await desk.grant(request, replayed=True) == granted
    await desk.goes("PAUSED")
    assert reason(await desk.rejection(ask())) == "PROMOTION_PAUSED"
    assert await desk.grant(request, replayed=True) == granted
    await desk.updates_promotion(["entrance_ids"], entrance_ids=[])
    assert await desk.grant(request, replayed=True) == granted
    assert (await refusal(desk.issue(ask()))).reason == "ENTRANCE_NOT_BOUND"
    await desk.goes("ENDED")
    assert await desk.grant(request, replayed=True) == granted
    await desk.goes("ARCHIVED")
    assert await desk.grant(request, replayed=True) == granted


CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "other attribute": ("value.rate", {"value": _rate("net_cents")}),
    "other rate": ("value.rate", {"value": _rate("order_cents")}),
    "fixed": ("value.fixed_units", {"value": prize.PrizeValue(asset="USD/2", fixed_units=7)}),
    "limit": ("limit_per_user", {"limit_per_user": 1}),
    "validity": ("validity", {"validity": prize.Validity(days=3)}),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_grant_keeps_its_terms_when_its_prize_changes(desk: Desk, change: str) -> None:
    path, fields = CHANGES[change]
    await desk.opens(budgets={"USD/2": None})
    await desk.cashback()
    request = ask(prize_id="cashback", order_cents=1000)
    granted = await desk.grant(request)
    assert granted.value.units == 50

    await desk.updates_prize([path], "cashback", **fields)

    assert await desk.grant(request, replayed=True) == granted
    other = ask(request.request_id, prize_id="cashback", order_cents=1001, net_cents=1000)
    assert (await refusal(desk.issue(other))).metadata["field"] == "attributes[order_cents]"
