"""What the server answered, request by request, and whether the answers fit together. Pure."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

from guerdon import Granted, Rejected
from guerdon_server.demo.scenario import Ask, PrizeName


@dataclass(slots=True)
class Answer:
    """The outcome of one request so far. `issuance_id` is empty while it is rejected; `units` is the value granted.

    `first_seen`: an answer said that it made the grant, and was not a replay.
    """

    ask: Ask
    issuance_id: str = ""
    units: int = 0
    reason: str = ""
    first_seen: bool = False

    @property
    def granted(self) -> bool:
        return bool(self.issuance_id)


@dataclass(slots=True)
class Answers:
    """All of them. Counters: requests by what they were answered; `replay_count` counts answers, not requests."""

    by_request: dict[str, Answer] = field(default_factory=dict)
    granted: Counter[PrizeName] = field(default_factory=Counter)
    units: Counter[PrizeName] = field(default_factory=Counter)
    answer_count: int = 0
    replay_count: int = 0
    new_grant_count: int = 0
    lost_count: int = 0
    pending_count: int = 0
    budget_refused: bool = False
    latencies_seconds: array[float] = field(default_factory=lambda: array("d"))
    contradictions: list[str] = field(default_factory=list)
    changes_of_mind: list[str] = field(default_factory=list)

    def record(self, ask: Ask, outcome: Granted | Rejected) -> None:
        """Take one answer. A grant is final: another grant of the same request, or a second new one, contradicts it."""
        self.answer_count += 1
        answer = self.by_request.get(ask.request_id)
        known = answer is not None
        if answer is None:
            answer = self.by_request[ask.request_id] = Answer(ask)
        if isinstance(outcome, Granted):
            self._grant(answer, outcome, known=known)
        else:
            self._reject(answer, outcome)

    def _grant(self, answer: Answer, outcome: Granted, *, known: bool) -> None:
        ask, issuance = answer.ask, outcome.issuance
        self.replay_count += outcome.replayed
        self.new_grant_count += not outcome.replayed
        if (issuance.user_id, issuance.prize_id, issuance.request_id) != (ask.user_id, ask.prize_id, ask.request_id):
            self.contradictions.append(f"{ask.request_id}: answered with the grant of {issuance.request_id}")
        if answer.first_seen and not outcome.replayed:
            self.contradictions.append(f"{ask.request_id}: two answers say that they made the grant")
        answer.first_seen |= not outcome.replayed
        if answer.granted:
            if answer.issuance_id != issuance.issuance_id:
                self.contradictions.append(f"{ask.request_id}: two grants")
            return
        if known:
            self.changes_of_mind.append(f"{ask.request_id}: rejected ({answer.reason}), then granted")
        answer.issuance_id = issuance.issuance_id
        answer.units = issuance.value.units if issuance.value is not None else 0
        self.granted[ask.prize] += 1
        self.units[ask.prize] += answer.units

    def _reject(self, answer: Answer, outcome: Rejected) -> None:
        if answer.granted:
            self.changes_of_mind.append(
                f"{answer.ask.request_id}: granted, and rejected ({outcome.reason}) to its twin"
            )
            return
        answer.reason = outcome.reason
        self.budget_refused |= outcome.reason == "BUDGET_EXHAUSTED"
