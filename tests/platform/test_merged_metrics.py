"""One view over the metrics of several processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from guerdon_server.platform.supervision import MergedMetrics
from guerdon_server.platform.telemetry import MetricsServer, TallyHistogramFamily


class _Worker:
    """Its metrics, served as a worker serves them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter("calls", "Calls.", ["code"], registry=self.registry)
        self.open = Gauge("open", "Open now.", registry=self.registry)
        family = TallyHistogramFamily("seconds", "Time.", ["stage"], registry=self.registry, buckets=(0.1, 1.0))
        self.seconds = family.child("commit")
        self.server = MetricsServer(self.registry)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"


@pytest.fixture
def two() -> Iterator[tuple[_Worker, _Worker]]:
    """Two of them."""
    with ExitStack() as stack:
        workers = _Worker(), _Worker()
        for worker in workers:
            stack.enter_context(worker.server)
        yield workers


def _merged(*workers: _Worker) -> tuple[MergedMetrics, CollectorRegistry]:
    merged, registry = MergedMetrics(), CollectorRegistry()
    registry.register(merged)
    for key, worker in enumerate(workers):
        merged.add(key, label=str(key), address=worker.address)
    return merged, registry


def _samples(registry: CollectorRegistry) -> dict[str, float]:
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def test_counters_and_histograms_are_added_up_and_gauges_are_of_a_worker(two: tuple[_Worker, _Worker]) -> None:
    one, other = two
    _, registry = _merged(one, other)
    one.calls.labels("OK").inc(3)
    other.calls.labels("OK").inc(4)
    other.calls.labels("ABORTED").inc()
    one.open.set(7)
    other.open.set(8)
    for seconds in (0.05, 0.5):
        one.seconds.observe(seconds)
    other.seconds.observe(5.0)

    samples = _samples(registry)

    assert (samples["calls_total code=OK"], samples["calls_total code=ABORTED"]) == (7, 1)
    assert (samples["open worker=0"], samples["open worker=1"]) == (7, 8)
    buckets = [samples[f"seconds_bucket le={bound} stage=commit"] for bound in ("0.1", "1.0", "+Inf")]
    assert buckets == [1, 2, 3]
    assert samples["seconds_count stage=commit"] == 3
    assert samples["seconds_sum stage=commit"] == pytest.approx(5.55)


def test_what_has_ended_stays_in_the_sums_and_leaves_the_gauges(two: tuple[_Worker, _Worker]) -> None:
    one, other = two
    merged, registry = _merged(one, other)
    one.calls.labels("OK").inc(3)
    other.calls.labels("OK").inc(4)
    _samples(registry)
    one.calls.labels("OK").inc(10)
    merged.refresh(0)
    merged.remove(0)
    one.server.close()
    other.calls.labels("OK").inc()

    samples = _samples(registry)

    assert samples["calls_total code=OK"] == 18
    assert "open worker=0" not in samples
    assert "open worker=1" in samples


def test_one_that_does_not_answer_keeps_its_sums_and_is_told(two: tuple[_Worker, _Worker]) -> None:
    one, other = two
    _, registry = _merged(one, other)
    one.calls.labels("OK").inc(3)
    assert _samples(registry)["calls_total code=OK"] == 3
    one.server.close()

    samples = _samples(registry)

    assert samples["calls_total code=OK"] == 3
    assert "open worker=0" not in samples
    assert (samples["guerdon_worker_scraped worker=0"], samples["guerdon_worker_scraped worker=1"]) == (0, 1)


def test_one_that_is_being_replaced_has_a_name_of_its_own(two: tuple[_Worker, _Worker]) -> None:
    old, new = two
    merged, registry = _merged(old)
    merged.relabel(0, "0 retiring")
    merged.add(1, label="0", address=new.address)

    assert {"open worker=0", "open worker=0 retiring"} <= _samples(registry).keys()


def test_it_can_be_read_as_openmetrics(two: tuple[_Worker, _Worker]) -> None:
    one, _ = two
    _, registry = _merged(*two)
    one.calls.labels("OK").inc(3)

    text = generate_openmetrics(registry).decode()  # type: ignore[no-untyped-call]
    families = {family.name: family for family in openmetrics_families(text)}  # type: ignore[no-untyped-call]

    assert families["calls"].type == "counter"
    assert families["seconds"].type == "histogram"
