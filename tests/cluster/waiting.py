"""Waiting for a state: bounded, and with words for what did not come."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import psutil

from guerdon_server.platform.engines import process as processes

POLL_SECONDS = 0.01
STATE_SECONDS_MAX = 30.0
_HELD_STILL = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


class NotInForce(AssertionError):
    """A fault, or its end, did not take effect in time; the message says what was waited for, and ends with a log."""


class NotPossible(AssertionError):
    """This fault can't be had now, or would break what no system can promise; the message says why."""


async def until(
    condition: Callable[[], Awaitable[bool]],
    what: str,
    *,
    log_path: Path | None = None,
    seconds_max: float = STATE_SECONDS_MAX,
    asking_fails: tuple[type[Exception], ...] = (),
) -> None:
    """Ask until it holds; an error of `asking_fails` means "not yet". Raises NotInForce, which tells it and `what`."""
    last: Exception | None = None
    try:
        async with asyncio.timeout(seconds_max):
            while True:
                try:
                    if await condition():
                        return
                except asking_fails as error:
                    last = error
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        why = f" ({last!r})" if last is not None else ""
        raise NotInForce(f"waited {seconds_max:g} s for: {what}{why}{_end_of(log_path)}") from last


async def bounded(call: Awaitable[None], what: str, *, log_path: Path | None = None) -> None:
    """Await the call for a bounded time. Raises NotInForce."""
    try:
        async with asyncio.timeout(STATE_SECONDS_MAX):
            await call
    except TimeoutError:
        raise NotInForce(f"waited {STATE_SECONDS_MAX:g} s for: {what}{_end_of(log_path)}") from None


async def stop_still(pids: Callable[[], Sequence[int]], what: str) -> None:
    """SIGSTOP to all of them, the first first, until all stand still; asks again for those that were made meanwhile."""

    async def all_still() -> bool:
        moving = [pid for pid in pids() if not _is_still(pid)]
        for pid in moving:
            _send(pid, signal.SIGSTOP)
        return not moving

    await until(all_still, f"{what} to stand still")


async def let_go(pids: Callable[[], Sequence[int]], what: str) -> None:
    """SIGCONT to all of them, the first last, until all are moving."""

    async def none_still() -> bool:
        still = [pid for pid in pids() if _is_still(pid)]
        for pid in reversed(still):
            _send(pid, signal.SIGCONT)
        return not still

    await until(none_still, f"{what} to go on")


def log_tail(path: Path) -> str:
    """The last few kilobytes; empty where there is none yet."""
    return processes.log_tail(path) if path.exists() else ""


def _end_of(log_path: Path | None) -> str:
    return f". Its log is {log_path}; it ends with:\n{log_tail(log_path)}" if log_path is not None else ""


def _is_still(pid: int) -> bool:
    """Gone counts as still."""
    try:
        return psutil.Process(pid).status() in (*_HELD_STILL, psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _send(pid: int, number: signal.Signals) -> None:
    try:
        psutil.Process(pid).send_signal(number)
    except psutil.NoSuchProcess:
        return
