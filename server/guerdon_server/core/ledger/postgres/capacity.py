"""The capacity of stock and budget: opened, topped up and recalled. See sql/10_adjust_capacity.sql."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from guerdon_server.core.ledger.model import AccountId, PromotionSid
from guerdon_server.core.ledger.postgres.statements import Session
from guerdon_server.platform.errors import ServiceError, failed_precondition

UNITS_MAX = 2**53 - 1
"""The largest amount that callers may name: what every JSON reader still holds exactly."""


class CapacityKind(enum.IntEnum):
    """Which pair of accounts (AccountKind of the wire)."""

    STOCK = 2
    BUDGET = 5


class AdjustCode(enum.IntEnum):
    """What became of an adjustment. Mirrors the constants of guerdon.adjust_capacity (by test)."""

    ADJUSTED = 0
    INSUFFICIENT = 1
    UNLIMITED = 2
    CAPACITY_LIMIT = 3
    LEDGER_LIMIT = 4


@dataclass(frozen=True, slots=True)
class Capacity:
    """capacity = issued + remaining, in units. `units`, `remaining` and `version` are None where unlimited."""

    account: AccountId
    units: int | None
    issued: int
    remaining: int | None
    version: int | None


@dataclass(frozen=True, slots=True)
class Adjustment:
    """The outcome, and the capacity afterwards (unchanged but for ADJUSTED)."""

    code: AdjustCode
    capacity: Capacity


async def open_capacity(
    session: Session, *, kind: CapacityKind, promotion: PromotionSid, item: int, units: int | None
) -> tuple[AccountId, AccountId]:
    """Opens the accounts of `item` (sid of a prize or an asset); `units` None: unlimited. Returns source, account."""
    row = await session.fetchrow("SELECT * FROM guerdon.open_capacity($1, $2, $3, $4)", kind, promotion, item, units)
    assert row is not None  # a function with OUT parameters
    return row["source"], row["account"]


async def adjust_capacity(
    session: Session,
    *,
    kind: CapacityKind,
    promotion: PromotionSid,
    source: AccountId,
    account: AccountId,
    delta: int,
) -> Adjustment:
    """Tops up (delta > 0) or recalls (delta < 0); takes the promotion's shared lock, then both accounts'."""
    row = await session.fetchrow(
        "SELECT * FROM guerdon.adjust_capacity($1, $2, $3, $4, $5)", promotion, kind, source, account, delta
    )
    assert row is not None  # a function with OUT parameters
    capacity = Capacity(account, row["units"], row["issued"], row["remaining"], row["version"])
    return Adjustment(AdjustCode(row["code"]), capacity)


def refusal(adjustment: Adjustment, *, kind: CapacityKind, delta: int, **ids: str) -> ServiceError:
    """Why an adjustment was not made, as FAILED_PRECONDITION; `ids` name what was to be adjusted."""
    capacity, name = adjustment.capacity, kind.name.lower()
    if adjustment.code is AdjustCode.INSUFFICIENT:
        remaining = str(capacity.remaining)
        message = f"{-delta} units are to be recalled, {remaining} remain. Recall at most what remains."
        return failed_precondition(f"{kind.name}_INSUFFICIENT", message, remaining=remaining, **ids)
    if adjustment.code is AdjustCode.UNLIMITED:
        return failed_precondition(
            "CAPACITY_UNLIMITED", f"The {name} is unlimited: there is nothing to top up or recall.", **ids
        )
    if adjustment.code is AdjustCode.CAPACITY_LIMIT:
        message = f"The {name} of {capacity.units} units would pass {UNITS_MAX}, the most there can be."
        return failed_precondition("CAPACITY_LIMIT", message, capacity=str(capacity.units), **ids)
    assert adjustment.code is AdjustCode.LEDGER_LIMIT, "an adjustment that was made is no refusal"
    return failed_precondition(
        "ACCOUNT_LIMIT", f"The accounts of the {name} have been moved so much that they can take no more.", **ids
    )
