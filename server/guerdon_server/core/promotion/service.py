"""Promotions for operators: create, change, move along their states, adjust what they may spend."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from guerdon_server.core.ledger.model import PromotionSid
from guerdon_server.core.ledger.postgres.capacity import AdjustCode, CapacityKind, adjust_capacity, refusal
from guerdon_server.core.ledger.postgres.operations import Caller, check_etag, claim, mutation
from guerdon_server.core.ledger.postgres.statements import Session
from guerdon_server.core.promotion import rules
from guerdon_server.core.promotion.model import (
    Budget,
    BudgetDelta,
    NewBudget,
    NewPromotion,
    Promotion,
    PromotionState,
    PromotionUpdate,
    Transition,
)
from guerdon_server.core.promotion.ports import PromotionChanges
from guerdon_server.core.promotion.postgres import store
from guerdon_server.platform.errors import Code, ServiceError, failed_precondition
from guerdon_server.platform.postgres import Pool

_log = logging.getLogger(__name__)


class PromotionService:
    """Every mutation is one transaction, idempotent by its request id, and committed when it returns.

    Requests have been validated field by field; what needs the stored state is checked here. Raises ServiceError.
    """

    def __init__(self, changes: PromotionChanges, *, reads: Pool, writes: Pool) -> None:
        self._reads = reads
        self._writes = writes
        self._changes = changes

    async def create(self, new: NewPromotion, caller: Caller) -> Promotion:
        """A draft with its budgets. PROMOTION_EXISTS; ENTRANCE_NOT_FOUND."""
        async with mutation(self._writes) as session:
            if not await claim(session, "CreatePromotion", new, caller):
                return await _current(session, new.promotion_id)
            sid = await store.insert(session, new)
            if sid is None:
                raise ServiceError(
                    Code.ALREADY_EXISTS,
                    "PROMOTION_EXISTS",
                    f"There is a promotion {new.promotion_id} already. Choose another id, or update it.",
                    metadata={"promotion_id": new.promotion_id},
                )
            await store.bind_entrances(session, sid, new.entrance_ids)
            await store.open_budgets(session, sid, new.budgets)
            return await store.get(session, sid)

    async def get(self, promotion_id: str) -> Promotion:
        """PROMOTION_NOT_FOUND."""
        async with self._reads.acquire() as session:
            return await _current(session, promotion_id)

    async def page(self, states: Sequence[PromotionState], *, after: str, limit: int) -> list[Promotion]:
        """Up to `limit` by id, behind the id `after`; without states all but archived ones."""
        wanted = states or [state for state in PromotionState if state is not PromotionState.ARCHIVED]
        async with self._reads.acquire() as session:
            return await store.page(session, wanted, after, limit)

    async def live_page(self, entrance_id: str, *, after: str, limit: int) -> list[Promotion]:
        """Up to `limit` that are active now and bound to the entrance, by id, behind the id `after`."""
        async with self._reads.acquire() as session:
            return await store.live_page(session, entrance_id, after, limit)

    async def update(self, update: PromotionUpdate, caller: Caller) -> Promotion:
        """ETAG_MISMATCH; PROMOTION_ENDED, PROMOTION_STARTED; ENTRANCE_NOT_FOUND."""
        async with mutation(self._writes) as session:
            if not await claim(session, "UpdatePromotion", update, caller):
                return await _current(session, update.promotion_id)
            promotion = await _lock(session, update.promotion_id, update.etag)
            changed = rules.updated(promotion, update)
            if "entrance_ids" in update.update_mask:
                await store.bind_entrances(session, promotion.sid, changed.entrance_ids)
            await store.update(session, changed)
            result = await store.get(session, promotion.sid)
        await self._tell_changed(result.sid)
        return result

    async def transition(self, transition: Transition, caller: Caller) -> Promotion:
        """Once this returns PAUSED (or ENDED), not one more grant is made. ETAG_MISMATCH; TRANSITION_NOT_ALLOWED."""
        async with mutation(self._writes) as session:
            if not await claim(session, "TransitionPromotion", transition, caller):
                return await _current(session, transition.promotion_id)
            promotion = await _lock(session, transition.promotion_id, transition.etag)
            changed = rules.transitioned(promotion, transition.target_state)
            if changed is not promotion:
                await store.update(session, changed)
            result = await store.get(session, promotion.sid)
        await self._tell_changed(result.sid)
        return result

    async def adjust_budget(self, delta: BudgetDelta, caller: Caller) -> tuple[Budget, bool]:
        """The budget as it is now, and whether the adjustment had been made before. A budget in an asset that the
        promotion did not have is opened. BUDGET_INSUFFICIENT, CAPACITY_UNLIMITED, CAPACITY_LIMIT, BUDGETS_TOO_MANY."""
        async with mutation(self._writes) as session:
            first = await claim(session, "AdjustPromotionBudget", delta, caller)
            sid = await store.find(session, delta.promotion_id)
            if first:
                await _adjust_budget(session, sid, delta)
            accounts = await store.find_budget(session, sid, delta.asset)
            promotion = await store.get(session, sid)
        assert accounts is not None, "a budget that was adjusted exists"
        if accounts.units is not None and accounts.version is not None:
            await self._tell_capacity(sid, accounts, accounts.units, accounts.version)
        (budget,) = (budget for budget in promotion.budgets if budget.asset == delta.asset)
        return budget, not first

    async def _tell_changed(self, sid: PromotionSid) -> None:
        try:
            await self._changes.promotion_changed(sid)
        except Exception:
            _log.warning("promotion %s has changed, but this process was not told; it will poll", sid, exc_info=True)

    async def _tell_capacity(
        self, sid: PromotionSid, accounts: store.BudgetAccounts, capacity: int, version: int
    ) -> None:
        try:
            await self._changes.capacity_changed(sid, accounts.account, capacity, version)
        except Exception:
            _log.warning("a budget of promotion %s has changed, but the gate was not told", sid, exc_info=True)


async def _current(session: Session, promotion_id: str) -> Promotion:
    return await store.get(session, await store.find(session, promotion_id))


async def _lock(session: Session, promotion_id: str, etag: str) -> Promotion:
    promotion = await store.lock_exclusive(session, await store.find(session, promotion_id))
    check_etag(etag, promotion.etag, promotion_id=promotion_id)
    return promotion


async def _adjust_budget(session: Session, sid: PromotionSid, delta: BudgetDelta) -> None:
    accounts = await store.find_budget(session, sid, delta.asset)
    if accounts is None:
        count = await store.lock_to_open_budget(session, sid)
        accounts = await store.find_budget(session, sid, delta.asset)  # a twin may have opened it while we waited
        if accounts is None:
            return await _open_budget(session, sid, delta, count)
    adjustment = await adjust_capacity(
        session,
        kind=CapacityKind.BUDGET,
        promotion=sid,
        source=accounts.source,
        account=accounts.account,
        delta=delta.delta_units,
    )
    if adjustment.code is not AdjustCode.ADJUSTED:
        ids = {"promotion_id": delta.promotion_id, "asset": delta.asset}
        raise refusal(adjustment, kind=CapacityKind.BUDGET, delta=delta.delta_units, **ids)
    return None


async def _open_budget(session: Session, sid: PromotionSid, delta: BudgetDelta, count: int) -> None:
    ids = {"promotion_id": delta.promotion_id, "asset": delta.asset}
    if delta.delta_units < 0:
        raise failed_precondition(
            "BUDGET_INSUFFICIENT", f"{delta.promotion_id} has no budget in {delta.asset}.", remaining="0", **ids
        )
    if count >= rules.BUDGETS_MAX:
        message = f"{delta.promotion_id} has budgets in {count} assets already; {rules.BUDGETS_MAX} is the most."
        raise failed_precondition("BUDGETS_TOO_MANY", message, **ids)
    await store.open_budgets(session, sid, [NewBudget(delta.asset, delta.delta_units)])
