"""What dashboards are made of: panels, ways to write queries, and the panels that several of them show."""

from __future__ import annotations

from dataclasses import dataclass, field

J = 'job="$job"'
RPC = f'{J}, grpc_service=~"guerdon[.].+"'
FAILED = f'{RPC}, grpc_code=~"DEADLINE_EXCEEDED|INTERNAL|RESOURCE_EXHAUSTED|UNAVAILABLE|UNKNOWN"'
P = f'{J}, promotion="$promotion"'
R = "$__rate_interval"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """queries: PromQL and legend. limits: where it turns orange and red (falling: where it turns good again)."""

    title: str
    about: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    limits: tuple[float, ...] = ()
    falling: bool = False
    stacked: bool = False
    minimum: float | None = 0
    maximum: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Panels side by side. height: in Grafana's units of 30 pixels."""

    title: str
    panels: tuple[Panel, ...]
    height: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """variables: besides the data source, the query that lists their values by name."""

    name: str
    title: str
    about: str
    rows: tuple[Row, ...]
    variables: dict[str, str] = field(default_factory=lambda: {"job": "label_values(guerdon_build_info, job)"})
    since: str = "1h"
    refresh: str = "10s"


def panel(title: str, unit: str, about: str, *queries: tuple[str, str], **more: object) -> Panel:
    """A Panel, shorter to write."""
    return Panel(title=title, unit=unit, about=about, queries=queries, **more)  # type: ignore[arg-type]


def stat(title: str, unit: str, about: str, query: str, legend: str = "", **more: object) -> Panel:
    """One number."""
    return panel(title, unit, about, (query, legend), kind="stat", **more)


def rate(metric: str, labels: str, by: str = "") -> str:
    """The summed rate of a counter."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{labels}}}[{R}]))"


def quantile(q: float, metric: str, labels: str, by: str = "") -> str:
    """Of a histogram."""
    le = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({le}) (rate({metric}_bucket{{{labels}}}[{R}])))"


def share(metric: str, part: str, whole: str, window: str = R) -> str:
    """Part of a counter of its whole."""
    return f"sum(rate({metric}{{{part}}}[{window}])) / sum(rate({metric}{{{whole}}}[{window}]))"


def mean(metric: str, labels: str, by: str) -> str:
    """Of a histogram."""
    return f"{rate(f'{metric}_sum', labels, by)} / {rate(f'{metric}_count', labels, by)}"


OVER_ISSUED = stat(
    "Over-issued units",
    "short",
    "Units given beyond what there was, at the last look at the books. Must be 0. Else: runbook GuerdonOverIssued.",
    f"max(sum by (instance) (guerdon_over_issued_units{{{J}}}))",
    limits=(1,),
)
ISSUE_SECONDS = panel(
    "IssuePrize: time in the server",
    "s",
    "From the start of the handler to the durable answer. Objective: 99 % within 50 ms. Where it grows, look which of"
    " the stages below grows with it: admit is Redis, commit is PostgreSQL; if neither, the process lacks CPU.",
    (quantile(0.5, "grpc_server_handling_seconds", f'{RPC}, grpc_method="IssuePrize"'), "p50"),
    (quantile(0.99, "grpc_server_handling_seconds", f'{RPC}, grpc_method="IssuePrize"'), "p99"),
    limits=(0.05,),
)
STAGES = panel(
    "Time of a batch: gate, commit, settle (p99)",
    "s",
    "One call to Redis (admit, settle) or one commit to PostgreSQL. Commit above 20 ms: look at the disk and at locks"
    " of PostgreSQL. Admit above 5 ms: look at Redis' SLOWLOG and its CPU.",
    (quantile(0.99, "guerdon_batch_seconds", J, "stage"), "{{stage}}"),
)
QUEUE_AGE = panel(
    "Age of the queues",
    "s",
    "How long the first item has waited for the gate, a commit, a look-up. Past queue_ms_max (0.25 s) new ones are"
    " refused as OVERLOADED: add servers, or find out why the stage is slow.",
    (f"max by (stage) (guerdon_queue_age_seconds{{{J}}})", "{{stage}}"),
    limits=(0.25,),
)
SHED = panel(
    "Shed calls",
    "reqps",
    "Refused as OVERLOADED before any work: too many calls in flight, or a queue that is full or too old. Reads"
    " go first. Callers come back by themselves; if it lasts, see runbook GuerdonLoadShed. What gRPC refuses"
    " itself is seen only by callers.",
    (rate("guerdon_calls_shed_total", J, "priority"), "in flight: {{priority}}"),
    (rate("guerdon_queue_refusals_total", J, "stage"), "queue: {{stage}}"),
    stacked=True,
)
OPEN_AGE = panel(
    "Age of the oldest open admission",
    "s",
    "What the gate holds for requests without an outcome. Above 30 s the sweeper fences it and gives it back; above 60"
    " s see runbook GuerdonAdmissionsUnresolved.",
    (f"max(guerdon_open_admission_age_seconds{{{J}}})", "oldest"),
    limits=(30, 60),
)
DRIFT = panel(
    "Gate and ledger: drift",
    "short",
    "Units by which Redis was found to disagree with PostgreSQL. Mended at once, never over-issued. Not 0: somebody"
    " writes to Redis, or it lost writes in a fail-over: runbook GuerdonGateDrift.",
    (f"sum(increase(guerdon_gate_drift_units_total{{{J}}}[{R}]))", "units"),
    (f'sum(increase(guerdon_gate_events_total{{{J}, event="drifts"}}[{R}]))', "times"),
)
LAG = panel(
    "Event-loop lag (p99)",
    "s",
    "How late the loop of each server wakes up. Above 0.1 s: too little CPU for the process, or something blocks it.",
    (quantile(0.99, "guerdon_event_loop_lag_seconds", J, "instance"), "{{instance}}"),
    limits=(0.1,),
)
