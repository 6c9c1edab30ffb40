"""What an SRE sees of issuing. Read at the scrape from plain counters that the objects keep anyway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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
    from guerdon_server.core.issuance.postgres.capacity_watch import CapacityWatch
    from guerdon_server.core.issuance.postgres.invariant_watch import InvariantWatch
    from guerdon_server.core.issuance.sweeper import Sweeper
    from guerdon_server.core.ledger.postgres.ledger import PostgresLedger
    from guerdon_server.core.stock.service import Gate

_OUTCOMES = ("granted", "replayed", "pending", "error", *(reason.name.lower() for reason in Reason))


class _Calls(Protocol):
    def figures(self) -> Sequence[tuple[str, int, int, int]]:
        """By what calls are for: the word for it, how many are in flight, the most that may be, how many were shed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watched:
    """What a scrape reads."""

    issuer: Issuer
    gate: Gate
    committer: Committer
    ledger: PostgresLedger
    sweeper: Sweeper
    invariants: InvariantWatch
    capacities: CapacityWatch
    calls: _Calls


class IssuingMetrics(Collector):
    """Register once; `watch` tells what to read. `admitted` and `committed` are called for each batch."""

    def __init__(self, registry: CollectorRegistry) -> None:
        stages = ("stage",)
        seconds = TallyHistogramFamily(
            "guerdon_batch_seconds",
            "Time of one batch: admit and settle (Redis), commit (PostgreSQL).",
            stages,
            registry=registry,
        )
        items = TallyHistogramFamily(
            "guerdon_batch_items", "Requests in one batch.", stages, registry=registry, buckets=SIZE_BUCKETS
        )
        self._admit = seconds.child("admit"), items.child("admit")
        self._commit = seconds.child("commit"), items.child("commit")
        self._settle = seconds.child("settle"), items.child("settle")
        self._watched: _Watched | None = None
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
        capacities: CapacityWatch,
        calls: _Calls,
    ) -> None:
        """From now on a scrape reads these."""
        self._watched = _Watched(
            issuer=issuer,
            gate=gate,
            committer=committer,
            ledger=ledger,
            sweeper=sweeper,
            invariants=invariants,
            capacities=capacities,
            calls=calls,
        )

    def describe(self) -> list[Metric]:
        """Empty: what `collect` yields is not known before `watch`."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All figures of this moment."""
        watched = self._watched
        if watched is None:
            return
        yield _counter(
            "guerdon_outcomes",
            "Outcomes of requests, by reason.",
            "outcome",
            [(outcome, watched.issuer.outcomes[outcome]) for outcome in _OUTCOMES],
        )
        yield from _calls(watched.calls)
        yield from _queues(watched)
        yield from _events(watched)
        yield from _sweeping(watched.sweeper)
        yield from _books(watched.invariants)
        yield from _capacities(watched.capacities)


def _calls(calls: _Calls) -> Iterator[Metric]:
    figures, label = calls.figures(), "priority"
    in_flight = [(priority, calls) for priority, calls, _, _ in figures]
    yield _gauge("guerdon_calls_in_flight", "Calls being answered.", label, in_flight)
    most = [(priority, calls) for priority, _, calls, _ in figures]
    yield _gauge("guerdon_calls_in_flight_max", "The most calls that may be.", label, most)
    shed = [(priority, calls) for priority, _, _, calls in figures]
    yield _counter("guerdon_calls_shed", "Calls refused as OVERLOADED before any work.", label, shed)


def _queues(watched: _Watched) -> Iterator[Metric]:
    gate, commits, lookups = watched.gate, watched.committer.batches, watched.issuer.lookups
    yield _gauge(
        "guerdon_queued_items",
        "Requests that wait for a batch.",
        "stage",
        [
            ("admit", gate.queued_items()),
            ("commit", commits.queued_items),
            ("lookup", lookups.queued_items),
            ("settle", gate.settling.queued_items),
        ],
    )
    yield _gauge(
        "guerdon_queue_age_seconds",
        "How long the first item of a queue has waited.",
        "stage",
        [
            ("admit", gate.queue_age_seconds()),
            ("commit", commits.queue_age_seconds()),
            ("lookup", lookups.queue_age_seconds()),
        ],
    )
    yield _counter(
        "guerdon_queue_refusals",
        "Calls and chunks of calls refused as OVERLOADED because a queue was full or too old.",
        "stage",
        [
            ("admit", gate.refused_total()),
            ("commit", commits.refused_total),
            ("lookup", lookups.refused_total),
        ],
    )
    yield _gauge(
        "guerdon_batches_in_flight",
        "Batches under way.",
        "stage",
        [("admit", gate.in_flight_batches()), ("commit", commits.in_flight), ("lookup", lookups.in_flight)],
    )


def _events(watched: _Watched) -> Iterator[Metric]:
    gate, counts = watched.gate, watched.gate.counts
    names = ("opened", "adopted", "closed", "unavailable", "dropped_answers", "drifts", "settled")
    yield _counter(
        "guerdon_gate_events",
        "What happened at the gate.",
        "event",
        [
            *((name, getattr(counts, name)) for name in (*names, "settled_in_vain", "backfilled")),
            ("settlements_dropped", gate.settling.dropped_total),
            ("settlements_retried", gate.settling.retries_total),
        ],
    )
    drift = CounterMetricFamily(
        "guerdon_gate_drift_units", "Units by which the gate was found to disagree with the ledger; mended at once."
    )
    drift.add_metric([], counts.drift_units)
    yield drift
    moved = CounterMetricFamily("guerdon_gate_moved_units", "Units that were moved between the buckets of promotions.")
    moved.add_metric([], gate.exchange.moved_units)
    yield moved
    yield _counter(
        "guerdon_commit_events",
        "What happened to commits.",
        "event",
        [
            ("retried", watched.ledger.retried_total),
            ("unknown", watched.committer.unknown_total),
            ("poison", watched.committer.poison_total),
        ],
    )


def _sweeping(sweeper: Sweeper) -> Iterator[Metric]:
    swept = sweeper.counts
    yield GaugeMetricFamily(
        "guerdon_sweeper_leading", "1 where this process sweeps; its open admissions are those of all.", swept.leading
    )
    yield _counter(
        "guerdon_sweeps",
        "Rounds of the sweeper over all running promotions.",
        "result",
        [(result, swept.rounds[result]) for result in ("done", "partial", "failed")],
    )
    yield GaugeMetricFamily("guerdon_open_admissions", "Admissions not settled yet.", swept.open_admissions)
    yield GaugeMetricFamily(
        "guerdon_open_admission_age_seconds", "Age of the oldest open admission.", swept.oldest_ms / 1000
    )
    yield _counter(
        "guerdon_fenced_admissions",
        "Admissions that the sweeper fenced.",
        "found",
        [("granted", swept.found_granted_total), ("not_granted", swept.fenced_total - swept.found_granted_total)],
    )
    yield _counter(
        "guerdon_gate_reconciliations",
        "Comparisons of the gate with the ledger.",
        "result",
        [(result.value, swept.reconciled.get(result.value, 0)) for result in Reconciled],
    )


def _books(invariants: InvariantWatch) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "guerdon_invariant_violations",
        "Violations that the last look at the books found; must be 0.",
        invariants.violations,
    )
    yield _gauge(
        "guerdon_over_issued_units",
        "Units given beyond what there was of a stock or budget, at the last look at the books; must be 0.",
        "kind",
        invariants.over_issued.items(),
    )
    looks = CounterMetricFamily("guerdon_invariant_looks", "How often the books were looked at.")
    looks.add_metric([], invariants.looks_total)
    yield looks


def _capacities(watch: CapacityWatch) -> Iterator[Metric]:
    labels = ("promotion", "kind", "item")
    units = GaugeMetricFamily(
        "guerdon_capacity_units", "Limited stocks and budgets of the fullest running promotions.", labels=labels
    )
    issued = GaugeMetricFamily("guerdon_capacity_issued_units", "What was issued of them.", labels=labels)
    for capacity in watch.capacities:
        values = (capacity.promotion_id, capacity.kind, capacity.item)
        units.add_metric(values, capacity.capacity_units)
        issued.add_metric(values, capacity.issued_units)
    yield from (units, issued)


def _counter(name: str, doc: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    metric = CounterMetricFamily(name, doc, labels=[label])
    for value, count in values:
        metric.add_metric([value], count)
    return metric


def _gauge(name: str, doc: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    metric = GaugeMetricFamily(name, doc, labels=[label])
    for value, number in values:
        metric.add_metric([value], number)
    return metric
