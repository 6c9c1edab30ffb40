"""Compare the server CPU per echo RPC of several Python environments (for example, of several grpcio versions).

    python measure.py --generator ./grpcblast --rounds 5 --seconds 4 VENV/bin/python [VENV/bin/python ...]

Every environment needs grpcio and uvloop. All servers stay up and are loaded one after another, round by round
(A B C, A B C, ...), so that what else the machine does falls on all of them alike. The figure is the CPU time of the
server process (user + system, all threads) per answered RPC, which other processes disturb far less than throughput.
The generator is the closed-loop C client `loadtest/grpcblast.c`. Linux only (reads /proc).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

METHOD = "/guerdon.bench.Echo/Echo"
# Run as a file: it needs nothing of the package that it lies in.
SERVER = Path(__file__).parents[2] / "server" / "guerdon_server" / "bench" / "echo.py"
VERSION_CODE = "import grpc, platform; print(grpc.__version__, platform.python_version())"


@dataclass(slots=True)
class Subject:
    """One environment under test with what its rounds gave: µs of CPU per RPC, RPC per second."""

    label: str
    port: int
    pid: int
    cpu_us: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)


def cpu_seconds(pid: int) -> float:
    """User + system CPU seconds of the process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def output_of(command: list[str]) -> str:
    """What the command printed; raises CalledProcessError when it fails."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603


def start(python: str, response_bytes: int, stack: ExitStack) -> Subject:
    """Start the echo server on that interpreter; the stack ends it."""
    version = output_of([python, "-c", VERSION_CODE]).split()
    command = [python, str(SERVER), "--response-bytes", str(response_bytes)]
    process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))  # noqa: S603
    stack.callback(process.terminate)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{python}: the echo server did not start")
    port = int(json.loads(line)["grpc"].rpartition(":")[2])
    return Subject(f"grpcio {version[0]}, CPython {version[1]}", port, process.pid)


def load(subject: Subject, *, generator: str, message: str, seconds: float, streams: int) -> None:
    before = cpu_seconds(subject.pid)
    command = [generator, "-t", f"127.0.0.1:{subject.port}", "-p", METHOD, "-f", message]
    command += ["-c", "8", "-s", str(streams), "-d", str(seconds)]
    result = json.loads(output_of(command))
    subject.cpu_us.append((cpu_seconds(subject.pid) - before) / result["requests"] * 1e6)
    subject.per_second.append(result["per_second"])


def report(subjects: list[Subject]) -> None:
    print("| environment | CPU per RPC: median | min–max | RPC/s: median |\n|---|---|---|---|")
    for s in subjects:
        cpu, rate = statistics.median(s.cpu_us), statistics.median(s.per_second)
        print(f"| {s.label} | {cpu:.1f} µs | {min(s.cpu_us):.1f}–{max(s.cpu_us):.1f} | {rate:,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Server CPU per echo RPC, several environments interleaved.")
    parser.add_argument("pythons", nargs="+", help="interpreters to compare")
    parser.add_argument("--generator", required=True, help="the grpcblast binary")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one round of one environment")
    parser.add_argument("--streams", type=int, default=16, help="calls in flight on each of 8 connections")
    parser.add_argument("--bytes", type=int, default=150, help="size of the request and of the response")
    args = parser.parse_args()
    with ExitStack() as stack:
        message = stack.enter_context(tempfile.NamedTemporaryFile())
        message.write(b"\x0a" + b"x" * (args.bytes - 1))
        message.flush()
        subjects = [start(python, args.bytes, stack) for python in args.pythons]
        for number in range(args.rounds + 1):
            for subject in subjects:
                seconds = args.seconds if number else 1.0  # round 0 warms up and does not count
                load(subject, generator=args.generator, message=message.name, seconds=seconds, streams=args.streams)
            if not number:
                for subject in subjects:
                    subject.cpu_us.clear()
                    subject.per_second.clear()
        report(subjects)


if __name__ == "__main__":
    main()
