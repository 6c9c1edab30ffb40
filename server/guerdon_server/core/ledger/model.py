"""What goes into a commit and what comes out. Pure."""

from __future__ import annotations

import datetime as dt
import enum
from dataclasses import dataclass
from typing import NamedTuple, NewType

PromotionSid = NewType("PromotionSid", int)
PrizeSid = NewType("PrizeSid", int)
EntranceSid = NewType("EntranceSid", int)
AccountId = NewType("AccountId", int)
AdmissionId = NewType("AdmissionId", int)


class CommitItem(NamedTuple):
    """One admitted request, in the order of the parameters of guerdon.commit_issuances.

    A tuple because a batch of them is transposed into columns on every commit.
    """

    promotion: int
    version: int
    """The catalogue version that the decision was made under."""
    epoch: int
    """The gate's epoch that admitted it."""
    admission: int
    request_id: str
    user_id: str
    prize: int
    entrance: int
    basis: int | None
    """The attribute from which the value was computed."""
    value: int | None
    """Units of the prize's asset; None where it has none."""
    reference: str | None
    principal: int
    group: int
    """Items of one all-or-nothing group are adjacent and share a number that no neighbour has; 0: for itself."""


class CommitCode(enum.IntEnum):
    """The outcome of one item of a commit. Mirrors the constants of commit_issuances.sql (by test)."""

    GRANTED = 0
    EXISTS = 1
    """The request has a grant already: look it up, compare the identity, replay."""
    CANCELLED = 2
    FENCED = 3
    """Its admission is at or below the fence: start afresh with an admission above `observed`."""
    STALE_EPOCH = 4
    STALE_VERSION = 5
    NOT_STARTED = 6
    PAUSED = 7
    ENDED = 8
    VALIDITY_PASSED = 9
    LIMIT_REACHED = 10
    SOLD_OUT = 11
    BUDGET_EXHAUSTED = 12
    ACCOUNT_LIMIT = 13
    GROUP_NOT_GRANTED = 14
    """It could have been granted, but another item of its all-or-nothing group could not."""


class CommitResult(NamedTuple):
    """The outcome of one item. `issuance_id`, `expires_at`: where granted.

    `observed`, `threshold`: what the refusing rule saw and asked for (limit: granted count, limit; stock and budget:
    remaining, needed; fence: fence, admission; EXISTS: where known, the admission that was granted). `issued_at`: where
    the ledger decided.
    """

    code: int
    issuance_id: int | None
    expires_at: dt.datetime | None
    observed: int | None
    threshold: int | None
    issued_at: dt.datetime | None


class Issuance(NamedTuple):
    """One granted reward, as callers know it. `kind` is the PrizeKind; `value` is in units of `asset`."""

    issuance_id: int
    promotion_id: str
    entrance_id: str
    prize_id: str
    user_id: str
    request_id: str
    reference: str
    principal: str
    kind: int
    asset: str | None
    value: int | None
    issued_at: dt.datetime
    expires_at: dt.datetime | None


class RequestState(enum.IntEnum):
    """What a request key holds. Mirrors guerdon.request.outcome; 0 is no row."""

    ABSENT = 0
    GRANTED = 1
    FENCED = 2
    CANCELLED = 3


@dataclass(frozen=True, slots=True)
class KnownRequest:
    """What the ledger knows of a request key. `issuance`, `basis`, and the `attribute` whose value the basis is: where
    granted; `admission`: the one that committed, or the highest fenced."""

    state: RequestState
    admission: int
    issuance: Issuance | None
    basis: int | None
    attribute: str | None


CANCELLED = KnownRequest(state=RequestState.CANCELLED, admission=0, issuance=None, basis=None, attribute=None)
"""Ruled out for ever."""
