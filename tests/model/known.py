"""Defects that the machines have found and that are not mended yet; each has a failing test in test_findings.py.

A program that runs into one of them ends there, and is not counted as a failure, so that the machines go on to find
others. When a defect is mended its excuse must go: its test says so by passing.
"""

from __future__ import annotations

from tests.model.calls import BatchCall, Call, Expected, Given, Told
from tests.model.model import No, Yes

_HELD = {"SOLD_OUT", "BUDGET_EXHAUSTED", "LIMIT_REACHED"}


class Excused(Exception):
    """The program ran into a known defect."""


def excuse(call: Call, expected: Expected, told: Told) -> str:
    """The known defect that makes these answers differ; empty: it is none."""
    if isinstance(call, BatchCall) and isinstance(told, list) and isinstance(expected, list):
        refused_before = False
        for answer, it in zip(expected, told, strict=True):
            wrong = isinstance(it, No) and (not isinstance(answer, tuple) or it not in answer)
            if wrong and isinstance(it, No) and it.reason in _HELD and refused_before:
                return "a neighbour held it and gave it back"
            refused_before = refused_before or not isinstance(it, Given)
        kept = any(
            isinstance(answer, Yes) and isinstance(it, No) and it.reason == "BATCH_NOT_GRANTED"
            for answer, it in zip(expected, told, strict=True)
        )
        if call.together and kept and any(isinstance(it, Given) and it.replayed for it in told):
            return "a replay kept the others from being granted"
    return ""
