"""What the machines have found, each as short as it goes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest_asyncio

from guerdon.v1 import prize_pb2 as prize
from guerdon_server import bootstrap
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, ask, attributes, fresh, item, kinds, opened, reason
from tests.issuing.proof import proven


@pytest_asyncio.fixture(loop_scope="session")
async def desks(database: str, redis_url: str) -> AsyncIterator[Sequence[Desk]]:
    """Two servers that look for changes of the catalogue every second, as in production."""
    settings = Settings(postgres_dsn=database, redis_url=redis_url, grpc_port=0, metrics_port=0, test_mode=True)
    async with (
        bootstrap.running(settings) as one,
        bootstrap.running(settings) as two,
        opened(one.grpc) as first,
        opened(two.grpc) as second,
    ):
        yield first, second
    await proven(settings)


async def test_an_item_that_is_refused_in_the_end_takes_nothing_from_its_neighbours(desks: Sequence[Desk]) -> None:
    desk = desks[0]
    await desk.opens()
    await desk.coupon(stock=1)
    cancelled = item()
    assert (await desk.became(cancelled.request_id, cancel=True)).absent.cancelled

    one_by_one_would = ["CANCELLED", "granted"]

    assert kinds(await desk.batch([cancelled, item()])) == one_by_one_would


async def test_many_items_that_are_refused_in_the_end_take_nothing_from_their_neighbours(desks: Sequence[Desk]) -> None:
    """However many there are: each holds the last unit for a moment."""
    desk = desks[0]
    await desk.opens()
    await desk.coupon(stock=1)
    never = [item() for _ in range(8)]
    for one in never:
        await desk.became(one.request_id, cancel=True)

    assert kinds(await desk.batch([*never, item()])) == ["CANCELLED"] * 8 + ["granted"]


async def test_an_item_over_a_new_limit_takes_nothing_from_its_neighbours(desks: Sequence[Desk]) -> None:
    desk = desks[0]
    await desk.opens()
    await desk.coupon(stock=3)
    await desk.grant(ask())
    await desk.grant(ask())
    await desk.updates_prize(["limit_per_user"], "welcome", limit_per_user=2)

    assert kinds(await desk.batch([item(), item(user_id="bob")])) == ["LIMIT_REACHED", "granted"]


async def test_a_limit_that_is_new_counts_what_was_granted_before_in_batches_too(desks: Sequence[Desk]) -> None:
    desk = desks[0]
    await desk.opens()
    await desk.coupon()
    for _ in range(3):
        await desk.grant(ask())
    await desk.updates_prize(["limit_per_user"], "welcome", limit_per_user=1)

    results = await desk.batch([item(), item()])

    assert [(reason(it.rejected), it.rejected.observed) for it in results] == [("LIMIT_REACHED", "3")] * 2


async def test_a_limit_that_was_raised_is_not_refused_by_at_another_server(desks: Sequence[Desk]) -> None:
    first, second = desks
    await first.opens()
    await first.coupon(limit=1)
    await second.grant(ask())
    await first.updates_prize(["limit_per_user"], "welcome", limit_per_user=2)

    await second.grant(ask())


async def test_a_value_that_was_lowered_fits_at_another_server_too(desks: Sequence[Desk]) -> None:
    first, second = desks
    await first.opens(budgets={"COIN": 15})
    value = prize.PrizeValue(asset="COIN", fixed_units=10)
    await first.offers("coins", kind=prize.PRIZE_KIND_COIN, stock=prize.Stock(unlimited=True), value=value)
    await second.grant(ask(prize_id="coins"))
    await first.updates_prize(["value.fixed_units"], "coins", value=prize.PrizeValue(fixed_units=5))

    await second.grant(ask(prize_id="coins"))


async def test_together_one_that_was_granted_before_does_not_keep_the_others_from_it(desks: Sequence[Desk]) -> None:
    """Its prize goes by another attribute by now, so that it could not be granted anew: it need not be."""
    desk = desks[0]
    await desk.opens(budgets={"USD/2": None})
    await desk.coupon()
    await desk.cashback()
    old = item(fresh(), prize_id="cashback", order_cents=1000)
    assert kinds(await desk.batch([old])) == ["granted"]
    rate = prize.ValueRate(attribute="cart_cents", basis_points=500, rounding=prize.ROUNDING_DOWN)
    await desk.updates_prize(["value.rate"], "cashback", value=prize.PrizeValue(rate=rate))
    assert attributes(order_cents=1000) == dict(old.attributes)

    assert kinds(await desk.batch([old, item()], together=True)) == ["replayed", "granted"]


async def test_together_nobody_is_refused_for_what_a_refused_neighbour_held(desks: Sequence[Desk]) -> None:
    """One unit is left, so that it is not sold out; the batch is not granted because the first was cancelled."""
    desk = desks[0]
    await desk.opens()
    await desk.coupon(stock=1)
    cancelled = item()
    await desk.became(cancelled.request_id, cancel=True)

    assert kinds(await desk.batch([cancelled, item()], together=True)) == ["CANCELLED", "BATCH_NOT_GRANTED"]
