"""Prizes: what is given, how much it is worth, how often one user may have it. Pure."""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass
from typing import TypeAlias

from guerdon_server.core.ledger.model import AccountId, PrizeSid, PromotionSid


class PrizeKind(enum.IntEnum):
    """Numbers of the wire and of the table."""

    COUPON = 1
    COIN = 2
    CASHBACK = 3
    GOODS = 4


class Rounding(enum.IntEnum):
    """What becomes of a fraction of a unit. Numbers of the wire and of the table."""

    HALF_UP = 1
    HALF_EVEN = 2
    DOWN = 3
    UP = 4


class Unavailable(enum.IntEnum):
    """Why a user could not get a prize now. Numbers of RejectionReason of the wire."""

    SOLD_OUT = 1
    BUDGET_EXHAUSTED = 2
    LIMIT_REACHED = 3
    VALIDITY_PASSED = 11


@dataclass(frozen=True, slots=True)
class FixedValue:
    """The same for every grant; at least 1 unit."""

    fixed_units: int


@dataclass(frozen=True, slots=True)
class RateValue:
    """round(attribute x basis_points / 10000), raised to floor_units, cut at cap_units (None: not)."""

    attribute: str
    basis_points: int
    floor_units: int | None
    cap_units: int | None
    rounding: Rounding


ValueRule: TypeAlias = FixedValue | RateValue


@dataclass(frozen=True, slots=True)
class PrizeValue:
    """What one grant is worth, in units of `asset`."""

    asset: str
    rule: ValueRule


@dataclass(frozen=True, slots=True)
class ValidUntil:
    """All grants expire at the same instant."""

    until: dt.datetime


@dataclass(frozen=True, slots=True)
class ValidDays:
    """A grant expires so many times 24 hours after it was made."""

    days: int


Validity: TypeAlias = ValidUntil | ValidDays


@dataclass(frozen=True, slots=True)
class Prize:
    """One prize. `stock` is its capacity (initial + top-ups - recalls); None: unlimited. `limit_per_user` 0: none."""

    sid: PrizeSid
    promotion: PromotionSid
    prize_id: str
    promotion_id: str
    display_name: str
    kind: PrizeKind
    value: PrizeValue | None
    stock: int | None
    limit_per_user: int
    limit_per_user_highest: int
    """The highest that ever held, for the proof; 0: there was a time without a limit."""
    validity: Validity | None
    own_version: int
    created_at: dt.datetime
    updated_at: dt.datetime

    @property
    def etag(self) -> str:
        """Changes with every update (not with adjustments of the stock)."""
        return str(self.own_version)


@dataclass(frozen=True, slots=True)
class PrizeStock:
    """capacity = issued + remaining, as the ledger has it; None where unlimited. `version` orders capacities."""

    prize_id: str
    promotion: PromotionSid
    source: AccountId
    account: AccountId
    capacity_units: int | None
    issued_units: int
    remaining_units: int | None
    version: int | None


@dataclass(frozen=True, slots=True)
class Holdings:
    """What decides whether a user could get a prize, as the ledger has it. None: unlimited, or no budget."""

    stock_remaining: int | None
    budget_remaining: int | None
    user_granted: int
    """How many this user has ever been granted; 0 without a user."""
    read_at: dt.datetime


@dataclass(frozen=True, slots=True)
class Offer:
    """A prize as one user sees it now; `unavailable` None: it could be had."""

    prize: Prize
    unavailable: Unavailable | None
    user_granted: int


# What callers ask for. Field names are those of the wire, because a reused request id names the one that differs.


@dataclass(frozen=True, slots=True)
class NewPrize:
    """`stock` None: unlimited."""

    prize_id: str
    promotion_id: str
    display_name: str
    kind: PrizeKind
    value: PrizeValue | None
    stock: int | None
    limit_per_user: int
    validity: Validity | None


@dataclass(frozen=True, slots=True)
class PrizeUpdate:
    """The fields that `update_mask` (sorted) names take the values here; the others are left at their defaults.

    `rule` is of value.fixed_units or value.rate, whichever the mask names.
    """

    prize_id: str
    etag: str
    update_mask: tuple[str, ...]
    display_name: str = ""
    rule: ValueRule | None = None
    limit_per_user: int = 0
    validity: Validity | None = None


@dataclass(frozen=True, slots=True)
class StockDelta:
    """A top-up (delta > 0) or a recall (delta < 0) of the stock."""

    prize_id: str
    delta_units: int
