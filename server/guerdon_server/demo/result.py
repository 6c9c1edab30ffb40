"""What a run of the demo found, for people and machines. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from guerdon_server.demo.answers import Answers
from guerdon_server.demo.comparison import Row
from guerdon_server.demo.crashes import Crash
from guerdon_server.demo.scenario import PrizeName


@dataclass(frozen=True, slots=True)
class PrizeOutcome:
    """Requests of one prize: how many were granted, what they are worth in units of its asset, why others were not."""

    granted: int
    units: int
    rejected: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DeliveryOutcome:
    """One delivery of everything. `lost`: calls without an answer, `pending`: "not yet"; both were delivered again."""

    seconds: float
    requests: int
    answers: int
    new_grants: int
    replays: int
    lost: int
    pending: int
    asked_again: int
    latency_ms_p50: float
    latency_ms_p99: float
    prizes: Mapping[str, PrizeOutcome]

    @property
    def answers_per_second(self) -> float:
        return self.answers / self.seconds

    @property
    def new_grants_per_second(self) -> float:
        return self.new_grants / self.seconds


@dataclass(slots=True)
class Result:
    """Grows while the demo runs; `seconds` by phase."""

    promotion_id: str
    purchases: int
    customers: int
    data: str
    data_kept: bool = False
    continued: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    first: DeliveryOutcome | None = None
    crashes: Sequence[Crash] = ()
    from_file: Sequence[Row] = ()
    promises: Sequence[Row] = ()
    verified: Sequence[Row] = ()
    again: DeliveryOutcome | None = None
    unchanged: Sequence[Row] = ()
    error: str = ""

    @property
    def rows(self) -> Sequence[Row]:
        """All checks."""
        return (*self.from_file, *self.promises, *self.verified, *self.unchanged)

    @property
    def passed(self) -> bool:
        """It went through to the end and every check holds."""
        return not self.error and bool(self.unchanged) and all(row.ok for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `passed` first."""
        values = asdict(self)
        for name, outcome in (("first", self.first), ("again", self.again)):
            if outcome is not None:
                values[name]["answers_per_second"] = round(outcome.answers_per_second, 1)
                values[name]["new_grants_per_second"] = round(outcome.new_grants_per_second, 1)
        return {"passed": self.passed, **values}


def delivery_outcome(answers: Answers, *, seconds: float, asked_again: int) -> DeliveryOutcome:
    """Sum one delivery up."""
    latencies = sorted(answers.latencies_seconds)
    return DeliveryOutcome(
        seconds=seconds,
        requests=len(answers.by_request),
        answers=answers.answer_count,
        new_grants=answers.new_grant_count,
        replays=answers.replay_count,
        lost=answers.lost_count,
        pending=answers.pending_count,
        asked_again=asked_again,
        latency_ms_p50=percentile(latencies, 50) * 1000,
        latency_ms_p99=percentile(latencies, 99) * 1000,
        prizes={prize.value: _prize_outcome(answers, prize) for prize in PrizeName},
    )


def percentile(ascending: Sequence[float], percent: int) -> float:
    """The nearest rank; 0.0 of nothing."""
    if not ascending:
        return 0.0
    return ascending[max(0, -(-len(ascending) * percent // 100) - 1)]


def _prize_outcome(answers: Answers, prize: PrizeName) -> PrizeOutcome:
    theirs = [answer for answer in answers.by_request.values() if answer.ask.prize is prize]
    rejected = Counter(answer.reason for answer in theirs if not answer.granted)
    return PrizeOutcome(
        granted=answers.granted[prize], units=answers.units[prize], rejected=dict(rejected.most_common())
    )
