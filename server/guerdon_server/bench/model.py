"""The model of docs/SCALING.md: what several servers can do, and how long a call takes, from two rows of one server.

Pure arithmetic; the unit of work is a call (a batch of the caller), that of throughput a grant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp
from typing import Final

CALLS_PER_COMMIT_MAX: Final = 10
_CALLS_MAX: Final = 80  # that the queue is followed to
_ROUNDS_MAX: Final = 300
_CONVERGED: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Measured:
    """One server under one load. `cpu_us`: of a grant, by process; `call_ms`: mean of a whole call."""

    grants_per_second: float
    items_per_commit: float
    commit_ms: float
    call_ms: float
    cpu_us: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Model:
    """Of grants of one prize, on `cores` that all processes share. `alone`: one call in flight; `busy`: many."""

    alone: Measured
    busy: Measured
    cores: int
    items_per_call: int

    def bounds(self, servers: int) -> dict[str, float]:
        """Grants a second that each part can do, with commits as large as those of the one busy server."""
        busy, cpu = self.busy, self.busy.cpu_us
        return {
            "processors": self.cores * 1e6 / sum(cpu.values()),
            "servers": servers * 1e6 / cpu["server"],
            "valkey": 1e6 / cpu["valkey"],
            "commits of one prize": busy.items_per_commit / self._commit_ms(busy.items_per_commit) * 1e3,
        }

    def grants_per_second(self, servers: int) -> float:
        """The least of the bounds."""
        return min(self.bounds(servers).values())

    def call_ms(self, calls_per_second: float, servers: int) -> float | None:
        """Mean time of a call that comes at random, at a rate over all servers; None: the queue would grow for ever."""
        queue = _commit_queue_ms(
            calls_per_second / 1e3,
            [self._commit_ms(calls * self.items_per_call) for calls in range(CALLS_PER_COMMIT_MAX + 1)],
            servers,
        )
        return None if queue is None else self.alone.call_ms - self.alone.commit_ms + queue

    def _commit_ms(self, items: float) -> float:
        """While it keeps others from the prize: a straight line through both rows.

        Alone a commit waits for nobody. Busy, one follows the other: what it takes is its share of the time.
        """
        alone, busy = self.alone, self.busy
        busy_ms = busy.items_per_commit / busy.grants_per_second * 1e3
        more = busy.items_per_commit - alone.items_per_commit
        each = (busy_ms - alone.commit_ms) / more if more > 0 else alone.commit_ms / alone.items_per_commit
        return alone.commit_ms + (items - alone.items_per_commit) * max(0.0, each)


def _commit_queue_ms(calls_per_ms: float, commit_ms: list[float], servers: int) -> float | None:
    """Mean time from when a call may be committed until it is: M/D/1 with service in groups.

    One commit at a time; it takes a server's calls that wait, so of those that wait for all servers about 1/`servers`,
    at least one and at most as many as `commit_ms` has times for. The chain is that of the calls present when a
    commit begins.
    """
    most = len(commit_ms) - 1
    if calls_per_ms * commit_ms[most] >= most:
        return None
    taken = [0, *(min(1 + (present - 1) // servers, most) for present in range(1, _CALLS_MAX + 1))]
    arrivals = [_poisson(calls_per_ms * ms) for ms in commit_ms]
    chain = [0.0, 1.0] + [0.0] * (_CALLS_MAX - 1)
    for _ in range(_ROUNDS_MAX):
        following = [0.0] * (_CALLS_MAX + 1)
        for present in range(1, _CALLS_MAX + 1):
            left = present - taken[present]
            for arrived, probability in enumerate(arrivals[taken[present]]):
                following[max(1, min(_CALLS_MAX, left + arrived))] += chain[present] * probability
        moved = sum(abs(one - other) for one, other in zip(chain, following, strict=True))
        chain = following
        if moved < _CONVERGED:
            break
    # Little: time-average of the calls present ÷ their rate, over a cycle of a commit and the idle time after it.
    cycle = waited = 0.0
    for present in range(1, _CALLS_MAX + 1):
        ms = commit_ms[taken[present]]
        idle = arrivals[taken[present]][0] / calls_per_ms if present == taken[present] else 0.0
        cycle += chain[present] * (ms + idle)
        waited += chain[present] * (present * ms + calls_per_ms * ms * ms / 2)
    return waited / cycle / calls_per_ms


def _poisson(mean: float) -> list[float]:
    """Probabilities of 0, 1, 2, ...; the last one has all the rest."""
    found = [exp(-mean)]
    while 1 - sum(found) > 1e-9 and len(found) <= _CALLS_MAX:
        found.append(found[-1] * mean / len(found))
    return [*found, max(0.0, 1 - sum(found))]
