"""A tiny bench from end to end, on its own durable engines: its figures agree with one another and with the ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from click.testing import CliRunner

from guerdon_server.bench.open_loop import COMMITS_A_SECOND, SHARES, Alone, Offered, OpenRow, unknown
from guerdon_server.bench.result import SERVER, Figure, Memory, MemorySample, Result, Row, Window
from guerdon_server.bench.run import run
from guerdon_server.bench.stage import Options, opened
from guerdon_server.bench.workloads import WORKLOADS, Target
from guerdon_server.cli.root import guerdon
from tests.bench.notes import Notes

GRANTS = 8000


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ran() -> tuple[Result, Notes]:
    """One round of everything."""
    notes = Notes()
    options = Options(rounds=1, seconds=0.3, warm_up_seconds=0.2, grants=GRANTS)
    return await run(options, notes), notes


async def test_the_log_is_written_to_segments_that_were_used_before(tmp_path: Path) -> None:
    async with opened(Options(), tmp_path, Notes()) as stage:
        await stage.use_up_log(100 << 20)
        assert stage.recycled_segments == 7
        now = await stage.ledger.fetchval("SELECT pg_walfile_name(pg_current_wal_lsn())")
        ahead = await stage.ledger.fetchval("SELECT count(*) FROM pg_ls_waldir() WHERE name > $1", now)
    assert ahead >= 7


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
        assert window.granted == (
            window.calls * workload.items_per_call - window.refused_items if workload.durable else 0
        )
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


async def test_schedules_are_kept_below_the_capacity_and_refused_above(ran: tuple[Result, Notes]) -> None:
    result, notes = ran
    if result.about["options"]["generator"] != "grpcblast":
        assert not result.open_rows
        pytest.skip("no generator that keeps a schedule: no C compiler, or no libnghttp2-dev")
    expected = [(workload.name, share) for workload in WORKLOADS if workload.open_loop for share in SHARES]
    assert notes.shares == expected
    assert [(row.name, row.share) for row in result.open_rows] == expected
    for row in result.open_rows:
        (offered,) = row.rounds
        assert offered.granted >= offered.ok > 0
        assert offered.p50_ms <= offered.p99_ms <= offered.most_ms, "no percentile is rounded up beyond the longest"
        assert json.dumps(row.to_json())


async def test_what_a_durable_call_takes_at_least_is_told_beside_it(ran: tuple[Result, Notes]) -> None:
    result, _ = ran
    if result.about["options"]["generator"] != "grpcblast":
        assert not result.alone_rows
        pytest.skip("no generator that keeps a schedule: no C compiler, or no libnghttp2-dev")
    (issue,) = (row for row in result.open_rows if (row.name, row.share) == ("issue", 0.6))
    echo, commit = result.alone_rows
    assert echo.rounds[0].count == pytest.approx(0.3 * issue.rounds[0].rate, rel=0.1)
    assert 1 < commit.rounds[0].count <= 0.3 * COMMITS_A_SECOND + 1
    for row in result.alone_rows:
        assert 0 < row.p_ms("p50_ms") <= row.p_ms("p99_ms") <= row.p_ms("most_ms")
        assert row.p_ms("p50_ms") < issue.p_ms("p50_ms"), "a part takes less than the whole"
    assert [row["name"] for row in result.to_json()["alone"]] == ["echo", "commit"]


def test_percentiles_of_what_was_measured_alone() -> None:
    alone = Alone.of([0.003, 0.001, 0.002, *[0.002] * 196, 0.030])
    assert (alone.count, alone.p50_ms, alone.p99_ms, alone.most_ms) == (200, 2.0, 3.0, 30.0)


def offered(ok: int, *, share: float = 3.0, capacity: float = 100.0, p99_ms: float = 5.0) -> Offered:
    rate = share * capacity
    return Offered(share, capacity, rate, 2.0, ok, 0, {"UNAVAILABLE": round(2 * rate) - ok}, ok, 1.0, p99_ms, p99_ms)


def test_goodput_is_measured_by_what_can_be_done() -> None:
    target = Target(p99_ms_max=15, goodput_share_min=0.9)
    above = OpenRow("x", "x", 3.0, [offered(100), offered(190), offered(200)], target)
    assert above.kept == Figure(0.95, 0.5, 1.0)
    assert [(verdict.measured, verdict.ok) for verdict in above.verdicts] == [(0.95, True)]
    collapsed = OpenRow("x", "x", 3.0, [offered(10)], target)
    assert [verdict.ok for verdict in collapsed.verdicts] == [False]
    assert collapsed.refused_share() == pytest.approx(590 / 600)
    below = OpenRow("x", "x", 0.6, [offered(120, share=0.6, p99_ms=20)], target)
    assert below.kept.median == 1.0
    assert [(verdict.measured, verdict.ok) for verdict in below.verdicts] == [(20, False)]


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({"grpc_status": {"0": 5, "1": 1, "4": 1, "8": 2}, "broken": 0, "unanswered": 0}, {}),
        ({"grpc_status": {"0": 5, "13": 1}, "broken": 2, "unanswered": 3},
         {"status 13": 1, "broken": 2, "unanswered": 3}),
    ],
)  # fmt: skip
def test_only_refusals_are_expected_of_an_overload(told: dict[str, Any], found: dict[str, int]) -> None:
    assert unknown(told) == found


async def test_the_result_says_on_what_it_was_measured(ran: tuple[Result, Notes]) -> None:
    result, _ = ran
    document = json.loads(json.dumps(result.to_json()))
    assert document["options"]["postgresql_fsync"] == "on"
    assert document["options"]["postgresql_full_page_writes"] == "on"
    assert document["options"]["postgresql_max_wal_size"] == "16GB"
    assert document["options"]["postgresql_shared_buffers"].endswith("MB")
    assert document["options"]["postgresql_huge_pages_status"] in {"on", "off"}
    assert document["options"]["postgresql_recycled_segments"] > 0
    assert document["machine"]["cores_used"] <= 2
    assert {"python", "postgres", "valkey", "grpcio", "guerdon-server"} <= document["versions"].keys()
    assert [each["name"] for each in document["workloads"]] == [workload.name for workload in WORKLOADS]
    assert all(each["request_bytes"] > 0 and each["response_bytes"] > 0 for each in document["workloads"])


async def test_server_and_echo_run_on_the_native_transport() -> None:
    pytest.importorskip("pygrpc_native", reason="pygrpc-native is not installed: scripts/setup --dev")
    result = await run(
        Options(rounds=1, seconds=0.3, warm_up_seconds=0.2, transport="native", only=("crowd",)), Notes()
    )
    assert not result.error
    assert result.sound
    document = json.loads(json.dumps(result.to_json()))
    assert document["options"]["transport"] == "native"
    assert document["versions"]["pygrpc-native"]
    assert [each["what"] for each in document["workloads"][0]["verdicts"]] == ["durable grants/s, at least"]


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
    assert "there are issue, crowd, sold_out, replay, mix, batch, batch_mix" in answer.output
