"""The load generator for where grpcblast.c can't be built: same flags, same ids, same JSON, about 50 times the CPU.

`python -m guerdon_server.bench.blast -t HOST:PORT -p /package.Service/Method -f FILE [-f FILE] [-c 8] [-s 16]
[-n CALLS | -d SECONDS] [-i NAME] [-w CALLS]`; loadtest/grpcblast.c says what they mean.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
import uvloop

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuv"
_MARKED: Final = re.compile(rb"@{6,}|#{4,}")
_COUNTER_CHARACTERS: Final = 8
_ANSWER_SECONDS_MAX: Final = 60.0
_BITS: Final = 0xFFFF_FFFF_FFFF_FFFF


class Template:
    """One message, cut at its marked runs."""

    def __init__(self, message: bytes) -> None:
        self._fixed = _MARKED.split(message)
        self._marks = [(len(run), run[:1] == b"@") for run in _MARKED.findall(message)]

    def fill(self, ids: Ids) -> bytes:
        """The message of the next request."""
        parts = [self._fixed[0]]
        for (length, unique), fixed in zip(self._marks, self._fixed[1:], strict=True):
            parts.append(ids.unique(length) if unique else ids.random_digits(length))
            parts.append(fixed)
        return b"".join(parts)


class Ids:
    """Ids of this run; of the same name the same ones in the same order."""

    def __init__(self, name: str | None) -> None:
        self._prefix = os.urandom(8) if name is None else _hash(name).to_bytes(8, "big")
        self.counter = 0

    def unique(self, length: int) -> bytes:
        """A counter in the last 8 characters, the run's own prefix before it."""
        number, self.counter = self.counter, self.counter + 1
        text = ""
        for _ in range(min(length, _COUNTER_CHARACTERS)):
            text = _DIGITS[number & 31] + text
            number >>= 5
        prefix = int.from_bytes(self._prefix, "big")
        while len(text) < length:
            text = _DIGITS[prefix & 31] + text
            prefix = (prefix >> 5 | prefix << 59) & _BITS
        return text.encode()

    def random_digits(self, length: int) -> bytes:
        return str(random.randrange(10**length)).zfill(length).encode()  # noqa: S311  load, no secret


def _hash(name: str) -> int:
    value = 14695981039346656037  # FNV-1a
    for byte in name.encode():
        value = (value ^ byte) * 1099511628211 & _BITS
    return value


@dataclass(slots=True)
class Tally:
    """What became of the calls so far."""

    started: int = 0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    fields: Counter[int] = field(default_factory=Counter)


async def blast(options: argparse.Namespace, templates: Sequence[Template]) -> dict[str, object]:
    """Keep the calls in flight until the time or the number is reached; the result as grpcblast prints it."""
    ids, tally = Ids(options.name), Tally()
    channels = [
        grpc.aio.insecure_channel(options.target, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(options.connections)
    ]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    began, cpu_began = time.perf_counter(), time.process_time()
    end = began + options.seconds if options.seconds else float("inf")

    async def stream(channel: grpc.aio.Channel) -> None:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(options.path)
        while tally.started < options.calls and (sent := time.perf_counter()) < end:
            if options.repeats and tally.started % options.repeats == 0:
                ids.counter = 0
            message = templates[tally.started % len(templates)].fill(ids)
            tally.started += 1
            try:
                answer = await call(message, timeout=_ANSWER_SECONDS_MAX)
            except grpc.aio.AioRpcError as error:
                tally.statuses[error.code().value[0]] += 1
            else:
                tally.statuses[0] += 1
                tally.fields[answer[0] >> 3 if answer else 0] += 1
            tally.latencies.append(time.perf_counter() - sent)

    await asyncio.gather(*(stream(channel) for channel in channels for _ in range(options.streams)))
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    await asyncio.gather(*(channel.close() for channel in channels))
    return _result(tally, seconds, cpu_seconds)


def _result(tally: Tally, seconds: float, cpu_seconds: float) -> dict[str, object]:
    calls = len(tally.latencies)
    ordered = sorted(tally.latencies)

    def percentile(share: float) -> float:
        return ordered[min(int(share * calls), calls - 1)] * 1e3 if ordered else 0.0

    return {
        "requests": calls,
        "seconds": seconds,
        "per_second": calls / seconds,
        "latency_ms": {
            "mean": statistics.fmean(ordered or [0.0]) * 1e3,
            "p50": percentile(0.5),
            "p90": percentile(0.9),
            "p99": percentile(0.99),
        },
        "grpc_status": {str(status): count for status, count in tally.statuses.items()},
        "ok_by_first_field": {str(number): count for number, count in tally.fields.items()},
        "generator_cpu_us_per_request": cpu_seconds / calls * 1e6 if calls else 0.0,
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A closed-loop gRPC load generator.")
    parser.add_argument("-t", dest="target", required=True)
    parser.add_argument("-p", dest="path", required=True)
    parser.add_argument("-f", dest="files", action="append", required=True)
    parser.add_argument("-c", dest="connections", type=int, default=8)
    parser.add_argument("-s", dest="streams", type=int, default=16)
    parser.add_argument("-n", dest="calls", type=int, default=10_000)
    parser.add_argument("-d", dest="seconds", type=float, default=0.0)
    parser.add_argument("-i", dest="name")
    parser.add_argument("-w", dest="repeats", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.seconds:
        options.calls = 1 << 60
    return options


def main() -> None:
    options = _options(None)
    templates = [Template(Path(file).read_bytes()) for file in options.files]
    print(json.dumps(uvloop.run(blast(options, templates))))


if __name__ == "__main__":
    main()
