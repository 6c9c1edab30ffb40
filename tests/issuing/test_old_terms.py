"""A server whose terms are old, and whose next look at the catalogue is far: its answers are as good."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from guerdon.v1 import prize_pb2 as prize
from guerdon_server import bootstrap
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, ask, item, kinds, opened, reason
from tests.issuing.proof import proven


@pytest_asyncio.fixture(loop_scope="session")
async def old(desk: Desk, settings: Settings) -> AsyncIterator[Desk]:
    """A second server that hears of changes by the first only from its own calls; it has granted once."""
    seldom = dataclasses.replace(settings, catalogue_poll_ms=60_000)
    async with bootstrap.running(seldom) as endpoints, opened(endpoints.grpc) as old:
        await desk.opens(budgets={"USD/2": 10_000})
        await desk.coupon()
        await desk.cashback()
        await old.grant(ask())
        yield old
    await proven(settings)


async def test_what_was_allowed_meanwhile_is_granted_at_once(desk: Desk, old: Desk) -> None:
    await desk.goes("PAUSED")
    assert reason(await old.rejection(ask())) == "PROMOTION_PAUSED"
    await desk.goes("ACTIVE")
    await old.grant(ask())
    await desk.coupon("new")
    await old.grant(ask(prize_id="new"))


async def test_what_was_decided_by_old_terms_is_decided_anew(desk: Desk, old: Desk) -> None:
    await desk.updates_prize(["limit_per_user"], "welcome", limit_per_user=2)
    await old.grant(ask())
    assert reason(await old.rejection(ask())) == "LIMIT_REACHED"
    await desk.goes("PAUSED")
    assert reason(await old.rejection(ask())) == "PROMOTION_PAUSED"


@pytest.mark.parametrize("together", [False, True], ids=["each for itself", "together"])
async def test_a_refusal_by_the_gate_is_none_when_it_was_asked_by_old_terms(
    desk: Desk, old: Desk, together: bool
) -> None:
    """A limit that was raised, a value that was lowered: the gate only compared what it was told."""
    await desk.updates_prize(["limit_per_user"], "welcome", limit_per_user=1)
    assert reason(await old.rejection(ask())) == "LIMIT_REACHED"
    await desk.updates_prize(["limit_per_user"], "welcome", limit_per_user=2)
    assert kinds(await old.batch([item()], together=together)) == ["granted"]
    assert kinds(await old.batch([item()], together=together)) == ["LIMIT_REACHED"]
    rich = item(prize_id="cashback", order_cents=1_000_000)
    assert kinds(await old.batch([rich], together=together)) == ["BUDGET_EXHAUSTED"]
    await desk.updates_prize(
        ["value.rate"],
        "cashback",
        value=prize.PrizeValue(
            asset="USD/2",
            rate=prize.ValueRate(attribute="order_cents", basis_points=1, rounding=prize.ROUNDING_DOWN),
        ),
    )
    (granted,) = await old.batch([rich], together=together)
    assert granted.granted.value.units == 100
