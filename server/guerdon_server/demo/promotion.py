"""Creating the demo's promotion, or finding the one of an earlier run."""

from __future__ import annotations

from collections.abc import Awaitable

from guerdon import (
    UNLIMITED,
    AlreadyExists,
    AsyncClient,
    Capacity,
    NotFound,
    PrizeKind,
    PrizeValue,
    PromotionState,
    RateValue,
    Rounding,
)
from guerdon_server.demo.scenario import (
    CASH,
    CASHBACK_BASIS_POINTS,
    CASHBACK_CAP_CENTS,
    COIN,
    COINS_BASIS_POINTS,
    ENTRANCE,
    PrizeName,
    Scenario,
)


async def ensure_promotion(client: AsyncClient, scenario: Scenario) -> bool:
    """Make it active, whatever of it exists already; True if an earlier run had made it so. Raises GuerdonError."""
    try:
        found = await client.get_promotion(promotion_id=scenario.promotion_id)
    except NotFound:
        found = None
    if found is not None and found.state is PromotionState.ACTIVE:
        return True
    await _create(client, scenario)
    if found is None or found.state is PromotionState.DRAFT:
        await client.transition_promotion(
            promotion_id=scenario.promotion_id,
            target_state=PromotionState.SCHEDULED,  # without a start time it is active at once
            request_id=f"demo-start-{scenario.promotion_id}",
        )
    return False


async def _create(client: AsyncClient, scenario: Scenario) -> None:
    await _unless_there(
        client.create_entrance(entrance_id=ENTRANCE, display_name="Checkout", request_id="demo-entrance")
    )
    await _unless_there(
        client.create_promotion(
            promotion_id=scenario.promotion_id,
            display_name="CDNOW replay",
            entrance_ids=[ENTRANCE],
            budgets={CASH: scenario.cashback_budget_cents, COIN: UNLIMITED},
            request_id=f"demo-create-{scenario.promotion_id}",
        )
    )
    await _create_prizes(client, scenario)


async def _create_prizes(client: AsyncClient, scenario: Scenario) -> None:
    async def create(
        prize: PrizeName,
        kind: PrizeKind,
        display_name: str,
        *,
        stock: Capacity = UNLIMITED,
        value: PrizeValue | None = None,
        limit_per_user: int = 0,
    ) -> None:
        creation = client.create_prize(
            prize_id=scenario.prize_id(prize),
            promotion_id=scenario.promotion_id,
            display_name=display_name,
            kind=kind,
            stock=stock,
            value=value,
            limit_per_user=limit_per_user,
            request_id=f"demo-create-{scenario.prize_id(prize)}",
        )
        await _unless_there(creation)

    five_percent = RateValue(CASH, "order_cents", CASHBACK_BASIS_POINTS, None, CASHBACK_CAP_CENTS, Rounding.HALF_UP)
    await create(PrizeName.CASHBACK, PrizeKind.CASHBACK, "5 % back, at most $5.00", value=five_percent)
    await create(PrizeName.COUPON, PrizeKind.COUPON, "Welcome coupon", stock=scenario.coupon_stock, limit_per_user=1)
    await create(
        PrizeName.COINS, PrizeKind.COIN, "A coin for each CD", value=RateValue(COIN, "cds", COINS_BASIS_POINTS)
    )


async def _unless_there(creation: Awaitable[object]) -> None:
    try:
        await creation
    except AlreadyExists:  # an earlier run was interrupted after this step
        return
