"""Killing the server at three moments, and bringing it back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter

from guerdon_server.demo.answers import Answers
from guerdon_server.demo.process import ServerProcess
from guerdon_server.demo.scenario import PrizeName, Scenario

_WATCH_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Moment:
    """When to kill, told from what has been answered so far, never from the time."""

    name: str
    has_come: Callable[[Answers], bool]


@dataclass(slots=True)
class Crash:
    """One kill: what had been answered then, how long nobody was served, and how many requests lost their answer."""

    moment: str
    answer_count: int
    away_seconds: float = 0.0
    lost_count: int = 0


def moments(scenario: Scenario, *, ask_count: int) -> Sequence[Moment]:
    """Just before the coupons run out, half-way, and just before the budget runs out, with requests in flight."""
    coupons = max(1, scenario.coupon_stock - 5)
    cents = scenario.cashback_budget_cents - 1000
    return (
        Moment("the coupons run out", lambda answers: answers.granted[PrizeName.COUPON] >= coupons),
        Moment("half-way", lambda answers: len(answers.by_request) >= ask_count // 2),
        Moment(
            "the budget runs out",
            lambda answers: answers.units[PrizeName.CASHBACK] >= cents or answers.budget_refused,
        ),
    )


class Watch:
    """Keeps an eye on the server: kills it when a moment has come, and starts whatever it killed again.

    `observe` is to be called with the answers as they grow. `run` ends only by cancellation, or with a DemoError if the
    server ends by itself or does not come back.
    """

    def __init__(self, server: ServerProcess, serving: asyncio.Event, planned: Sequence[Moment] = ()) -> None:
        self.crashes: list[Crash] = []
        self.planned_count = len(planned)
        self._server = server
        self._serving = serving
        self._planned = list(planned)
        self._killed = asyncio.Event()
        self._killed_at = 0.0
        self._lost_before = 0

    @property
    def left_count(self) -> int:
        """Moments that have not come."""
        return len(self._planned)

    def observe(self, answers: Answers) -> None:
        """Kill at once if a moment has come; one at a time, so while it is away the next one waits."""
        if not self._planned or not self._serving.is_set():
            return
        moment = next((each for each in self._planned if each.has_come(answers)), None)
        if moment is not None:
            self._planned.remove(moment)
            self._server.kill()
            self._serving.clear()
            self.close_accounts(answers)
            self._killed_at, self._lost_before = perf_counter(), answers.lost_count
            self.crashes.append(Crash(moment.name, answers.answer_count))
            self._killed.set()

    def close_accounts(self, answers: Answers) -> None:
        """Attribute to the last kill what was lost since; call it when all is answered."""
        if self.crashes:
            self.crashes[-1].lost_count = answers.lost_count - self._lost_before

    async def run(self) -> None:
        while True:
            if self._killed.is_set():
                await self._bring_back()
            self._server.check_alive()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._killed.wait(), _WATCH_SECONDS)

    async def _bring_back(self) -> None:
        self._killed.clear()
        await self._server.wait_killed()
        await self._server.start()
        self.crashes[-1].away_seconds = perf_counter() - self._killed_at
        self._serving.set()
