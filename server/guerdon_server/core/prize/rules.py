"""What a grant is worth and when it expires; what may be changed of a prize; whether a user could get it. Pure."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

from guerdon_server.core.prize.model import (
    FixedValue,
    Holdings,
    Prize,
    PrizeUpdate,
    Rounding,
    Unavailable,
    ValidDays,
    Validity,
    ValidUntil,
    ValueRule,
)
from guerdon_server.platform.errors import Violation, invalid

PRIZES_MAX = 500
"""Of one promotion."""
_WHOLE = 10_000
"""Basis points."""


def value_of(rule: ValueRule, basis: int) -> int:
    """What a grant is worth, in units of the asset; 0 is no grant.

    `basis`: the attribute, not negative (any, where the value is fixed). Exact for any size; without a cap the result
    may pass what an account takes, which the caller refuses.
    """
    if isinstance(rule, FixedValue):
        return rule.fixed_units
    assert basis >= 0, "a negative attribute is refused before its value is computed"
    units = _rounded(basis * rule.basis_points, rule.rounding)
    if units > 0 and rule.floor_units is not None:
        units = max(units, rule.floor_units)
    return units if rule.cap_units is None else min(units, rule.cap_units)


def _rounded(ten_thousandths: int, rounding: Rounding) -> int:
    units, rest = divmod(ten_thousandths, _WHOLE)
    match rounding:
        case Rounding.DOWN:
            return units
        case Rounding.UP:
            return units + (rest > 0)
        case Rounding.HALF_UP:
            return units + (2 * rest >= _WHOLE)
        case Rounding.HALF_EVEN:
            return units + (2 * rest > _WHOLE or (2 * rest == _WHOLE and units % 2))


def expires_at(validity: Validity | None, issued_at: dt.datetime) -> dt.datetime | None:
    """When a grant expires; None: never. Mirrors guerdon.commit_issuances."""
    match validity:
        case None:
            return None
        case ValidUntil(until):
            return until
        case ValidDays(days):
            return issued_at + dt.timedelta(days=days)


def unavailable(prize: Prize, holdings: Holdings) -> Unavailable | None:
    """Why a user could not get the prize now, first reason first. Of a rate, any value above zero is thought to fit."""
    if isinstance(prize.validity, ValidUntil) and prize.validity.until <= holdings.read_at:
        return Unavailable.VALIDITY_PASSED
    if 0 < prize.limit_per_user <= holdings.user_granted:
        return Unavailable.LIMIT_REACHED
    if holdings.stock_remaining is not None and holdings.stock_remaining < 1:
        return Unavailable.SOLD_OUT
    if prize.value is not None and holdings.budget_remaining is not None:
        rule = prize.value.rule
        least = rule.fixed_units if isinstance(rule, FixedValue) else 1
        if holdings.budget_remaining < least:
            return Unavailable.BUDGET_EXHAUSTED
    return None


def highest_limit(highest: int, limit: int) -> int:
    """The highest of the limits per user that ever held, where 0 is none at all, the highest there is."""
    return 0 if 0 in (highest, limit) else max(highest, limit)


def updated(prize: Prize, update: PrizeUpdate) -> Prize:
    """The prize with the fields of the mask replaced. Raises INVALID_FIELD for a value where the prize has none."""
    mask, value = update.update_mask, prize.value
    if update.rule is not None:
        if value is None:
            field = "fixed_units" if isinstance(update.rule, FixedValue) else "rate"
            raise invalid([Violation(f"prize.value.{field}", "this prize was created without a value and stays so")])
        value = replace(value, rule=update.rule)
    limit = update.limit_per_user if "limit_per_user" in mask else prize.limit_per_user
    return replace(
        prize,
        display_name=update.display_name if "display_name" in mask else prize.display_name,
        value=value,
        limit_per_user=limit,
        limit_per_user_highest=highest_limit(prize.limit_per_user_highest, limit),
        validity=update.validity if "validity" in mask else prize.validity,
    )
