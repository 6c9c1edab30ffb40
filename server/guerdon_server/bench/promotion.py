"""The promotion of the bench: one coupon a user from a limited stock, a limited budget, and a prize that is gone."""

from __future__ import annotations

from guerdon import (
    UNLIMITED,
    AsyncClient,
    Capacity,
    Granted,
    PrizeKind,
    PrizeValue,
    PromotionState,
    RateValue,
    Rounding,
)
from guerdon_server.bench.errors import BenchError
from guerdon_server.bench.workloads import CASH, COIN, ENTRANCE, PROMOTION, Prize, spread_prize_id

# Limited, so that gate and ledger count it, and more than any bench can give.
_PLENTY = 10**12


async def create_promotion(target: str, *, spread_prizes: int = 0) -> None:
    """Everything that the workloads name, active; the sold-out prize's only unit is granted. Raises GuerdonError.

    `spread_prizes`: so many more prizes that are like the coupon.
    """
    async with AsyncClient(target, principal="bench") as client:
        await client.create_entrance(entrance_id=ENTRANCE, display_name="Checkout", request_id="bench-entrance")
        await client.create_promotion(
            promotion_id=PROMOTION,
            display_name="Bench",
            entrance_ids=[ENTRANCE],
            budgets={CASH: _PLENTY, COIN: UNLIMITED},
            request_id="bench-promotion",
        )
        await _create_prizes(client, spread_prizes)
        await client.transition_promotion(
            promotion_id=PROMOTION, target_state=PromotionState.SCHEDULED, request_id="bench-start"
        )
        outcome = await client.issue_prize(
            promotion_id=PROMOTION,
            entrance_id=ENTRANCE,
            prize_id=Prize.SOLD_OUT.id,
            user_id="the-last-one",
            request_id="bench-the-last-one",
        )
        if not isinstance(outcome, Granted):
            raise BenchError(f"the first grant was refused: {outcome}")


async def _create_prizes(client: AsyncClient, spread_prizes: int) -> None:
    async def create(
        prize_id: str,
        kind: PrizeKind,
        *,
        stock: Capacity = UNLIMITED,
        value: PrizeValue | None = None,
        limit_per_user: int = 0,
    ) -> None:
        await client.create_prize(
            prize_id=prize_id,
            promotion_id=PROMOTION,
            kind=kind,
            stock=stock,
            value=value,
            limit_per_user=limit_per_user,
            request_id=prize_id,
        )

    five_percent = RateValue(CASH, "order_cents", 500, None, 500, Rounding.HALF_UP)
    await create(Prize.COUPON.id, PrizeKind.COUPON, stock=_PLENTY, limit_per_user=1)
    await create(Prize.CASHBACK.id, PrizeKind.CASHBACK, value=five_percent)
    await create(Prize.COINS.id, PrizeKind.COIN, value=RateValue(COIN, "cds", 10_000))
    await create(Prize.SOLD_OUT.id, PrizeKind.COUPON, stock=1, limit_per_user=1)
    for number in range(spread_prizes):
        await create(spread_prize_id(number), PrizeKind.COUPON, stock=_PLENTY, limit_per_user=1)
