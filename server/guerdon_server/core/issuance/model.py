"""What is asked for, on which terms it is decided, and what comes of it. Pure.

What is made for every request is a named tuple: a frozen dataclass takes four times as long to make.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from guerdon_server.core.ledger.model import Issuance
from guerdon_server.core.prize.model import PrizeKind, ValueRule
from guerdon_server.core.promotion.model import PromotionState
from guerdon_server.platform.errors import ServiceError

Attribute: TypeAlias = int | str | bool | dt.datetime | tuple[str, ...]


class Reason(enum.IntEnum):
    """Why a request was rejected. Numbers of RejectionReason of the wire (by test)."""

    SOLD_OUT = 1
    BUDGET_EXHAUSTED = 2
    LIMIT_REACHED = 3
    VALUE_ZERO = 4
    ATTRIBUTE_MISSING = 5
    PROMOTION_NOT_STARTED = 6
    PROMOTION_PAUSED = 7
    PROMOTION_ENDED = 8
    BATCH_NOT_GRANTED = 9
    CANCELLED = 10
    VALIDITY_PASSED = 11
    ACCOUNT_LIMIT = 12


class IssueItem(NamedTuple):
    """One reward that is asked for; validated ids."""

    prize_id: str
    user_id: str
    request_id: str
    reference: str
    attributes: Mapping[str, Attribute]


class IssueCall(NamedTuple):
    """One call: 1 to 1,000 items of one promotion at one entrance, with distinct request ids."""

    promotion_id: str
    entrance_id: str
    principal: str
    items: Sequence[IssueItem]
    all_or_nothing: bool = False
    doomed: bool = False
    """An item that could not even be read keeps this all-or-nothing call from being granted; replays are found."""


@dataclass(frozen=True, slots=True)
class PrizeTerms:
    """What a decision needs to know of a prize. Resources are ledger accounts with a floor; None: unlimited."""

    sid: int
    prize_id: str
    kind: PrizeKind
    asset: str | None
    rule: ValueRule | None
    limit_per_user: int
    stock_resource: int | None
    budget_resource: int | None


@dataclass(frozen=True, slots=True)
class PromotionTerms:
    """One promotion with its prizes and entrances at one version of the catalogue. Immutable."""

    sid: int
    promotion_id: str
    version: int
    state: PromotionState
    starts_at: dt.datetime | None
    ends_at: dt.datetime | None
    entrances: Mapping[str, int]
    prizes: Mapping[str, PrizeTerms]


class Decision(NamedTuple):
    """What to ask the gate and the ledger for: value in units of the prize's asset, from `basis` where it is a rate."""

    terms: PromotionTerms
    prize: PrizeTerms
    entrance: int
    value: int | None
    basis: int | None
    claims: tuple[tuple[int, int], ...]


class Rejection(NamedTuple):
    """The truth of its moment: the rule that said no, what it saw and what it asks for."""

    reason: Reason
    rule: str
    message: str
    observed: str = ""
    threshold: str = ""


class Granted(NamedTuple):
    """Durable. `replayed`: it had been granted before this call."""

    issuance: Issuance
    replayed: bool


class Pending(NamedTuple):
    """An earlier attempt is still in flight."""

    retry_after_ms: int = 50


Outcome: TypeAlias = Granted | Rejection | Pending | ServiceError
