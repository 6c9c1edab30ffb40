"""A crowd on each of several promotions at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from tests.issuing.crowd import Crowd, crowd
from tests.issuing.desk import Desk

_THINK_SECONDS = 0.05  # so that there is an end to what has to be replayed

Crowds = Mapping[str, Crowd]
"""By promotion."""


@asynccontextmanager
async def crowds(
    desks: Sequence[Desk], promotions: Iterable[str], *, prize: str = "welcome", clerks: int = 2
) -> AsyncIterator[Crowds]:
    """`clerks` callers on PRIZE-N of each promotion PROMO-N while the block runs."""
    async with AsyncExitStack() as stack:
        yield {
            promotion: await stack.enter_async_context(
                crowd(
                    desks,
                    clerks=clerks,
                    promotion_id=promotion,
                    prize_id=f"{prize}-{promotion.split('-')[1]}",
                    think_seconds=_THINK_SECONDS,
                )
            )
            for promotion in promotions
        }


async def more(people: Crowds, count: int, promotions: Iterable[str] | None = None) -> None:
    """Waits until so many more grants are acknowledged in each promotion."""
    await asyncio.gather(*(people[promotion].more(count) for promotion in promotions or people))


async def settled_to_what_was_said(people: Crowds, desk: Desk) -> None:
    """No stock was ever short here, so no refusal may be heard; and the ledger has what was acknowledged, no more."""
    for promotion, crowd_of_it in people.items():
        assert not crowd_of_it.rejected, (promotion, crowd_of_it.rejected)
        stock = await desk.stock(crowd_of_it.prize_id)
        assert stock.issued_units == len(crowd_of_it.granted), promotion
    for crowd_of_it in people.values():
        await crowd_of_it.replays_are_the_originals()
