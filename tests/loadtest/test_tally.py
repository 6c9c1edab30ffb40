"""What the generator counts: percentiles, seconds, and the sum of several processes."""

from __future__ import annotations

import json

import pytest
from loadtest.tally import Tally, bucket, bucket_ms, whole_seconds


def tally() -> Tally:
    """Two seconds of two kinds of calls."""
    found = Tally()
    for ms in range(1, 101):
        found.record("issue", began=100.5, ms=ms, outcomes={"GRANTED": 1})
    found.record("batch", began=101.2, ms=500, outcomes={"GRANTED": 7, "SOLD_OUT": 3})
    found.record("batch", began=101.9, ms=5000, outcomes={}, error="DEADLINE_EXCEEDED: too late")
    found.counts["granted coupon"] += 107
    return found


@pytest.mark.parametrize("ms", [0.0, 0.01, 1.0, 17.3, 250.0, 60_000.0])
def test_a_latency_is_never_told_too_low_and_at_most_2_percent_too_high(ms: float) -> None:
    assert ms <= bucket_ms(bucket(ms)) * (1 + 1e-9)
    assert bucket_ms(bucket(ms)) <= max(ms * 1.02, 0.001) * (1 + 1e-9)


def test_percentiles() -> None:
    calls = tally().between(100, 101)
    assert calls.count == 100
    assert calls.percentile_ms(0.5) == pytest.approx(50, rel=0.021)
    assert calls.percentile_ms(0.99) == pytest.approx(99, rel=0.021)
    assert calls.percentile_ms(1) == pytest.approx(100, rel=0.021)
    assert Tally().between(0, 10).percentile_ms(0.99) == 0


def test_failed_calls_are_counted_with_their_latency() -> None:
    calls = tally().between(101, 102)
    assert (calls.count, calls.failed) == (2, 1)
    assert calls.percentile_ms(1) == pytest.approx(5000, rel=0.021)
    assert tally().errors == {"batch: DEADLINE_EXCEEDED: too late": 1}


def test_only_whole_seconds_make_a_rate() -> None:
    assert list(whole_seconds(10.2, 13.9)) == [11, 12]
    assert list(whole_seconds(10.0, 12.0)) == [10, 11]
    assert list(whole_seconds(10.2, 10.9)) == []
    assert tally().between(100.1, 102.9).count == 2


def test_processes_add_up_after_a_way_through_files() -> None:
    both = Tally.from_json(json.loads(json.dumps(tally().to_json())))
    both.merge(tally())
    assert both.between(100, 102).count == 204
    assert both.outcomes == {"issue: GRANTED": 200, "batch: GRANTED": 14, "batch: SOLD_OUT": 6}
    assert both.counts == {"granted coupon": 214}
    assert both.between(100, 101, "issue").percentile_ms(0.99) == tally().between(100, 101).percentile_ms(0.99)
    assert both.names == ["batch", "issue"]
