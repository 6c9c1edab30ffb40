"""The schedule of faults, from the seed alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.campaign.faults import FAULTS, Fault

_TOGETHER_SHARE = 0.3
ROUNDS_IN_ACT = 24
"""So many rounds are played on one cluster; then everything is made anew."""


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault of a round: its own seed, and when it begins after the round's load."""

    fault: Fault
    seed: int
    after_seconds: float

    def __str__(self) -> str:
        return f"{self.fault.name} at {self.after_seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Round:
    """Numbered from 1."""

    number: int
    seed: int
    strikes: Sequence[Strike]


def rounds(seed: int, *, only: Sequence[str] = ()) -> Iterator[Round]:
    """Without end. Every fault once in random order, then again in another; some rounds have two at once.

    The second of a pair is of another engine than the first: two faults of one engine would undo each other.
    """
    rng = random.Random(seed)
    faults = [fault for fault in FAULTS if not only or fault.name in only]
    number = 0
    while True:
        deck = faults[:]
        rng.shuffle(deck)
        for fault in deck:
            number += 1
            strikes = [Strike(fault, rng.randrange(1 << 32), rng.uniform(0.2, 0.8))]
            others = [other for other in faults if other.touches != fault.touches and other.joins and fault.joins]
            if others and rng.random() < _TOGETHER_SHARE:
                strikes.append(Strike(rng.choice(others), rng.randrange(1 << 32), rng.uniform(0.2, 2.5)))
            yield Round(number, rng.randrange(1 << 32), tuple(strikes))
