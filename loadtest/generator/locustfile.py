"""The locustfile of every run: Locust's processes load it, it reads the plan and picks the suite's class.

The first process (the only one, or the master) prepares, sets the phases, checks and writes `drive.json`; each process
that has users leaves a `tally-*.json`, because what a check compares must be complete, and Locust's own reports may be
cut off.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import gevent
import grpc.experimental.gevent
from locust import LoadTestShape, events
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from guerdon import GuerdonError
from loadtest.errors import LoadTestError
from loadtest.generator.stage import Stage
from loadtest.plan import VARIABLE, Drive, Driven, Plan, write_json
from loadtest.profile import Phase
from loadtest.suites import workload
from loadtest.tally import BROKEN, Tally

grpc.experimental.gevent.init_gevent()

plan = Plan.load(Path(os.environ[VARIABLE]))
drive = Drive()
stage = Stage(plan)
Workload = workload(plan.suite)

_TALLIES_SECONDS_MAX = plan.profile.task_seconds_max + 60
_POLL_SECONDS = 0.05


class Phases(LoadTestShape):
    """One phase after the other, each with as many users as make its rate."""

    name: ClassVar[str] = ""
    """Of the phase that is being driven."""
    _current: Phase | None = None
    _began = 0.0

    def tick(self) -> tuple[int, float] | None:
        """Locust asks about once a second."""
        left = time.perf_counter() - self.start_time
        for phase in plan.profile.phases:
            if left < phase.seconds:
                return self._enter(phase)
            left -= phase.seconds
        self._leave()
        return None

    def _enter(self, phase: Phase) -> tuple[int, float]:
        if phase is not self._current:
            self._leave()
            self._current, self._began = phase, time.time()
            type(self).name = phase.name
        # As fast as Locust can, up and down: a phase begins with its whole rate.
        return plan.profile.users(phase), max(map(plan.profile.users, plan.profile.phases))

    def _leave(self) -> None:
        if self._current is not None:
            drive.phases.append(Driven(self._current, self._began, time.time()))
            self._current = None


@events.init.add_listener
def _init(environment: Environment, **_: Any) -> None:
    if not isinstance(environment.runner, MasterRunner):
        Workload.set_up(stage)
    if not isinstance(environment.runner, WorkerRunner):
        _or_fail("preparing", _prepare)
        gevent.spawn(_tell, environment)


def _prepare() -> None:
    stage.open()
    Workload.prepare(stage)


@events.user_error.add_listener
def _user_error(exception: BaseException, **_: Any) -> None:
    Workload.tally.counts[BROKEN] += 1
    Workload.tally.errors[f"task: {type(exception).__name__}: {exception}"] += 1


@events.quitting.add_listener
def _quitting(environment: Environment, **_: Any) -> None:
    environment.process_exit_code = 0  # failed calls are judged elsewhere; other statuses mean that Locust failed


@events.quit.add_listener
def _quit(**_: Any) -> None:
    if Workload.channels:
        write_json(plan.folder / f"tally-{os.getpid()}.json", Workload.tally.to_json())
    if "--worker" not in sys.argv:
        drive.tally = _all_tallies()
        _or_fail("checking", lambda: drive.checks.extend(Workload.checks(stage, drive.tally)))
        drive.save(plan.folder / "drive.json")


def _all_tallies() -> Tally:
    """Of all processes; each leaves its own when its last user has been answered."""
    end = time.monotonic() + _TALLIES_SECONDS_MAX
    while len(found := list(plan.folder.glob("tally-*.json"))) < plan.processes and time.monotonic() < end:
        gevent.sleep(_POLL_SECONDS)
    if len(found) < plan.processes:
        drive.error = f"{plan.processes - len(found)} of {plan.processes} processes of the generator left no tally"
    tally = Tally()
    for path in found:
        tally.merge(Tally.from_json(json.loads(path.read_text(encoding="utf-8"))))
    return tally


def _or_fail(doing: str, work: Callable[[], object]) -> None:
    """What can't be done is said in the result, and ends the run."""
    try:
        work()
    except (GuerdonError, LoadTestError) as error:
        drive.error = f"{doing} failed: {error}"
        drive.save(plan.folder / "drive.json")
        sys.exit(1)


def _tell(environment: Environment) -> None:
    """One line a second for who watches the run; the verdict is made from the tallies."""
    assert environment.runner is not None
    while True:
        stats = environment.runner.stats.total
        line = {
            "users": environment.runner.user_count,
            "calls": stats.num_requests,
            "failed": stats.num_failures,
            "calls_per_second": stats.current_rps,
            "p99_ms": stats.get_current_response_time_percentile(0.99) or 0,
            "phase": Phases.name,
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        gevent.sleep(1)
