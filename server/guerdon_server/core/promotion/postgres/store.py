"""Promotions in PostgreSQL. Functions take a session and never commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import asyncpg

from guerdon_server.core.ledger.model import AccountId, EntranceSid, PromotionSid
from guerdon_server.core.ledger.postgres.capacity import CapacityKind, open_capacity
from guerdon_server.core.ledger.postgres.statements import Session, load
from guerdon_server.core.promotion.model import Budget, NewBudget, NewPromotion, Promotion, PromotionState
from guerdon_server.platform.errors import not_found

_SQL = load(__package__)


class BudgetAccounts(NamedTuple):
    """The pair of accounts of a budget, its capacity (units) and the version of that; None where unlimited."""

    source: AccountId
    account: AccountId
    units: int | None
    version: int | None


async def find(session: Session, promotion_id: str) -> PromotionSid:
    """Raises NOT_FOUND / PROMOTION_NOT_FOUND."""
    sid: PromotionSid | None = await session.fetchval(_SQL["find"], promotion_id)
    if sid is None:
        raise not_found(
            "PROMOTION_NOT_FOUND", f"There is no promotion {promotion_id}. Create it first.", promotion_id=promotion_id
        )
    return sid


async def get(session: Session, sid: PromotionSid) -> Promotion:
    """One that exists."""
    (promotion,) = await fetch(session, [sid])
    return promotion


async def lock_exclusive(session: Session, sid: PromotionSid) -> Promotion:
    """Waits for commits under way, keeps new ones out to the end of the transaction, and reads what then is."""
    await session.execute(_SQL["lock_exclusive"], sid)
    await session.execute(_SQL["lock_row"], sid)
    return await get(session, sid)


async def fetch(session: Session, sids: Sequence[PromotionSid]) -> list[Promotion]:
    """By promotion_id."""
    return [_promotion(row) for row in await session.fetch(_SQL["fetch"], sids)]


async def page(session: Session, states: Sequence[PromotionState], after: str, limit: int) -> list[Promotion]:
    """Promotions that are now in one of the states, by id, behind `after`."""
    rows = await session.fetch(_SQL["page"], states, after, limit)
    return await fetch(session, [row["sid"] for row in rows])


async def live_page(session: Session, entrance_id: str, after: str, limit: int) -> list[Promotion]:
    """Promotions that are now active at the entrance, by id, behind `after`."""
    rows = await session.fetch(_SQL["live_page"], entrance_id, after, limit)
    return await fetch(session, [row["sid"] for row in rows])


async def insert(session: Session, new: NewPromotion) -> PromotionSid | None:
    """A draft without entrances and budgets; None if the id is taken."""
    sid: PromotionSid | None = await session.fetchval(
        _SQL["insert"], new.promotion_id, new.display_name, new.starts_at, new.ends_at
    )
    return sid


async def update(session: Session, promotion: Promotion) -> None:
    """Writes its own fields; under the exclusive lock."""
    await session.execute(
        _SQL["update"],
        promotion.sid,
        promotion.display_name,
        promotion.state,
        promotion.starts_at,
        promotion.ends_at,
    )


async def bind_entrances(session: Session, sid: PromotionSid, entrance_ids: Sequence[str]) -> None:
    """Binds the promotion to these entrances and no others. Raises NOT_FOUND / ENTRANCE_NOT_FOUND."""
    rows = await session.fetch(_SQL["find_entrances"], entrance_ids)
    sids: dict[str, EntranceSid] = {row["entrance_id"]: row["sid"] for row in rows}
    for entrance_id in entrance_ids:
        if entrance_id not in sids:
            raise not_found(
                "ENTRANCE_NOT_FOUND", f"There is no entrance {entrance_id}. Create it first.", entrance_id=entrance_id
            )
    await session.execute(_SQL["bind_entrances"], sid, sorted(sids.values()))


async def open_budgets(session: Session, sid: PromotionSid, budgets: Sequence[NewBudget]) -> None:
    """Opens the accounts of budgets in assets that the promotion has none in."""
    assets = sorted(budget.asset for budget in budgets)
    await session.execute(_SQL["add_assets"], assets)
    sids = {row["asset"]: row["sid"] for row in await session.fetch(_SQL["find_assets"], assets)}
    for budget in budgets:
        await open_capacity(
            session, kind=CapacityKind.BUDGET, promotion=sid, item=sids[budget.asset], units=budget.units
        )


async def find_budget(session: Session, sid: PromotionSid, asset: str) -> BudgetAccounts | None:
    """The budget in an asset, if there is one."""
    row = await session.fetchrow(_SQL["find_budget"], sid, asset)
    return None if row is None else BudgetAccounts(*row)


async def lock_to_open_budget(session: Session, sid: PromotionSid) -> int:
    """Keeps others from opening a budget to the end of the transaction; how many there are."""
    await session.execute(_SQL["lock_shared"], sid)
    await session.execute(_SQL["lock_row"], sid)
    count: int = await session.fetchval(_SQL["count_budgets"], sid)
    return count


def _promotion(row: asyncpg.Record) -> Promotion:
    return Promotion(
        sid=row["sid"],
        promotion_id=row["promotion_id"],
        display_name=row["display_name"],
        state=PromotionState(row["state"]),
        state_now=PromotionState(row["state_now"]),
        starts_at=row["starts_at"],
        ends_at=row["ends_at"],
        entrance_ids=tuple(row["entrance_ids"]),
        budgets=tuple(Budget(*budget) for budget in row["budgets"]),
        own_version=row["own_version"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        read_at=row["read_at"],
    )
