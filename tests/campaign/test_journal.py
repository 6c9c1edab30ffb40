"""The oracle sees every answer that breaks a promise by itself, and none where there is none."""

from __future__ import annotations

import pytest

from guerdon.v1 import prize_pb2 as prize
from tests.campaign.journal import Call, Journal


def issue(at: float, outcome: str, *, issuance_id: str = "1", user_id: str = "ann", reason: str = "") -> Call:
    """An answer to request q, which was asked for at `at` and answered a second later."""
    call = Call("issue", "p", 0, at, at + 1, prize_id="z", user_id=user_id, request_id="q", outcome=outcome)
    call.reason = reason
    if outcome in {"granted", "replayed"}:
        call.issuance = prize.Issuance(issuance_id=issuance_id, prize_id="z", user_id=user_id, request_id="q")
    return call


def got(at: float, outcome: str) -> Call:
    """An answer of GetIssuance."""
    return Call("get", "p", 0, at, at + 1, request_id="q", outcome=outcome)


def contradictions(*calls: Call) -> list[str]:
    """What the journal says of these answers, in this order."""
    journal = Journal()
    for call in calls:
        if call.kind == "issue":
            journal.asks(call)
        journal.record(call)
    return journal.contradictions


@pytest.mark.parametrize(
    ("calls", "says"),
    [
        ((issue(0, "granted"), issue(2, "replayed", issuance_id="2")), "two grants"),
        ((issue(0, "granted"), issue(2, "granted")), "as new 2 times"),
        ((issue(0, "granted"), issue(2, "rejected", reason="SOLD_OUT")), "had its grant and was answered rejected"),
        ((issue(0, "granted"), got(2, "absent")), "had its grant and was answered absent"),
        ((issue(0, "granted"), got(2, "cancelled")), "had its grant and was answered cancelled"),
        ((got(0, "cancelled"), issue(2, "granted")), "ruled out for ever"),
        ((issue(0, "rejected", reason="CANCELLED"), issue(2, "granted")), "ruled out for ever"),
        ((issue(0, "granted"), issue(2, "replayed", user_id="bob")), "two grants"),
        ((issue(0, "REQUEST_ID_REUSED"),), "had one content only"),
    ],
)
def test_answers_that_contradict_each_other_are_found(calls: tuple[Call, ...], says: str) -> None:
    found = contradictions(*calls)
    assert any(says in text for text in found), found


@pytest.mark.parametrize(
    "calls",
    [
        (issue(0, "granted"), issue(2, "replayed"), issue(4, "replayed")),
        (issue(0, "DEADLINE_EXCEEDED"), issue(2, "replayed")),
        (issue(0, "rejected", reason="SOLD_OUT"), issue(2, "granted")),
        (issue(0, "granted"), issue(0.5, "rejected", reason="SOLD_OUT")),
        (issue(0, "granted"), issue(2, "REQUEST_ID_REUSED", user_id="bob")),
        (got(0, "absent"), issue(2, "granted")),
        (got(0, "cancelled"), issue(2, "rejected", reason="CANCELLED")),
    ],
)
def test_answers_that_can_be_are_left_alone(calls: tuple[Call, ...]) -> None:
    assert not contradictions(*calls)


def test_what_was_left_open_is_known_until_it_is_answered() -> None:
    journal = Journal()
    first = issue(0, "DEADLINE_EXCEEDED")
    journal.asks(first)
    journal.record(first)
    assert journal.open == {("p", "q"): ("z", "ann", 0)}
    journal.record(got(2, "absent"))
    assert journal.open, "absent means not yet"
    journal.record(got(4, "cancelled"))
    assert not journal.open
