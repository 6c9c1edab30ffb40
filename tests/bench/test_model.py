"""The queueing model against results that are known, and against a simulation."""

from __future__ import annotations

import random
from collections import deque

import pytest

from guerdon_server.bench.model import CALLS_PER_COMMIT_MAX, Measured, Model

CPU = {"server": 25.0, "postgres": 40.0, "valkey": 10.0, "generator": 5.0}
ALONE = Measured(grants_per_second=10_000, items_per_commit=100, commit_ms=6.0, call_ms=9.0, cpu_us=CPU)
BUSY = Measured(grants_per_second=20_000, items_per_commit=300, commit_ms=40.0, call_ms=80.0, cpu_us=CPU)
NO_JOINING = 10**6
"""So many servers that no two calls are of the same."""


def model(*, busy: Measured = BUSY, cores: int = 2) -> Model:
    return Model(ALONE, busy, cores, items_per_call=100)


def test_each_part_bounds_the_throughput() -> None:
    bounds = model().bounds(2)
    assert bounds == pytest.approx(
        {"processors": 2e6 / 80, "servers": 2e6 / 25, "valkey": 100_000, "commits of one prize": 20_000}
    )
    assert model().grants_per_second(2) == 20_000
    assert model(cores=1).grants_per_second(2) == 12_500


def test_one_busy_server_is_what_it_was_measured_as() -> None:
    assert model().grants_per_second(1) == BUSY.grants_per_second


def test_an_idle_system_takes_what_a_call_takes_alone() -> None:
    for servers in (1, 2, 4):
        assert model().call_ms(0.01, servers) == pytest.approx(ALONE.call_ms, rel=1e-3)


@pytest.mark.parametrize("load", [0.1, 0.5, 0.8])
def test_without_joint_commits_it_is_an_m_d_1_queue(load: float) -> None:
    service = ALONE.commit_ms
    waiting = service * load / (2 * (1 - load))  # Pollaczek-Khinchine
    expected = ALONE.call_ms + waiting
    assert model().call_ms(load / service * 1e3, NO_JOINING) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("calls_per_second", [60, 120, 160])
def test_joint_commits_agree_with_a_simulation(calls_per_second: float) -> None:
    rest = ALONE.call_ms - ALONE.commit_ms
    found = model().call_ms(calls_per_second, 1)
    assert found == pytest.approx(rest + simulated_ms(calls_per_second / 1e3), rel=0.05)


def simulated_ms(calls_per_ms: float, calls: int = 100_000) -> float:
    """One commit after the other, each of all calls that wait, of 6 ms and 4.5 ms for each call after the first."""
    rng = random.Random(1)
    arrivals: deque[float] = deque()
    time = 0.0
    for _ in range(calls):
        time += rng.expovariate(calls_per_ms)
        arrivals.append(time)
    free = total = 0.0
    while arrivals:
        begin = max(free, arrivals[0])
        taken: list[float] = []
        while arrivals and arrivals[0] <= begin and len(taken) < CALLS_PER_COMMIT_MAX:
            taken.append(arrivals.popleft())
        free = begin + 6.0 + 4.5 * (len(taken) - 1)
        total += sum(free - arrived for arrived in taken)
    return total / calls


def test_calls_wait_longer_where_fewer_can_be_joined() -> None:
    one, four = (model().call_ms(150, servers) for servers in (1, 4))
    assert one is not None
    assert four is not None
    assert ALONE.call_ms < one < four


def test_more_than_can_be_done_has_no_steady_state() -> None:
    assert model().call_ms(230, 1) is None
    assert model().call_ms(230, 4) is None


def test_commits_that_were_not_larger_cost_as_much_for_each_grant() -> None:
    small = Measured(20_000, 100, 5.0, 10.0, CPU)
    assert model(busy=small).bounds(1)["commits of one prize"] == pytest.approx(100 / 6.0 * 1e3)
