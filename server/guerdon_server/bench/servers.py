"""`guerdon bench --servers`: 1, 2 and 4 servers on one PostgreSQL and one Valkey beside what the model says, and
one hot prize beside load spread over many.

All servers run from the beginning and rounds are interleaved, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from guerdon_server.bench.model import Measured, Model
from guerdon_server.bench.open_loop import Offered
from guerdon_server.bench.result import GENERATOR, POSTGRES, SERVER, VALKEY, Figure, Result, Verdict, Window
from guerdon_server.bench.stage import Listener, Load, Options, Stage, opened
from guerdon_server.bench.surroundings import cores
from guerdon_server.bench.workloads import ALONE, HOT, SPREAD_CALLS, SPREAD_ITEMS, SPREAD_PRIZES, Workload

COUNTS: Final = (1, 2, 4)
SHARES: Final = (0.5, 0.7)
"""Of the capacity of so many servers in the same round, for the latency of calls that come at random."""
HOT_SHARE_MIN: Final = 0.9
PROCESSES: Final = (SERVER, POSTGRES, VALKEY, GENERATOR)
_ADMIT, _COMMIT = "admit", "commit"


@dataclass(frozen=True, slots=True)
class ServersRow:
    """A workload on so many servers at once, over all rounds."""

    workload: Workload
    servers: int
    windows: list[Window] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.servers} server{'s' if self.servers > 1 else ''}, {self.workload.title}"

    @property
    def granted_per_second(self) -> Figure:
        return Figure.of(window.granted / window.seconds for window in self.windows)

    def cpu_us_per_item(self, process: str) -> Figure:
        """Of all servers together, also of those that have nothing to do."""
        return Figure.of(window.cpu_us_per_call[process] / self.workload.items_per_call for window in self.windows)

    @property
    def items_per_commit(self) -> Figure:
        return Figure.of(window.batches[_COMMIT].items_mean for window in self.windows)

    @property
    def commit_ms(self) -> Figure:
        """Of one commit, with its wait for the locks of others."""
        return Figure.of(window.batches[_COMMIT].ms_mean for window in self.windows)

    @property
    def call_ms(self) -> Figure:
        """Mean of a call."""
        return Figure.of(window.mean_ms for window in self.windows)

    @property
    def waiting_ms(self) -> Figure:
        """Of a call, what is neither its admission nor its commit: queues, the event loop, gRPC."""
        return Figure.of(
            window.mean_ms - window.batches[_ADMIT].ms_mean - window.batches[_COMMIT].ms_mean for window in self.windows
        )

    def measured(self) -> Measured:
        """The medians, for the model."""
        return Measured(
            grants_per_second=self.granted_per_second.median,
            items_per_commit=self.items_per_commit.median,
            commit_ms=self.commit_ms.median,
            call_ms=self.call_ms.median,
            cpu_us={process: self.cpu_us_per_item(process).median for process in PROCESSES},
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.workload.name,
            "title": self.workload.title,
            "servers": self.servers,
            "calls_in_flight": self.servers * self.workload.connections * self.workload.streams,
            "items_per_call": self.workload.items_per_call,
            "granted_per_second": asdict(self.granted_per_second),
            "cpu_us_per_item": {process: asdict(self.cpu_us_per_item(process)) for process in PROCESSES},
            "items_per_commit": asdict(self.items_per_commit),
            "commit_ms": asdict(self.commit_ms),
            "call_ms": asdict(self.call_ms),
            "waiting_ms": asdict(self.waiting_ms),
            "windows": [asdict(window) for window in self.windows],
        }


@dataclass(frozen=True, slots=True)
class OfferedRow:
    """Calls at random moments, at a share of what so many servers can do, over all rounds."""

    servers: int
    share: float
    rounds: list[Offered] = field(default_factory=list)

    def median(self, which: str) -> float:
        """Of a field of the rounds."""
        return float(statistics.median(getattr(one, which) for one in self.rounds))

    def to_json(self) -> dict[str, Any]:
        return {
            "servers": self.servers,
            "share_of_capacity": self.share,
            "calls_per_second": self.median("rate"),
            "mean_ms": self.median("mean_ms"),
            "p99_ms": self.median("p99_ms"),
            "rounds": [asdict(one) for one in self.rounds],
        }


@dataclass(frozen=True, slots=True)
class Compared:
    """What was measured beside what the model says; `predicted` None: it says that there is no steady state."""

    measured: float
    predicted: float | None

    @property
    def off(self) -> float | None:
        """By which share of the measured the model is wrong: above 0 it says too much."""
        return None if self.predicted is None else self.predicted / self.measured - 1

    def to_json(self) -> dict[str, Any]:
        return {"measured": self.measured, "predicted": self.predicted, "off": self.off}


@dataclass(frozen=True, slots=True)
class Servers:
    """Of a run with at least one round."""

    rows: Sequence[ServersRow]
    offered: Sequence[OfferedRow]
    cores: int

    @property
    def model(self) -> Model:
        alone, busy = (self._row(workload, 1).measured() for workload in (ALONE, HOT))
        return Model(alone, busy, self.cores, HOT.items_per_call)

    def throughput(self) -> Iterator[tuple[ServersRow, Compared]]:
        """Grants a second of the hot prize. The row of one server is what the model is made from."""
        for row in (row for row in self.rows if row.workload is HOT):
            yield row, Compared(row.granted_per_second.median, self.model.grants_per_second(row.servers))

    def latency(self) -> Iterator[tuple[OfferedRow, Compared]]:
        """Mean ms of a call."""
        for row in self.offered:
            yield row, Compared(row.median("mean_ms"), self.model.call_ms(row.median("rate"), row.servers))

    def hot_shares(self) -> Iterator[tuple[ServersRow, Figure]]:
        """Throughput of the hot prize ÷ that of spread load on as many servers, round by round."""
        for row in (row for row in self.rows if row.workload not in (ALONE, HOT)):
            hot = self._row(HOT, row.servers)
            yield (
                row,
                Figure.of(
                    one.granted / one.seconds / (other.granted / other.seconds)
                    for one, other in zip(hot.windows, row.windows, strict=True)
                ),
            )

    @property
    def verdicts(self) -> Sequence[tuple[str, Verdict]]:
        return [
            (
                f"{row.servers} servers, one hot prize",
                Verdict(
                    f"grants/s ÷ those of {row.workload.title} ({share.least:.2f}-{share.most:.2f}), at least",
                    share.median,
                    HOT_SHARE_MIN,
                    share.median >= HOT_SHARE_MIN,
                ),
            )
            for row, share in self.hot_shares()
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": [row.to_json() for row in self.rows],
            "offered": [row.to_json() for row in self.offered],
            "hot_shares": [{"of": row.workload.name, **asdict(share)} for row, share in self.hot_shares()],
            "model": {
                "inputs": {"alone": asdict(self.model.alone), "busy": asdict(self.model.busy), "cores": self.cores},
                "grants_per_second": [
                    {"servers": row.servers, "bounds": self.model.bounds(row.servers), **compared.to_json()}
                    for row, compared in self.throughput()
                ],
                "call_ms": [
                    {"servers": row.servers, "share_of_capacity": row.share, **compared.to_json()}
                    for row, compared in self.latency()
                ],
            },
            "verdicts": [asdict(verdict) for _, verdict in self.verdicts],
        }

    def _row(self, workload: Workload, servers: int) -> ServersRow:
        return next(row for row in self.rows if row.workload is workload and row.servers == servers)


async def measure_servers(options: Options, folder: Path, listener: Listener, result: Result) -> None:
    """Fills `result`. Raises BenchError."""
    async with opened(options, folder, listener, servers=max(COUNTS), spread_prizes=SPREAD_PRIZES) as stage:
        loads = [await stage.prepare(workload) for workload in (ALONE, HOT, SPREAD_CALLS, SPREAD_ITEMS)]
        result.about = await stage.about(loads)
        bench = _Bench(stage, {load.workload.name: load for load in loads}, listener)
        for number in range(options.rounds + 1):  # round 0 warms up and does not count
            await bench.round(number)
        result.servers = Servers(bench.rows, bench.offered, cores())
        result.invariants = await stage.verify()


def _rows() -> list[ServersRow]:
    most = max(COUNTS)
    hot = [ServersRow(HOT, servers) for servers in COUNTS]
    return [ServersRow(ALONE, 1), *hot, ServersRow(SPREAD_CALLS, most), ServersRow(SPREAD_ITEMS, most)]


def _offered_rows() -> list[OfferedRow]:
    return [OfferedRow(servers, share) for servers in COUNTS for share in SHARES]


@dataclass(slots=True)
class _Bench:
    stage: Stage
    loads: Mapping[str, Load]
    listener: Listener
    rows: list[ServersRow] = field(default_factory=_rows)
    offered: list[OfferedRow] = field(default_factory=list)

    async def round(self, number: int) -> None:
        options = self.stage.options
        capacities: dict[int, float] = {}
        for row in self.rows:
            window = await self.stage.window(
                self.loads[row.workload.name],
                options.seconds if number else options.warm_up_seconds,
                servers=row.servers,
            )
            self.listener.window(row.title, number, window)
            if row.workload is HOT:
                capacities[row.servers] = window.calls_per_second
            if number:
                row.windows.append(window)
        if number and self.stage.generator.keeps_schedules:
            await self._offer(number, capacities)

    async def _offer(self, number: int, capacities: Mapping[int, float]) -> None:
        if not self.offered:
            self.offered = _offered_rows()
        for row in self.offered:
            offered = await self.stage.offer(
                self.loads[HOT.name],
                share=row.share,
                capacity=capacities[row.servers],
                servers=row.servers,
                at_random=True,
            )
            row.rounds.append(offered)
            self.listener.offered(f"{row.servers} servers", number, offered)
