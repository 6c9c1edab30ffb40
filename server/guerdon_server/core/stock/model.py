"""The gate's words: what is asked of it, what it answers. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from guerdon_server.platform.errors import Code, ServiceError

# Redis computes in doubles: integers up to here are exact, and beyond it the gate refuses instead of rounding.
EXACT_MAX = 2**53 - 1
ID_MAX = 2**63 - 1
CLAIMS_MAX = 3
NO_LIMIT = "-"
Tag: TypeAlias = int | str
"""The hash tag of a gate group's keys: the promotion's number, or that of one of its further buckets."""
RETRY_AFTER_MS = 200


class Status(enum.IntEnum):
    """How a script answers for the whole call. The values are those of STATUS in lua/prelude.lua."""

    OPEN = 0
    CLOSED = 1
    SUPERSEDED = 2
    NOT_PREPARED = 3
    INEXACT = 4


class AdmitCode(enum.IntEnum):
    """The gate's answer to one item. The values are those in lua/admit.lua.

    UNKNOWN_RESOURCE: what is left can't be told now: the gate does not hold the resource, or a bucket is away.
    """

    ADMITTED = 1
    PENDING = 2
    GRANTED_BEFORE = 3
    LIMIT_REACHED = 4
    REFUSED = 5
    UNKNOWN_RESOURCE = 6


class SettleCode(enum.Enum):
    """What became of an admission. The values are the letters of lua/settle.lua.

    GRANTED: the commit granted it. GIVEN_BACK: it will never be granted (refused durably, fenced, or never sent).
    REPLAYED: the commit found an earlier grant of the same request; what the admission took goes back.
    """

    GRANTED = "g"
    GIVEN_BACK = "b"
    REPLAYED = "r"


@dataclass(frozen=True, slots=True)
class Epoch:
    """`value`: (monotone number << 24 | random), 63 bit; `run_id`: of the Redis process on which it was loaded.

    A promotion has one epoch and as many buckets as `run_id` names processes, separated by commas; an empty name is
    that of a bucket which was away when the epoch was opened, and is closed. All buckets have the same epoch, so that
    no unit of one can come into a bucket of another.
    """

    value: int
    run_id: str
    run_ids: Sequence[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "run_ids", tuple(self.run_id.split(",")))

    @property
    def buckets(self) -> int:
        """How many there are."""
        return len(self.run_ids)


@dataclass(frozen=True, slots=True)
class ResourceState:
    """A ledger account with a floor, as the ledger sees it, in minor units.

    capacity: initial + top-ups − recalls; used: what commits have taken of it; version: grows with every change of
    capacity. Raises ValueError beyond what the gate can count exactly. `used` may be below 0: so it is in a Redis that
    somebody wrote to, and comparing finds it.

    Of a bucket: its part of both; net: units that it gave to others, less what it received (of all buckets together:
    what is on its way). The capacity of the first bucket is below 0 while it owes units after a recall.
    """

    resource: int
    capacity: int
    version: int
    used: int
    net: int = 0

    def __post_init__(self) -> None:
        assert 0 < self.resource <= ID_MAX
        for name, least in (("capacity", -EXACT_MAX), ("version", 0), ("used", -EXACT_MAX)):
            if not least <= getattr(self, name) <= EXACT_MAX:
                value = getattr(self, name)
                raise ValueError(f"resource {self.resource}: {name} {value} is not in {least}..{EXACT_MAX}")


# Named tuples, because one of each is made for every request: a frozen dataclass takes four times as long.


class AdmitItem(NamedTuple):
    """One request at the gate.

    admission: chosen by the worker, 63 bit, for this one call: a re-admission takes a new one. limit_key: what is
    counted against limit_max, or `NO_LIMIT`. claims: up to 3 of (resource, amount), distinct resources, amounts
    1..2^53-1. Ids have no spaces (they separate the fields of an admission's record) and no "@" (the sentinel).
    """

    admission: int
    request_id: str
    limit_key: str = NO_LIMIT
    limit_max: int = 0
    claims: tuple[tuple[int, int], ...] = ()

    def is_sound(self) -> bool:
        """Whether it could not be taken for something else on its way to the script."""
        request_id, limit_key = self.request_id, self.limit_key
        return (
            0 < self.admission <= ID_MAX
            and bool(request_id and limit_key)
            and not ("@" in request_id or " " in request_id or "@" in limit_key or " " in limit_key)
            and (limit_key == NO_LIMIT or 0 < self.limit_max <= EXACT_MAX)
            and _are_sound(self.claims)
        )


def _are_sound(claims: tuple[tuple[int, int], ...]) -> bool:
    if len(claims) > 1 and len({resource for resource, _ in claims}) != len(claims):
        return False
    for _, amount in claims:  # no generator: this is in the way of every request
        if not 0 < amount <= EXACT_MAX:
            return False
    return len(claims) <= CLAIMS_MAX


class Share(NamedTuple):
    """How a bucket stands with a resource. backs: how often something was given back in it, of whatever resource.

    given, received: in units, to and from each bucket since the epoch was opened.
    """

    backs: int
    capacity: int
    version: int
    used: int
    given: Sequence[int]
    received: Sequence[int]

    @property
    def free(self) -> int:
        """Units that the bucket may still admit for; below 0: it owes them."""
        return self.capacity - self.used


class Answer(NamedTuple):
    """The gate's answer to one item; only the fields of its code are set.

    sure: a refusal can't hide a replay, because the markers know every granted request. While it is False (just after
    a rebuild) ask the ledger for a grant of the request before telling anybody LIMIT_REACHED or REFUSED.
    twin: PENDING: the open admission of the same request. observed: LIMIT_REACHED. resource: REFUSED,
    UNKNOWN_RESOURCE (0: of whatever the item claims). remaining: REFUSED.
    """

    epoch: int
    code: AdmitCode
    sure: bool
    twin: int = 0
    observed: int = 0
    resource: int = 0
    remaining: int = 0


class Admitted(NamedTuple):
    """One answer per item, in order, each with the epoch that the commit must be given; `epoch`: that of the first.

    All have the same unless the promotion has several buckets.
    """

    epoch: int
    answers: Sequence[Answer]


class Settlement(NamedTuple):
    """What became of one admission of a request. observed: with GIVEN_BACK, the count of its limit key that the ledger
    saw."""

    admission: int
    request_id: str
    code: SettleCode
    observed: int = 0


@dataclass(frozen=True, slots=True)
class OpenAdmission:
    """An admission that nobody has settled yet; age_ms by the clock of Redis."""

    admission: int
    request_id: str
    limit_key: str
    claims: tuple[tuple[int, int], ...]
    age_ms: int


@dataclass(frozen=True, slots=True)
class OpenAdmissions:
    """oldest: the oldest first, at most as many as asked for; total: how many are open."""

    epoch: int
    total: int
    oldest: Sequence[OpenAdmission]


@dataclass(frozen=True, slots=True)
class GateState:
    """What Redis holds of a group. open_epoch: admits under it, or None; loading_epoch: a rebuild has prepared it.

    complete: the markers know every granted request. open_admissions: how many. backfill_cursor: the last request id
    that a backfill has marked ("" none); backfill_age_ms: since it last did, or since the load.
    """

    run_id: str
    open_epoch: int | None
    loading_epoch: int | None
    complete: bool
    open_admissions: int
    backfill_cursor: str
    backfill_age_ms: int | None
    resources: Sequence[ResourceState]


class Reconciled(enum.Enum):
    """What a reconciliation found, and did about it.

    EQUAL: gate and ledger agree as far as can be seen. PUSHED: the ledger's newer capacities were sent. DRIFTED: the
    gate was wrong and a new epoch was opened. CLOSED: nothing to compare, the gate is not open under our epoch.
    """

    EQUAL = "equal"
    PUSHED = "pushed"
    DRIFTED = "drifted"
    CLOSED = "closed"


class GateUnavailable(ServiceError):
    """UNAVAILABLE / GATE_UNAVAILABLE: Redis is away or the group could not be opened in time. Nothing was granted."""

    def __init__(self, why: str) -> None:
        super().__init__(
            Code.UNAVAILABLE,
            "GATE_UNAVAILABLE",
            f"the gate can't admit now ({why}); retry with the same request id",
            retry_after_ms=RETRY_AFTER_MS,
        )


@dataclass(slots=True)
class GateCounts:
    """What happened, for metrics; only ever grows."""

    opened: int = 0  # epochs that this worker opened
    adopted: int = 0  # epochs of other workers that this one went on with
    closed: int = 0  # calls that found the group closed
    unavailable: int = 0  # batches that Redis did not answer
    dropped_answers: int = 0  # admitted for a caller that had gone; given back
    drifts: int = 0  # gate and ledger disagreed
    drift_units: int = 0  # by so many units, all times together
    settled: int = 0  # admissions that were open and were settled
    settled_in_vain: int = 0  # settlements that found the group closed, so that there was nothing to settle
    backfilled: int = 0  # requests that were marked granted after a rebuild
