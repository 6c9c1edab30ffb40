"""While a commit is under way nobody is told that there is none."""

from __future__ import annotations

import asyncio

from guerdon_server.platform import postgres
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, ask, eventually
from tests.issuing.proof import open_admissions


async def test_an_attempt_in_flight_is_pending_on_every_server(desk: Desk, other: Desk, settings: Settings) -> None:
    await desk.opens()
    await desk.coupon(stock=10)
    await asyncio.gather(desk.grant(ask()), other.grant(ask()))
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
