"""From a history to its objects: what took effect on each, between which moments, and what was seen of it.

An outcome that stayed unknown is resolved by what was answered about the same request later. Granted: it took effect
at some time after it was first asked for, and before anybody was told. Ruled out: it never did. Neither: it may.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from tests.history import specs
from tests.history.checker import Step, Sums
from tests.history.record import Budget, History, Kind, Operation, Outcome, Prize, Rules

Key: TypeAlias = tuple[str, str]
_KNOWS_GRANT = frozenset({Outcome.GRANTED, Outcome.REPLAYED})
_ASKS_ONLY = frozenset({Kind.GET_ISSUANCE, Kind.CANCEL})
_RUNS = {Kind.PAUSE: specs.Running.PAUSED, Kind.RESUME: specs.Running.ACTIVE, Kind.END: specs.Running.ENDED}
_STATES = {"PROMOTION_PAUSED": specs.Running.PAUSED, "PROMOTION_ENDED": specs.Running.ENDED}


@dataclass(slots=True)
class AccountObject:
    """A stock, a budget, a wallet or a holding."""

    name: str
    steps: list[Step[specs.Account]]
    capacity: int | None = None
    limit: int = 0

    def new_state(self) -> specs.Account:
        """As the history began."""
        return specs.Account(self.capacity, self.limit)


@dataclass(slots=True)
class RequestObject:
    """A request id of a promotion."""

    name: str
    steps: list[Step[specs.Request]]

    def new_state(self) -> specs.Request:
        """As the history began."""
        return specs.Request()


@dataclass(frozen=True, slots=True)
class Effect:
    """A grant that took effect (or, not `resolved`, may have) once, between invoked and returned.

    holds_from: when its call may first have held what it was granted. attempt: the call that it is counted for.
    """

    attempt: Operation
    issuance_id: str
    amount: int
    invoked: float
    returned: float
    holds_from: float
    resolved: bool


@dataclass(slots=True)
class Objects:
    """All that a history is about."""

    prizes: list[AccountObject] = field(default_factory=list)
    budgets: list[AccountObject] = field(default_factory=list)
    wallets: list[AccountObject] = field(default_factory=list)
    requests: list[RequestObject] = field(default_factory=list)


def objects_of(history: History) -> Objects:
    """Raises ValueError where a call names a prize or budget that the history does not describe."""
    return _Partition(history).objects()


class _Partition:
    def __init__(self, history: History) -> None:
        self._rules = history.rules
        self._prizes = {prize.prize_id: prize for prize in history.prizes}
        self._budgets = history.budgets
        self._by_kind: dict[Kind, list[Operation]] = defaultdict(list)
        self._by_request: dict[Key, list[Operation]] = defaultdict(list)
        for operation in sorted(history.operations, key=lambda one: one.invoked):
            self._by_kind[operation.kind].append(operation)
            if operation.kind is Kind.ISSUE or operation.kind in _ASKS_ONLY:
                self._by_request[operation.promotion_id, operation.request_id].append(operation)
            self._must_know(operation)
        self._effects = [effect for calls in self._by_request.values() for effect in _effects(calls)]

    def _must_know(self, operation: Operation) -> None:
        if operation.prize_id and operation.prize_id not in self._prizes:
            raise ValueError(f"the history does not describe prize {operation.prize_id}: {operation}")
        if operation.kind in {Kind.ADJUST_BUDGET, Kind.READ_BUDGET}:
            named = (operation.promotion_id, operation.asset)
            if all((budget.promotion_id, budget.asset) != named for budget in self._budgets):
                raise ValueError(f"the history does not describe budget {' '.join(named)}: {operation}")

    def objects(self) -> Objects:
        found = Objects(requests=[_request(key, calls) for key, calls in self._by_request.items()])
        found.prizes = [self._prize(prize) for prize in self._prizes.values()]
        found.budgets = [self._budget(budget) for budget in self._budgets]
        found.wallets = list(self._holders())
        return found

    def _prize(self, prize: Prize) -> AccountObject:
        effects = [effect for effect in self._effects if effect.attempt.prize_id == prize.prize_id]
        issues = [issue for issue in self._by_kind[Kind.ISSUE] if issue.prize_id == prize.prize_id]
        adjusts = [one for one in self._by_kind[Kind.ADJUST_STOCK] if one.prize_id == prize.prize_id]
        limits = [one for one in self._by_kind[Kind.SET_LIMIT] if one.prize_id == prize.prize_id]
        steps = _mutations(limits, lambda one: specs.SetLimit(one.amount))
        for kind, to in _RUNS.items():
            runs = [one for one in self._by_kind[kind] if one.promotion_id == prize.promotion_id]
            steps += _mutations(runs, partial(_run, to))
        # Where the limit changes, grants of different users can't be swapped.
        steps += [_grant(effect, 1, limited=True, by_user=bool(limits)) for effect in effects]
        steps += _adjusts(adjusts)
        steps += _reads(self._by_kind[Kind.READ_STOCK], lambda one: one.prize_id == prize.prize_id)
        held = _Held(issues, effects, self._rules, lambda _: 1)
        by_user = _split_by_user(issues, effects, self._rules)
        for issue in issues:
            if issue.outcome is not Outcome.REJECTED or issue.returned is None:
                continue
            if issue.reason == "SOLD_OUT":
                steps.append(self._no_room(issue, 1, held, steps))
            elif issue.reason == "LIMIT_REACHED":
                besides = by_user[issue.user_id].besides(issue)
                late = self._late(issue, [step for step in steps if _user(step) == issue.user_id])
                steps.append(_look(issue, specs.LimitReached(issue.user_id, besides, late)))
            elif issue.reason in _STATES:
                steps.append(_look(issue, specs.NotRunning(_STATES[issue.reason])))
        return AccountObject(f"prize {prize.prize_id}", steps, prize.capacity, prize.limit_per_user)

    def _budget(self, budget: Budget) -> AccountObject:
        def mine(one: Operation) -> bool:
            prize = self._prizes[one.prize_id]
            return prize.promotion_id == budget.promotion_id and prize.asset == budget.asset

        def named(one: Operation) -> bool:
            return one.promotion_id == budget.promotion_id and one.asset == budget.asset

        effects = [effect for effect in self._effects if mine(effect.attempt)]
        issues = [issue for issue in self._by_kind[Kind.ISSUE] if mine(issue)]
        steps = [_grant(effect, effect.amount) for effect in effects]
        steps += _adjusts([one for one in self._by_kind[Kind.ADJUST_BUDGET] if named(one)])
        steps += _reads(self._by_kind[Kind.READ_BUDGET], named)
        held = _Held(issues, effects, self._rules, lambda one: one.amount)
        for issue in issues:
            if issue.reason == "BUDGET_EXHAUSTED" and issue.outcome is Outcome.REJECTED and issue.returned is not None:
                steps.append(self._no_room(issue, issue.amount, held, steps))
        return AccountObject(f"budget {budget.promotion_id} {budget.asset}", steps, budget.capacity)

    def _no_room(
        self, issue: Operation, amount: int, held: _Held, steps: Sequence[Step[specs.Account]]
    ) -> Step[specs.Account]:
        lag = self._rules.capacity_lag_seconds_max
        lagging = tuple(
            id(step.action)
            for step in steps
            if isinstance(step.action, specs.Adjust) and step.action.delta > 0 and step.returned + lag >= issue.invoked
        )
        return _look(issue, specs.NoRoom(amount, held.besides(issue), lagging, self._late(issue, steps)))

    def _late(self, issue: Operation, steps: Sequence[Step[specs.Account]]) -> tuple[int, ...]:
        """Unresolved grants whose calls can't hold any more when this one is sent."""
        return tuple(
            id(step.action)
            for step in steps
            if isinstance(step.action, specs.Grant)
            and not step.action.resolved
            and isinstance(step.source, Operation)
            and _held_until(step.source, self._rules) < issue.invoked
        )

    def _holders(self) -> Iterable[AccountObject]:
        """What users have of an asset and of a prize, where somebody looked."""
        looks: dict[tuple[str, str, str], list[Operation]] = defaultdict(list)
        for read in self._by_kind[Kind.READ_BALANCE]:
            looks[read.user_id, read.asset, "" if read.asset else read.prize_id].append(read)
        grants: dict[tuple[str, str, str], list[Step[specs.Account]]] = defaultdict(list)
        for effect in self._effects:
            prize, user_id = self._prizes[effect.attempt.prize_id], effect.attempt.user_id
            grants[user_id, "", prize.prize_id].append(_grant(effect, 1))
            if prize.wallet:
                grants[user_id, prize.asset, ""].append(_grant(effect, effect.amount))
        for (user_id, asset, prize_id), reads in looks.items():
            steps = grants[user_id, asset, prize_id] + _reads(reads, lambda _: True)
            name = f"wallet {user_id} {asset}" if asset else f"holding {user_id} {prize_id}"
            yield AccountObject(name, steps)


# --- requests -------------------------------------------------------------------------------------------------------


def _effects(calls: Sequence[Operation]) -> Iterable[Effect]:
    """The grant of a request: at most one, unless the server gave it twice."""
    told = [call for call in calls if call.outcome in _KNOWS_GRANT and call.issuance_id]
    fresh = {call.issuance_id: call for call in reversed(told) if _is_grant(call)}
    for issuance_id, attempt in fresh.items():
        yield _effect(attempt, issuance_id, attempt.amount, calls)
    opened = [call for call in calls if call.kind is Kind.ISSUE and call.open]
    if fresh or not opened:
        return
    if told:
        content = next(((c.prize_id, c.user_id, c.amount) for c in told if c.prize_id), None)
        fitting = [c for c in opened if content is None or (c.prize_id, c.user_id) == content[:2]]
        if fitting:
            amount = content[2] if content is not None and content[2] else fitting[0].amount
            yield _effect(fitting[0], told[0].issuance_id, amount, calls)
    elif not _is_ruled_out(calls):
        first = opened[0]
        yield Effect(first, "", first.amount, _not_before(calls, first), math.inf, first.invoked, False)


def _effect(attempt: Operation, issuance_id: str, amount: int, calls: Sequence[Operation]) -> Effect:
    """Between the last that saw no grant and the first that saw it; as far as they agree."""
    latest = min(_end(call) for call in calls if call.issuance_id == issuance_id)
    earliest = _not_before(calls, attempt)
    if earliest > latest:  # a contradiction, which the request's own check finds
        earliest, latest = attempt.invoked, math.inf if attempt.open else _end(attempt)
    return Effect(attempt, issuance_id, amount, earliest, latest, attempt.invoked, True)


def _not_before(calls: Sequence[Operation], attempt: Operation) -> float:
    return max([attempt.invoked, *(call.invoked for call in calls if _denies(call, attempt))])


def _is_grant(call: Operation) -> bool:
    return call.kind is Kind.ISSUE and call.outcome is Outcome.GRANTED


def _denies(call: Operation, grant: Operation) -> bool:
    """Whether this answer says that the request had no grant."""
    if call.outcome in {Outcome.PENDING, Outcome.ABSENT}:
        return True
    same = (call.prize_id, call.user_id) == (grant.prize_id, grant.user_id)
    return call.kind is Kind.ISSUE and call.outcome is Outcome.REJECTED and same


def _is_ruled_out(calls: Sequence[Operation]) -> bool:
    return any(call.outcome is Outcome.CANCELLED or call.reason == "CANCELLED" for call in calls)


def _request(key: Key, calls: Sequence[Operation]) -> RequestObject:
    grants = list(_effects(calls))
    steps: list[Step[specs.Request]] = [
        Step(
            specs.Decide(effect.issuance_id or "a grant"),
            effect.invoked,
            effect.returned,
            effect.attempt,
            required=effect.resolved,
            writes=True,
        )
        for effect in grants
    ]
    counted = {id(effect.attempt) for effect in grants}
    for call in calls:
        action = _about_request(call, counted, grants)
        if action is not None:
            writes = isinstance(action, specs.Decide)
            required = not (call.kind is Kind.CANCEL and call.open)
            steps.append(
                Step(action, call.invoked, _end(call) if required else math.inf, call, required=required, writes=writes)
            )
    return RequestObject(f"request {key[0]} {key[1]}", steps)


def _about_request(  # noqa: PLR0911
    call: Operation, counted: set[int], grants: Sequence[Effect]
) -> specs.Decide | specs.Answered | None:
    """What one answer says of its request; None: nothing, or it is a grant that is counted."""
    if call.kind is Kind.CANCEL and (call.open or call.outcome is Outcome.CANCELLED):
        return specs.Decide(specs.NEVER)
    if call.open or call.outcome is Outcome.FAILED:
        return None
    if _is_grant(call):
        return None if id(call) in counted else specs.Decide(call.issuance_id)
    if call.outcome in _KNOWS_GRANT:
        return specs.Answered((call.issuance_id,))
    if call.outcome in {Outcome.PENDING, Outcome.ABSENT}:
        return specs.Answered(("",))
    if call.outcome is Outcome.CANCELLED or call.reason == "CANCELLED":
        return specs.Answered((specs.NEVER,))
    if call.outcome is Outcome.REJECTED and all(_denies(call, effect.attempt) for effect in grants):
        return specs.Answered(("", specs.NEVER))
    return None


# --- steps ----------------------------------------------------------------------------------------------------------


def _end(call: Operation) -> float:
    return math.inf if call.returned is None else call.returned


def _grant(effect: Effect, amount: int, *, limited: bool = False, by_user: bool = False) -> Step[specs.Account]:
    action = specs.Grant(amount, effect.attempt.user_id, limited, effect.resolved)
    return Step(
        action,
        effect.invoked,
        effect.returned,
        effect.attempt,
        required=effect.resolved,
        writes=True,
        raises=amount,
        rank=int(effect.issuance_id) if effect.issuance_id.isdecimal() else None,
        alike=(amount, effect.attempt.user_id if by_user else "") if effect.resolved else None,
    )


def _look(
    call: Operation,
    action: specs.Read | specs.NoRoom | specs.LimitReached | specs.NotRunning | specs.TooMuch,
    level: int | None = None,
) -> Step[specs.Account]:
    return Step(action, call.invoked, _end(call), call, level=level)


def _reads(calls: Iterable[Operation], mine: Callable[[Operation], bool]) -> list[Step[specs.Account]]:
    steps = []
    for call in calls:
        if call.outcome is Outcome.OK and call.returned is not None and mine(call):
            seen = _seen(call)
            steps.append(_look(call, specs.Read(seen), seen.level))
    return steps


def _seen(call: Operation) -> specs.Seen:
    if call.kind is Kind.READ_BALANCE:
        return specs.Seen(level=call.balance)
    return specs.Seen(call.issued, call.capacity, call.remaining)


def _mutations(
    calls: Sequence[Operation],
    action: Callable[[Operation], specs.Run | specs.SetLimit | specs.Adjust],
) -> list[Step[specs.Account]]:
    """Each mutation once, whatever number of attempts it took."""
    attempts: dict[object, list[Operation]] = defaultdict(list)
    for call in calls:
        attempts[call.request_id or id(call)].append(call)
    steps = []
    for same in attempts.values():
        done = [call for call in same if call.outcome is Outcome.OK and call.returned is not None]
        opened = [call for call in same if call.open]
        if not done and not opened:
            continue
        told = [_end(call) for call in same if call.outcome in {Outcome.OK, Outcome.REPLAYED}]
        source = done[0] if done else opened[0]
        made = action(source)
        level = made.seen.level if isinstance(made, specs.Adjust) else None
        returned = min(told, default=math.inf)
        steps.append(Step(made, source.invoked, returned, source, required=bool(told), writes=True, level=level))
    return steps


def _user(step: Step[specs.Account]) -> str:
    return step.action.user_id if isinstance(step.action, specs.Grant) else ""


def _run(to: specs.Running, _: Operation) -> specs.Run:
    return specs.Run(to)


def _adjusts(calls: Sequence[Operation]) -> list[Step[specs.Account]]:
    """Top-ups and recalls; what a repeated one answers is the account as it was then."""
    steps = _mutations(calls, lambda one: specs.Adjust(one.amount, _seen(one)))
    for call in calls:
        if call.outcome is Outcome.REPLAYED and call.returned is not None:
            steps.append(_look(call, specs.Read(_seen(call)), call.issued))
        elif call.outcome is Outcome.REJECTED and call.returned is not None and call.reason.endswith("_INSUFFICIENT"):
            steps.append(_look(call, specs.TooMuch(call.amount, call.remaining)))
    return steps


# --- what may be held -----------------------------------------------------------------------------------------------


class _Held:
    """Who may hold how much while a refused call was in flight; see specs.NoRoom."""

    def __init__(
        self,
        issues: Sequence[Operation],
        effects: Sequence[Effect],
        rules: Rules,
        amount: Callable[[Operation | Effect], int],
    ) -> None:
        self._amount = amount
        resolved = [effect for effect in effects if effect.resolved]
        granted = {id(effect.attempt) for effect in resolved}
        others = [issue for issue in issues if id(issue) not in granted]
        self._granted = Sums([(effect.holds_from, amount(effect)) for effect in resolved])
        self._begun = Sums([(other.invoked, amount(other)) for other in others])
        self._ended = Sums([(_held_until(other, rules), amount(other)) for other in others])

    def besides(self, refused: Operation) -> int:
        """Units that may be held, or were granted, without the refused one's own."""
        assert refused.returned is not None
        begun = self._begun.until(refused.returned) - self._ended.before(refused.invoked)
        return self._granted.until(refused.returned) + begun - self._amount(refused)


def _held_until(call: Operation, rules: Rules) -> float:
    """Until when a call that got no grant may hold what it asked for."""
    if call.returned is None:
        return math.inf
    if call.outcome in {Outcome.REJECTED, Outcome.GRANTED}:
        return call.returned + rules.rejected_held_seconds_max
    return call.returned + rules.held_seconds_max


def _split_by_user(issues: Sequence[Operation], effects: Sequence[Effect], rules: Rules) -> dict[str, _Held]:
    calls: dict[str, list[Operation]] = defaultdict(list)
    granted: dict[str, list[Effect]] = defaultdict(list)
    for issue in issues:
        calls[issue.user_id].append(issue)
    for effect in effects:
        granted[effect.attempt.user_id].append(effect)
    return {user_id: _Held(calls[user_id], granted[user_id], rules, lambda _: 1) for user_id in calls}
