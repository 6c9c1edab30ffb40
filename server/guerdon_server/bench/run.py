"""The bench from end to end: engines, servers and echo as child processes, interleaved rounds, the books at the end."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from guerdon import GuerdonError
from guerdon_server.bench import usage
from guerdon_server.bench.child import Child
from guerdon_server.bench.errors import BenchError
from guerdon_server.bench.open_loop import (
    ABOVE,
    BELOW,
    COMMITS_A_SECOND,
    DEADLINE_SECONDS,
    SHARES,
    Alone,
    AloneRow,
    OpenRow,
)
from guerdon_server.bench.result import Memory, MemorySample, Result, Row
from guerdon_server.bench.servers import measure_servers
from guerdon_server.bench.soak import soak
from guerdon_server.bench.stage import Listener, Load, Options, Stage, fresh_folder, opened
from guerdon_server.bench.surroundings import on_cores
from guerdon_server.bench.workloads import WORKLOADS, Workload
from guerdon_server.platform import postgres
from guerdon_server.platform.engines import EngineError

_MEMORY_STEPS = 20
_LOG_BYTES_A_SECOND: Final = 28 << 20
"""Of PostgreSQL's log on two cores: 25 over all workloads."""


async def run(options: Options, listener: Listener) -> Result:
    """Whatever it finds is in the result, and what stopped it. Cancel it to stop; it cleans up."""
    result = Result()
    folder = fresh_folder(options.folder)
    part = measure_servers if options.servers else soak if options.soak_minutes else _measure_workloads
    try:
        with on_cores(options.cores):
            await part(options, folder, listener, result)
    except (BenchError, EngineError, GuerdonError, postgres.MigrationError) as error:
        result.error = str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result


async def _measure_workloads(options: Options, folder: Path, listener: Listener, result: Result) -> None:
    async with opened(options, folder, listener) as stage:
        wanted = [workload for workload in WORKLOADS if not options.only or workload.name in options.only]
        await stage.use_up_log(_log_bytes(options, wanted))
        loads = [await stage.prepare(workload) for workload in wanted]
        echo_size = next((load.response_bytes for load in loads if load.workload.items_per_call == 1), 150)
        async with stage.echo(echo_size) as echo:
            result.about = await stage.about(loads)
            await _Bench(options, stage, echo, loads, listener, result).run()


def _log_bytes(options: Options, workloads: Sequence[Workload]) -> int:
    """That the run will write, or some more."""
    windows = sum(len(SHARES) * workload.open_loop + 1 for workload in workloads if workload.durable)
    round_seconds = options.warm_up_seconds + options.rounds * options.seconds
    return int(windows * round_seconds * _LOG_BYTES_A_SECOND)


@dataclass(slots=True)
class _Bench:
    options: Options
    stage: Stage
    echo: Child
    loads: Sequence[Load]
    listener: Listener
    result: Result
    memory: list[MemorySample] = field(default_factory=list)
    echoes_alone: list[Alone] = field(default_factory=list)
    commits_alone: list[Alone] = field(default_factory=list)

    async def run(self) -> None:
        log_before = await self.stage.log_position()
        await self._sample_memory()
        for load in self.loads:
            if load.workload.repeats:
                self.listener.step(f"{load.workload.name}: granting what is asked again")
                while (await self.stage.shoot(load, calls=load.workload.repeats)).refused:
                    continue  # all of them: what is granted already is replayed
        for number in range(self.options.rounds + 1):  # round 0 warms up and does not count
            await self._round(number)
        self.result.rows = [self._row(load) for load in self.loads]
        self.result.open_rows = [
            OpenRow(load.workload.name, load.workload.title, share, rounds, load.workload.target)
            for load in self.loads
            for share, rounds in load.offered.items()
        ]
        if self.echoes_alone:
            self.result.alone_rows = [
                AloneRow("echo", "bare echo, as many calls", self.echoes_alone),
                AloneRow("commit", f"bare commits, {COMMITS_A_SECOND} a second", self.commits_alone),
            ]
        self.result.log_bytes = await self.stage.log_position() - log_before
        await self._fill()
        self.result.memory = Memory(self.memory)
        self.result.invariants = await self.stage.verify()

    async def _round(self, number: int) -> None:
        seconds = self.options.seconds if number else self.options.warm_up_seconds
        echo = await self.stage.echo_window(self.echo, self.loads[0], seconds)
        self.listener.window("echo", number, echo)
        if number:
            self.result.echo_windows.append(echo)
        for load in self.loads:
            # Else the system writes back what the workload before has left, up to 30 s later, and commits wait for it.
            await asyncio.to_thread(os.sync)
            window = await self.stage.window(load, seconds)
            self.listener.window(load.workload.name, number, window)
            if number:
                load.windows.append(window)
                if load.workload.open_loop and self.stage.generator.keeps_schedules:
                    await self._offer(load, number, window.calls_per_second)
            await self._sample_memory()

    async def _offer(self, load: Load, number: int, capacity: float) -> None:
        """On a schedule, at every share of what it did in a closed loop just now."""
        if load.workload.target.p99_ms_max is not None:
            self.echoes_alone.append(await self.stage.echo_alone(self.echo, load, BELOW[0] * capacity))
            self.commits_alone.append(await self.stage.commits_alone())
        for share in SHARES:
            offered = await self.stage.offer(
                load,
                share=share,
                capacity=capacity,
                deadline_seconds=DEADLINE_SECONDS if share == ABOVE else None,
            )
            load.offered.setdefault(share, []).append(offered)
            self.listener.offered(load.workload.name, number, offered)

    def _row(self, load: Load) -> Row:
        workload = load.workload
        return Row(
            name=workload.name,
            title=workload.title,
            items_per_call=workload.items_per_call,
            request_bytes=sum(map(len, workload.messages)) // len(workload.messages),
            response_bytes=load.response_bytes,
            windows=load.windows,
            echoes=self.result.echo_windows,
            target=workload.target_on(self.options.transport),
        )

    async def _fill(self) -> None:
        """Grant until the ledger has as many as wanted, and look at the memory on the way."""
        load = max(self.loads, key=lambda load: load.workload.items_per_call * load.workload.durable)
        items = load.workload.items_per_call
        wanted = self.options.grants - await self.stage.grants()
        if wanted <= 0 or not load.workload.durable:
            return
        self.listener.step(f"granting {wanted:,} more, for the memory")
        calls = -(-wanted // (items * _MEMORY_STEPS))
        for _ in range(_MEMORY_STEPS):
            await self.stage.shoot(load, calls=calls)
            await self._sample_memory()

    async def _sample_memory(self) -> None:
        self.memory.append(MemorySample(await self.stage.grants(), usage.rss_bytes(self.stage.servers[0].pid)))
