"""What an SRE sees of issuing. Read at the scrape from plain counters that the objects keep anyway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from guerdon_server.core.issuance.model import Reason
from guerdon_server.core.stock.model import Reconciled
from guerdon_server.platform.telemetry import SIZE_BUCKETS, TallyHistogramFamily

if TYPE_CHECKING:
    from guerdon_server.core.issuance.committer import Committer
    from guerdon_server.core.issuance.pipeline import Issuer
    from guerdon_server.core.issuance.postgres.invariant_watch import InvariantWatch
    from guerdon_server.core.issuance.sweeper import Sweeper
    from guerdon_server.core.ledger.postgres.ledger import PostgresLedger
    from guerdon_server.core.stock.service import Gate

_OUTCOMES = ("granted", "replayed", "pending", "error", *(reason.name.lower() for reason in Reason))


class _Calls(Protocol):
    in_flight: int
    shed_total: int


class IssuingMetrics(Collector):
    """Register once; `watch` tells what to read. `admitted` and `committed` are called for each batch."""

    def __init__(self, registry: CollectorRegistry) -> None:
        stages = ("stage",)
        seconds = TallyHistogramFamily(
            "guerdon_batch_seconds",
            "Time of one batch: admit (Redis) or commit (PostgreSQL).",
            stages,
            registry=registry,
        )
        items = TallyHistogramFamily(
            "guerdon_batch_items", "Requests in one batch.", stages, registry=registry, buckets=SIZE_BUCKETS
        )
        self._admit = seconds.child("admit"), items.child("admit")
        self._commit = seconds.child("commit"), items.child("commit")
        self._settle = seconds.child("settle"), items.child("settle")
        self._watched: tuple[Issuer, Gate, Committer, PostgresLedger, Sweeper, InvariantWatch, _Calls] | None = None
        registry.register(self)

    def admitted(self, items: int, seconds: float) -> None:
        """One call to the gate."""
        self._admit[0].observe(seconds)
        self._admit[1].observe(items)

    def committed(self, items: int, seconds: float) -> None:
        """One commit."""
        self._commit[0].observe(seconds)
        self._commit[1].observe(items)

    def settled(self, items: int, seconds: float) -> None:
        """One call that settles."""
        self._settle[0].observe(seconds)
        self._settle[1].observe(items)

    def watch(
        self,
        *,
        issuer: Issuer,
        gate: Gate,
        committer: Committer,
        ledger: PostgresLedger,
        sweeper: Sweeper,
        invariants: InvariantWatch,
        calls: _Calls,
    ) -> None:
        """From now on a scrape reads these."""
        self._watched = issuer, gate, committer, ledger, sweeper, invariants, calls

    def describe(self) -> list[Metric]:
        """Empty: what `collect` yields is not known before `watch`."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All figures of this moment."""
        if self._watched is None:
            return
        issuer, gate, committer, ledger, sweeper, invariants, calls = self._watched
        outcomes = CounterMetricFamily("guerdon_outcomes", "Outcomes of requests, by reason.", labels=["outcome"])
        for outcome in _OUTCOMES:
            outcomes.add_metric([outcome], issuer.outcomes[outcome])
        yield outcomes
        queued = GaugeMetricFamily("guerdon_queued_items", "Requests that wait for a batch.", labels=["stage"])
        queued.add_metric(["admit"], gate.queued_items())
        queued.add_metric(["commit"], committer.batches.queued_items)
        queued.add_metric(["lookup"], issuer.lookups.queued_items)
        queued.add_metric(["settle"], gate.settling.queued_items)
        yield queued
        flying = GaugeMetricFamily("guerdon_batches_in_flight", "Batches under way.", labels=["stage"])
        flying.add_metric(["admit"], gate.in_flight_batches())
        flying.add_metric(["commit"], committer.batches.in_flight)
        flying.add_metric(["lookup"], issuer.lookups.in_flight)
        yield flying
        counts = gate.counts
        gate_events = CounterMetricFamily("guerdon_gate_events", "What happened at the gate.", labels=["event"])
        for event in ("opened", "adopted", "closed", "unavailable", "dropped_answers", "drifts", "settled"):
            gate_events.add_metric([event], getattr(counts, event))
        gate_events.add_metric(["settlements_dropped"], gate.settling.dropped_total)
        yield gate_events
        commits = CounterMetricFamily("guerdon_commit_events", "What happened to commits.", labels=["event"])
        commits.add_metric(["retried"], ledger.retried_total)
        commits.add_metric(["unknown"], committer.unknown_total)
        commits.add_metric(["poison"], committer.poison_total)
        yield commits
        swept = sweeper.counts
        yield GaugeMetricFamily(
            "guerdon_sweeper_leading",
            "1 where this process sweeps; its open admissions are those of all.",
            swept.leading,
        )
        yield GaugeMetricFamily("guerdon_open_admissions", "Admissions not settled yet.", swept.open_admissions)
        yield GaugeMetricFamily(
            "guerdon_open_admission_age_seconds", "Age of the oldest open admission.", swept.oldest_ms / 1000
        )
        fenced = CounterMetricFamily(
            "guerdon_fenced_admissions", "Admissions that the sweeper fenced.", labels=["found"]
        )
        fenced.add_metric(["granted"], swept.found_granted_total)
        fenced.add_metric(["not_granted"], swept.fenced_total - swept.found_granted_total)
        yield fenced
        compared = CounterMetricFamily(
            "guerdon_gate_reconciliations", "Comparisons of the gate with the ledger.", labels=["result"]
        )
        for result in Reconciled:
            compared.add_metric([result.value], swept.reconciled.get(result.value, 0))
        yield compared
        yield GaugeMetricFamily(
            "guerdon_invariant_violations",
            "Violations that the last look at the books found; must be 0.",
            invariants.violations,
        )
        looks = CounterMetricFamily("guerdon_invariant_looks", "How often the books were looked at.")
        looks.add_metric([], invariants.looks_total)
        yield looks
        yield GaugeMetricFamily("guerdon_calls_in_flight", "Calls being answered.", calls.in_flight)
        shed = CounterMetricFamily("guerdon_calls_shed", "Calls refused as OVERLOADED before any work.")
        shed.add_metric([], calls.shed_total)
        yield shed
