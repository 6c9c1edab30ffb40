"""An error that says that nothing was done is true: what may have been done is left open, and what was done is told."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from guerdon.v1 import prize_pb2 as prize
from guerdon_server import bootstrap
from guerdon_server.platform.failpoints import Failpoints
from guerdon_server.platform.postgres import Pool
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, Refusal, ask, fresh, item, kinds, opened, outcome
from tests.issuing.proof import at_rest, proven

_LOOK_UP = "postgres.select.request.outcome.admission.before=error"
_TERMS = "postgres.begin.read_only.before=error"


@pytest_asyncio.fixture
async def failpoints() -> Failpoints:
    return Failpoints()


@pytest_asyncio.fixture(loop_scope="session")
async def desk(settings: Settings, failpoints: Failpoints) -> AsyncIterator[Desk]:
    """A server with a coupon, whose I/O can be broken."""
    async with bootstrap.running(settings, failpoints=failpoints) as endpoints, opened(endpoints.grpc) as desk:
        await desk.opens()
        await desk.coupon(stock=100)
        await desk.grant(ask())
        yield desk
        await at_rest(settings)
    await proven(settings)


async def test_a_grant_that_can_not_be_looked_up_is_left_open(desk: Desk, failpoints: Failpoints) -> None:
    request = ask()
    with failpoints.armed(f"postgres.commit_issuances.after=error@1;{_LOOK_UP}") as rules:
        refused = await outcome(desk.issue(request))
    assert all(rule.passes for rule in rules)
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "OUTCOME_UNKNOWN")
    assert "nothing was granted" not in refused.message
    await desk.grant(request, replayed=True)


async def test_what_was_ruled_out_is_told_although_nothing_can_be_looked_up(desk: Desk, failpoints: Failpoints) -> None:
    with failpoints.armed(_LOOK_UP):
        answer = await desk.became("never", cancel=True)
    assert answer.absent.cancelled


async def test_items_that_were_granted_are_told_although_others_can_not_be_decided_anew(
    desk: Desk, failpoints: Failpoints, pool: Pool
) -> None:
    fenced = item()
    await pool.execute(
        "INSERT INTO guerdon.request (promotion, request_id, outcome, admission)"
        " SELECT sid, $1, 2, (1::bigint << 62) FROM guerdon.promotion",
        fenced.request_id,
    )
    with failpoints.armed(_TERMS) as rules:
        results = await desk.batch([item(), fenced, item()])
    assert rules[0].passes
    assert kinds(results) == ["granted", "LEDGER_UNAVAILABLE", "granted"]
    assert kinds(await desk.batch([fenced])) == ["granted"]


async def test_a_change_whose_commit_broke_is_left_open(desk: Desk, failpoints: Failpoints) -> None:
    request = prize.AdjustPrizeStockRequest(prize_id="welcome", delta_units=5, request_id=fresh("adjust"))
    with failpoints.armed("postgres.commit.after=error@1") as rules:
        refused = await outcome(desk.prizes.AdjustPrizeStock(request))
    assert rules[0].passes
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "OUTCOME_UNKNOWN")
    assert (await desk.stock()).units == 105, "it had been made"
    assert (await desk.prizes.AdjustPrizeStock(request)).stock.units == 105, "and is not made again"


async def test_calls_of_a_batch_that_was_cancelled_are_left_open(desk: Desk, failpoints: Failpoints) -> None:
    request = ask()
    await desk.grant(request)
    with failpoints.armed(_LOOK_UP.replace("=error", "=cancel@1")) as rules:
        refused = await outcome(desk.issue(request))
    assert rules[0].passes
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "OUTCOME_UNKNOWN")
    await desk.grant(request, replayed=True)
