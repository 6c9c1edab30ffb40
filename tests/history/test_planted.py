"""Every kind of violation that the checker exists for, planted in a history that is right without it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.history.checker import Answer
from tests.history.record import Budget, History, Kind, Operation, Outcome, Prize, Rules
from tests.history.report import Verdict, check

_HELD = 2.0


@dataclass
class _Script:
    """A history written by hand: times in seconds, every call takes `took` of them."""

    history: History = field(
        default_factory=lambda: History(
            prizes=[Prize("spring", "mug", 3, 2), Prize("spring", "coins", None, 0, "COIN", wallet=True)],
            budgets=[Budget("spring", "COIN", 20)],
            rules=Rules(held_seconds_max=_HELD),
        )
    )
    took: float = 0.1

    def says(self, kind: Kind, at: float, outcome: Outcome = Outcome.OK, **fields: Any) -> Operation:
        fields.setdefault("returned", at + self.took)
        call = Operation(kind, at, outcome=outcome, promotion_id="spring", **fields)
        self.history.operations.append(call)
        return call

    def grants(self, number: int, at: float, **fields: Any) -> Operation:
        """Of request `number`, to a user of its own, with the issuance of that number."""
        defaults = {
            "prize_id": "mug",
            "user_id": f"u{number}",
            "request_id": f"q{number}",
            "issuance_id": str(number),
            "outcome": Outcome.GRANTED,
        }
        return self.says(Kind.ISSUE, at, **{**defaults, **fields})

    def refuses(self, number: int, at: float, reason: str, **fields: Any) -> Operation:
        return self.grants(number, at, **{"outcome": Outcome.REJECTED, "reason": reason, "issuance_id": "", **fields})

    def reads(self, at: float, issued: int, capacity: int = 3, **fields: Any) -> Operation:
        seen = {"capacity": capacity, "issued": issued, "remaining": capacity - issued}
        return self.says(Kind.READ_STOCK, at, prize_id="mug", **{**seen, **fields})

    def spends(self, number: int, at: float, amount: int, **fields: Any) -> Operation:
        return self.grants(number, at, **{"prize_id": "coins", "amount": amount, **fields})

    def holds(self) -> None:
        report = check(self.history)
        assert report.ok, report

    def violates(self, name: str, *culprits: Operation) -> Verdict:
        """One object does not hold, and the explanation shows each of these calls."""
        report = check(self.history)
        assert [(verdict.name, verdict.answer) for verdict in report.failed] == [(name, Answer.VIOLATION)], report
        for culprit in culprits:
            assert str(culprit) in report.failed[0].explanation, report
        return report.failed[0]


@pytest.fixture
def script() -> _Script:
    """Two of three mugs are given, and it was seen."""
    made = _Script()
    made.grants(1, 1.0)
    made.grants(2, 2.0)
    made.reads(3.0, issued=2)
    made.holds()
    return made


def test_an_over_issue_by_one_at_the_edge(script: _Script) -> None:
    script.grants(3, 4.0)
    script.holds()
    script.violates("prize mug", script.grants(4, 4.05))


def test_a_top_up_makes_room_only_from_when_it_may_have_happened(script: _Script) -> None:
    script.grants(3, 4.0)
    script.grants(4, 4.05)
    top_up = script.says(Kind.ADJUST_STOCK, 4.1, prize_id="mug", amount=1)
    script.holds()
    top_up.invoked, top_up.returned = 4.2, 4.3
    script.violates("prize mug")


def test_a_recall_takes_no_more_than_there_is(script: _Script) -> None:
    recall = script.says(Kind.ADJUST_STOCK, 4.0, prize_id="mug", amount=-1, capacity=2, issued=2, remaining=0)
    script.holds()
    recall.amount, recall.capacity, recall.remaining = -2, 1, -1
    script.violates("prize mug", recall)


def test_the_same_request_granted_twice_with_different_issuances(script: _Script) -> None:
    again = script.grants(3, 4.0, request_id="q1", user_id="u1")
    script.violates("request spring q1", again)


def test_the_same_grant_given_as_new_twice(script: _Script) -> None:
    again = script.grants(1, 4.0)
    script.violates("request spring q1", again)


def test_a_replay_that_differs(script: _Script) -> None:
    replay = script.grants(1, 4.0, outcome=Outcome.REPLAYED)
    script.holds()
    replay.issuance_id = "7"
    script.violates("request spring q1", replay)


def test_a_replay_of_what_was_never_granted(script: _Script) -> None:
    script.violates("request spring q9", script.grants(9, 4.0, outcome=Outcome.REPLAYED))


def test_one_issuance_for_two_requests(script: _Script) -> None:
    script.grants(3, 4.0, issuance_id="2")
    script.violates("issuance 2")


def test_an_acknowledged_grant_that_the_stock_lost(script: _Script) -> None:
    script.grants(3, 4.0)
    script.violates("prize mug", script.reads(5.0, issued=2))


def test_an_acknowledged_grant_that_the_wallet_lost(script: _Script) -> None:
    script.spends(3, 4.0, 5)
    script.spends(4, 5.0, 6, user_id="u3")
    balance = script.says(Kind.READ_BALANCE, 6.0, user_id="u3", asset="COIN", balance=11)
    script.holds()
    balance.balance = 6
    script.violates("wallet u3 COIN", balance)


def test_an_acknowledged_grant_that_the_holding_lost(script: _Script) -> None:
    holding = script.says(Kind.READ_BALANCE, 4.0, user_id="u1", prize_id="mug", balance=1)
    script.holds()
    holding.balance = 0
    script.violates("holding u1 mug", holding)


def test_an_acknowledged_grant_that_its_request_lost(script: _Script) -> None:
    script.violates("request spring q1", script.says(Kind.GET_ISSUANCE, 4.0, Outcome.ABSENT, request_id="q1"))


def test_a_grant_that_is_pending_again(script: _Script) -> None:
    script.violates("request spring q1", script.grants(1, 4.0, outcome=Outcome.PENDING, issuance_id=""))


def test_a_granted_request_that_is_refused(script: _Script) -> None:
    script.says(Kind.PAUSE, 4.0)
    script.violates("request spring q1", script.refuses(1, 5.0, "PROMOTION_PAUSED"))


def test_a_stale_read(script: _Script) -> None:
    # While the third is on its way both are right, but not the old after the new.
    script.grants(3, 4.0, returned=9.0)
    new = script.reads(5.0, issued=3)
    old = script.reads(5.05, issued=2)
    script.holds()
    old.invoked, old.returned = 6.0, 6.1
    script.violates("prize mug", new, old)


def test_a_balance_that_went_backwards(script: _Script) -> None:
    script.spends(3, 4.0, 5, returned=9.0)
    first = script.says(Kind.READ_BALANCE, 5.0, user_id="u3", asset="COIN", balance=5)
    second = script.says(Kind.READ_BALANCE, 6.0, user_id="u3", asset="COIN", balance=5)
    script.holds()
    second.balance = 0
    script.violates("wallet u3 COIN", first, second)


def test_a_capacity_that_went_backwards(script: _Script) -> None:
    script.says(Kind.ADJUST_STOCK, 4.0, prize_id="mug", amount=2, returned=9.0)
    new = script.reads(5.0, issued=2, capacity=5)
    script.holds()
    script.violates("prize mug", new, script.reads(6.0, issued=2, capacity=3))


def test_a_grant_after_an_acknowledged_pause(script: _Script) -> None:
    pause = script.says(Kind.PAUSE, 4.0)
    late = script.grants(3, 4.05)
    script.holds()
    late.invoked, late.returned = 4.2, 4.3
    script.violates("prize mug", late, pause)
    resume = script.says(Kind.RESUME, 4.15, returned=4.5)
    script.holds()
    resume.invoked = 4.35
    script.violates("prize mug", late)


def test_of_two_transitions_at_once_either_may_be_the_last(script: _Script) -> None:
    script.says(Kind.PAUSE, 4.0, returned=5.0)
    script.says(Kind.RESUME, 4.0, returned=4.9)
    after = script.grants(3, 6.0)
    script.holds()
    script.violates("prize mug", after, script.refuses(9, 5.5, "PROMOTION_PAUSED"))


def test_a_grant_after_the_end(script: _Script) -> None:
    script.says(Kind.END, 4.0)
    script.refuses(8, 5.0, "PROMOTION_ENDED")
    script.holds()
    script.violates("prize mug", script.grants(3, 6.0))


def test_paused_while_it_was_not(script: _Script) -> None:
    refused = script.refuses(3, 4.0, "PROMOTION_PAUSED")
    script.violates("prize mug", refused)
    script.says(Kind.PAUSE, 4.05)
    script.holds()


def test_sold_out_while_units_were_free_and_nothing_was_in_flight(script: _Script) -> None:
    script.violates("prize mug", script.refuses(9, 4.0, "SOLD_OUT"))


@pytest.mark.parametrize(
    ("outcome", "at", "right"),
    [
        (Outcome.UNKNOWN, 3.95, True),  # in flight
        (Outcome.UNKNOWN, 3.0, True),  # its server died with the unit
        (Outcome.UNKNOWN, 3.9 - _HELD - 0.1, False),  # long enough ago
        (Outcome.FAILED, 3.0, True),
        (Outcome.FAILED, 3.9 - _HELD - 0.1, False),
        (Outcome.REJECTED, 3.95, True),
        (Outcome.REJECTED, 3.85, False),  # had given back before it answered
    ],
)
def test_sold_out_while_another_call_may_hold_the_last(
    script: _Script, outcome: Outcome, at: float, right: bool
) -> None:
    script.grants(8, at, outcome=outcome, issuance_id="", reason="PROMOTION_NOT_STARTED")
    script.says(Kind.CANCEL, 9.0, Outcome.CANCELLED, request_id="q8")  # it never was granted
    refused = script.refuses(9, 4.0, "SOLD_OUT")
    if right:
        script.holds()
    else:
        script.violates("prize mug", refused)


def test_sold_out_by_the_capacity_before_a_top_up(script: _Script) -> None:
    script.grants(3, 4.0)
    script.says(Kind.ADJUST_STOCK, 5.0, prize_id="mug", amount=1)
    refused = script.refuses(9, 5.6, "SOLD_OUT")
    script.violates("prize mug", refused)
    script.history.rules = Rules(capacity_lag_seconds_max=0.5)
    script.holds()


def test_a_limit_exceeded(script: _Script) -> None:
    third = script.grants(3, 4.0, user_id="u1")
    script.holds()
    script.history.prizes[0] = Prize("spring", "mug", 9, 1)
    for call in script.history.operations:
        if call.kind is Kind.READ_STOCK:
            call.capacity, call.remaining = 9, 7
    script.violates("prize mug", third)


def test_a_limit_reached_by_nobody(script: _Script) -> None:
    refused = script.refuses(9, 4.0, "LIMIT_REACHED", user_id="u1")
    script.violates("prize mug", refused)
    script.grants(3, 4.05, user_id="u1")
    script.holds()


def test_a_limit_that_was_lowered(script: _Script) -> None:
    lowered = script.says(Kind.SET_LIMIT, 4.0, prize_id="mug", amount=1, returned=4.5)
    second = script.grants(3, 4.2, user_id="u1")
    script.refuses(9, 5.0, "LIMIT_REACHED", user_id="u2")
    script.holds()
    lowered.returned = 4.1
    script.violates("prize mug", second, lowered)


def test_a_grant_after_a_tombstone(script: _Script) -> None:
    script.says(Kind.CANCEL, 4.0, Outcome.CANCELLED, request_id="q3")
    refused = script.refuses(3, 5.0, "CANCELLED")
    script.holds()
    refused.outcome, refused.reason, refused.issuance_id = Outcome.GRANTED, "", "3"
    script.violates("request spring q3", refused)


def test_a_tombstone_on_a_grant(script: _Script) -> None:
    script.violates("request spring q1", script.says(Kind.CANCEL, 4.0, Outcome.CANCELLED, request_id="q1"))


def test_a_tombstone_that_is_forgotten(script: _Script) -> None:
    script.says(Kind.CANCEL, 4.0, Outcome.CANCELLED, request_id="q3")
    script.violates("request spring q3", script.says(Kind.GET_ISSUANCE, 5.0, Outcome.ABSENT, request_id="q3"))


def test_a_budget_overspent_by_mixed_amounts(script: _Script) -> None:
    script.spends(3, 4.0, 13)
    script.spends(4, 4.05, 5)
    last = script.spends(5, 4.05, 2)
    script.holds()
    last.amount = 3
    script.violates("budget spring COIN")


def test_a_budget_exhausted_with_enough_left(script: _Script) -> None:
    script.spends(3, 4.0, 13)
    refused = script.refuses(4, 5.0, "BUDGET_EXHAUSTED", prize_id="coins", amount=8)
    script.holds()
    refused.amount = 7
    script.violates("budget spring COIN", refused)


def test_a_budget_that_saw_a_sum_which_no_order_gives(script: _Script) -> None:
    script.spends(3, 4.0, 13)
    script.spends(4, 4.05, 5)
    read = script.says(Kind.READ_BUDGET, 4.05, asset="COIN", capacity=20, issued=5, remaining=15)
    script.holds()
    read.issued, read.remaining = 6, 14
    script.violates("budget spring COIN", read)


def test_real_time_is_kept_between_two_servers(script: _Script) -> None:
    # The second server answers a read that was asked after the first had acknowledged, as if it had not.
    script.grants(3, 4.0, server="a")
    read = script.reads(4.05, issued=2, server="b")
    script.holds()
    read.invoked, read.returned = 4.11, 4.2
    script.violates("prize mug", read)


def test_grants_that_the_ledger_numbered_against_real_time_are_told(script: _Script) -> None:
    # Nobody saw a wrong number, so it is no violation; but the ledger numbers under the lock of the account.
    script.grants(3, 4.0, issuance_id="0", prize_id="coins", amount=1)
    script.grants(4, 5.0, issuance_id="1000", prize_id="coins", amount=1)
    script.grants(5, 6.0, issuance_id="999", prize_id="coins", amount=1)
    report = check(script.history)
    assert report.ok
    (told,) = [verdict for verdict in report.verdicts if verdict.name == "prize coins"]
    assert "not in the order in which the ledger numbered" in told.note
    assert "issuance 999" in told.note


# --- unknown outcomes -----------------------------------------------------------------------------------------------


def test_an_unknown_outcome_may_take_effect_late(script: _Script) -> None:
    script.grants(3, 4.0, outcome=Outcome.UNKNOWN, issuance_id="")
    script.reads(5.0, issued=2)
    script.reads(6.0, issued=3)
    found = script.says(Kind.GET_ISSUANCE, 7.0, Outcome.GRANTED, request_id="q3", issuance_id="3")
    script.holds()
    # But not before it was asked for,
    script.history.operations[-4].invoked = 6.5
    script.violates("prize mug")
    script.history.operations[-4].invoked = 4.0
    # not after somebody was told of it,
    found.invoked, found.returned = 4.5, 4.6
    script.violates("prize mug")
    # and only once it was not there.
    found.invoked, found.returned = 7.0, 7.1
    script.says(Kind.GET_ISSUANCE, 6.5, Outcome.ABSENT, request_id="q3")
    script.violates("prize mug")


def test_an_unknown_outcome_that_was_ruled_out_has_no_effect(script: _Script) -> None:
    script.grants(3, 4.0, outcome=Outcome.UNKNOWN, issuance_id="")
    read = script.reads(6.0, issued=3)
    script.holds()
    script.says(Kind.CANCEL, 7.0, Outcome.CANCELLED, request_id="q3")
    script.violates("prize mug", read)


def test_an_adjustment_that_took_three_attempts_counts_once(script: _Script) -> None:
    top_up = {"prize_id": "mug", "amount": 2, "request_id": "top-up"}
    script.says(Kind.ADJUST_STOCK, 4.0, Outcome.UNKNOWN, **top_up)
    script.says(Kind.ADJUST_STOCK, 5.0, Outcome.UNKNOWN, **top_up)
    script.says(Kind.ADJUST_STOCK, 6.0, Outcome.REPLAYED, **top_up, capacity=5, issued=2, remaining=3)
    script.reads(4.5, issued=2)
    script.reads(5.5, issued=2, capacity=5)
    script.holds()
    script.violates("prize mug", script.reads(7.0, issued=2, capacity=7))
