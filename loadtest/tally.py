"""What the generator saw: calls by the second in which they began, in a form that processes can add up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

BROKEN: Final = "tasks that broke off"
"""Count of tasks that ended in an exception: a defect of the suite."""
_STEP: Final = math.log(1.02)


def bucket(ms: float) -> int:
    """Latencies are kept in buckets 2 % wide; bucket 0 is everything up to 1 µs."""
    return max(0, math.ceil(math.log(max(ms, 1e-3) / 1e-3) / _STEP))


def bucket_ms(number: int) -> float:
    """The upper edge of a bucket."""
    return 1e-3 * math.exp(number * _STEP)


@dataclass(slots=True)
class Calls:
    """Calls of some time: `failed` were errors or answers that the suite does not allow for; all have a latency."""

    count: int = 0
    failed: int = 0
    latencies: Counter[int] = field(default_factory=Counter)

    def add(self, other: Calls) -> None:
        """Count what the other has, too."""
        self.count += other.count
        self.failed += other.failed
        self.latencies.update(other.latencies)

    def percentile_ms(self, share: float) -> float:
        """0 where there were no calls."""
        rest = math.ceil(share * self.latencies.total())
        for number in sorted(self.latencies):
            rest -= self.latencies[number]
            if rest <= 0:
                return bucket_ms(number)
        return 0.0


@dataclass(slots=True)
class Tally:
    """`outcomes` by "call: outcome", `errors` by "call: what happened", `counts` of the suite's own."""

    calls: dict[tuple[int, str], Calls] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def record(self, name: str, *, began: float, ms: float, outcomes: Mapping[str, int], error: str = "") -> None:
        """One call that began at `began` (seconds since 1970); `error` is empty where the answer was a right one."""
        calls = self.calls.setdefault((int(began), name), Calls())
        calls.count += 1
        calls.failed += bool(error)
        calls.latencies[bucket(ms)] += 1
        for outcome, number in outcomes.items():
            self.outcomes[f"{name}: {outcome}"] += number
        if error:
            self.errors[f"{name}: {error}"] += 1

    def merge(self, other: Tally) -> None:
        """Add what another process saw."""
        for key, calls in other.calls.items():
            self.calls.setdefault(key, Calls()).add(calls)
        self.outcomes.update(other.outcomes)
        self.errors.update(other.errors)
        self.counts.update(other.counts)

    def between(self, begin: float, end: float, name: str | None = None) -> Calls:
        """Calls of the whole seconds between two moments: see `whole_seconds`."""
        seconds = whole_seconds(begin, end)
        return total(calls for (at, called), calls in self.calls.items() if at in seconds and name in (None, called))

    def by_second(self) -> dict[int, Calls]:
        """Of all kinds."""
        found: dict[int, Calls] = {}
        for (second, _), calls in sorted(self.calls.items()):
            found.setdefault(second, Calls()).add(calls)
        return found

    @property
    def names(self) -> list[str]:
        """Kinds of calls."""
        return sorted({name for _, name in self.calls})

    def to_json(self) -> dict[str, Any]:
        """For the file that a process leaves."""
        return {
            "calls": [
                [second, name, calls.count, calls.failed, sorted(calls.latencies.items())]
                for (second, name), calls in sorted(self.calls.items())
            ],
            **{name: dict(getattr(self, name)) for name in ("outcomes", "errors", "counts")},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Tally:
        """What `to_json` wrote."""
        calls = {
            (second, name): Calls(count, failed, Counter(dict(map(tuple, latencies))))
            for second, name, count, failed, latencies in document["calls"]
        }
        return cls(calls, *(Counter(document[name]) for name in ("outcomes", "errors", "counts")))


def whole_seconds(begin: float, end: float) -> range:
    """The clock's seconds that lie wholly between two moments: their calls can be counted as a rate."""
    return range(math.ceil(begin), max(math.ceil(begin), math.floor(end)))


def total(parts: Iterable[Calls]) -> Calls:
    """All together."""
    found = Calls()
    for part in parts:
        found.add(part)
    return found
