"""The fast checker finds exactly what slow ones find that try every order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.history import reference
from tests.history.checker import Answer, search
from tests.history.objects import objects_of
from tests.history.record import History, Kind, Operation, Outcome, Prize, Rules
from tests.history.report import check
from tests.history.simulator import Load, simulate

_STEPS_MAX = 7
_HISTORIES_AN_EXAMPLE = 20
_often = settings(max_examples=150, deadline=None, derandomize=True, database=None)
_seeds = st.integers(0, 2**40)


_Answer: TypeAlias = tuple[Kind, Outcome, str]
_ANSWERS: list[_Answer] = [
    (Kind.ISSUE, Outcome.GRANTED, ""),
    (Kind.ISSUE, Outcome.UNKNOWN, ""),
    (Kind.ISSUE, Outcome.FAILED, ""),
    (Kind.ISSUE, Outcome.REJECTED, "SOLD_OUT"),
    (Kind.ISSUE, Outcome.REJECTED, "LIMIT_REACHED"),
    (Kind.ISSUE, Outcome.REJECTED, "PROMOTION_PAUSED"),
    (Kind.ISSUE, Outcome.REJECTED, "PROMOTION_ENDED"),
    (Kind.READ_STOCK, Outcome.OK, ""),
    (Kind.ADJUST_STOCK, Outcome.OK, ""),
    (Kind.ADJUST_STOCK, Outcome.UNKNOWN, ""),
    (Kind.PAUSE, Outcome.OK, ""),
    (Kind.PAUSE, Outcome.UNKNOWN, ""),
    (Kind.RESUME, Outcome.OK, ""),
    (Kind.END, Outcome.OK, ""),
    (Kind.SET_LIMIT, Outcome.OK, ""),
]
_LOOK_UPS: list[_Answer] = [
    (Kind.ISSUE, Outcome.REPLAYED, ""),
    (Kind.ISSUE, Outcome.REJECTED, "CANCELLED"),
    (Kind.GET_ISSUANCE, Outcome.GRANTED, ""),
    (Kind.GET_ISSUANCE, Outcome.ABSENT, ""),
    (Kind.GET_ISSUANCE, Outcome.CANCELLED, ""),
    (Kind.CANCEL, Outcome.CANCELLED, ""),
    (Kind.CANCEL, Outcome.GRANTED, ""),
    (Kind.CANCEL, Outcome.UNKNOWN, ""),
]


def _history(chance: random.Random, requests: int) -> History:
    """Up to 6 calls on one prize. requests: how many ids they share; 0: each has its own and none is looked up.

    Each history has a few kinds of answers only, so that each kind often meets itself and every other.
    """
    answers = _ANSWERS + _LOOK_UPS if requests else _ANSWERS
    answers = [*chance.sample(answers, chance.randint(1, 6)), _ANSWERS[0]]
    return History(
        prizes=[Prize("p", "z", chance.randrange(3), chance.randrange(3))],
        rules=Rules(
            held_seconds_max=float(chance.randrange(3)),
            rejected_held_seconds_max=float(chance.randrange(2)),
            capacity_lag_seconds_max=float(chance.randrange(2)),
        ),
        operations=[
            _call(chance, chance.choice(answers), number, requests) for number in range(chance.randrange(1, 7))
        ],
    )


def _call(chance: random.Random, answer: _Answer, number: int, requests: int) -> Operation:
    """Any answer to any call; most make no sense together, and that is the point."""
    kind, outcome, reason = answer
    invoked, returned = sorted((float(chance.randrange(10)), float(chance.randrange(10))))
    call = Operation(kind, invoked, returned, outcome, reason, promotion_id="p")
    if kind in {Kind.ISSUE, Kind.GET_ISSUANCE, Kind.CANCEL}:
        request = chance.randint(1, requests) if requests else number
        call.request_id = f"q{request}"
        if outcome in {Outcome.GRANTED, Outcome.REPLAYED}:
            # Seldom another one than that of the request; not in the order of time.
            call.issuance_id = str(100 + 7 * request % 10 + (chance.random() < 0.1) * 50)
        if kind is Kind.ISSUE:
            # One user for a request, or it is another request.
            call.prize_id, call.user_id = "z", f"u{request % 2}"
    elif kind is Kind.READ_STOCK:
        call.prize_id, call.issued, call.capacity = "z", chance.randrange(3), chance.randint(1, 2)
        call.remaining = call.capacity - call.issued
    elif kind is Kind.SET_LIMIT:
        call.prize_id, call.amount = "z", chance.randrange(3)
    elif kind is Kind.ADJUST_STOCK:
        call.prize_id, call.amount = "z", chance.choice([-1, 1])
    return call


_seen: Counter[tuple[str, bool]] = Counter()


def _counted(name: str, right: bool) -> bool:
    _seen[name, right] += 1
    return right


def _told(history: History) -> str:
    return "\n".join([str(history.prizes), str(history.rules), *map(str, history.operations), str(check(history))])


def _each(seed: int, requests: int, agrees: Callable[[History], bool]) -> None:
    """Fails with the smallest history on which the two do not agree."""
    chance = random.Random(seed)
    for _ in range(_HISTORIES_AN_EXAMPLE):
        history = _history(chance, requests)
        if agrees(history):
            continue
        smaller = True
        while smaller:
            smaller = False
            for one in history.operations:
                less = replace(history, operations=[other for other in history.operations if other is not one])
                if not agrees(less):
                    history, smaller = less, True
                    break
        raise AssertionError(_told(history))


@_often
@given(_seeds)
def test_of_one_prize_it_says_what_every_order_says(seed: int) -> None:
    _each(seed, 0, lambda history: check(history).ok is _counted("prize", reference.explained(history)))


@_often
@given(_seeds)
def test_what_one_order_explains_is_never_called_a_violation(seed: int) -> None:
    # The other way round need not be: objects are checked one by one.
    _each(seed, 2, lambda history: not _counted("both", reference.explained(history)) or check(history).ok)


@_often
@given(_seeds)
def test_of_one_request_it_says_what_every_order_says(seed: int) -> None:
    def agrees(history: History) -> bool:
        only = {Kind.ISSUE, Kind.GET_ISSUANCE, Kind.CANCEL}
        other = {"SOLD_OUT", "LIMIT_REACHED", "PROMOTION_PAUSED", "PROMOTION_ENDED"}
        history.prizes = [Prize("p", "z", 100)]
        history.operations = [one for one in history.operations if one.kind in only and one.reason not in other]
        return check(history).ok is _counted("request", reference.explained(history))

    _each(seed, 1, agrees)


def _mutate(history: History, chance: random.Random) -> None:
    """One lie: an answer dropped, swapped with another's, changed by one, or moved where it was not."""
    operations = history.operations
    victim = chance.choice(operations)
    match chance.randrange(4):
        case 0:
            operations.remove(victim)
        case 1:
            other = chance.choice([one for one in operations if one.kind is victim.kind])
            for name in ("outcome", "reason", "issuance_id", "issued", "remaining", "balance"):
                mine, its = getattr(victim, name), getattr(other, name)
                setattr(victim, name, its)
                setattr(other, name, mine)
        case 2:
            for name in ("issued", "balance"):
                value = getattr(victim, name)
                if value is not None:
                    setattr(victim, name, value + chance.choice([-1, 1]))
            if victim.outcome is Outcome.GRANTED:
                victim.outcome = Outcome.REJECTED
                victim.reason, victim.issuance_id = chance.choice(["SOLD_OUT", "LIMIT_REACHED"]), ""
        case 3:
            shift = chance.choice([-1, 1]) * chance.uniform(0.02, 0.2)
            victim.invoked += shift
            victim.returned = None if victim.returned is None else victim.returned + shift


@_often
@given(_seeds, st.integers(0, 3))
def test_of_a_mutated_history_it_says_what_every_order_of_each_object_says(seed: int, mutations: int) -> None:
    chance = random.Random(seed)
    load = Load(callers=3, calls=4, users=2, stock=chance.randrange(4), budget=chance.randrange(12), limit=2)
    history = simulate(seed, load)
    for _ in range(mutations):
        _mutate(history, chance)
    objects = objects_of(history)
    right = True
    for one in (*objects.prizes, *objects.budgets, *objects.wallets):
        if len(one.steps) <= _STEPS_MAX:
            expected = reference.has_order(one.steps, one.new_state())
            answer = search(one.steps, one.new_state).answer
            assert answer is (Answer.LINEARIZABLE if expected else Answer.VIOLATION), _told(history)
            right = right and expected
            if answer is Answer.LINEARIZABLE:
                continue
            # The ledger's order is one of all orders.
            assert search(one.steps, one.new_state, ranked=True).answer is Answer.VIOLATION, _told(history)
    for request in objects.requests:
        if len(request.steps) <= _STEPS_MAX:
            expected = reference.has_order(request.steps, request.new_state())
            assert (search(request.steps, request.new_state).answer is Answer.LINEARIZABLE) is expected, _told(history)
            right = right and expected
    assert right or mutations, _told(history)
    _counted("mutated", right)


def test_both_answers_were_compared_often() -> None:
    """After the tests above, of which each must have seen both right and wrong histories."""
    for name in {name for name, _ in _seen}:
        assert min(_seen[name, True], _seen[name, False]) >= 30, _seen
