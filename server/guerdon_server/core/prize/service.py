"""Prizes for operators: create, change, adjust the stock; and what a user could get."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from guerdon_server.core.ledger.model import PromotionSid
from guerdon_server.core.ledger.postgres.capacity import AdjustCode, CapacityKind, adjust_capacity, refusal
from guerdon_server.core.ledger.postgres.operations import Caller, check_etag, claim, mutation
from guerdon_server.core.ledger.postgres.statements import Session
from guerdon_server.core.prize import rules
from guerdon_server.core.prize.model import NewPrize, Offer, Prize, PrizeStock, PrizeUpdate, StockDelta
from guerdon_server.core.prize.ports import PrizeChanges
from guerdon_server.core.prize.postgres import store
from guerdon_server.platform.errors import Code, ServiceError, failed_precondition
from guerdon_server.platform.postgres import Pool

_log = logging.getLogger(__name__)


class PrizeService:
    """Every mutation is one transaction, idempotent by its request id, and committed when it returns.

    Requests have been validated field by field; what needs the stored state is checked here. Raises ServiceError.
    """

    def __init__(self, changes: PrizeChanges, *, reads: Pool, writes: Pool) -> None:
        self._reads = reads
        self._writes = writes
        self._changes = changes

    async def create(self, new: NewPrize, caller: Caller) -> Prize:
        """A prize that can be asked for at once. PRIZE_EXISTS; PROMOTION_NOT_FOUND, PROMOTION_ENDED,
        PRIZES_TOO_MANY; BUDGET_MISSING."""
        async with mutation(self._writes) as session:
            if not await claim(session, "CreatePrize", new, caller):
                return await store.get(session, new.prize_id)
            await _insert(session, new)
            prize = await store.get(session, new.prize_id)
        await self._tell_changed(prize.promotion)
        return prize

    async def get(self, prize_id: str) -> Prize:
        """PRIZE_NOT_FOUND."""
        async with self._reads.acquire() as session:
            return await store.get(session, prize_id)

    async def page(self, promotion_id: str, *, after: str, limit: int) -> list[Prize]:
        """Up to `limit` by id, behind the id `after`; of one promotion, unless that is ''."""
        async with self._reads.acquire() as session:
            return await store.page(session, promotion_id, after, limit)

    async def update(self, update: PrizeUpdate, caller: Caller) -> Prize:
        """What was granted keeps its terms. ETAG_MISMATCH."""
        async with mutation(self._writes) as session:
            if not await claim(session, "UpdatePrize", update, caller):
                return await store.get(session, update.prize_id)
            prize = await store.lock_exclusive(session, update.prize_id)
            check_etag(update.etag, prize.etag, prize_id=update.prize_id)
            await store.update(session, rules.updated(prize, update))
            await store.bump_promotion(session, prize.promotion)
            result = await store.get(session, update.prize_id)
        await self._tell_changed(result.promotion)
        return result

    async def adjust_stock(self, delta: StockDelta, caller: Caller) -> tuple[PrizeStock, bool]:
        """The stock as it is now, and whether the adjustment had been made before. STOCK_INSUFFICIENT,
        CAPACITY_UNLIMITED, CAPACITY_LIMIT."""
        async with mutation(self._writes) as session:
            first = await claim(session, "AdjustPrizeStock", delta, caller)
            if first:
                await _adjust_stock(session, delta)
            stock = await store.stock(session, delta.prize_id)
        await self._tell_capacity(stock)
        return stock, not first

    async def stock(self, prize_id: str) -> PrizeStock:
        """PRIZE_NOT_FOUND."""
        async with self._reads.acquire() as session:
            return await store.stock(session, prize_id)

    async def offers(self, promotions: Sequence[PromotionSid], user_id: str) -> dict[PromotionSid, list[Offer]]:
        """The prizes of each promotion, by id, as the user ('': nobody in particular) sees them now; two queries."""
        async with self._reads.acquire() as session:
            holdings = await store.holdings(session, promotions, user_id)
            prizes = await store.fetch(session, list(holdings))
        offers: dict[PromotionSid, list[Offer]] = {sid: [] for sid in promotions}
        for prize in prizes:
            held = holdings[prize.prize_id]
            offers[prize.promotion].append(Offer(prize, rules.unavailable(prize, held), held.user_granted))
        return offers

    async def _tell_changed(self, promotion: PromotionSid) -> None:
        try:
            await self._changes.promotion_changed(promotion)
        except Exception:
            _log.warning("a prize of promotion %s has changed, but this process was not told", promotion, exc_info=True)

    async def _tell_capacity(self, stock: PrizeStock) -> None:
        if stock.capacity_units is None or stock.version is None:
            return
        try:
            await self._changes.capacity_changed(stock.promotion, stock.account, stock.capacity_units, stock.version)
        except Exception:
            _log.warning("the stock of prize %s has changed, but the gate was not told", stock.prize_id, exc_info=True)


async def _insert(session: Session, new: NewPrize) -> None:
    promotion = await store.lock_promotion(session, new.promotion_id)
    ids = {"promotion_id": new.promotion_id, "prize_id": new.prize_id}
    if promotion.over:
        raise failed_precondition("PROMOTION_ENDED", f"{new.promotion_id} is over and takes no more prizes.", **ids)
    if promotion.prize_count >= rules.PRIZES_MAX:
        message = f"{new.promotion_id} has {promotion.prize_count} prizes already; {rules.PRIZES_MAX} is the most."
        raise failed_precondition("PRIZES_TOO_MANY", message, **ids)
    budget = None
    if new.value is not None:
        budget = await store.find_budget(session, promotion.sid, new.value.asset)
        if budget is None:
            message = f"{new.promotion_id} has no budget in {new.value.asset}. Open one with AdjustPromotionBudget."
            raise failed_precondition("BUDGET_MISSING", message, asset=new.value.asset, **ids)
    if not await store.insert(session, new, promotion.sid, budget):
        message = f"There is a prize {new.prize_id} already. Choose another id, or update it."
        raise ServiceError(Code.ALREADY_EXISTS, "PRIZE_EXISTS", message, metadata={"prize_id": new.prize_id})
    await store.bump_promotion(session, promotion.sid)


async def _adjust_stock(session: Session, delta: StockDelta) -> None:
    stock = await store.stock(session, delta.prize_id)
    adjustment = await adjust_capacity(
        session,
        kind=CapacityKind.STOCK,
        promotion=stock.promotion,
        source=stock.source,
        account=stock.account,
        delta=delta.delta_units,
    )
    if adjustment.code is not AdjustCode.ADJUSTED:
        raise refusal(adjustment, kind=CapacityKind.STOCK, delta=delta.delta_units, prize_id=delta.prize_id)
