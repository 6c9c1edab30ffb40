"""A server whose terms are old, and whose next look at the catalogue is far: its answers are as good."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator

import pytest_asyncio

from guerdon_server import bootstrap
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, ask, opened, reason
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
