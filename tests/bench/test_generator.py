"""The Python generator against the bare echo: what it sends, and what it counts."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from guerdon_server.bench import echo, generator
from guerdon_server.bench.blast import Ids, Template
from guerdon_server.bench.child import Child
from guerdon_server.bench.errors import BenchError

MESSAGE = b"\x0a\x1auser-@@@@@@@@@@@@-##### @@@@@@@@@@@@@@@@ @@@ ###"


@pytest_asyncio.fixture
async def echo_server(tmp_path: Path) -> AsyncIterator[Child]:
    """An echo with answers of 20 bytes."""
    arguments = ["-m", echo.__name__, "--response-bytes", "20"]
    async with Child("echo", arguments, folder=tmp_path, settings={}) as child:
        yield child


async def test_every_call_is_answered_and_counted(echo_server: Child, tmp_path: Path) -> None:
    message = tmp_path / "message"
    message.write_bytes(MESSAGE)
    shot = await generator.choose("python", tmp_path).shoot(
        [echo_server.target], echo.METHOD, [message, message], connections=2, streams=3, calls=50
    )
    assert shot.calls == 50
    assert shot.fields == {1: 50}
    assert shot.seconds > 0
    assert shot.cpu_us_per_call > 0
    assert 0 < shot.p50_ms <= shot.p99_ms


async def test_several_targets_are_loaded_at_once(echo_server: Child, tmp_path: Path) -> None:
    message = tmp_path / "message"
    message.write_bytes(MESSAGE)
    async with Child("other", ["-m", echo.__name__], folder=tmp_path, settings={}) as other:
        shot = await generator.choose("auto", tmp_path).shoot(
            [echo_server.target, other.target], echo.METHOD, [message], connections=1, streams=2, calls=50
        )
        assert shot.calls == 100
        assert shot.fields == {1: 100}
        os.kill(other.pid, signal.SIGKILL)
        with pytest.raises(BenchError, match=r"generator ended|gRPC status"):
            await generator.choose("auto", tmp_path).shoot(
                [echo_server.target, other.target], echo.METHOD, [message], connections=1, streams=2, calls=50
            )


def on_a_schedule(folder: Path) -> tuple[generator.Generator, Path]:
    """A generator that keeps one, and its message."""
    blast = generator.choose("auto", folder)
    if not blast.keeps_schedules:
        pytest.skip("no generator that keeps a schedule: no C compiler, or no libnghttp2-dev")
    message = folder / "message"
    message.write_bytes(MESSAGE)
    return blast, message


async def test_calls_are_sent_when_they_are_due(echo_server: Child, tmp_path: Path) -> None:
    blast, message = on_a_schedule(tmp_path)
    told = [
        await blast.offer(
            [echo_server.target], echo.METHOD, [message], rate=200, seconds=0.3, connections=1, streams=500
        )
        for _ in range(5)
    ]
    # The best of five: others may keep the machine busy. A generator that sleeps in whole milliseconds has 0.5.
    assert min(each["sent_late_ms"] for each in told) < 0.3


async def test_a_schedule_may_be_random(echo_server: Child, tmp_path: Path) -> None:
    blast, message = on_a_schedule(tmp_path)

    async def calls(*, at_random: bool) -> int:
        told = await blast.offer(
            [echo_server.target],
            echo.METHOD,
            [message],
            rate=1000,
            seconds=0.5,
            connections=1,
            streams=500,
            at_random=at_random,
        )
        assert told["target_rate"] == 1000
        return int(told["requests"])

    assert 499 <= await calls(at_random=False) <= 501
    several = [await calls(at_random=True) for _ in range(3)]
    # A Poisson process: 500 with a deviation of 22.
    assert all(500 - 6 * 22 < one < 500 + 6 * 22 for one in several)
    assert any(not 499 <= one <= 501 for one in several)


def test_what_several_generators_tell_is_added_up() -> None:
    def told(calls: int, ms: float) -> dict[str, Any]:
        latency = {"mean": ms, "p50": ms, "p99": 2 * ms}
        return {
            "requests": calls,
            "seconds": ms,
            "target_rate": 10.0,
            "expired": 1,
            "latency_ms": latency,
            "ok_latency_ms": latency,
            "grpc_status": {"0": calls, "8": 1} if calls > 10 else {"0": calls},
            "generator_cpu_us_per_request": ms,
        }

    both = generator.together([told(10, 1.0), told(30, 3.0)])
    assert (both["requests"], both["seconds"], both["target_rate"], both["expired"]) == (40, 3.0, 20.0, 2)
    assert both["latency_ms"] == both["ok_latency_ms"] == {"mean": 2.5, "p50": 2.5, "p99": 6.0}
    assert both["grpc_status"] == {"0": 40, "8": 1}
    assert both["generator_cpu_us_per_request"] == 2.5


async def test_calls_that_fail_are_told(echo_server: Child, tmp_path: Path) -> None:
    message = tmp_path / "message"
    message.write_bytes(MESSAGE)
    with pytest.raises(BenchError, match=r"gRPC status \{'12': 5\}"):
        await generator.choose("python", tmp_path).shoot(
            [echo_server.target], "/guerdon.bench.Echo/Nothing", [message], connections=1, streams=1, calls=5
        )


async def test_a_program_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="is no program"):
        generator.choose(str(tmp_path / "nothing"), tmp_path)


async def test_a_child_that_ends_at_once_is_told_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"wrong ended before it served; its log ends with:\n(.|\n)*No module named"):
        async with Child("wrong", ["-m", "guerdon_server.nothing"], folder=tmp_path, settings={}):
            pass


def test_marked_runs_become_ids_and_digits() -> None:
    filled = Template(MESSAGE).fill(Ids(None))
    assert re.fullmatch(rb"\x0a\x1auser-[0-9a-v]{12}-[0-9]{5} [0-9a-v]{16} @@@ ###", filled)


def test_ids_are_unique_and_the_same_under_the_same_name() -> None:
    template = Template(b"@@@@@@@@@@@@")
    one, same, other = Ids("one"), Ids("one"), Ids("other")
    first = [template.fill(one) for _ in range(100)]
    assert len(set(first)) == 100
    assert [template.fill(same) for _ in range(100)] == first
    assert not set(first) & {template.fill(other) for _ in range(100)}
    one.counter = 0
    assert [template.fill(one) for _ in range(100)] == first


def test_refused_calls_are_told_apart_and_other_errors_end_the_bench() -> None:
    told = {
        "requests": 7,
        "seconds": 1.0,
        "latency_ms": {"mean": 1.5, "p50": 1.0, "p99": 2.0},
        "grpc_status": {"0": 5, "8": 2},
        "ok_by_first_field": {"1": 5},
        "generator_cpu_us_per_request": 3.0,
    }
    shot = generator.shot_of(told, "/x")
    assert (shot.calls, shot.refused, shot.fields) == (5, 2, {1: 5})
    for statuses in ({"0": 6, "13": 1}, {"8": 7}, {}):
        with pytest.raises(BenchError, match="gRPC status"):
            generator.shot_of({**told, "grpc_status": statuses}, "/x")
