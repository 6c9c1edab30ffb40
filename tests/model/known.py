"""Defects that the machines have found and that are not mended yet; each has a failing test in test_findings.py.

A program that runs into one of them ends there, and is not counted as a failure, so that the machines go on to find
others. When a defect is mended its excuse must go: its test says so by passing.
"""

from __future__ import annotations

from tests.model.calls import BatchCall, Call, Expected, Given, IssueCall, Told
from tests.model.model import Item, Model, No, Yes

_HELD = {"SOLD_OUT", "BUDGET_EXHAUSTED", "LIMIT_REACHED"}


class Excused(Exception):
    """The program ran into a known defect."""


def excuse(model: Model, call: Call, expected: Expected, told: Told) -> str:
    """The known defect that makes these answers differ; empty: it is none. `model`: after the call."""
    if isinstance(call, IssueCall) and isinstance(told, No) and _stale(model, call.item, told):
        return "terms older than the call"
    if isinstance(call, BatchCall) and isinstance(told, list) and isinstance(expected, list):
        if any(isinstance(it, No) and _stale(model, item, it) for item, it in zip(call.items, told, strict=True)):
            return "terms older than the call"
        refused_before = False
        for answer, it in zip(expected, told, strict=True):
            wrong = isinstance(it, No) and (not isinstance(answer, tuple) or it not in answer)
            if wrong and isinstance(it, No) and it.reason in _HELD and refused_before:
                return "a neighbour held it and gave it back"
            refused_before = refused_before or not isinstance(it, Given)
        replays = any(isinstance(answer, Yes) and answer.replayed for answer in expected)
        if call.together and replays and any(isinstance(answer, Yes) and not answer.replayed for answer in expected):
            return "a replay kept the others from being granted"
    return ""


def _stale(model: Model, item: Item, no: No) -> bool:
    prize = model.prizes.get(item.prize)
    if prize is None:
        return False
    if no.reason == "LIMIT_REACHED":
        return no.threshold != str(prize.limit)
    worth = None if prize.rule is None else model.priced(prize.rule, item)
    return no.reason == "BUDGET_EXHAUSTED" and no.threshold != str(worth)
