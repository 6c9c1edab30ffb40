"""Prizes in PostgreSQL. Functions take a session and never commit."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import NamedTuple

import asyncpg

from guerdon_server.core.ledger.model import AccountId, PrizeSid, PromotionSid
from guerdon_server.core.ledger.postgres.capacity import CapacityKind, open_capacity
from guerdon_server.core.ledger.postgres.statements import Session, load
from guerdon_server.core.prize.model import (
    FixedValue,
    Holdings,
    NewPrize,
    Prize,
    PrizeKind,
    PrizeStock,
    PrizeValue,
    RateValue,
    Rounding,
    ValidDays,
    Validity,
    ValidUntil,
    ValueRule,
)
from guerdon_server.platform.errors import ServiceError, not_found

_SQL = load(__package__)


class PromotionFacts(NamedTuple):
    """What a new prize needs to know of its promotion."""

    sid: PromotionSid
    over: bool
    prize_count: int


class BudgetAccount(NamedTuple):
    """The sid of an asset and the account of a promotion's budget in it."""

    asset: int
    account: AccountId


async def lock_promotion(session: Session, promotion_id: str) -> PromotionFacts:
    """Takes the promotion's exclusive lock and reads what then is. Raises NOT_FOUND / PROMOTION_NOT_FOUND."""
    await session.execute(_SQL["lock_promotion"], promotion_id)
    row = await session.fetchrow(_SQL["find_promotion"], promotion_id)
    if row is None:
        raise not_found(
            "PROMOTION_NOT_FOUND", f"There is no promotion {promotion_id}. Create it first.", promotion_id=promotion_id
        )
    return PromotionFacts(*row)


async def find_budget(session: Session, promotion: PromotionSid, asset: str) -> BudgetAccount | None:
    """The promotion's budget in an asset, if it has one."""
    row = await session.fetchrow(_SQL["find_budget"], promotion, asset)
    return None if row is None else BudgetAccount(*row)


async def insert(session: Session, new: NewPrize, promotion: PromotionSid, budget: BudgetAccount | None) -> bool:
    """The prize with its accounts, under the exclusive lock; False if the id is taken (then roll back)."""
    sid: PrizeSid = await session.fetchval(_SQL["draw_sid"])
    source, account = await open_capacity(
        session, kind=CapacityKind.STOCK, promotion=promotion, item=sid, units=new.stock
    )
    liability: int | None = None
    if budget is not None and new.kind in (PrizeKind.COUPON, PrizeKind.GOODS):
        liability = await session.fetchval(_SQL["open_liability"], promotion, budget.asset)
    inserted = await session.fetchval(
        _SQL["insert"],
        sid,
        new.prize_id,
        promotion,
        new.display_name,
        new.kind,
        None if budget is None else budget.asset,
        *_rule_columns(None if new.value is None else new.value.rule),
        new.limit_per_user,
        new.limit_per_user,
        *_validity_columns(new.validity),
        source,
        account,
        None if budget is None else budget.account,
        liability,
    )
    return inserted is not None


async def bump_promotion(session: Session, promotion: PromotionSid) -> None:
    """Makes decisions under the promotion's version so far stale; under the exclusive lock."""
    await session.execute(_SQL["bump_promotion"], promotion)


async def lock_exclusive(session: Session, prize_id: str) -> Prize:
    """Takes the exclusive lock of its promotion and reads what then is. Raises NOT_FOUND / PRIZE_NOT_FOUND."""
    await session.execute(_SQL["lock_promotion_of"], prize_id)
    return await get(session, prize_id)


async def update(session: Session, prize: Prize) -> None:
    """Writes its terms; under the exclusive lock."""
    await session.execute(
        _SQL["update"],
        prize.sid,
        prize.display_name,
        *_rule_columns(None if prize.value is None else prize.value.rule),
        prize.limit_per_user,
        prize.limit_per_user_highest,
        *_validity_columns(prize.validity),
    )


async def get(session: Session, prize_id: str) -> Prize:
    """Raises NOT_FOUND / PRIZE_NOT_FOUND."""
    prizes = await fetch(session, [prize_id])
    if not prizes:
        raise _no_prize(prize_id)
    return prizes[0]


async def fetch(session: Session, prize_ids: Sequence[str]) -> list[Prize]:
    """Those that exist, by id."""
    return [_prize(row) for row in await session.fetch(_SQL["fetch"], prize_ids)]


async def page(session: Session, promotion_id: str, after: str, limit: int) -> list[Prize]:
    """Prizes by id, behind `after`; of one promotion, unless that is ''."""
    if promotion_id:
        rows = await session.fetch(_SQL["page_of_promotion"], after, limit, promotion_id)
    else:
        rows = await session.fetch(_SQL["page"], after, limit)
    return await fetch(session, [row["prize_id"] for row in rows])


async def stock(session: Session, prize_id: str) -> PrizeStock:
    """Raises NOT_FOUND / PRIZE_NOT_FOUND."""
    row = await session.fetchrow(_SQL["stock"], prize_id)
    if row is None:
        raise _no_prize(prize_id)
    return PrizeStock(*row)


async def holdings(session: Session, promotions: Sequence[PromotionSid], user_id: str) -> dict[str, Holdings]:
    """Of each prize of the promotions, by prize_id, what decides whether the user ('': nobody) could get it."""
    rows = await session.fetch(_SQL["holdings"], promotions, user_id)
    return {row["prize_id"]: _holdings(row) for row in rows}


def _no_prize(prize_id: str) -> ServiceError:
    return not_found("PRIZE_NOT_FOUND", f"There is no prize {prize_id}. Create it first.", prize_id=prize_id)


def _rule_columns(
    rule: ValueRule | None,
) -> tuple[int | None, str | None, int | None, int | None, int | None, int | None]:
    match rule:
        case None:
            return None, None, None, None, None, None
        case FixedValue(units):
            return units, None, None, None, None, None
        case RateValue(attribute, basis_points, floor_units, cap_units, rounding):
            return None, attribute, basis_points, floor_units, cap_units, rounding


def _validity_columns(validity: Validity | None) -> tuple[dt.datetime | None, int | None]:
    match validity:
        case None:
            return None, None
        case ValidUntil(until):
            return until, None
        case ValidDays(days):
            return None, days


def _prize(row: asyncpg.Record) -> Prize:
    return Prize(
        sid=row["sid"],
        promotion=row["promotion"],
        prize_id=row["prize_id"],
        promotion_id=row["promotion_id"],
        display_name=row["display_name"],
        kind=PrizeKind(row["kind"]),
        value=_value(row),
        stock=row["stock"],
        limit_per_user=row["limit_per_user"],
        limit_per_user_highest=row["limit_per_user_highest"],
        validity=_validity(row),
        own_version=row["own_version"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _value(row: asyncpg.Record) -> PrizeValue | None:
    if row["asset"] is None:
        return None
    if row["fixed_units"] is not None:
        return PrizeValue(row["asset"], FixedValue(row["fixed_units"]))
    rate = RateValue(
        attribute=row["rate_attribute"],
        basis_points=row["rate_basis_points"],
        floor_units=row["rate_floor_units"],
        cap_units=row["rate_cap_units"],
        rounding=Rounding(row["rate_rounding"]),
    )
    return PrizeValue(row["asset"], rate)


def _validity(row: asyncpg.Record) -> Validity | None:
    if row["valid_until"] is not None:
        return ValidUntil(row["valid_until"])
    return None if row["valid_days"] is None else ValidDays(row["valid_days"])


def _holdings(row: asyncpg.Record) -> Holdings:
    return Holdings(
        stock_remaining=row["stock_remaining"],
        budget_remaining=row["budget_remaining"],
        user_granted=row["user_granted"],
        read_at=row["read_at"],
    )
