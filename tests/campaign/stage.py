"""What one round is played on: two promotions with prizes on the edge of their stock and budgets."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from guerdon.v1 import prize_pb2 as prize
from guerdon.v1 import promotion_pb2 as promotion
from tests.issuing.desk import Desk

ENTRANCE = "checkout"
COUPON, CASHBACK, COINS, OPEN = "coupon", "cashback", "coins", "open"
_RATE_BASIS_POINTS = 500


@dataclass(slots=True)
class Offer:
    """One prize. `values`: every value that a grant of it may have had so far, by the basis (order_cents); None: any
    of `fixed`, the values that were in force at some time (0: it has no value)."""

    promotion_id: str
    prize_id: str
    kind: str
    asset: str = ""
    stock: int | None = None
    limit_at_first: int = 0
    limit_highest: int = 0
    fixed: set[int] = field(default_factory=lambda: {0})

    def may_be_worth(self, basis: int) -> set[int]:
        """The values that a grant may have."""
        if self.kind == CASHBACK:
            return {(basis * _RATE_BASIS_POINTS + 5_000) // 10_000}
        return self.fixed


@dataclass(slots=True)
class Stage:
    """The promotions of a round and what may be asked for."""

    promotion_ids: list[str]
    offers: list[Offer]
    users: list[str]
    budgets: dict[tuple[str, str], int | None]
    """Initial units by (promotion id, asset); None: unlimited."""

    def offer(self, promotion_id: str, kind: str) -> Offer:
        """The one of that kind."""
        return next(o for o in self.offers if o.promotion_id == promotion_id and o.kind == kind)


async def set_up(desk: Desk, number: int, rng: random.Random) -> Stage:
    """Makes everything, active. Raises AioRpcError: nothing is broken while a stage is set up."""
    promotion_ids = [f"r{number}-{name}" for name in ("sale", "coins")]
    offers: list[Offer] = []
    budgets: dict[tuple[str, str], int | None] = {}
    for promotion_id in promotion_ids:
        budgets[promotion_id, "USD/2"] = rng.randrange(2_000, 20_000)
        budgets[promotion_id, "COIN"] = rng.randrange(300, 1_500)
        budgets[promotion_id, "STAR"] = None
        await desk.opens(
            promotion_id,
            entrances=(ENTRANCE,),
            budgets={asset: units for (owner, asset), units in budgets.items() if owner == promotion_id},
        )
        stock, limit, value = rng.randrange(80, 500), rng.randrange(2, 6), rng.randrange(1, 12)
        found = [
            Offer(promotion_id, f"{promotion_id}-coupon", COUPON, stock=stock),
            Offer(promotion_id, f"{promotion_id}-cashback", CASHBACK, asset="USD/2"),
            Offer(
                promotion_id,
                f"{promotion_id}-coins",
                COINS,
                asset="COIN",
                limit_at_first=limit,
                limit_highest=limit,
                fixed={value},
            ),
            Offer(promotion_id, f"{promotion_id}-open", OPEN, asset="STAR", fixed={1}),
        ]
        offers += found
        await desk.coupon(found[0].prize_id, promotion_id=promotion_id, stock=stock)
        await desk.cashback(found[1].prize_id, promotion_id=promotion_id)
        await _coins(desk, found[2], limit)
        await _coins(desk, found[3], 0)
    users = [f"r{number}-u{n}" for n in range(rng.randrange(15, 60))]
    return Stage(promotion_ids, offers, users, budgets)


async def _coins(desk: Desk, offer: Offer, limit: int) -> None:
    (value,) = offer.fixed
    await desk.offers(
        offer.prize_id,
        promotion_id=offer.promotion_id,
        kind=prize.PRIZE_KIND_COIN,
        stock=prize.Stock(unlimited=True),
        value=prize.PrizeValue(asset=offer.asset, fixed_units=value),
        limit_per_user=limit,
    )


def state(name: str) -> promotion.PromotionState.ValueType:
    """By its name without the prefix."""
    return promotion.PromotionState.Value(f"PROMOTION_STATE_{name}")
