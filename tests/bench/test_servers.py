"""Several servers at once, short: every server is loaded, every commit counted, the model beside."""

from __future__ import annotations

import json
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio

from guerdon_server.bench.blast import Ids, Template
from guerdon_server.bench.result import Figure, Result, Window
from guerdon_server.bench.run import run
from guerdon_server.bench.servers import COUNTS, PROCESSES, SHARES, Compared, Servers, ServersRow
from guerdon_server.bench.stage import Options, fresh_folder, opened
from guerdon_server.bench.workloads import HOT, SPREAD_CALLS, SPREAD_PRIZES, Prize, batch
from tests.bench.notes import Notes


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ran() -> Result:
    """One round."""
    result = await run(Options(rounds=1, seconds=0.4, warm_up_seconds=0.2, servers=True), Notes())
    assert not result.error
    return result


def servers_of(result: Result) -> Servers:
    assert result.servers is not None
    return result.servers


async def test_it_ends_with_proven_books(ran: Result) -> None:
    assert ran.sound
    rows = [(row.workload.name, row.servers) for row in servers_of(ran).rows]
    assert rows == [("alone", 1), ("hot", 1), ("hot", 2), ("hot", 4), ("spread_calls", 4), ("spread_items", 4)]


async def test_every_grant_is_in_a_commit_of_these_servers(ran: Result) -> None:
    for row in servers_of(ran).rows:
        (window,) = row.windows
        assert window.granted == window.calls * HOT.items_per_call - window.refused_items
        assert window.batches["commit"].items == window.granted
        assert window.batches["admit"].items >= window.granted
        assert window.cpu_us_per_call.keys() == set(PROCESSES)
    alone = servers_of(ran).rows[0]
    assert alone.items_per_commit.median == HOT.items_per_call
    assert 0 < alone.commit_ms.median < alone.call_ms.median


async def test_the_model_stands_beside_what_was_measured(ran: Result) -> None:
    servers = servers_of(ran)
    one, *more = list(servers.throughput())
    assert [row.servers for row, _ in (one, *more)] == list(COUNTS)
    if servers.model.busy.items_per_commit > servers.model.alone.items_per_commit:
        assert one[1].predicted == pytest.approx(one[0].granted_per_second.median)
    document = json.loads(json.dumps(ran.to_json()))
    told = document["servers"]["model"]["grants_per_second"]
    assert [each["servers"] for each in told] == list(COUNTS)
    for each in told:
        assert each["predicted"] == min(each["bounds"].values())
        assert each["off"] == pytest.approx(each["predicted"] / each["measured"] - 1)


async def test_calls_come_at_random_at_shares_of_the_capacity(ran: Result) -> None:
    servers = servers_of(ran)
    if ran.about["options"]["generator"] != "grpcblast":
        assert not servers.offered
        pytest.skip("no generator that keeps a schedule: no C compiler, or no libnghttp2-dev")
    assert [(row.servers, row.share) for row in servers.offered] == [(n, share) for n in COUNTS for share in SHARES]
    for row, compared in servers.latency():
        (offered,) = row.rounds
        assert offered.ok * HOT.items_per_call >= offered.granted > 0
        assert compared.measured == offered.mean_ms > 0


async def test_the_result_says_on_what_it_was_measured(ran: Result) -> None:
    document = json.loads(json.dumps(ran.to_json()))
    assert document["options"]["servers"] is True
    assert document["options"]["postgresql_fsync"] == "on"
    assert document["workload_parameters"]["hot"]["calls_in_flight"] == 8
    assert [row["calls_in_flight"] for row in document["servers"]["rows"]] == [1, 8, 16, 32, 32, 32]


async def test_items_that_are_refused_in_an_answered_call_are_told(tmp_path: Path) -> None:
    items = 10
    async with opened(Options(generator="python"), fresh_folder(tmp_path), Notes(), servers=2) as stage:
        before = await stage.counts.read()
        for server in stage.servers:
            message = batch((Prize.COUPON,), items, prize_ids=(Prize.COUPON.id, "no-such-prize"))
            async with grpc.aio.insecure_channel(server.target) as channel:
                call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(HOT.method)
                await call(Template(message).fill(Ids(None)), timeout=30)
        counted = await stage.counts.read() - before
    assert counted.refused_items == items
    assert counted.batches["commit"].items == items


def windows(*granted: int) -> list[Window]:
    """Of one second each."""
    return [Window(each // 100, 1.0, each, 1.0, 1.0, dict.fromkeys(PROCESSES, 1.0), 0.0) for each in granted]


def test_the_hot_prize_is_compared_round_by_round() -> None:
    # A machine that gets slower changes both alike, and no share.
    hot, spread = windows(1000, 800, 500), windows(1000, 1000, 1000)
    servers = Servers([ServersRow(HOT, 4, hot), ServersRow(SPREAD_CALLS, 4, spread)], [], 2)
    assert [share for _, share in servers.hot_shares()] == [Figure(0.8, 0.5, 1.0)]
    ((title, verdict),) = servers.verdicts
    assert "4 servers" in title
    assert f"{SPREAD_PRIZES} prizes" in verdict.what
    assert not verdict.ok


def test_what_the_model_says_too_much_is_above_zero() -> None:
    assert Compared(100.0, 110.0).off == pytest.approx(0.1)
    assert Compared(100.0, None).off is None
