"""Metrics as Prometheus sees them: every test reads a real scrape over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
import uvloop
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from guerdon_server.platform.telemetry import (
    LoopLag,
    MetricsServer,
    RpcMetrics,
    TallyFamily,
    TallyHistogramFamily,
    new_registry,
)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
METHODS = {"/app.v1.Shop/Buy": "unary", "/app.v1.Shop/Watch": "server_stream"}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def server(registry: CollectorRegistry) -> Iterator[MetricsServer]:
    with MetricsServer(registry) as served:
        yield served


def fetch(server: MetricsServer) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as response:
        text: str = response.read().decode()
        return text


def scrape(server: MetricsServer) -> Samples:
    families = text_string_to_metric_families(fetch(server))
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def at(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


def test_tallies_scrape_like_the_client_librarys_own_types(registry: CollectorRegistry, server: MetricsServer) -> None:
    bounds, values = (0.001, 0.01, 0.1), (0.0005, 0.001, 0.0011, 0.05, 0.1, 7.0)
    tally = TallyFamily("a_things", "Things.", ("kind",), registry=registry).child("x")
    spread = TallyHistogramFamily("a_seconds", "Time.", ("kind",), registry=registry, buckets=bounds).child("x")
    own_tally = Counter("b_things", "Things.", ("kind",), registry=registry).labels("x")
    own_spread = Histogram("b_seconds", "Time.", ("kind",), registry=registry, buckets=bounds).labels("x")
    for value in values:
        tally.inc(3)
        own_tally.inc(3)
        spread.observe(value)
        own_spread.observe(value)
    samples = {key: value for key, value in scrape(server).items() if not key[0].endswith("_created")}
    ours = {(name[2:], labels): value for (name, labels), value in samples.items() if name.startswith("a_")}
    theirs = {(name[2:], labels): value for (name, labels), value in samples.items() if name.startswith("b_")}
    assert ours == theirs
    assert ours[at("seconds_bucket", kind="x", le="0.001")] == 2
    assert ours[at("seconds_count", kind="x")] == len(values)


def test_label_values_past_the_maximum_share_one_child(registry: CollectorRegistry, server: MetricsServer) -> None:
    family = TallyFamily("things", "Things.", ("kind", "size"), registry=registry, children_max=2)
    for number in range(50):
        family.child(f"k{number}", "s").inc()
    samples = {key: value for key, value in scrape(server).items() if key[0] == "things_total"}
    assert samples == {
        at("things_total", kind="k0", size="s"): 1,
        at("things_total", kind="k1", size="s"): 1,
        at("things_total", kind="other", size="other"): 48,
    }


def test_a_child_is_the_same_for_the_same_labels(registry: CollectorRegistry) -> None:
    family = TallyFamily("things", "Things.", ("kind",), registry=registry)
    assert family.child("x") is family.child("x")


def test_a_name_is_registered_once(registry: CollectorRegistry) -> None:
    TallyFamily("things", "Things.", registry=registry)
    with pytest.raises(ValueError, match="things"):
        TallyFamily("things", "Things.", registry=registry)


def test_rpc_metrics_bear_the_customary_names(registry: CollectorRegistry, server: MetricsServer) -> None:
    rpc = RpcMetrics(registry=registry, methods=METHODS)
    buy = {"grpc_type": "unary", "grpc_service": "app.v1.Shop", "grpc_method": "Buy"}
    watch = {"grpc_type": "server_stream", "grpc_service": "app.v1.Shop", "grpc_method": "Watch"}
    assert scrape(server)[at("grpc_server_started_total", **watch)] == 0
    for code in ("OK", "OK", "NOT_FOUND"):
        rpc.started("/app.v1.Shop/Buy")
        rpc.observe("/app.v1.Shop/Buy", code, 0.003)
    rpc.method("/app.v1.Shop/Buy").started()
    samples = scrape(server)
    assert samples[at("grpc_server_started_total", **buy)] == 4
    assert samples[at("grpc_server_handled_total", **buy, grpc_code="OK")] == 2
    assert samples[at("grpc_server_handled_total", **buy, grpc_code="NOT_FOUND")] == 1
    assert samples[at("grpc_server_handling_seconds_count", **buy)] == 3
    assert samples[at("grpc_server_handling_seconds_sum", **buy)] == pytest.approx(0.009)
    assert samples[at("grpc_server_handling_seconds_bucket", **buy, le="0.0025")] == 0
    assert samples[at("grpc_server_handling_seconds_bucket", **buy, le="0.005")] == 3


def test_a_caller_cannot_make_label_values(registry: CollectorRegistry, server: MetricsServer) -> None:
    rpc = RpcMetrics(registry=registry, methods=METHODS)
    for number in range(100):
        rpc.started(f"/evil/{number}")
        rpc.observe(f"/evil/{number}", "UNIMPLEMENTED", 0.0)
    samples = scrape(server)
    assert {dict(labels)["grpc_service"] for name, labels in samples if name.startswith("grpc_")} == {
        "app.v1.Shop",
        "unknown",
    }
    unknown = {"grpc_type": "unary", "grpc_service": "unknown", "grpc_method": "unknown"}
    assert samples[at("grpc_server_handled_total", **unknown, grpc_code="UNIMPLEMENTED")] == 100


def test_the_registry_tells_of_process_and_build() -> None:
    with MetricsServer(new_registry(namespace="app", build={"version": "1.2", "commit": "abc"})) as server:
        samples = scrape(server)
    assert samples[at("app_build_info", version="1.2", commit="abc")] == 1
    names = {name for name, _ in samples}
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes", "python_gc_collections_total"} <= names


async def _block_until_seen(registry: CollectorRegistry) -> Samples:
    lag = LoopLag(registry=registry, namespace="app", interval_seconds=0.001)
    with MetricsServer(registry) as server:
        task = asyncio.create_task(lag.run())
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            await asyncio.sleep(0.002)
            time.sleep(0.03)  # noqa: ASYNC251 (the fault under test: a callback that blocks the loop)
            samples = scrape(server)
            if samples[at("app_event_loop_lag_seconds_sum")] >= 0.02:
                break
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return samples


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_blocked_event_loop_shows_and_the_endpoint_still_answers(run: object, registry: CollectorRegistry) -> None:
    assert callable(run)
    samples = run(_block_until_seen(registry))
    assert samples[at("app_event_loop_lag_seconds_sum")] >= 0.02
    assert samples[at("app_event_loop_lag_latest_seconds")] >= 0.0


class _Broken(Collector):
    def collect(self) -> Iterator[Metric]:
        raise RuntimeError("no value today")

    def describe(self) -> list[Metric]:
        return []


def test_a_failing_collector_is_a_500_and_a_log_event(
    registry: CollectorRegistry, server: MetricsServer, caplog: pytest.LogCaptureFixture
) -> None:
    registry.register(_Broken())
    with pytest.raises(urllib.error.HTTPError) as caught:
        fetch(server)
    assert caught.value.code == 500
    assert "no value today" in caplog.text


def test_connections_over_the_maximum_are_closed_and_places_come_back(
    registry: CollectorRegistry, server: MetricsServer
) -> None:
    TallyFamily("things", "Things.", registry=registry).child().inc()
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        ninth = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        ninth.settimeout(30)
        assert ninth.recv(1) == b""  # closed unanswered
    deadline = time.monotonic() + 30
    while True:
        try:
            assert scrape(server)[at("things_total")] == 1
            return
        except OSError:
            assert time.monotonic() < deadline


def test_a_taken_port_is_refused_and_a_closed_one_is_free_again(registry: CollectorRegistry) -> None:
    with MetricsServer(registry) as first, pytest.raises(OSError, match=r"[Aa]ddress"):
        MetricsServer(registry, port=first.port)
    first.close()
    with MetricsServer(registry, port=first.port) as second:
        assert second.port == first.port
        fetch(second)
    with pytest.raises(urllib.error.URLError):
        fetch(second)


def test_it_listens_on_ipv6_too(registry: CollectorRegistry) -> None:
    try:
        server = MetricsServer(registry, host="::1")
    except OSError:
        return  # a machine without IPv6
    with server, urllib.request.urlopen(f"http://[::1]:{server.port}/") as response:
        assert response.status == 200
