"""A tiny bench from end to end, on its own durable engines: its figures agree with one another and with the ledger."""

from __future__ import annotations

import json

import pytest
import pytest_asyncio
from click.testing import CliRunner

from guerdon_server.bench.result import SERVER, Figure, Memory, MemorySample, Result, Row, Window
from guerdon_server.bench.run import Options, run
from guerdon_server.bench.workloads import WORKLOADS, Target
from guerdon_server.cli.root import guerdon

GRANTS = 8000


class Notes:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.windows: list[tuple[str, int]] = []

    def step(self, text: str) -> None:
        assert text

    def window(self, title: str, number: int, window: Window) -> None:
        assert window.calls > 0
        self.windows.append((title, number))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ran() -> tuple[Result, Notes]:
    """One round of everything."""
    notes = Notes()
    options = Options(rounds=1, seconds=0.3, warm_up_seconds=0.2, grants=GRANTS)
    return await run(options, notes), notes


def row(result: Result, name: str) -> Row:
    """Of one workload."""
    return next(row for row in result.rows if row.name == name)


async def test_it_ends_with_proven_books(ran: tuple[Result, Notes]) -> None:
    result, notes = ran
    assert not result.error
    assert result.sound
    assert [check.name for check in result.invariants if not check.ok] == []
    names = ["echo", *(workload.name for workload in WORKLOADS)]
    assert notes.windows == [(name, number) for number in (0, 1) for name in names]


async def test_the_ledger_has_what_was_acknowledged(ran: tuple[Result, Notes]) -> None:
    result, _ = ran
    for workload in WORKLOADS:
        (window,) = row(result, workload.name).windows
        assert window.granted == (window.calls * workload.items_per_call if workload.durable else 0)
    assert result.memory is not None
    assert result.memory.samples[-1].grants >= GRANTS
    stock = next(check for check in result.invariants if check.name == "grants_have_their_transfers")
    assert stock.compared == result.memory.samples[-1].grants


async def test_every_process_has_its_cpu(ran: tuple[Result, Notes]) -> None:
    result, _ = ran
    for workload in WORKLOADS:
        (window,) = row(result, workload.name).windows
        assert window.cpu_us_per_call.keys() == {"server", "postgres", "valkey", "generator"}
        assert window.cpu_us_per_call[SERVER] > 0
    # What needs no database costs it less than what is written there.
    sold_out, coupon = (row(result, name).windows[0] for name in ("sold_out", "issue"))
    assert sold_out.cpu_us_per_call["postgres"] < coupon.cpu_us_per_call["postgres"]


async def test_the_result_says_on_what_it_was_measured(ran: tuple[Result, Notes]) -> None:
    result, _ = ran
    document = json.loads(json.dumps(result.to_json()))
    assert document["options"]["postgresql_fsync"] == "on"
    assert document["machine"]["cores_used"] <= 2
    assert {"python", "postgres", "valkey", "grpcio", "guerdon-server"} <= document["versions"].keys()
    assert [each["name"] for each in document["workloads"]] == [workload.name for workload in WORKLOADS]
    assert all(each["request_bytes"] > 0 and each["response_bytes"] > 0 for each in document["workloads"])


def window(calls: int, server_us: float, *, granted: int = 0) -> Window:
    """Of one second."""
    return Window(calls, 1.0, granted, 1.0, 2.0, {SERVER: server_us, "postgres": 1.0}, 0.0)


def test_ratios_are_taken_round_by_round() -> None:
    # A machine that gets slower round by round changes both alike, and no ratio.
    measured = Row(
        name="issue",
        title="coupon",
        items_per_call=1,
        request_bytes=1,
        response_bytes=1,
        windows=[window(100, 200.0), window(80, 400.0), window(60, 660.0)],
        echoes=[window(200, 100.0), window(200, 200.0), window(200, 300.0)],
        target=Target(echo_ratio_max=2.1, durable_per_second_min=1.0),
    )
    assert measured.echo_ratio == Figure(2.0, 2.0, 2.2)
    assert measured.calls_per_second == Figure(80, 60, 100)
    ratio, durable = measured.verdicts
    assert ratio.ok
    assert not durable.ok


@pytest.mark.parametrize(("rss_at_the_end", "flat"), [(104, True), (106, False)])
def test_memory_is_flat_if_the_second_half_adds_little(rss_at_the_end: int, flat: bool) -> None:
    samples = [
        MemorySample(0, 50_000_000),
        MemorySample(500_000, 100_000_000),
        MemorySample(1_000_000, rss_at_the_end * 1_000_000),
    ]
    size, growth = Memory(samples).verdicts
    assert size.ok
    assert growth.ok is flat


def test_an_unknown_workload_is_refused() -> None:
    answer = CliRunner().invoke(guerdon, ["bench", "--only", "everything"])
    assert answer.exit_code == 2
    assert "there are issue, sold_out, replay, mix, batch, batch_mix" in answer.output
