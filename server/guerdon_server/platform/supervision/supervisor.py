"""Keeps so many workers serving: starts them, replaces the dead, restarts one after the other, ends them."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from guerdon_server.platform.supervision.merged_metrics import MergedMetrics
from guerdon_server.platform.supervision.worker import Ready, Worker

_log = logging.getLogger(__name__)
_START_SECONDS_MAX = 120.0
_LAST_WORDS_SECONDS_MAX = 10.0
_ENDS: Final = ("died", "refused", "replaced")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long a worker that ended by itself is not started again: doubling, from the second time on in a row.

    One that had served for `steady_seconds` begins a new row.
    """

    first_seconds: float = 0.5
    seconds_max: float = 30.0
    steady_seconds: float = 60.0

    def seconds(self, in_a_row: int) -> float:
        """The wait after so many ends in a row; none after the first."""
        if in_a_row <= 1:
            return 0.0
        return float(min(self.seconds_max, self.first_seconds * 2.0 ** min(in_a_row - 2, 30)))


class Supervisor(Collector):
    """Workers by slot, 0 to count - 1. `run` is called once.

    `command` is the program of a worker, which gets the number of its channel as last argument, and `first` as the
    first message there (see `link.py`). `on_end` is told of each worker that ended otherwise than with status 0 after
    it had served, and is waited for at the end. `retire_seconds_max`: how long the connections of a worker that is
    being replaced may take to move away; `drain_seconds_max`: how long one may take to end after SIGTERM.
    """

    def __init__(
        self,
        command: Sequence[str],
        first: Mapping[str, Any],
        *,
        count: int,
        registry: CollectorRegistry,
        on_end: Callable[[Ready], Awaitable[None]],
        retire_seconds_max: float,
        drain_seconds_max: float,
        backoff: Backoff | None = None,
    ) -> None:
        self.backoff = backoff or Backoff()
        self._command, self._first = command, first
        self._on_end = on_end
        self._retire_seconds_max, self._drain_seconds_max = retire_seconds_max, drain_seconds_max
        self._slots = [_Slot(number, self) for number in range(count)]
        self._living: set[Worker] = set()
        self._watching: set[asyncio.Task[None]] = set()
        self._ends: Counter[str] = Counter()
        self._stop, self._restart = asyncio.Event(), asyncio.Event()
        self._refused_status = 0
        self._merged = MergedMetrics()
        registry.register(self)
        registry.register(self._merged)

    async def run(self, *, on_ready: Callable[[], None]) -> int:
        """Until SIGTERM or SIGINT, then the exit status: 0, or 1 if a worker had to be killed at the end.

        If the first worker refuses to start, all ends with its status. `on_ready` is called once, when all serve.
        SIGHUP replaces the workers, one after the other.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._restart.set)
        serving = asyncio.create_task(self._serve(on_ready))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()  # it ends by an error only
        finally:
            for task in (serving, stopping):
                task.cancel()
            await asyncio.gather(serving, stopping, return_exceptions=True)
            status = await self._end_all()
        return self._refused_status or status

    async def _serve(self, on_ready: Callable[[], None]) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            for slot in self._slots:
                tasks.create_task(slot.keep())
                await self._slots[0].serving.wait()  # what the first one refuses, all would
            for slot in self._slots:
                await slot.serving.wait()
            on_ready()
            await self._restart_when_asked()

    def never_served(self, worker: Worker) -> bool:
        """Whether it refused before any worker ever served: then nothing but a human can mend it, and all ends."""
        if worker.refused is None or self._slots[0].serving.is_set():
            return False
        self._refused_status = worker.status
        self._stop.set()
        return True

    async def launch(self, slot: int) -> Worker:
        """A new worker, which serves, or has ended before it did."""
        worker = await self._spawned(slot)
        self._living.add(worker)
        self._start_watching(self._watch(worker))
        try:
            await asyncio.wait_for(worker.settled(), _START_SECONDS_MAX)
        except TimeoutError:
            _log.error("a worker did not start in time", extra={"slot": slot, "pid": worker.pid})
            worker.signal(signal.SIGKILL)
            await worker.ended()
        if worker.ready is not None and not worker.is_over:
            self._merged.add(worker.pid, label=str(slot), address=worker.ready.metrics)
            _log.info("a worker serves", extra={"slot": slot, "pid": worker.pid})
        return worker

    async def _spawned(self, slot: int) -> Worker:
        while True:
            try:
                return await Worker.spawn(slot, self._command, self._first)
            except OSError as error:  # no room for another process; those that live go on
                wait = self.backoff.seconds_max
                _log.error("no worker can be started", extra={"slot": slot, "why": str(error), "wait_seconds": wait})
                await asyncio.sleep(wait)

    async def _watch(self, worker: Worker) -> None:
        status = await worker.ended()
        self._living.discard(worker)
        self._merged.remove(worker.pid)
        how = "replaced" if worker.asked_to_end else "died" if worker.refused is None else "refused"
        self._ends[how] += 1
        if worker.ready is not None and status != 0:
            await self._on_end(worker.ready)

    async def _restart_when_asked(self) -> None:
        while True:
            await self._restart.wait()
            self._restart.clear()
            _log.info("replacing all workers, one after the other", extra={"workers": len(self._slots)})
            for slot in self._slots:
                replaced = await slot.replace()
                if replaced is None:
                    continue
                old, new = replaced
                if new.is_over:
                    _log.error(
                        "the new worker does not start: the old ones go on. Mend it, and send SIGHUP again",
                        extra={"slot": slot.number, "end": new.end},
                    )
                    break
                await self._retire(old)
            else:
                _log.info("all workers were replaced")

    async def _retire(self, worker: Worker) -> None:
        """Its connections move away, then it ends."""
        self._merged.relabel(worker.pid, f"{worker.slot} retiring")
        try:
            await asyncio.wait_for(worker.retired(), self._retire_seconds_max)
        except TimeoutError:
            _log.warning("a worker still has connections; it is ended", extra={"slot": worker.slot, "pid": worker.pid})
        if not worker.is_over:
            await asyncio.to_thread(self._merged.refresh, worker.pid)
        await worker.stop(self._drain_seconds_max)
        _log.info("a worker was replaced", extra={"slot": worker.slot, "pid": worker.pid, "end": worker.end})

    async def _end_all(self) -> int:
        """The exit status: 1 if somebody had to be killed."""
        living = list(self._living)
        await asyncio.gather(*(worker.stop(self._drain_seconds_max) for worker in living))
        killed = [worker for worker in living if worker.had_to_be_killed]
        if killed:
            _log.error("workers had to be killed at the end", extra={"count": len(killed)})
        if self._watching:
            await asyncio.wait(self._watching, timeout=_LAST_WORDS_SECONDS_MAX)
        for task in self._watching:
            task.cancel()
        return 1 if killed else 0

    def _start_watching(self, watch: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(watch)
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        """What the supervisor itself knows."""
        workers = GaugeMetricFamily("guerdon_workers", "Workers: wanted, and serving now.", labels=["state"])
        workers.add_metric(["wanted"], len(self._slots))
        workers.add_metric(["serving"], sum(slot.serves for slot in self._slots))
        yield workers
        ends = CounterMetricFamily("guerdon_worker_ends", "Workers that ended, and how.", labels=["how"])
        for how in _ENDS:
            ends.add_metric([how], self._ends[how])
        yield ends


class _Slot:
    """One place, with one worker at a time that is meant to stay."""

    def __init__(self, number: int, supervisor: Supervisor) -> None:
        self.number = number
        self.worker: Worker | None = None
        self.serving = asyncio.Event()
        """Set when one served for the first time."""
        self._supervisor = supervisor
        self._changing = asyncio.Lock()
        self._replaced = asyncio.Event()

    @property
    def serves(self) -> bool:
        return self.worker is not None and self.worker.ready is not None and not self.worker.is_over

    async def keep(self) -> None:
        """For ever: when the worker ends by itself, another one is started."""
        in_a_row = 0
        while True:
            worker = await self._filled()
            if self.serves:
                self.serving.set()
            await self._ended_or_replaced(worker)
            if worker is not self.worker:
                in_a_row = 0
                continue
            if self._supervisor.never_served(worker):
                return
            backoff = self._supervisor.backoff
            in_a_row = 1 if worker.served_seconds >= backoff.steady_seconds else in_a_row + 1
            wait = backoff.seconds(in_a_row)
            _log.error(
                "a worker ended; its last words are above. Another one is started",
                extra={
                    **{"slot": self.number, "pid": worker.pid, "end": worker.end, "in_a_row": in_a_row},
                    **{"served_seconds": round(worker.served_seconds, 3), "wait_seconds": wait},
                },
            )
            await asyncio.sleep(wait)

    async def replace(self) -> tuple[Worker, Worker] | None:
        """Puts a new worker in the place of the one that serves: the old one and the new one.

        If the new one has ended before it served, the old one stays. None where none serves: there is nothing to
        replace, and the next one is a new one.
        """
        async with self._changing:
            old = self.worker
            if old is None or not self.serves:
                return None
            new = await self._supervisor.launch(self.number)
            if not new.is_over:
                self.worker = new
                self._replaced.set()
            return old, new

    async def _filled(self) -> Worker:
        async with self._changing:
            self._replaced.clear()
            if self.worker is None or self.worker.is_over:
                self.worker = await self._supervisor.launch(self.number)
            return self.worker

    async def _ended_or_replaced(self, worker: Worker) -> None:
        waits = [asyncio.create_task(worker.ended()), asyncio.create_task(self._replaced.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
