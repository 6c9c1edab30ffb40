"""Several clients at two servers at the same time: some order explains every answer, and the books are that order's."""

from __future__ import annotations

import asyncio
import time

from hypothesis import given

from tests.model.calls import Call, GoCall, Told, send
from tests.model.conftest import machine
from tests.model.history import Called, History
from tests.model.model import CallRefused, No
from tests.model.programs import Crowd, Step, crowds
from tests.model.stage import Play, Stage

_ATTEMPTS_MAX = 20
_PAUSE_SECONDS = 0.01
_TRY_AGAIN = {"STALE_CONFIGURATION", "CONTENTION"}


def now_us() -> int:
    """Of the clock that PostgreSQL reads, too."""
    return time.time_ns() // 1000


async def perform(play: Play, crowd: Crowd) -> History:
    """All clients at once; each call, and each repetition of one that is still open, is a line of the history."""
    stage = play.stage
    opened_at = now_us()
    calls: list[Called] = []

    async def client(number: int, server: int, steps: tuple[Step, ...]) -> None:
        for step in steps:
            call = play.call(step)
            assert call is not None
            for _ in range(_ATTEMPTS_MAX):
                started = now_us()
                told = await send(stage.desks[server], call, stage.clock)
                calls.append(Called(number, server, call, told, started, now_us()))
                if not _open(told):
                    break
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                raise AssertionError(f"still open after {_ATTEMPTS_MAX} attempts: {call}")

    async with asyncio.TaskGroup() as group:
        for number, (server, steps) in enumerate(crowd.clients):
            group.create_task(client(number, server, steps))
    history = History(play, calls, opened_at)
    await history.read()
    return history


def _open(told: Told) -> bool:
    if isinstance(told, list):
        return any(_open(answer) for answer in told)
    if isinstance(told, CallRefused):
        return _open(told.why)
    return told == "pending" or (isinstance(told, No) and told.reason in _TRY_AGAIN)


@machine(30)
@given(crowd=crowds)
async def test_some_order_explains_all_answers(stage: Stage, crowd: Crowd) -> None:
    async with stage.play(crowd.set_up) as play:
        history = await perform(play, crowd)
        play.model = history.check()
        await play.compare_books(stage.desks[0])
        _nothing_granted_in_a_pause(history)


def _nothing_granted_in_a_pause(history: History) -> None:
    """By the callers' clocks alone: from an acknowledged pause to the next call that may have ended it."""
    calls = history.calls
    for pause in calls:
        if _went(pause.call, "PAUSED") and not isinstance(pause.told, No):
            resumed = min(
                (call.started for call in calls if _went(call.call, "ACTIVE") and call.ended > pause.started),
                default=2**62,
            )
            for row in history.rows.values():
                if pause.ended < row.at < resumed:
                    history.fail(f"granted in a pause: {row}")


def _went(call: Call, target: str) -> bool:
    return isinstance(call, GoCall) and call.target == target
