"""A soak of seconds: a series that agrees with the ledger, and verdicts that see a slowdown and growth."""

from __future__ import annotations

import itertools
import json

import pytest
from click.testing import CliRunner

from guerdon_server.bench.result import Window
from guerdon_server.bench.run import run
from guerdon_server.bench.soak import Sample, Soak
from guerdon_server.bench.stage import Options
from guerdon_server.cli.root import guerdon
from tests.bench.notes import Notes


async def test_the_series_is_that_of_the_ledger() -> None:
    notes = Notes()
    result = await run(Options(soak_minutes=0.05, warm_up_seconds=0.2), notes)
    assert not result.error
    assert result.sound
    assert result.soak is not None
    samples = result.soak.samples
    assert samples == notes.samples
    assert len(samples) == 10
    for earlier, later in itertools.pairwise(samples):
        assert later.grants - earlier.grants == later.window.granted > 0
        assert later.minutes > earlier.minutes
    assert all(sample.echo.calls > 0 == sample.echo.granted for sample in samples)
    assert all(sample.echo.cpu_us_per_call["server"] < sample.window.cpu_us_per_call["server"] for sample in samples)
    last = samples[-1]
    assert last.database_bytes > samples[0].database_bytes
    assert all(size > 10_000_000 for size in (*last.server_bytes, last.postgres_bytes))
    assert last.valkey_bytes > 0
    document = json.loads(json.dumps(result.to_json()))
    assert len(document["soak"]["samples"]) == 10
    assert document["options"]["postgresql_autovacuum"] == "on"
    assert [each["name"] for each in document["invariants"]]


def sample(number: int, granted: int, server_bytes: int = 80_000_000, echoed: int = 8_000) -> Sample:
    """Of a minute, 100,000 grants after the one before it, and of a second of the echo."""
    window = Window(granted // 100, 60.0, granted, 1.0, 1.0, {}, 0.0)
    echo = Window(echoed, 1.0, 0, 1.0, 1.0, {}, 0.0)
    return Sample(number, (number + 1) * 100_000, window, echo, [70_000_000, server_bytes], 1, 1, 1)


@pytest.mark.parametrize(("last", "kept"), [(91_000, True), (89_000, False)])
def test_the_last_fifth_is_compared_with_the_first(last: int, kept: bool) -> None:
    soak = Soak([sample(n, 100_000 if n < 8 else last) for n in range(10)])
    assert list(soak.fifths) == pytest.approx([100_000 / 60, last / 60])
    assert soak.verdicts[0].ok is kept


def test_the_echo_says_how_fast_the_machine_itself_was_but_excuses_nothing() -> None:
    soak = Soak([sample(n, 100_000 if n < 8 else 89_000, echoed=8_000 if n < 8 else 7_000) for n in range(10)])
    assert list(soak.echo_fifths) == [8_000, 7_000]
    assert not soak.verdicts[0].ok
    document = json.loads(json.dumps(soak.to_json()))
    assert document["echoed_per_second_by_fifths"] == [8_000, 7_000]
    assert document["samples"][9]["echo"]["calls"] == 7_000


@pytest.mark.parametrize(
    ("sizes", "small", "flat"),
    [
        ([240] * 10, True, True),
        ([260] * 10, False, True),
        ([100 + 5 * number for number in range(10)], True, False),
    ],
)  # fmt: skip
def test_memory_is_that_of_the_largest_server(sizes: list[int], small: bool, flat: bool) -> None:
    soak = Soak([sample(number, 100_000, size * 1_000_000) for number, size in enumerate(sizes)])
    _, size, growth = soak.verdicts
    assert (size.ok, growth.ok) == (small, flat)
    assert size.measured == max(sizes)


def test_a_soak_without_samples_has_no_verdict() -> None:
    assert not Soak().verdicts
    assert json.dumps(Soak().to_json())


@pytest.mark.parametrize(
    "flags", [["--servers", "--soak", "1"], ["--servers", "--only", "issue"], ["--soak", "1", "--grants", "1"]]
)
def test_one_thing_is_measured_at_a_time(flags: list[str]) -> None:
    answer = CliRunner().invoke(guerdon, ["bench", *flags])
    assert answer.exit_code == 2
    assert "one at a time" in answer.output
