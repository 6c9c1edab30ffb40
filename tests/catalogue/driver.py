"""A catalogue on a real database, reached through its servicers as RPCs reach it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from guerdon.v1 import entrance_pb2, prize_pb2, promotion_pb2
from guerdon_server.core.entrance.service import EntranceService
from guerdon_server.core.ledger.model import AccountId, PromotionSid
from guerdon_server.core.prize.service import PrizeService
from guerdon_server.core.promotion.service import PromotionService
from guerdon_server.platform.postgres import Pool
from guerdon_server.rpc.entrance import EntranceServicer
from guerdon_server.rpc.prize import PrizeCatalogueServicer
from guerdon_server.rpc.promotion import PromotionServicer

_ids = itertools.count(1)


def fresh(prefix: str = "r") -> str:
    """A request id that was never used."""
    return f"{prefix}-{next(_ids)}"


@dataclass
class Told:
    """What the rest of the process was told after commits; told to fail, it does."""

    promotions: list[PromotionSid] = field(default_factory=list)
    capacities: list[tuple[PromotionSid, AccountId, int, int]] = field(default_factory=list)
    fails: bool = False

    async def promotion_changed(self, promotion: PromotionSid) -> None:
        self.promotions.append(promotion)
        if self.fails:
            raise ConnectionError("the gate is away")

    async def capacity_changed(self, promotion: PromotionSid, account: AccountId, capacity: int, version: int) -> None:
        self.capacities.append((promotion, account, capacity, version))
        if self.fails:
            raise ConnectionError("the gate is away")


class Catalogue:
    """The servicers, and shorthands for what most tests need first."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.told = Told()
        promotions = PromotionService(self.told, reads=pool, writes=pool)
        prizes = PrizeService(self.told, reads=pool, writes=pool)
        self.promotions = PromotionServicer(promotions)
        self.prizes = PrizeCatalogueServicer(prizes)
        self.entrances = EntranceServicer(EntranceService(reads=pool, writes=pool), promotions, prizes)

    async def entrance(self, entrance_id: str = "checkout") -> entrance_pb2.Entrance:
        request = entrance_pb2.CreateEntranceRequest(
            entrance=entrance_pb2.Entrance(entrance_id=entrance_id), request_id=fresh()
        )
        return await self.entrances.CreateEntrance(request, "test")

    async def promotion(
        self,
        promotion_id: str = "spring",
        *,
        entrance_ids: Sequence[str] = (),
        budgets: Mapping[str, int | None] | None = None,
    ) -> promotion_pb2.Promotion:
        """Budgets: units by asset, None for unlimited."""
        promotion = promotion_pb2.Promotion(
            promotion_id=promotion_id,
            entrance_ids=entrance_ids,
            budgets=[
                promotion_pb2.Budget(asset=asset, unlimited=True)
                if units is None
                else promotion_pb2.Budget(asset=asset, units=units)
                for asset, units in (budgets or {}).items()
            ],
        )
        request = promotion_pb2.CreatePromotionRequest(promotion=promotion, request_id=fresh())
        return await self.promotions.CreatePromotion(request, "test")

    async def transition(self, promotion_id: str, state: str, *, request_id: str = "") -> promotion_pb2.Promotion:
        request = promotion_pb2.TransitionPromotionRequest(
            promotion_id=promotion_id,
            target_state=promotion_pb2.PromotionState.Value(f"PROMOTION_STATE_{state}"),
            request_id=request_id or fresh(),
        )
        return await self.promotions.TransitionPromotion(request, "test")

    async def coupon(
        self,
        prize_id: str = "welcome",
        *,
        promotion_id: str = "spring",
        stock: int | None = 10,
        limit: int = 0,
        value: prize_pb2.PrizeValue | None = None,
    ) -> prize_pb2.Prize:
        prize = prize_pb2.Prize(
            prize_id=prize_id,
            promotion_id=promotion_id,
            kind=prize_pb2.PRIZE_KIND_COUPON,
            stock=prize_pb2.Stock(unlimited=True) if stock is None else prize_pb2.Stock(units=stock),
            limit_per_user=limit,
            value=value,
        )
        return await self.prizes.CreatePrize(prize_pb2.CreatePrizeRequest(prize=prize, request_id=fresh()), "test")

    async def adjust_stock(
        self, prize_id: str, delta: int, *, request_id: str = ""
    ) -> prize_pb2.AdjustPrizeStockResponse:
        request = prize_pb2.AdjustPrizeStockRequest(
            prize_id=prize_id, delta_units=delta, request_id=request_id or fresh()
        )
        return await self.prizes.AdjustPrizeStock(request, "test")

    async def adjust_budget(
        self, promotion_id: str, asset: str, delta: int, *, request_id: str = ""
    ) -> promotion_pb2.AdjustPromotionBudgetResponse:
        request = promotion_pb2.AdjustPromotionBudgetRequest(
            promotion_id=promotion_id, asset=asset, delta_units=delta, request_id=request_id or fresh()
        )
        return await self.promotions.AdjustPromotionBudget(request, "test")

    async def books_balance(self) -> bool:
        """Debits and credits of all accounts, and of all transfers, agree account by account."""
        balanced: bool = await self.pool.fetchval("""
            SELECT bool_and(
                a.debits = (SELECT coalesce(sum(t.amount), 0) FROM guerdon.transfer t WHERE t.debit = a.id)
                AND a.credits = (SELECT coalesce(sum(t.amount), 0) FROM guerdon.transfer t WHERE t.credit = a.id)
            ) AND sum(a.debits) = sum(a.credits)
            AND (SELECT count(*) FROM guerdon.transfer) = (SELECT sum(transfer_count) FROM guerdon.batch)
            FROM guerdon.account a
        """)
        return balanced

    async def until_waiting(self, count: int) -> None:
        """Until so many sessions wait for an advisory lock."""
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        async with asyncio.timeout(20):
            while await self.pool.fetchval(query) < count:  # noqa: ASYNC110  nothing tells when a lock is waited for
                await asyncio.sleep(0.01)

    async def clock_ahead(self, seconds: int) -> None:
        """Moves the system's time, as test mode does."""
        await self.pool.execute("UPDATE guerdon.clock SET offset_us = $1", seconds * 1_000_000)
