"""What a bench measured, with what a reader needs to believe it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from guerdon_server.bench.counts import Batches
from guerdon_server.bench.workloads import Target
from guerdon_server.core.ledger.invariants import Check

if TYPE_CHECKING:
    from guerdon_server.bench.open_loop import AloneRow, OpenRow
    from guerdon_server.bench.servers import Servers
    from guerdon_server.bench.soak import Soak

SERVER: Final = "server"
POSTGRES: Final = "postgres"
VALKEY: Final = "valkey"
GENERATOR: Final = "generator"
ECHO: Final = "echo"
RSS_BYTES_MAX: Final = 200 * 1000 * 1000
_FLAT_GROWTH_MAX: Final = 0.05
_FLAT_GRANTS_MIN: Final = 200_000


@dataclass(frozen=True, slots=True)
class Window:
    """One round of one workload.

    `calls` were answered with OK. `granted`: new grants that the ledger has after it. `cpu_us_per_call` by process; for
    the echo `server` is the echo. `elsewhere_cores`: cores that processes kept busy that are none of ours. `refused`:
    calls that were refused as OVERLOADED: not counted, but their CPU is; `refused_items`: items that were, in calls
    that were answered. `batches` by stage: admit, commit, settle.
    """

    calls: int
    seconds: float
    granted: int
    p50_ms: float
    p99_ms: float
    cpu_us_per_call: Mapping[str, float]
    elsewhere_cores: float
    refused: int = 0
    mean_ms: float = 0.0
    refused_items: int = 0
    batches: Mapping[str, Batches] = field(default_factory=dict)

    @property
    def calls_per_second(self) -> float:
        return self.calls / self.seconds

    def cores(self, process: str) -> float:
        """How much of a core the process kept busy."""
        return self.cpu_us_per_call[process] * self.calls_per_second / 1e6


@dataclass(frozen=True, slots=True)
class Figure:
    """Median and extremes over the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Figure:
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target beside what was measured."""

    what: str
    measured: float
    target: float
    ok: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One workload over all rounds; `echoes` are the echo's windows of the same rounds."""

    name: str
    title: str
    items_per_call: int
    request_bytes: int
    response_bytes: int
    windows: Sequence[Window]
    echoes: Sequence[Window]
    target: Target

    @property
    def calls_per_second(self) -> Figure:
        return Figure.of(window.calls_per_second for window in self.windows)

    @property
    def granted_per_second(self) -> Figure:
        return Figure.of(window.granted / window.seconds for window in self.windows)

    @property
    def echo_ratio(self) -> Figure:
        """CPU of the server for a call ÷ that of the echo server, each round by itself."""
        return Figure.of(
            window.cpu_us_per_call[SERVER] / echo.cpu_us_per_call[SERVER]
            for window, echo in zip(self.windows, self.echoes, strict=True)
        )

    def cpu_us_per_item(self, process: str) -> Figure:
        return Figure.of(window.cpu_us_per_call[process] / self.items_per_call for window in self.windows)

    def p_ms(self, which: str) -> float:
        """Median over the rounds of `p50_ms` or `p99_ms`."""
        return float(statistics.median(getattr(window, which) for window in self.windows))

    @property
    def verdicts(self) -> Sequence[Verdict]:
        """Of the medians."""
        found = []
        if (most := self.target.echo_ratio_max) is not None:
            ratio = self.echo_ratio.median
            found.append(Verdict("server CPU / echo, at most", ratio, most, ratio <= most))
        if (least := self.target.durable_per_second_min) is not None:
            rate = self.granted_per_second.median
            found.append(Verdict("durable grants/s, at least", rate, least, rate >= least))
        if (share := self.target.postgres_core_share_max) is not None:
            cores = statistics.median(window.cores(POSTGRES) for window in self.windows)
            found.append(Verdict("PostgreSQL, cores busy, at most", cores, share, cores <= share))
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "items_per_call": self.items_per_call,
            "request_bytes": self.request_bytes,
            "response_bytes": self.response_bytes,
            "calls_per_second": asdict(self.calls_per_second),
            "granted_per_second": asdict(self.granted_per_second),
            "echo_ratio": asdict(self.echo_ratio),
            "cpu_us_per_item": {name: asdict(self.cpu_us_per_item(name)) for name in self.windows[0].cpu_us_per_call},
            "p50_ms": self.p_ms("p50_ms"),
            "p99_ms": self.p_ms("p99_ms"),
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "windows": [asdict(window) for window in self.windows],
        }


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Resident memory of the server after so many grants of its life."""

    grants: int
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Samples over the whole run."""

    samples: Sequence[MemorySample]
    rss_bytes_max: int = RSS_BYTES_MAX

    @property
    def growth_in_second_half(self) -> float:
        """Of the second half of the grants, as a share."""
        last = self.samples[-1]
        middle = min(self.samples, key=lambda sample: abs(sample.grants - last.grants / 2))
        return last.rss_bytes / middle.rss_bytes - 1

    @property
    def verdicts(self) -> Sequence[Verdict]:
        most, limit = max(sample.rss_bytes for sample in self.samples) / 1e6, self.rss_bytes_max / 1e6
        found = [Verdict("server memory in MB, at most", most, limit, most <= limit)]
        if self.samples[-1].grants >= _FLAT_GRANTS_MIN:
            growth = self.growth_in_second_half
            found.append(
                Verdict(
                    "memory growth in the second half, at most", growth, _FLAT_GROWTH_MAX, growth <= _FLAT_GROWTH_MAX
                )
            )
        return found


@dataclass(slots=True)
class Result:
    """Of one run, filled while it goes on. `about`: workload parameters, commit, machine, versions.

    `log_bytes`: of PostgreSQL's log, that all rounds wrote.
    """

    about: dict[str, Any] = field(default_factory=dict)
    echo_windows: list[Window] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    open_rows: list[OpenRow] = field(default_factory=list)
    alone_rows: list[AloneRow] = field(default_factory=list)
    log_bytes: int = 0
    memory: Memory | None = None
    servers: Servers | None = None
    soak: Soak | None = None
    invariants: list[Check] = field(default_factory=list)
    error: str = ""

    @property
    def verdicts(self) -> Sequence[tuple[str, Verdict]]:
        found = [(row.title, verdict) for row in self.rows for verdict in row.verdicts]
        found += [(row.title, verdict) for row in self.open_rows for verdict in row.verdicts]
        found += self.servers.verdicts if self.servers else ()
        found += [("soak", verdict) for verdict in (self.soak.verdicts if self.soak else ())]
        return [*found, *(("memory", verdict) for verdict in (self.memory.verdicts if self.memory else ()))]

    @property
    def sound(self) -> bool:
        """Whether it ran to its end and the books are right; the figures mean nothing otherwise."""
        return not self.error and bool(self.invariants) and all(check.ok for check in self.invariants)

    @property
    def targets_met(self) -> bool:
        return all(verdict.ok for _, verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        return {
            **self.about,
            "error": self.error,
            "sound": self.sound,
            "targets_met": self.targets_met,
            "echo": {
                "cpu_us_per_call": asdict(Figure.of(w.cpu_us_per_call[SERVER] for w in self.echo_windows)),
                "calls_per_second": asdict(Figure.of(w.calls_per_second for w in self.echo_windows)),
                "windows": [asdict(window) for window in self.echo_windows],
            }
            if self.echo_windows
            else None,
            "workloads": [row.to_json() for row in self.rows],
            "open_loop": [row.to_json() for row in self.open_rows],
            "alone": [row.to_json() for row in self.alone_rows],
            "log_bytes": self.log_bytes,
            "memory": None
            if self.memory is None
            else {
                "samples": [asdict(sample) for sample in self.memory.samples],
                "verdicts": [asdict(verdict) for verdict in self.memory.verdicts],
            },
            "servers": self.servers.to_json() if self.servers else None,
            "soak": self.soak.to_json() if self.soak else None,
            "invariants": [
                {
                    "name": check.name,
                    "compared": check.compared,
                    "what": check.what,
                    "violation_count": check.violation_count,
                    "violations": list(check.violations),
                }
                for check in self.invariants
            ],
        }
