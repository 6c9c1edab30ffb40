"""A recorded history: every call of every caller, what was answered, and when. Kept as JSON lines."""

from __future__ import annotations

import enum
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_FORMAT = 1


class Kind(enum.StrEnum):
    """What was called. An adjustment's `amount` is its delta, that of `set_limit` the new limit (0: none)."""

    ISSUE = "issue"
    ADJUST_STOCK = "adjust_stock"
    ADJUST_BUDGET = "adjust_budget"
    SET_LIMIT = "set_limit"
    PAUSE = "pause"
    RESUME = "resume"
    END = "end"
    READ_STOCK = "read_stock"
    READ_BUDGET = "read_budget"
    READ_BALANCE = "read_balance"
    GET_ISSUANCE = "get_issuance"
    CANCEL = "cancel"


class Outcome(enum.StrEnum):
    """What was answered.

    granted, replayed: issue, with `issuance_id`; get_issuance and cancel that found the grant say granted. A mutation
    that had been made before is replayed. rejected: with `reason`. ok: reads and mutations. pending, absent,
    cancelled: as the wire says them. failed: the server says that nothing was done by this call. unknown: everything
    else; it may take effect at any time after it was invoked, or never.
    """

    GRANTED = "granted"
    REPLAYED = "replayed"
    REJECTED = "rejected"
    PENDING = "pending"
    ABSENT = "absent"
    CANCELLED = "cancelled"
    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(slots=True, eq=False)
class Operation:
    """One call. Times in monotonic seconds of one clock.

    returned: when the caller had its answer, its error, or gave up; None: never (the history ended before). An item of
    a batch is an operation with the times of the batch. amount: units of value of an issue (of one that was not
    granted: the most that it may have been worth), or see `Kind`. remaining, issued, capacity, balance: as answered,
    in units (of a budget: issued is what was spent); capacity and remaining are None where unlimited.
    """

    kind: Kind
    invoked: float
    returned: float | None = None
    outcome: Outcome = Outcome.UNKNOWN
    reason: str = ""
    promotion_id: str = ""
    prize_id: str = ""
    user_id: str = ""
    asset: str = ""
    request_id: str = ""
    amount: int = 0
    issuance_id: str = ""
    capacity: int | None = None
    issued: int | None = None
    remaining: int | None = None
    balance: int | None = None
    server: str = ""

    @property
    def open(self) -> bool:
        """Whether it may have had an effect that its caller was not told of."""
        return self.outcome is Outcome.UNKNOWN or self.returned is None

    def __str__(self) -> str:
        end = "   ?    " if self.returned is None else f"{self.returned:8.4f}"
        words = [f"[{self.invoked:8.4f} .. {end}]", self.kind.value]
        words += [w for w in (self.prize_id or self.promotion_id, self.asset, self.user_id, self.request_id) if w]
        if self.amount:
            words.append(f"{self.amount:+d}" if self.kind in _ADJUSTMENTS else f"of {self.amount}")
        words.append("->")
        words.append(self.outcome.value if not self.reason else f"{self.outcome.value} {self.reason}")
        if self.issuance_id:
            words.append(f"issuance {self.issuance_id}")
        for name in ("capacity", "issued", "remaining", "balance"):
            if getattr(self, name) is not None:
                words.append(f"{name} {getattr(self, name)}")
        if self.server:
            words.append(f"(server {self.server})")
        return " ".join(words)


_ADJUSTMENTS = frozenset({Kind.ADJUST_STOCK, Kind.ADJUST_BUDGET})


@dataclass(frozen=True, slots=True)
class Prize:
    """A prize as it was when the history began: nothing issued, its promotion active. capacity None: unlimited.

    asset: what its value is taken from the budget in; wallet: whether the user's wallet gets that value.
    """

    promotion_id: str
    prize_id: str
    capacity: int | None = None
    limit_per_user: int = 0
    asset: str = ""
    wallet: bool = False


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget as it was when the history began: nothing spent. capacity None: unlimited."""

    promotion_id: str
    asset: str
    capacity: int | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """How long the gate may know less than the ledger; all in seconds.

    held_seconds_max: how long after it ended without a grant or a rejection a call may still hold its unit (a server
    died: lease, fence, give back). rejected_held_seconds_max: the same after a rejection, which waits for the giving
    back. capacity_lag_seconds_max: how long after a top-up was acknowledged the gate may refuse by the old capacity.
    """

    held_seconds_max: float = 5.0
    rejected_held_seconds_max: float = 0.0
    capacity_lag_seconds_max: float = 0.0


@dataclass(slots=True)
class History:
    """What was there at the beginning, and what was called, in any order."""

    prizes: list[Prize] = field(default_factory=list)
    budgets: list[Budget] = field(default_factory=list)
    rules: Rules = field(default_factory=Rules)
    operations: list[Operation] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic

    def begin(self, kind: Kind, **fields: Any) -> Operation:
        """A call that is being sent now: its outcome is unknown until `end`."""
        operation = Operation(kind, self.clock(), **fields)
        self.operations.append(operation)
        return operation

    def end(self, operation: Operation, outcome: Outcome, **fields: Any) -> None:
        """It was answered, or given up, now; `fields` of the operation as answered."""
        operation.returned, operation.outcome = self.clock(), outcome
        for name, value in fields.items():
            setattr(operation, name, value)

    def save(self, path: Path) -> None:
        """One JSON object a line: a header, the prizes, the budgets, the operations. Defaults are left out."""
        with path.open("w") as lines:
            for line in self._lines():
                lines.write(json.dumps(line, separators=(",", ":")) + "\n")

    def _lines(self) -> Iterable[dict[str, Any]]:
        yield {"history": _FORMAT, "rules": asdict(self.rules)}
        for prize in self.prizes:
            yield {"prize": asdict(prize)}
        for budget in self.budgets:
            yield {"budget": asdict(budget)}
        for operation in self.operations:
            fields = asdict(operation)
            yield {
                name: value for name, value in fields.items() if value not in (None, "") and (value or name != "amount")
            }

    @classmethod
    def load(cls, path: Path) -> History:
        """What `save` wrote. Raises ValueError, which names the line."""
        history = cls()
        with path.open() as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    history._read(json.loads(line))
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error
        return history

    def _read(self, fields: dict[str, Any]) -> None:
        if "history" in fields:
            if fields["history"] != _FORMAT:
                raise ValueError(f"format {fields['history']} is not known, only {_FORMAT}")
            self.rules = Rules(**fields["rules"])
        elif "prize" in fields:
            self.prizes.append(Prize(**fields["prize"]))
        elif "budget" in fields:
            self.budgets.append(Budget(**fields["budget"]))
        else:
            kind, outcome = Kind(fields.pop("kind")), Outcome(fields.pop("outcome"))
            self.operations.append(Operation(kind, outcome=outcome, **fields))
