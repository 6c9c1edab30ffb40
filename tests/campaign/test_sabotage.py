"""The campaign sees what is broken behind its back: each kind of damage is reported under its promise."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from tests.campaign import promises
from tests.campaign.faults import Fault, Ground
from tests.campaign.plan import Round, Strike
from tests.campaign.rounds import play
from tests.campaign.stage import COUPON
from tests.cluster.cluster import Cluster
from tests.issuing.desk import eventually

_GRANTED = """
    (SELECT r.ctid FROM guerdon.request r JOIN guerdon.promotion p ON p.sid = r.promotion
    WHERE p.promotion_id = $1 AND r.outcome = 1 AND r.value > 0 AND r.request_id NOT LIKE 'steady%' LIMIT 1)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster() -> AsyncIterator[Cluster]:
    """Without standby and replica: nothing fails here."""
    with tempfile.TemporaryDirectory(prefix="guerdon-sabotage-") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            folder.chmod(0o711)  # noqa: ASYNC240  PostgreSQL runs as another user then
        async with Cluster(folder, servers=2, standby=False, replica=False) as cluster:
            yield cluster


async def _a_grant(g: Ground, change: str) -> None:
    """Of the first promotion of the stage; one must have been hit."""
    statement = f"{change} WHERE ctid = {_GRANTED}"
    async with g.cluster.postgres.connection() as session:
        done = await session.execute(statement, g.operator.stage.promotion_ids[0])
    assert done.split()[-1] != "0", done


async def loses_a_grant(g: Ground) -> None:
    await _a_grant(g, "DELETE FROM guerdon.request")


async def gives_it_to_another(g: Ground) -> None:
    other = "(SELECT max(sid) FROM guerdon.subject WHERE sid <> subject)"
    await _a_grant(g, f"UPDATE guerdon.request SET subject = {other}")  # noqa: S608


async def pays_more(g: Ground) -> None:
    await _a_grant(g, "UPDATE guerdon.request SET value = value + 1000")


async def forgets_a_unit_of_stock(g: Ground) -> None:
    offer = g.operator.stage.offer(g.operator.stage.promotion_ids[0], COUPON)
    async with g.cluster.postgres.connection() as session:
        await session.execute(
            "UPDATE guerdon.account SET debits = debits - 1 WHERE debits > 0 AND id ="
            " (SELECT stock_account FROM guerdon.prize WHERE prize_id = $1)",
            offer.prize_id,
        )


async def forgets_a_tombstone(g: Ground) -> None:
    await eventually(lambda: bool(g.journal.cancelled))
    async with g.cluster.postgres.connection() as session:
        await session.execute("DELETE FROM guerdon.request WHERE outcome = 3")


async def leaves_an_admission_open(g: Ground) -> None:
    client = g.cluster.valkey.client()
    keys = [key async for key in client.scan_iter("guerdon:*:admissions")]
    # Of a request that nobody can fence: its record can't be read.
    await client.hset(sorted(keys)[0], "x", "x")
    await client.aclose()


SABOTAGES: list[tuple[Callable[[Ground], Awaitable[None]], set[str]]] = [
    (loses_a_grant, {promises.ACKNOWLEDGED}),
    (gives_it_to_another, {promises.TERMS}),
    (pays_more, {promises.ACKNOWLEDGED, promises.BUDGET}),
    (forgets_a_unit_of_stock, {promises.STOCK, promises.BALANCED}),
    (forgets_a_tombstone, {promises.ONE_GRANT}),
    (leaves_an_admission_open, {promises.AT_REST}),
]


@pytest.mark.parametrize(("sabotage", "expected"), SABOTAGES, ids=[s.__name__ for s, _ in SABOTAGES])
async def test_damage_is_reported(
    cluster: Cluster, sabotage: Callable[[Ground], Awaitable[None]], expected: set[str], request: pytest.FixtureRequest
) -> None:
    async def strike(g: Ground) -> None:
        await eventually(lambda: len(g.journal.granted) > 80)
        await sabotage(g)
        g.mended()

    number = 1 + [s for s, _ in SABOTAGES].index(sabotage)
    planned = Round(number, number, (Strike(Fault("sabotage", "operator", "", strike), 1, 0.0),))

    played = await play(cluster, planned, scale=1, keep=None)

    found = {promise for promise, _ in played.findings.broken}
    assert expected <= found, (found, played.findings.broken, played.error)
