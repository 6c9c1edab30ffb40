"""How many calls may be answered at once, by what they are for; and as many as are answered in a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from enum import StrEnum
from time import perf_counter
from typing import Final

from guerdon_server.platform.errors import Code, ServiceError

_RETRY_AFTER_MS: Final = 200
_ALWAYS: Final = 512
"""In flight at once whatever the rate: an idle server takes a burst, and batches of commits need company."""
_WINDOW_SECONDS: Final = 0.1
_FORGOTTEN_SECONDS: Final = 1.0
_REMEMBERED: Final = 0.9
_READS_ALWAYS: Final = 4
"""Reads that may be in flight on however busy a server, so that an operator still sees what he does. Each needs several
turns of the event loop, which take long on a busy server: so few take little of it."""
_OPERATING_MAX: Final = 64
"""Each waits for a connection, or for a lock."""

SHUTTING_DOWN: Final = ServiceError(
    Code.UNAVAILABLE,
    "SHUTTING_DOWN",
    "this server is stopping; retry with the same request id on another connection",
    retry_after_ms=_RETRY_AFTER_MS,
)
OVERLOADED: Final = ServiceError(
    Code.RESOURCE_EXHAUSTED,
    "OVERLOADED",
    "too many calls are in flight, nothing was done; retry later with the same request id",
    retry_after_ms=_RETRY_AFTER_MS,
)


class Priority(StrEnum):
    """What a call is for, and so what it may take from others."""

    ISSUING = "issuing"
    """To get rewards, or to know what became of one."""
    OPERATING = "operating"
    """To change the catalogue: what an operator must be able to do above all when there is too much."""
    READING = "reading"
    """All others. They get what issuing leaves."""


class CallLimit:
    """How many calls are being answered, and the most that may; also what a drain waits for.

    - Issuing: `in_flight_max`. By Little's law calls in flight = calls answered a second x seconds that each takes:
      from 512 on, while there are more than are answered in `seconds_max`, new ones are refused, or they would wait
      longer than that.
    - Reading: 4, and more only while less than `reads_in_flight_max` calls that read or issue are in flight and the
      server is not `busy`: long before a call that issues is refused.
    - Operating: 64, which the others can't take.
    """

    def __init__(
        self,
        in_flight_max: int,
        seconds_max: float,
        *,
        reads_in_flight_max: int,
        busy: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.in_flight_max: Mapping[Priority, int] = {
            Priority.ISSUING: in_flight_max,
            Priority.OPERATING: _OPERATING_MAX,
            Priority.READING: reads_in_flight_max,
        }
        self.in_flight = dict.fromkeys(Priority, 0)
        self.shed_total = dict.fromkeys(Priority, 0)
        self.draining = False
        self._idle = asyncio.Event()
        self._seconds_max = seconds_max
        self._busy = busy
        self._clock = clock
        self._answered = 0
        self._since = clock()
        self._per_second: float | None = None  # None: not known, and so no reason to refuse

    def refusal(self, priority: Priority) -> ServiceError | None:
        """Why a call can't begin now."""
        if self.draining:
            return SHUTTING_DOWN
        return self.shed(priority) if self._is_full(priority) else None

    def shed(self, priority: Priority) -> ServiceError:
        """Count a call that is refused because there are too many."""
        self.shed_total[priority] += 1
        return OVERLOADED

    def begun(self, priority: Priority) -> None:
        """A call is being answered, until it has `ended`."""
        self.in_flight[priority] += 1

    def ended(self, priority: Priority) -> None:
        """A call is over."""
        self.in_flight[priority] -= 1
        if priority is Priority.ISSUING:
            self._answered += 1
        if self.draining and not any(self.in_flight.values()):
            self._idle.set()

    def figures(self) -> list[tuple[str, int, int, int]]:
        """For metrics, from any thread: (priority, in flight, the most that may be, shed) of each."""
        return [(p.value, self.in_flight[p], self.in_flight_max[p], self.shed_total[p]) for p in Priority]

    async def drain(self) -> None:
        """Refuse new calls, and wait for those in flight."""
        self.draining = True
        if any(self.in_flight.values()):
            await self._idle.wait()

    def _is_full(self, priority: Priority) -> bool:
        calls, most = self.in_flight[priority], self.in_flight_max[priority]
        if priority is Priority.READING:
            issuing = self.in_flight[Priority.ISSUING]
            return calls >= _READS_ALWAYS and (calls + issuing >= most or self._busy())
        return calls >= most or (priority is Priority.ISSUING and calls >= _ALWAYS and self._is_slow(calls))

    def _is_slow(self, in_flight: int) -> bool:
        now = self._clock()
        seconds = now - self._since
        if seconds >= _WINDOW_SECONDS:
            if seconds > _FORGOTTEN_SECONDS:  # it was idle: what was answered long ago says nothing
                self._per_second = None
            else:
                # Commits come in lots, so that a window may have none.
                rate = self._answered / seconds
                self._per_second = max(rate, _REMEMBERED * (self._per_second or 0.0))
            self._since, self._answered = now, 0
        return self._per_second is not None and in_flight > self._per_second * self._seconds_max
