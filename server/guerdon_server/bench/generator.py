"""Load generators: the cheap one in C, where it can be had, and one in Python that understands the same flags.

Both send serialized messages in which every run of 6 or more '@' becomes an id that no other request has, and every
run of 4 or more '#' random digits, keep a number of calls in flight, and print one JSON object. Several targets are
loaded at once, each by a generator of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import mul
from pathlib import Path
from typing import Any, Final

import guerdon_server
from guerdon_server.bench.errors import BenchError

SOURCE: Final = Path(guerdon_server.__file__).parents[2] / "loadtest" / "grpcblast.c"
"""Of a checkout; an installed package has none."""
_BUILD_SECONDS_MAX: Final = 60.0
_OK: Final = "0"
_RESOURCE_EXHAUSTED: Final = "8"
_MIDDLE: Final = ("mean", "p50", "p90")


@dataclass(frozen=True, slots=True)
class Shot:
    """What a generator saw: calls answered with OK, the seconds that took, latencies in ms, its own CPU per call in µs.

    `fields`: OK answers by the number of their first field. `refused`: calls that were answered RESOURCE_EXHAUSTED,
    which a closed loop is only where something else keeps the machine busy. Of several targets the p50 is the mean of
    theirs, the p99 the longest.
    """

    calls: int
    refused: int
    seconds: float
    mean_ms: float
    p50_ms: float
    p99_ms: float
    cpu_us_per_call: float
    fields: dict[int, int]


@dataclass(frozen=True, slots=True)
class Generator:
    """`name` is `grpcblast` or `python`; `why` says why it is not the cheap one."""

    name: str
    command: Sequence[str]
    why: str = ""

    async def shoot(
        self,
        targets: Sequence[str],
        method: str,
        messages: Sequence[Path],
        *,
        connections: int,
        streams: int,
        seconds: float | None = None,
        calls: int | None = None,
        identity: str | None = None,
        repeats: int = 0,
    ) -> Shot:
        """Send to each target for so many seconds, or so many calls.

        Raises BenchError unless each call was answered with OK or refused.

        `identity`: two shots of the same name make the same ids; `repeats`: after so many calls they come again.
        """
        flags = _flags(method, messages, connections, streams)
        flags += ["-n", str(calls)] if calls is not None else ["-d", str(seconds)]
        if identity is not None:
            flags += ["-i", identity]
        if repeats:
            flags += ["-w", str(repeats)]
        return shot_of(await self._told(targets, flags), method)

    @property
    def keeps_schedules(self) -> bool:
        """Whether it can `offer`."""
        return self.name == "grpcblast"

    async def offer(
        self,
        targets: Sequence[str],
        method: str,
        messages: Sequence[Path],
        *,
        rate: float,
        seconds: float,
        connections: int,
        streams: int,
        deadline_seconds: float | None = None,
        at_random: bool = False,
    ) -> dict[str, Any]:
        """Send so many calls a second, over all targets, whatever becomes of them: what grpcblast prints.

        `at_random`: as a Poisson process, not at equal distances. Raises BenchError.
        """
        assert self.keeps_schedules, self.name
        flags = _flags(method, messages, connections, streams)
        flags += ["-d", str(seconds), "-r", f"{rate / len(targets):.3f}", *(["-P"] if at_random else [])]
        if deadline_seconds is not None:
            flags += ["-T", str(deadline_seconds)]
        return await self._told(targets, flags)

    async def _told(self, targets: Sequence[str], flags: Sequence[str]) -> dict[str, Any]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(_output([*self.command, "-t", target, *flags])) for target in targets]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None  # one is enough: the others are stopped
        return together([json.loads(task.result()) for task in tasks])


def choose(wanted: str, folder: Path) -> Generator:
    """`auto`, `grpcblast`, `python`, or the path of a built grpcblast. Raises BenchError if it can't be had."""
    python = Generator("python", (sys.executable, "-P", "-m", "guerdon_server.bench.blast"))
    if wanted == "python":
        return python
    if wanted not in ("auto", "grpcblast"):
        return Generator("grpcblast", (str(_program(Path(wanted))),))
    built, why = _build(folder)
    if built is not None:
        return Generator("grpcblast", (str(built),))
    if wanted == "grpcblast":
        raise BenchError(f"grpcblast can't be built: {why}")
    return Generator(python.name, python.command, why)


def _program(path: Path) -> Path:
    if not os.access(path, os.X_OK) or path.is_dir():
        raise BenchError(f"{path} is no program; build loadtest/grpcblast.c (its first lines say how)")
    return path.absolute()


def _build(folder: Path) -> tuple[Path | None, str]:
    """The program, or why there is none."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not SOURCE.exists():
        return None, "its source is not part of an installed package; run it from a checkout"
    if compiler is None:
        return None, "there is no C compiler"
    program = folder / "grpcblast"
    done = subprocess.run(  # noqa: S603  our own source
        [compiler, "-O2", "-o", program, SOURCE, "-lnghttp2", "-lm"],
        check=False,
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS_MAX,
    )
    if done.returncode == 0:
        return program, ""
    first = next((line for line in done.stderr.splitlines() if "error" in line), "the compiler failed")
    return None, f"{first.strip()} (libnghttp2-dev has what it needs)"


async def _output(command: Sequence[str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        output, complaint = await process.communicate()
    except BaseException:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        said = (complaint or output).decode(errors="replace").strip()
        raise BenchError(f"the generator ended with status {process.returncode}: {said[-1000:]}")
    return output.decode()


def _flags(method: str, messages: Sequence[Path], connections: int, streams: int) -> list[str]:
    files = [flag for message in messages for flag in ("-f", str(message))]
    return ["-p", method, "-c", str(connections), "-s", str(streams), *files]


def together(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One report of several generators that ran at once: counts and rates added up, `Shot` says what of latencies."""
    if len(told) == 1:
        return told[0]
    calls = [one["requests"] for one in told]
    merged: dict[str, Any] = {}
    for name, value in told[0].items():
        values = [one[name] for one in told]
        if name == "seconds":
            merged[name] = max(values)
        elif name in ("generator_cpu_us_per_request", "sent_late_ms"):
            merged[name] = _mean(values, calls)
        elif name.endswith("latency_ms"):
            middle = {which: _mean([one[which] for one in values], calls) for which in value if which in _MIDDLE}
            merged[name] = {which: max(one[which] for one in values) for which in value} | middle
        elif isinstance(value, dict):
            merged[name] = dict(sum(map(Counter, values), Counter()))
        else:
            merged[name] = sum(values)
    return merged


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return float(sum(map(mul, values, weights))) / max(1, sum(weights))


def shot_of(result: Mapping[str, Any], method: str) -> Shot:
    """From what a generator prints. Raises BenchError if a call ended otherwise than OK or refused, or none did."""
    statuses = result["grpc_status"]
    failed = {status: count for status, count in statuses.items() if status not in (_OK, _RESOURCE_EXHAUSTED)}
    if failed or not statuses.get(_OK):
        raise BenchError(f"{method}: calls ended with gRPC status {failed or statuses}, of {result['requests']} in all")
    return Shot(
        calls=statuses[_OK],
        refused=statuses.get(_RESOURCE_EXHAUSTED, 0),
        seconds=result["seconds"],
        mean_ms=result["latency_ms"]["mean"],
        p50_ms=result["latency_ms"]["p50"],
        p99_ms=result["latency_ms"]["p99"],
        cpu_us_per_call=result["generator_cpu_us_per_request"],
        fields={int(field): count for field, count in result["ok_by_first_field"].items()},
    )
