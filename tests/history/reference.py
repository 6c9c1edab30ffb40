"""Two slow checkers to hold the fast one against: every order of given steps, and every order of a tiny history with
rules of its own, written a second time from the promises."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.history.checker import S, Step
from tests.history.record import History, Kind, Operation, Outcome


def has_order(steps: Sequence[Step[S]], state: S) -> bool:
    """Tries everything; for about 8 steps."""
    if not any(step.required for step in steps):
        return True
    limit = min(step.returned for step in steps if step.required)
    for place, step in enumerate(steps):
        if step.invoked > limit or not _right(step, state):
            continue
        step.action.do(state)
        found = has_order([*steps[:place], *steps[place + 1 :]], state)
        step.action.undo(state)
        if found:
            return True
    return False


def _right(step: Step[S], state: S) -> bool:
    return step.action.right(state) and step.level in (None, state.level)


@dataclass
class _World:
    """One promotion with one prize without value, as a caller imagines it."""

    history: History
    capacity: int
    limit: int
    running: str = "active"
    users: Counter[str] = field(default_factory=Counter)
    answers: dict[str, str] = field(default_factory=dict)
    placed: list[Operation] = field(default_factory=list)

    @property
    def issued(self) -> int:
        return self.users.total()


def explained(history: History) -> bool:
    """Whether one order explains all answers of a tiny history of one limited prize, taken together."""
    (prize,) = history.prizes
    assert prize.capacity is not None
    world = _World(history, prize.capacity, prize.limit_per_user)
    return _explain(world, [one for one in history.operations if one.outcome is not Outcome.FAILED])


def _explain(world: _World, left: list[Operation]) -> bool:
    must = [one for one in left if one.outcome is not Outcome.UNKNOWN]
    if not must and not _told_but_missing(world):
        return True
    limit = min((math.inf if one.returned is None else one.returned for one in must), default=math.inf)
    for one in left:
        if one.invoked > limit:
            continue
        undo = _take(world, one)
        if undo is None:
            continue
        world.placed.append(one)
        found = _explain(world, [other for other in left if other is not one])
        world.placed.remove(one)
        undo()
        if found:
            return True
    return False


def _told(world: _World, request_id: str) -> str:
    """The issuance that somebody was told of for a request."""
    told = (one.issuance_id for one in world.history.operations if one.request_id == request_id and one.issuance_id)
    return next(told, "")


def _told_but_missing(world: _World) -> bool:
    requests = {one.request_id for one in world.history.operations if one.kind is Kind.ISSUE}
    return any(_told(world, request_id) and not world.answers.get(request_id) for request_id in requests)


def _take(world: _World, one: Operation) -> Callable[[], None] | None:  # noqa: PLR0911, PLR0912
    """Apply an operation if its answer is right here; how to undo it, or None."""
    answer = world.answers.get(one.request_id, "")
    match one.kind, one.outcome:
        case Kind.ISSUE, Outcome.GRANTED | Outcome.UNKNOWN:
            if answer or world.running != "active" or world.issued >= world.capacity:
                return None
            if world.limit and world.users[one.user_id] >= world.limit:
                return None
            world.answers[one.request_id] = one.issuance_id or _told(world, one.request_id) or "somehow"
            world.users[one.user_id] += 1
            return lambda: (world.answers.pop(one.request_id), world.users.subtract([one.user_id]), None)[-1]
        case Kind.ISSUE, Outcome.REJECTED:
            return _nothing if _rejected(world, one, answer) else None
        case Kind.CANCEL, Outcome.CANCELLED | Outcome.UNKNOWN:
            if answer not in ("", "never"):
                return None
            world.answers[one.request_id] = "never"
            return lambda: world.answers.update({one.request_id: answer})
        case _, Outcome.GRANTED | Outcome.REPLAYED if one.request_id:
            return _nothing if answer == one.issuance_id else None
        case _, Outcome.ABSENT | Outcome.PENDING:
            return _nothing if not answer else None
        case Kind.GET_ISSUANCE, Outcome.CANCELLED:
            return _nothing if answer == "never" else None
        case Kind.READ_STOCK, _:
            return _nothing if (one.issued, one.capacity) == (world.issued, world.capacity) else None
        case Kind.ADJUST_STOCK, Outcome.OK | Outcome.UNKNOWN:
            if world.capacity + one.amount < world.issued:
                return None
            world.capacity += one.amount
            return lambda: setattr(world, "capacity", world.capacity - one.amount)
        case Kind.SET_LIMIT, _:
            limit, world.limit = world.limit, one.amount
            return lambda: setattr(world, "limit", limit)
        case Kind.PAUSE | Kind.RESUME | Kind.END, _:
            before = world.running
            if before == "ended" and one.kind is not Kind.END:
                return None
            world.running = {Kind.PAUSE: "paused", Kind.RESUME: "active"}.get(one.kind, "ended")
            return lambda: setattr(world, "running", before)
    raise AssertionError(one)


def _nothing() -> None:
    """To be undone."""


def _rejected(world: _World, one: Operation, answer: str) -> bool:
    if answer not in ("", "never"):
        return False
    match one.reason:
        case "CANCELLED":
            return answer == "never"
        case "PROMOTION_PAUSED":
            return world.running == "paused"
        case "PROMOTION_ENDED":
            return world.running == "ended"
        case "SOLD_OUT":
            return world.capacity - world.issued - _unseen(world, one) <= _holding(world, one, world.history.operations)
        case "LIMIT_REACHED":
            mine = [other for other in world.history.operations if other.user_id == one.user_id]
            return 0 < world.limit <= world.users[one.user_id] + _holding(world, one, mine)
    raise AssertionError(one)


def _holding(world: _World, refused: Operation, calls: Sequence[Operation]) -> int:
    """How many other calls may hold a unit while the refused one is in flight, and are not granted yet."""
    return sum(
        call.kind is Kind.ISSUE
        and call is not refused
        and not _is_granted(world, call)
        and _holds(world, call, refused)
        for call in calls
    )


def _is_granted(world: _World, call: Operation) -> bool:
    return call in world.placed and call.outcome in {Outcome.GRANTED, Outcome.UNKNOWN}


def _holds(world: _World, call: Operation, refused: Operation) -> bool:
    assert refused.returned is not None
    if call.invoked > refused.returned:
        return False
    if call.outcome is Outcome.GRANTED or (call.outcome is Outcome.UNKNOWN and _told(world, call.request_id)):
        return True
    rules = world.history.rules
    more = rules.rejected_held_seconds_max if call.outcome is Outcome.REJECTED else rules.held_seconds_max
    return call.returned is None or call.returned + more >= refused.invoked


def _unseen(world: _World, refused: Operation) -> int:
    """What was added of which the gate may not have heard."""
    lag = world.history.rules.capacity_lag_seconds_max
    return sum(
        one.amount
        for one in world.placed
        if one.kind is Kind.ADJUST_STOCK
        and one.amount > 0
        and (one.outcome is Outcome.UNKNOWN or one.returned is None or one.returned + lag >= refused.invoked)
    )
