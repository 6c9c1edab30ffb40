"""What is told while an attempt is under way: not that there is none, and no refusal before it has let go."""

from __future__ import annotations

import asyncio

import pytest

from guerdon_server.core.stock.service import Gate
from guerdon_server.platform import postgres
from guerdon_server.settings import Settings
from tests.issuing.desk import WAIT_SECONDS_MAX, Desk, ask, eventually, reason
from tests.issuing.proof import at_rest, open_admissions
from tests.transports import on_both_transports

pytestmark = on_both_transports


async def test_an_attempt_in_flight_is_pending_on_every_server(desk: Desk, other: Desk, settings: Settings) -> None:
    await desk.opens()
    await desk.coupon(stock=10)
    await asyncio.gather(desk.grant(ask()), other.grant(ask()))
    await at_rest(settings)
    connection = await postgres.connect(settings.postgres_dsn)
    await connection.execute("BEGIN; LOCK TABLE guerdon.request IN EXCLUSIVE MODE")
    try:
        slow = asyncio.create_task(desk.grant(ask("slow")))

        async def in_flight() -> bool:
            return await open_admissions(settings) == 1

        await eventually(in_flight)
        for at in (desk, other):
            assert (await at.became("slow")).WhichOneof("state") == "pending"
            assert (await at.became("nothing")).WhichOneof("state") == "absent"
    finally:
        await connection.execute("ROLLBACK")
        await connection.close()
    granted = await slow
    assert (await other.became("slow")).granted == granted


async def test_a_refusal_is_answered_after_what_its_attempt_took_was_given_back(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next request of the same user could be refused for what this one still holds."""
    await desk.opens()
    await desk.coupon(stock=5, limit=1)
    await desk.became("r-1", cancel=True)
    asked, may_go_on = asyncio.Event(), asyncio.Event()
    settled = Gate.settled

    async def held(gate: Gate) -> None:
        asked.set()
        await may_go_on.wait()
        await settled(gate)

    monkeypatch.setattr(Gate, "settled", held)
    refused = asyncio.create_task(desk.rejection(ask("r-1")))
    waits = asyncio.create_task(asked.wait())
    await asyncio.wait({refused, waits}, return_when=asyncio.FIRST_COMPLETED, timeout=WAIT_SECONDS_MAX)
    assert asked.is_set()
    assert not refused.done()
    may_go_on.set()
    assert reason(await refused) == "CANCELLED"
    await desk.grant(ask("r-2"))
