"""Calls on a schedule, whether or not the server keeps up: how long they take below its capacity, what becomes of them
above.

Latency counts from when a call was due, not from when it could be sent (no coordinated omission).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from guerdon_server.bench.result import Figure, Verdict
from guerdon_server.bench.workloads import Target

BELOW: Final = (0.6, 0.8)
ABOVE: Final = 3.0
SHARES: Final = (*BELOW, ABOVE)
"""Of the workload's capacity: its calls a second in a closed loop, in the same round."""
DEADLINE_SECONDS: Final = 1.0
"""Of each call above the capacity, as callers set one: what is answered later helps nobody."""
CONNECTIONS: Final = 8
STREAMS_MAX: Final = 4000
"""Of each connection: so many that the schedule is kept, as far as the server lets it."""
COMMITS_A_SECOND: Final = 250
"""Of commits that nothing is done in: about as many as a server makes of single calls at 60 % on two cores."""
COMMIT_BYTES: Final = 20_000
"""Of log that each of them writes: as a commit of some 15 coupons."""
_OK, _CANCELLED, _DEADLINE_EXCEEDED, _RESOURCE_EXHAUSTED = "0", "1", "4", "8"


@dataclass(frozen=True, slots=True)
class Offered:
    """One round of one share. Rates in calls a second; `granted`: new grants that the ledger has after it.

    `late`: answered DEADLINE_EXCEEDED, or never sent within the deadline. `refused` by the code that callers see.
    `sent_late_ms`: how late calls were sent, on average; latencies count from when they were due.
    """

    share: float
    capacity: float
    rate: float
    seconds: float
    ok: int
    late: int
    refused: Mapping[str, int]
    granted: int
    p50_ms: float
    p99_ms: float
    most_ms: float
    mean_ms: float = 0.0
    elsewhere_cores: float = 0.0
    sent_late_ms: float = 0.0

    @property
    def goodput(self) -> float:
        """Calls a second that were answered OK and in time."""
        return self.ok / self.seconds

    @classmethod
    def of(
        cls,
        told: Mapping[str, Any],
        *,
        share: float,
        capacity: float,
        scheduled_seconds: float,
        granted: int,
        elsewhere_cores: float,
    ) -> Offered:
        """From what the generator prints."""
        statuses, latency = told["grpc_status"], told["ok_latency_ms"]
        refused = {
            "UNAVAILABLE": told["refused_streams"],
            "RESOURCE_EXHAUSTED": statuses.get(_RESOURCE_EXHAUSTED, 0),
            "CANCELLED": statuses.get(_CANCELLED, 0),
        }
        return cls(
            share=share,
            capacity=capacity,
            rate=told["target_rate"],
            seconds=max(told["seconds"], scheduled_seconds),
            ok=statuses.get(_OK, 0),
            late=statuses.get(_DEADLINE_EXCEEDED, 0) + told["expired"],
            refused={code: count for code, count in refused.items() if count},
            granted=granted,
            p50_ms=latency["p50"],
            p99_ms=latency["p99"],
            most_ms=latency["max"],
            mean_ms=latency["mean"],
            elsewhere_cores=elsewhere_cores,
            sent_late_ms=told["sent_late_ms"],
        )


@dataclass(frozen=True, slots=True)
class Alone:
    """How long a part of a durable call takes by itself: one round of so many."""

    count: int
    p50_ms: float
    p99_ms: float
    most_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Alone:
        ordered = sorted(1e3 * each for each in seconds)
        return cls(len(ordered), statistics.median(ordered), ordered[int(0.99 * len(ordered))], ordered[-1])


@dataclass(frozen=True, slots=True)
class AloneRow:
    """That part over all rounds. It tells the machine's share of a p99: no server answers before the disk does."""

    name: str
    title: str
    rounds: Sequence[Alone]

    def p_ms(self, which: str) -> float:
        """Median over the rounds of `p50_ms`, `p99_ms` or `most_ms`."""
        return float(statistics.median(getattr(one, which) for one in self.rounds))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            **{which: self.p_ms(which) for which in ("p50_ms", "p99_ms", "most_ms")},
            "rounds": [asdict(one) for one in self.rounds],
        }


def unknown(told: Mapping[str, Any]) -> Mapping[str, int]:
    """Answers that an open loop must not get, by status, and what was lost."""
    known = {_OK, _CANCELLED, _DEADLINE_EXCEEDED, _RESOURCE_EXHAUSTED}
    found = {f"status {status}": count for status, count in told["grpc_status"].items() if status not in known}
    return {**found, **{name: told[name] for name in ("broken", "unanswered") if told[name]}}


@dataclass(frozen=True, slots=True)
class OpenRow:
    """One workload at one share of its capacity, over all rounds."""

    name: str
    title: str
    share: float
    rounds: Sequence[Offered]
    target: Target

    @property
    def kept(self) -> Figure:
        """Goodput as a share of what can be done: of the offered below the capacity, of the capacity above."""
        return Figure.of(one.goodput / min(one.rate, one.capacity) for one in self.rounds)

    def p_ms(self, which: str) -> float:
        """Median over the rounds of `p50_ms`, `p99_ms` or `most_ms`."""
        return float(statistics.median(getattr(one, which) for one in self.rounds))

    def refused_share(self) -> float:
        """Of the scheduled calls, over all rounds."""
        refused = sum(sum(one.refused.values()) for one in self.rounds)
        return refused / max(1, sum(one.ok + one.late + sum(one.refused.values()) for one in self.rounds))

    @property
    def verdicts(self) -> Sequence[Verdict]:
        found = []
        if self.share == BELOW[0] and (most := self.target.p99_ms_max) is not None:
            p99 = self.p_ms("p99_ms")
            found.append(Verdict(f"p99 in ms at {self.share:.0%} of capacity, at most", p99, most, p99 <= most))
        if self.share == ABOVE and (least := self.target.goodput_share_min) is not None:
            kept = self.kept.median
            what = f"goodput at {self.share:g} x capacity / capacity, at least"
            found.append(Verdict(what, kept, least, kept >= least))
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "share_of_capacity": self.share,
            "kept": asdict(self.kept),
            "p50_ms": self.p_ms("p50_ms"),
            "p99_ms": self.p_ms("p99_ms"),
            "most_ms": self.p_ms("most_ms"),
            "refused_share": self.refused_share(),
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "rounds": [asdict(one) for one in self.rounds],
        }
