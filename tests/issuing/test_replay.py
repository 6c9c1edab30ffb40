"""A grant is the answer to its request id for ever, whatever became of the promotion, the prize, Redis or the server."""

from __future__ import annotations

import pytest

from guerdon.v1 import prize_pb2 as prize
from guerdon_server import bootstrap
from guerdon_server.platform import redis
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, ask, eventually, fresh, opened, reason, refusal
from tests.issuing.proof import proven


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


@pytest.mark.parametrize(
    ("paths", "change"),
    [
        (["value.rate"], {"value": prize.PrizeValue(asset="USD/2", rate=prize.ValueRate(attribute="net_cents", basis_points=1, rounding=3))}),
        (["value.rate"], {"value": prize.PrizeValue(asset="USD/2", rate=prize.ValueRate(attribute="order_cents", basis_points=1, rounding=3))}),
        (["value.fixed_units"], {"value": prize.PrizeValue(asset="USD/2", fixed_units=7)}),
        (["limit_per_user"], {"limit_per_user": 1}),
        (["validity"], {"validity": prize.Validity(days=3)}),
    ],
    ids=["other attribute", "other rate", "fixed", "limit", "validity"],
)
async def test_a_grant_keeps_its_terms_when_its_prize_changes(desk: Desk, paths: list[str], change: dict) -> None:
    await desk.opens(budgets={"USD/2": None})
    await desk.cashback()
    request = ask(prize_id="cashback", order_cents=1000)
    granted = await desk.grant(request)
    assert granted.value.units == 50

    await desk.updates_prize(paths, "cashback", **change)

    assert await desk.grant(request, replayed=True) == granted
