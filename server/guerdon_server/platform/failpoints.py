"""Failpoints: a named place before and after every I/O, where a test makes the process die, fail, hang or be cancelled.

The places are in the drivers (`postgres_failpoints.py`, `redis_failpoints.py`), so that no I/O can be without one, and
the drivers' own classes run where nothing is armed. Names say what is done: `postgres.commit_issuances.before`,
`redis.gate.admit.after`. An error at `.after` means that the effect has happened and the reply is lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)

GRAMMAR = (
    "POINT=ACTION or POINT=ACTION@N or POINT=ACTION@N-M, joined by ';'. POINT: as postgres.commit_issuances.after, with"
    " * for any text. ACTION: kill, error, cancel, or delay:SECONDS. @N: only the N-th time, @N-M: the N-th to the M-th"
)
_RULE = re.compile(
    r"(?P<point>[a-z0-9_.*]+)=(?P<action>kill|error|cancel|delay(?=:))(:(?P<seconds>\d+(\.\d+)?))?"
    r"(@(?P<first>[1-9]\d*)(-(?P<last>[1-9]\d*))?)?"
)


class Action(StrEnum):
    """kill: SIGKILL to this process. error: what the driver raises when a connection breaks. cancel: of the task in
    which the I/O runs. delay: some seconds, or until the connection is cut."""

    KILL = "kill"
    ERROR = "error"
    CANCEL = "cancel"
    DELAY = "delay"


@dataclass(slots=True)
class Rule:
    """What happens where, and from which to which time (1 is the first)."""

    point: str
    action: Action
    seconds: float = 0.0
    first: int = 1
    last: int | None = None
    passes: int = 0

    def fires(self, point: str) -> bool:
        """Counts a pass of the point; whether this is one of the times."""
        if not fnmatchcase(point, self.point):
            return False
        self.passes += 1
        return self.first <= self.passes and (self.last is None or self.passes <= self.last)


def parse(spec: str) -> list[Rule]:
    """The rules of a spec. Raises ValueError, which shows the grammar."""
    return [_rule(text.strip()) for text in spec.split(";") if text.strip()]


def _rule(text: str) -> Rule:
    found = _RULE.fullmatch(text)
    if found is None or (found["action"] != Action.DELAY and found["seconds"]):
        raise ValueError(f"{text!r} is no failpoint: {GRAMMAR}")
    first, last = found["first"], found["last"] or found["first"]
    if first and int(last) < int(first):
        raise ValueError(f"{text!r} ends before it begins: {GRAMMAR}")
    return Rule(
        found["point"],
        Action(found["action"]),
        float(found["seconds"] or 0),
        int(first or 1),
        int(last) if last else None,
    )


class Failpoints:
    """The points of one server. `seen`: what was done at each that was passed; `fired`: how often one did something."""

    def __init__(self, spec: str = "") -> None:
        self._rules = parse(spec)
        self.seen: defaultdict[str, set[str]] = defaultdict(set)
        self.fired: Counter[str] = Counter()

    def arm(self, spec: str) -> list[Rule]:
        """More rules; their `passes` count from now on."""
        rules = parse(spec)
        self._rules = self._rules + rules
        return rules

    @contextmanager
    def armed(self, spec: str) -> Iterator[list[Rule]]:
        """More rules while the block runs."""
        rules = self.arm(spec)
        try:
            yield rules
        finally:
            self._rules = [rule for rule in self._rules if not any(rule is ours for ours in rules)]

    async def around(
        self,
        names: Sequence[str],
        call: Callable[[], Awaitable[T]],
        *,
        what: str,
        broken: Callable[[str], Exception],
        cut: asyncio.Event | None = None,
        patience_seconds: float | None = None,
    ) -> T:
        """Does one I/O with its points before and after it; several names where one round trip does several things.

        `broken` breaks the connection, and makes the error that the driver would raise. A delay ends with it when the
        connection is `cut`, or after `patience_seconds`, the longest that the driver waits for an answer.
        """
        for place in ("before", "after"):
            if place == "after":
                result = await call()
            for name in names:
                await self._pass(f"{name}.{place}", what, broken, cut, patience_seconds)
        return result

    async def _pass(
        self,
        point: str,
        what: str,
        broken: Callable[[str], Exception],
        cut: asyncio.Event | None,
        patience_seconds: float | None,
    ) -> None:
        self.seen[point].add(what)
        # Each rule counts, also behind one that fires.
        for rule in [rule for rule in self._rules if rule.fires(point)]:
            self.fired[point] += 1
            if rule.action is Action.KILL:
                os.write(2, f"killed at failpoint {point}\n".encode())  # no buffer outlives it
                os.kill(os.getpid(), signal.SIGKILL)
            _log.info("failpoint", extra={"point": point, "action": rule.action.value})
            if rule.action is Action.ERROR:
                raise broken(point)
            if rule.action is Action.CANCEL:
                await _cancelled()
            elif not await _waited(rule.seconds, cut, patience_seconds):
                raise broken(point)


async def _cancelled() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)  # where it arrives


async def _waited(seconds: float, cut: asyncio.Event | None, patience_seconds: float | None) -> bool:
    """False: the connection was cut meanwhile, or nobody waits that long."""
    limit = seconds if patience_seconds is None else min(seconds, patience_seconds)
    if cut is None:
        await asyncio.sleep(limit)
        return limit == seconds
    try:
        async with asyncio.timeout(limit):
            await cut.wait()
    except TimeoutError:
        return limit == seconds
    return False
