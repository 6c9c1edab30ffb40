"""`guerdon bench --soak MINUTES`: the mix in batches as fast as it goes; whether it slows down, and what grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from guerdon_server.bench import usage
from guerdon_server.bench.result import Memory, MemorySample, Result, Verdict, Window
from guerdon_server.bench.stage import Listener, Options, Stage, opened
from guerdon_server.bench.workloads import SOAK

RSS_BYTES_MAX: Final = 250 * 1000 * 1000
THROUGHPUT_SHARE_MIN: Final = 0.9
_SAMPLE_SECONDS: Final = 30.0
_SAMPLES_MIN: Final = 10
_ECHO_SECONDS: Final = 1.0
_DATABASE_BYTES: Final = "SELECT pg_database_size(current_database())"


@dataclass(frozen=True, slots=True)
class Sample:
    """A piece of the soak and what there is after it. `minutes` since the beginning; `grants`: that the ledger has.

    `echo`: a bare echo just before it, with calls of the same size: how fast the machine itself is by then.
    `server_bytes`: resident memory of each server process. `postgres_bytes`: all its processes, shared memory once.
    """

    minutes: float
    grants: int
    window: Window
    echo: Window
    server_bytes: Sequence[int]
    postgres_bytes: int
    valkey_bytes: int
    database_bytes: int

    @property
    def granted_per_second(self) -> float:
        return self.window.granted / self.window.seconds


@dataclass(frozen=True, slots=True)
class Soak:
    """Filled while it goes on."""

    samples: list[Sample] = field(default_factory=list)

    @property
    def fifths(self) -> tuple[float, float]:
        """Grants a second of the first and of the last fifth of the samples."""
        first, last = self._fifths
        return _granted_per_second(first), _granted_per_second(last)

    @property
    def echo_fifths(self) -> tuple[float, float]:
        """Calls a second of the bare echo, beside `fifths`."""
        first, last = self._fifths
        return _echoed_per_second(first), _echoed_per_second(last)

    @property
    def _fifths(self) -> tuple[Sequence[Sample], Sequence[Sample]]:
        count = max(1, len(self.samples) // 5)
        return self.samples[:count], self.samples[-count:]

    @property
    def memory(self) -> Memory:
        """Of the largest server process."""
        samples = [MemorySample(sample.grants, max(sample.server_bytes)) for sample in self.samples]
        return Memory(samples, RSS_BYTES_MAX)

    @property
    def verdicts(self) -> Sequence[Verdict]:
        if not self.samples:
            return []
        first, last = self.fifths
        share = last / first
        what = "grants/s of the last fifth ÷ those of the first, at least"
        return [Verdict(what, share, THROUGHPUT_SHARE_MIN, share >= THROUGHPUT_SHARE_MIN), *self.memory.verdicts]

    def to_json(self) -> dict[str, Any]:
        return {
            "workload": SOAK.name,
            "title": SOAK.title,
            "items_per_call": SOAK.items_per_call,
            "granted_per_second_by_fifths": self.fifths if self.samples else None,
            "echoed_per_second_by_fifths": self.echo_fifths if self.samples else None,
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "samples": [{**asdict(sample), "granted_per_second": sample.granted_per_second} for sample in self.samples],
        }


def _granted_per_second(samples: Sequence[Sample]) -> float:
    return sum(sample.window.granted for sample in samples) / sum(sample.window.seconds for sample in samples)


def _echoed_per_second(samples: Sequence[Sample]) -> float:
    return sum(sample.echo.calls for sample in samples) / sum(sample.echo.seconds for sample in samples)


async def soak(options: Options, folder: Path, listener: Listener, result: Result) -> None:
    """Fills `result`, also when it does not come to its end. Raises BenchError."""
    seconds = options.soak_minutes * 60
    samples = max(_SAMPLES_MIN, round(seconds / _SAMPLE_SECONDS))
    async with opened(options, folder, listener) as stage:
        load = await stage.prepare(SOAK)
        result.about = await stage.about([load])
        result.soak = Soak()
        await stage.window(load, options.warm_up_seconds)
        started = perf_counter()
        async with stage.echo(load.response_bytes) as echo:
            await stage.echo_window(echo, load, options.warm_up_seconds)
            for _ in range(samples):
                echoed = await stage.echo_window(echo, load, min(_ECHO_SECONDS, seconds / samples))
                window = await stage.window(load, seconds / samples)
                sample = await _sample(stage, echoed, window, (perf_counter() - started) / 60)
                result.soak.samples.append(sample)
                listener.sampled(sample)
        result.invariants = await stage.verify()


async def _sample(stage: Stage, echo: Window, window: Window, minutes: float) -> Sample:
    pids = stage.engines.pids
    return Sample(
        minutes=minutes,
        grants=await stage.grants(),
        window=window,
        echo=echo,
        server_bytes=[usage.rss_bytes(server.pid) for server in stage.servers],
        postgres_bytes=usage.tree_bytes(pids["postgres"]),
        valkey_bytes=usage.tree_bytes(pids["valkey"]),
        database_bytes=int(await stage.ledger.fetchval(_DATABASE_BYTES)),
    )
