"""Promotions: when, where and within which budget prizes are given away. Pure."""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass

from guerdon_server.core.ledger.model import PromotionSid


class PromotionState(enum.IntEnum):
    """Numbers of the wire and of the table."""

    DRAFT = 1
    SCHEDULED = 2
    ACTIVE = 3
    PAUSED = 4
    ENDED = 5
    ARCHIVED = 6


@dataclass(frozen=True, slots=True)
class Budget:
    """What a promotion may spend in one asset: capacity = spent + remaining; None where unlimited."""

    asset: str
    capacity_units: int | None
    spent_units: int
    remaining_units: int | None


@dataclass(frozen=True, slots=True)
class Promotion:
    """One promotion as it was at `read_at`. Nothing is granted before `starts_at`, nor at or after `ends_at`."""

    sid: PromotionSid
    promotion_id: str
    display_name: str
    state: PromotionState
    """As an operator set it."""
    state_now: PromotionState
    """With the window applied: what callers see."""
    starts_at: dt.datetime | None
    ends_at: dt.datetime | None
    entrance_ids: tuple[str, ...]
    budgets: tuple[Budget, ...]
    """One for each asset, sorted by it."""
    own_version: int
    created_at: dt.datetime
    updated_at: dt.datetime
    read_at: dt.datetime
    """The system's time when it was read: what a decision about it goes by."""

    @property
    def etag(self) -> str:
        """Changes with every update and transition."""
        return str(self.own_version)


# What callers ask for. Field names are those of the wire, because a reused request id names the one that differs.


@dataclass(frozen=True, slots=True)
class NewBudget:
    """`units` None: unlimited."""

    asset: str
    units: int | None


@dataclass(frozen=True, slots=True)
class NewPromotion:
    """Entrances and budgets are sorted and without duplicates."""

    promotion_id: str
    display_name: str
    starts_at: dt.datetime | None
    ends_at: dt.datetime | None
    entrance_ids: tuple[str, ...]
    budgets: tuple[NewBudget, ...]


@dataclass(frozen=True, slots=True)
class PromotionUpdate:
    """The fields that `update_mask` (sorted) names take the values here; the others are left at their defaults."""

    promotion_id: str
    etag: str
    update_mask: tuple[str, ...]
    display_name: str = ""
    starts_at: dt.datetime | None = None
    ends_at: dt.datetime | None = None
    entrance_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Transition:
    """`etag` empty: whatever the current one is."""

    promotion_id: str
    target_state: PromotionState
    etag: str


@dataclass(frozen=True, slots=True)
class BudgetDelta:
    """A top-up (delta > 0) or a recall (delta < 0) of the budget in one asset."""

    promotion_id: str
    asset: str
    delta_units: int
