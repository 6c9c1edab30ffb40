"""What each object promises, one operation after another. Plain Python; knows nothing of the server.

An account gives out units: a prize's stock, a promotion's budget, and, with no capacity, what a user has. A request is
a key that is granted once, or ruled out, for ever.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass


class Running(enum.StrEnum):
    """The state of the promotion, as far as it matters here."""

    ACTIVE = "active"
    PAUSED = "paused"
    ENDED = "ended"


class Account:
    """capacity = level + remaining, all in units; None: unlimited. limit: grants per user, 0 for none."""

    __slots__ = ("_counts", "_limits", "_runs", "_tops", "_unresolved", "capacity", "level")

    def __init__(self, capacity: int | None, limit: int = 0) -> None:
        self.capacity = capacity
        self.level = 0
        self._limits = [limit]
        self._runs = [Running.ACTIVE]
        self._counts: dict[str, int] = defaultdict(int)
        self._tops: dict[int, int] = {}
        self._unresolved: dict[int, int] = {}

    def key(self) -> Hashable:
        return self._runs[-1], self._limits[-1]

    @property
    def remaining(self) -> int | None:
        return None if self.capacity is None else self.capacity - self.level

    @property
    def limit(self) -> int:
        return self._limits[-1]

    @property
    def running(self) -> Running:
        return self._runs[-1]

    def count(self, user_id: str) -> int:
        """Grants of one user."""
        return self._counts[user_id]

    def told(self) -> str:
        """In words."""
        words = f"{self.level} given out" if self.capacity is None else f"{self.level} of {self.capacity} given out"
        return words if self.running is Running.ACTIVE else f"{words}, {self.running}"


# --- what changes an account ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Grant:
    """A unit of stock, or an amount of value, for a user. `limited`: whether the limit per user counts here.
    `resolved`: False if it is not known whether it was ever made."""

    amount: int
    user_id: str
    limited: bool = False
    resolved: bool = True

    def right(self, account: Account) -> bool:
        if account.running is not Running.ACTIVE:
            return False
        if self.limited and account.limit and account.count(self.user_id) >= account.limit:
            return False
        return account.remaining is None or account.remaining >= self.amount

    def do(self, account: Account) -> None:
        account.level += self.amount
        account._counts[self.user_id] += 1
        if not self.resolved:
            account._unresolved[id(self)] = self.amount

    def undo(self, account: Account) -> None:
        account.level -= self.amount
        account._counts[self.user_id] -= 1
        if not self.resolved:
            del account._unresolved[id(self)]

    def why_not(self, account: Account) -> str:
        if account.running is not Running.ACTIVE:
            return f"granted while the promotion is {account.running}"
        if self.limited and account.limit and account.count(self.user_id) >= account.limit:
            return f"granted to {self.user_id}, who has {account.count(self.user_id)} of at most {account.limit}"
        return f"granted {self.amount} with {account.told()}"


@dataclass(frozen=True, slots=True)
class Seen:
    """What an answer said of the account; None where it said nothing of it, `unlimited` where it said that."""

    level: int | None = None
    capacity: int | None = None
    remaining: int | None = None

    def fits(self, level: int, capacity: int | None) -> bool:
        if self.level is not None and self.level != level:
            return False
        if self.capacity is not None and self.capacity != capacity:
            return False
        return self.remaining is None or (capacity is not None and self.remaining == capacity - level)

    def __str__(self) -> str:
        named = (("given out", self.level), ("capacity", self.capacity), ("remaining", self.remaining))
        return ", ".join(f"{name} {value}" for name, value in named if value is not None)


@dataclass(frozen=True, slots=True, eq=False)
class Adjust:
    """Top-up (delta > 0) or recall, which takes no more than remains. `seen`: afterwards."""

    delta: int
    seen: Seen

    def right(self, account: Account) -> bool:
        if account.capacity is None or account.capacity + self.delta < account.level:
            return False
        return self.seen.fits(account.level, account.capacity + self.delta)

    def do(self, account: Account) -> None:
        assert account.capacity is not None
        account.capacity += self.delta
        account._tops[id(self)] = self.delta

    def undo(self, account: Account) -> None:
        assert account.capacity is not None
        account.capacity -= self.delta
        del account._tops[id(self)]

    def why_not(self, account: Account) -> str:
        return f"changed by {self.delta} and saw ({self.seen}), with {account.told()} before"


@dataclass(frozen=True, slots=True)
class Run:
    """Pause, resume, end. Ended is for ever."""

    to: Running

    def right(self, account: Account) -> bool:
        return account.running is not Running.ENDED or self.to is Running.ENDED

    def do(self, account: Account) -> None:
        account._runs.append(self.to)

    def undo(self, account: Account) -> None:
        account._runs.pop()

    def why_not(self, account: Account) -> str:
        return f"became {self.to} while {account.running}"


@dataclass(frozen=True, slots=True)
class SetLimit:
    """Another limit per user from here on."""

    limit: int

    def right(self, account: Account) -> bool:
        return True

    def do(self, account: Account) -> None:
        account._limits.append(self.limit)

    def undo(self, account: Account) -> None:
        account._limits.pop()

    def why_not(self, account: Account) -> str:
        return "a limit can be set at any time"


# --- what only looks at it ------------------------------------------------------------------------------------------


class _Look:
    """Changes nothing."""

    __slots__ = ()

    def do(self, account: Account) -> None:
        pass

    def undo(self, account: Account) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Read(_Look):
    """Reads come from the committed state: exact at their place."""

    seen: Seen

    def right(self, account: Account) -> bool:
        return self.seen.fits(account.level, account.capacity)

    def why_not(self, account: Account) -> str:
        return f"saw ({self.seen}), with {account.told()}"


@dataclass(frozen=True, slots=True)
class NoRoom(_Look):
    """SOLD_OUT or BUDGET_EXHAUSTED: less remains than is asked for, after what others may hold.

    The gate refuses for units that a call in flight holds, which may still fail. So it is right if `amount` is not left
    once all that may be held is taken off. may_hold: in units, all grants that were invoked before this returned
    (those that are placed already are taken off there: the difference stays the same), and all calls without a grant
    that may hold while this was in flight. lagging: top-ups that the gate may not know yet, by id. late: unresolved
    grants, by id, whose own call can't hold any more: where one is placed before this, it was granted.
    """

    amount: int
    may_hold: int
    lagging: tuple[int, ...] = ()
    late: tuple[int, ...] = ()

    def right(self, account: Account) -> bool:
        return account.capacity is not None and self._left(account, account.capacity) < self.amount

    def _left(self, account: Account, capacity: int) -> int:
        lagging = sum(account._tops.get(name, 0) for name in self.lagging)
        late = sum(account._unresolved.get(name, 0) for name in self.late)
        return capacity - lagging - late - self.may_hold

    def why_not(self, account: Account) -> str:
        if account.capacity is None:
            return "refused, and there is no end of it"
        held = max(0, account.capacity - account.level - self._left(account, account.capacity))
        return f"refused {self.amount} with {account.told()}, and no more than {held} may be held by others"


@dataclass(frozen=True, slots=True)
class LimitReached(_Look):
    """The user's grants, and what the user's other calls may hold (as in NoRoom), reach the limit."""

    user_id: str
    may_hold: int
    late: tuple[int, ...] = ()

    def right(self, account: Account) -> bool:
        return 0 < account.limit <= self.may_hold + sum(name in account._unresolved for name in self.late)

    def why_not(self, account: Account) -> str:
        return (
            f"the limit of {account.limit} is not reached by {self.user_id}, who has {account.count(self.user_id)}"
            f" ({self.may_hold} with all that may be held)"
        )


@dataclass(frozen=True, slots=True)
class NotRunning(_Look):
    """PROMOTION_PAUSED, PROMOTION_ENDED."""

    said: Running

    def right(self, account: Account) -> bool:
        return account.running is self.said

    def why_not(self, account: Account) -> str:
        return f"refused as {self.said} while the promotion is {account.running}"


@dataclass(frozen=True, slots=True)
class TooMuch(_Look):
    """A recall was refused because less remains. `remaining`: as answered."""

    delta: int
    remaining: int | None

    def right(self, account: Account) -> bool:
        left = account.remaining
        return left is not None and left + self.delta < 0 and self.remaining in (None, left)

    def why_not(self, account: Account) -> str:
        return f"a recall of {-self.delta} was refused with {account.told()}"


# --- a request ------------------------------------------------------------------------------------------------------


NEVER = "never"


class Request:
    """answer: '' undecided, else the issuance, or NEVER."""

    __slots__ = ("_answers",)
    level = 0

    def __init__(self) -> None:
        self._answers = [""]

    @property
    def answer(self) -> str:
        return self._answers[-1]

    def key(self) -> Hashable:
        return self.answer

    def told(self) -> str:
        """In words."""
        if not self.answer:
            return "it is not granted"
        return "it is ruled out for ever" if self.answer == NEVER else f"it has issuance {self.answer}"


@dataclass(frozen=True, slots=True)
class Decide:
    """Becomes the issuance, once; or NEVER, which may be said again."""

    answer: str

    def right(self, request: Request) -> bool:
        return not request.answer or request.answer == self.answer == NEVER

    def do(self, request: Request) -> None:
        request._answers.append(self.answer)

    def undo(self, request: Request) -> None:
        request._answers.pop()

    def why_not(self, request: Request) -> str:
        return f"it can't become {self.answer}: {request.told()}"


@dataclass(frozen=True, slots=True)
class Answered:
    """One of these was the answer at its place ('': undecided)."""

    answers: tuple[str, ...]

    def right(self, request: Request) -> bool:
        return request.answer in self.answers

    def do(self, request: Request) -> None:
        pass

    def undo(self, request: Request) -> None:
        pass

    def why_not(self, request: Request) -> str:
        return f"it does not fit: {request.told()}"
