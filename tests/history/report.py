"""Checks a history object by object, and says of each what was found, so that a person can see why."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.history.checker import Answer, S, Step, Window, search, smallest_window
from tests.history.objects import AccountObject, Objects, RequestObject, objects_of
from tests.history.record import History, Operation, Outcome

NODES_MAX = 200_000
_SHOWN_AROUND = 12


@dataclass(frozen=True, slots=True)
class Verdict:
    """One object. explanation: of a violation, the smallest window. note: where the ledger's own order fails, if it
    does and that is no violation."""

    name: str
    operations: int
    answer: Answer
    explanation: str = ""
    note: str = ""

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.answer.value} ({self.operations} operations)"]
        return "\n".join([*lines, *(text for text in (self.explanation, self.note) if text)])


@dataclass(frozen=True, slots=True)
class Report:
    """All objects of a history. It holds only if every one is linearizable: undecided is a failure, too."""

    verdicts: Sequence[Verdict]
    seconds: float

    @property
    def failed(self) -> list[Verdict]:
        """Violations first."""
        order = [Answer.VIOLATION, Answer.UNDECIDED]
        wrong = [verdict for verdict in self.verdicts if verdict.answer in order]
        return sorted(wrong, key=lambda verdict: order.index(verdict.answer))

    @property
    def ok(self) -> bool:
        """Whether every answer is explained."""
        return not self.failed

    def summary(self) -> str:
        """One line for each kind of object."""
        counted: dict[str, Counter[Answer]] = {}
        operations: Counter[str] = Counter()
        for verdict in self.verdicts:
            kind = verdict.name.split()[0]
            counted.setdefault(kind, Counter())[verdict.answer] += 1
            operations[kind] += verdict.operations
        lines = [
            f"{kind:10} {sum(answers.values()):7} objects {operations[kind]:8} operations: "
            + ", ".join(f"{number} {answer.value}" for answer, number in answers.items())
            for kind, answers in counted.items()
        ]
        return "\n".join([*lines, f"{'OK' if self.ok else 'FAILED'} in {self.seconds:.1f} s"])

    def __str__(self) -> str:
        return "\n\n".join([*map(str, self.failed), self.summary()])


def check(history: History, *, nodes_max: int = NODES_MAX) -> Report:
    """Every prize, budget, wallet, holding and request; nodes_max bounds the search on each object.

    Raises ValueError for a history that names what it does not describe.
    """
    started = time.monotonic()
    objects = objects_of(history)
    verdicts = [*_judge_all(objects, nodes_max), *_twice_issued(history.operations)]
    return Report(verdicts, time.monotonic() - started)


def _judge_all(objects: Objects, nodes_max: int) -> Iterable[Verdict]:
    for account in (*objects.prizes, *objects.budgets, *objects.wallets):
        yield _judge_account(account, nodes_max)
    for request in objects.requests:
        yield _judge_request(request, nodes_max)


def _judge_account(account: AccountObject, nodes_max: int) -> Verdict:
    """First in the ledger's own order of its grants, then in any."""
    steps, new_state, count = account.steps, account.new_state, len(account.steps)
    witness = [step for step in steps if step.required or not step.raises]
    has_witness = all(step.rank is not None for step in witness if step.raises)
    if has_witness and search(witness, new_state, ranked=True, nodes_max=nodes_max).answer is Answer.LINEARIZABLE:
        return Verdict(account.name, count, Answer.LINEARIZABLE)
    found = search(steps, new_state, nodes_max=nodes_max)
    if found.answer is Answer.VIOLATION:
        return Verdict(account.name, count, found.answer, _explained(smallest_window(steps, new_state), account))
    if not has_witness:
        return Verdict(account.name, count, found.answer)
    failing = smallest_window(witness, new_state, ranked=True)
    note = f"  but not in the order in which the ledger numbered its grants:\n{_explained(failing, account)}"
    return Verdict(account.name, count, found.answer, note=note)


def _judge_request(request: RequestObject, nodes_max: int) -> Verdict:
    found = search(request.steps, request.new_state, nodes_max=nodes_max)
    explanation = ""
    if found.answer is Answer.VIOLATION:
        explanation = _explained(smallest_window(request.steps, request.new_state), request)
    return Verdict(request.name, len(request.steps), found.answer, explanation)


def _explained(window: Window[S] | None, about: AccountObject | RequestObject) -> str:
    if window is None:
        return "    (too much for a smaller window)"
    told: list[Step[S]] = sorted([*window.needed, window.culprit], key=lambda step: step.invoked)
    lines = ["  no order explains these answers:", *(f"    {step.source}" for step in told)]
    lines += [f"  because, of {about.name}:"] + [f"    {reason}" for reason in window.reasons[:_SHOWN_AROUND]]
    around = sorted(window.around, key=lambda step: -min(step.returned, window.culprit.returned))
    if around:
        lines.append("  at that time these took effect, or may have:")
        lines += [f"    {step.source}" for step in sorted(around[:_SHOWN_AROUND], key=lambda step: step.invoked)]
        if len(around) > _SHOWN_AROUND:
            lines.append(f"    and {len(around) - _SHOWN_AROUND} more")
    return "\n".join(lines)


def _twice_issued(operations: Sequence[Operation]) -> Iterable[Verdict]:
    """An issuance belongs to one request."""
    owners: dict[str, dict[tuple[str, str], Operation]] = {}
    for operation in operations:
        if operation.issuance_id and operation.outcome in {Outcome.GRANTED, Outcome.REPLAYED}:
            key = operation.promotion_id, operation.request_id
            owners.setdefault(operation.issuance_id, {}).setdefault(key, operation)
    for issuance_id, calls in owners.items():
        if len(calls) > 1:
            lines = ["  one issuance answers several requests:", *(f"    {call}" for call in calls.values())]
            yield Verdict(f"issuance {issuance_id}", len(calls), Answer.VIOLATION, "\n".join(lines))
