"""A seed is a schedule."""

from __future__ import annotations

from itertools import islice

from tests.campaign.faults import FAULTS
from tests.campaign.plan import rounds


def test_the_same_seed_gives_the_same_schedule_and_another_seed_another() -> None:
    def schedule(seed: int) -> list[str]:
        return [f"{r.number} {r.seed} {[(str(s), s.seed) for s in r.strikes]}" for r in islice(rounds(seed), 200)]

    assert schedule(7) == schedule(7)
    assert schedule(7) != schedule(8)


def test_every_fault_comes_once_before_any_comes_again() -> None:
    for seed in range(5):
        first = [planned.strikes[0].fault.name for planned in islice(rounds(seed), len(FAULTS))]
        assert sorted(first) == sorted(fault.name for fault in FAULTS)


def test_two_faults_at_once_are_of_different_engines_and_bear_each_other() -> None:
    pairs = [planned.strikes for planned in islice(rounds(1), 500) if len(planned.strikes) > 1]
    assert len(pairs) > 50
    for one, other in pairs:
        assert one.fault.touches != other.fault.touches
        assert one.fault.joins
        assert other.fault.joins
