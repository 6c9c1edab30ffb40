"""Histories of a system that keeps its promises are accepted, also long ones, and a lie in a long one is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.history.__main__ import main
from tests.history.checker import Answer
from tests.history.record import History, Kind, Operation, Outcome, Prize
from tests.history.report import check
from tests.history.simulator import Load, simulate

_LONG = Load(callers=60, calls=110, users=100, stock=700, budget=2500, limit=30, unknown_share=0.01)


@pytest.mark.parametrize("seed", range(30))
def test_what_was_right_is_accepted(seed: int) -> None:
    load = Load(stock=(15, 40, 90)[seed % 3], budget=(50, 200)[seed % 2], limit=2 + seed % 5, unknown_share=0.08)
    history = simulate(seed, load)
    report = check(history)
    assert report.ok, report
    assert not any(verdict.note for verdict in report.verdicts), "the order in which it was granted explains it"
    _forget_numbers(history)
    assert check(history).ok, "also without the ledger's order"


def test_the_simulation_does_all_that_makes_a_history_hard() -> None:
    calls = [call for seed in range(30) for call in simulate(seed, Load(stock=15)).operations]
    seen = {(call.kind, call.outcome, call.reason) for call in calls}
    for reason in ("SOLD_OUT", "BUDGET_EXHAUSTED", "LIMIT_REACHED", "PROMOTION_PAUSED", "CANCELLED"):
        assert (Kind.ISSUE, Outcome.REJECTED, reason) in seen
    assert {kind for kind, _, _ in seen} == set(Kind) - {Kind.END, Kind.SET_LIMIT}
    found = {call.request_id for call in calls if call.kind is Kind.GET_ISSUANCE and call.outcome is Outcome.GRANTED}
    assert any(call.open and call.request_id in found for call in calls), "no late effect"


@pytest.fixture(scope="module")
def long() -> History:
    """Some 5,000 operations of 60 callers at once."""
    return simulate(1, _LONG)


def test_a_long_history_is_decided(long: History) -> None:
    report = check(long)
    assert report.ok, report
    assert max(verdict.operations for verdict in report.verdicts) > 1500


def test_one_lie_in_a_long_history_is_found_and_explained_in_a_few_lines(long: History) -> None:
    reads = [one for one in long.operations if one.kind is Kind.READ_STOCK and one.outcome is Outcome.OK]
    lie = max(reads[len(reads) // 3 :], key=lambda one: (one.returned or 0) - one.invoked)
    assert lie.issued is not None
    # One more than can have been given out by then.
    before = [one for one in long.operations if _takes_a_coupon(one) and one.invoked <= (lie.returned or 0)]
    truth, lie.issued, lie.remaining = (lie.issued, lie.remaining), len(before) + 1, None
    try:
        (failed,) = check(long).failed
    finally:
        lie.issued, lie.remaining = truth
    assert failed.answer is Answer.VIOLATION
    assert failed.name == "prize coupon"
    assert str(lie.invoked)[:5] in failed.explanation
    assert failed.explanation.count("\n") < 30


def test_a_lie_that_sums_can_not_find(long: History) -> None:
    """Two reads, one after the other, of which the later one sees less; each could be right by itself."""
    reads = [one for one in long.operations if one.kind is Kind.READ_STOCK and one.outcome is Outcome.OK]
    first, second = next(
        (one, other)
        for one in reads
        for other in reads
        if one.returned is not None
        and 0 < other.invoked - one.returned < 0.02
        and (other.issued or 0) - (one.issued or 0) in range(1, 4)
        and one.capacity == other.capacity
    )
    _swap(first, second)
    try:
        (failed,) = check(long).failed
    finally:
        _swap(first, second)
    assert failed.name == "prize coupon"
    assert failed.answer is Answer.VIOLATION


def test_too_much_to_decide_is_a_failure() -> None:
    history = simulate(3, Load(callers=20, calls=20))
    _forget_numbers(history)
    report = check(history, nodes_max=5)
    assert not report.ok
    assert {verdict.answer for verdict in report.failed} == {Answer.UNDECIDED}


def test_a_history_is_kept_and_checked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = simulate(5)
    kept = tmp_path / "history.jsonl"
    history.save(kept)
    again = History.load(kept)
    assert [str(one) for one in again.operations] == [str(one) for one in history.operations]
    assert (again.prizes, again.budgets, again.rules) == (history.prizes, history.budgets, history.rules)
    assert main([str(kept)]) == 0
    assert "prize coupon: linearizable" in capsys.readouterr().out

    grant = next(one for one in again.operations if one.outcome is Outcome.GRANTED and one.kind is Kind.ISSUE)
    again.operations.append(Operation(Kind.GET_ISSUANCE, 1e6, 1e6 + 1, Outcome.ABSENT, promotion_id="spring"))
    again.operations[-1].request_id = grant.request_id
    again.save(kept)
    assert main([str(kept)]) == 1
    printed = capsys.readouterr().out
    assert f"request spring {grant.request_id}: violation" in printed
    assert "FAILED" in printed


def test_a_file_that_is_no_history_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"history":1,"rules":{}}\n{"kind":"issue"}\n')
    assert main([str(broken)]) == 2
    assert "line 2" in capsys.readouterr().err
    assert main([str(tmp_path / "missing")]) == 2


def test_what_the_history_does_not_describe_is_an_error() -> None:
    call = Operation(Kind.ISSUE, 0.0, 1.0, Outcome.GRANTED, promotion_id="p", prize_id="other")
    with pytest.raises(ValueError, match="does not describe prize other"):
        check(History(prizes=[Prize("p", "z", 1)], operations=[call]))
    read = Operation(Kind.READ_BUDGET, 0.0, 1.0, Outcome.OK, promotion_id="p", asset="COIN")
    with pytest.raises(ValueError, match="does not describe budget p COIN"):
        check(History(operations=[read]))


def test_calls_are_recorded_as_they_go() -> None:
    ticks = iter([1.0, 2.0, 5.0])
    history = History(clock=lambda: next(ticks))
    first = history.begin(Kind.ISSUE, prize_id="z")
    second = history.begin(Kind.READ_STOCK, prize_id="z")
    assert first.open
    history.end(first, Outcome.GRANTED, issuance_id="7")
    assert (first.invoked, second.invoked, first.returned, first.issuance_id) == (1.0, 2.0, 5.0, "7")
    assert not first.open
    assert history.operations == [first, second]


def _takes_a_coupon(one: Operation) -> bool:
    return one.kind is Kind.ISSUE and one.prize_id == "coupon" and (one.open or one.outcome is Outcome.GRANTED)


def _swap(one: Operation, other: Operation) -> None:
    one.issued, other.issued = other.issued, one.issued
    one.remaining, other.remaining = other.remaining, one.remaining


def _forget_numbers(history: History) -> None:
    for call in history.operations:
        call.issuance_id = call.issuance_id and f"x{call.issuance_id}"
