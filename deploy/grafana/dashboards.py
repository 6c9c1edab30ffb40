"""What the dashboards show. `about` says what a panel means and what to do; every query must return data (by test)."""

from __future__ import annotations

from panels import (
    DRIFT,
    FAILED,
    ISSUE_SECONDS,
    LAG,
    OPEN_AGE,
    OVER_ISSUED,
    QUEUE_AGE,
    RPC,
    SHED,
    STAGES,
    Dashboard,
    J,
    P,
    R,
    Row,
    mean,
    panel,
    quantile,
    rate,
    share,
    stat,
)

OVERVIEW = Dashboard(
    name="overview",
    title="overview",
    about="Is it well, and if not, which part? Read it from the top; each panel says what to do.",
    rows=(
        Row(
            "Now",
            (
                stat(
                    "Servers",
                    "short",
                    "Servers that answer the scrape. Fewer than you run: GuerdonServerDown.",
                    f"sum(up{{{J}}})",
                    limits=(1,),
                    falling=True,
                ),
                stat(
                    "Calls",
                    "reqps",
                    "Calls a second that ended, of all methods.",
                    rate("grpc_server_handled_total", RPC),
                ),
                stat(
                    "Grants",
                    "reqps",
                    "New durable grants a second. 0 while calls come in: look at the outcomes below.",
                    rate("guerdon_outcomes_total", f'{J}, outcome="granted"'),
                ),
                stat(
                    "Failed calls",
                    "percentunit",
                    "Part of all calls that failed by our fault. Objective: below 0.1 %. Else: see the objectives.",
                    share("grpc_server_handled_total", FAILED, RPC),
                    limits=(0.001, 0.01),
                ),
                OVER_ISSUED,
                stat(
                    "Violations",
                    "short",
                    "Assets and prizes that do not add up, at the last look. Must be 0. Else: GuerdonBooksViolated.",
                    f"max(guerdon_invariant_violations{{{J}}})",
                    limits=(1,),
                ),
            ),
            4,
        ),
        Row(
            "What callers get",
            (
                panel(
                    "Outcomes",
                    "reqps",
                    "By reason. Rejections are answers. `error` and `pending` are not: look at engines and shed calls.",
                    (f"{rate('guerdon_outcomes_total', J, 'outcome')} > 0", "{{outcome}}"),
                    stacked=True,
                ),
                panel(
                    "Calls by status",
                    "reqps",
                    "UNAVAILABLE: an engine is away. RESOURCE_EXHAUSTED: load is shed. INTERNAL: a defect, look at the"
                    " log. The others are the callers' own mistakes.",
                    (f"{rate('grpc_server_handled_total', RPC, 'grpc_code')} > 0", "{{grpc_code}}"),
                    stacked=True,
                ),
                ISSUE_SECONDS,
            ),
        ),
        Row(
            "Where time goes",
            (
                STAGES,
                panel(
                    "Items in a batch (mean)",
                    "short",
                    "Batches grow under load by themselves. 1 under load: the server waits for callers.",
                    (mean("guerdon_batch_items", J, "stage"), "{{stage}}"),
                ),
                QUEUE_AGE,
            ),
        ),
        Row(
            "Promises",
            (
                OPEN_AGE,
                DRIFT,
                panel(
                    "Used budgets and stocks",
                    "percentunit",
                    "The fullest of running promotions. At 100 % requests are rejected: top up, or let it end.",
                    (
                        "topk(10, max by (promotion, item) (guerdon_capacity_issued_units{" + J + "})"
                        " / (max by (promotion, item) (guerdon_capacity_units{" + J + "}) > 0))",
                        "{{promotion}} {{item}}",
                    ),
                    kind="bargauge",
                    limits=(0.9, 1.0),
                    maximum=1,
                ),
            ),
        ),
        Row(
            "Servers",
            (
                LAG,
                panel(
                    "CPU",
                    "percentunit",
                    "Of one core, by server: a server uses one. Above 0.85: add servers.",
                    (f"rate(process_cpu_seconds_total{{{J}}}[{R}])", "{{instance}}"),
                    limits=(0.85,),
                ),
                panel(
                    "Memory",
                    "bytes",
                    "Resident, by server. Should be flat and below 250 MB; what grows is a leak.",
                    (f"process_resident_memory_bytes{{{J}}}", "{{instance}}"),
                ),
                SHED,
            ),
        ),
    ),
)

PROMOTION = Dashboard(
    name="promotion",
    title="one promotion, live",
    about="How a promotion goes while it runs. Promotions are listed while they are active and among the 20 fullest.",
    variables={
        "job": "label_values(guerdon_build_info, job)",
        "promotion": f"label_values(guerdon_capacity_units{{{J}}}, promotion)",
    },
    since="30m",
    refresh="5s",
    rows=(
        Row(
            "Now",
            (
                stat(
                    "Fullest",
                    "percentunit",
                    "The most used of its budgets and stocks. At 100 % that one is at its end.",
                    f"max(guerdon_capacity_issued_units{{{P}}} / (guerdon_capacity_units{{{P}}} > 0))",
                    limits=(0.9, 1.0),
                ),
                stat(
                    "Units left in stock",
                    "short",
                    "Over all limited prizes. 0: sold out; top up with"
                    " `guerdon prize adjust-stock` if more may be given.",
                    f'sum(max by (item) (guerdon_capacity_units{{{P}, kind="stock"}})'
                    f' - max by (item) (guerdon_capacity_issued_units{{{P}, kind="stock"}}))',
                ),
                stat(
                    "Ends in",
                    "s",
                    "When the first of its budgets and stocks ends, at the speed of the last 5 minutes."
                    " Shorter than the promotion is to run: top up in time, or tell who planned it. 30 days: not soon.",
                    f"clamp_max(min(max by (kind, item) (guerdon_capacity_units{{{P}}} - guerdon_capacity_issued_units"
                    f"{{{P}}}) / (max by (kind, item) (deriv(guerdon_capacity_issued_units{{{P}}}[5m])) > 0))"
                    " or vector(2592000), 2592000)",
                    limits=(600, 3600),
                    falling=True,
                ),
                OVER_ISSUED,
            ),
            4,
        ),
        Row(
            "Budgets and stocks",
            (
                panel(
                    "Used",
                    "percentunit",
                    "Part of the capacity that is issued. A step down is a top-up.",
                    (
                        f"max by (kind, item) (guerdon_capacity_issued_units{{{P}}})"
                        f" / (max by (kind, item) (guerdon_capacity_units{{{P}}}) > 0)",
                        "{{kind}} {{item}}",
                    ),
                    limits=(0.9, 1.0),
                    maximum=1,
                ),
                panel(
                    "Left",
                    "short",
                    "Units; of budgets in minor units of the asset.",
                    (
                        f"max by (kind, item) (guerdon_capacity_units{{{P}}})"
                        f" - max by (kind, item) (guerdon_capacity_issued_units{{{P}}})",
                        "{{kind}} {{item}}",
                    ),
                ),
                panel(
                    "Issued a second",
                    "short",
                    "Units a second. Flat at 0 while calls come in: sold out, paused, or its limits are reached.",
                    (f"max by (kind, item) (deriv(guerdon_capacity_issued_units{{{P}}}[1m]))", "{{kind}} {{item}}"),
                    minimum=None,
                ),
            ),
        ),
        Row(
            "All promotions of these servers",
            (
                panel(
                    "Outcomes",
                    "reqps",
                    "Not of this promotion alone: outcomes are not counted by promotion.",
                    (f"{rate('guerdon_outcomes_total', J, 'outcome')} > 0", "{{outcome}}"),
                    stacked=True,
                ),
                ISSUE_SECONDS,
                OPEN_AGE,
            ),
        ),
    ),
)

ENGINES = Dashboard(
    name="engines",
    title="engines",
    about="PostgreSQL and Redis as the servers see them. For what is inside of them use their own exporters.",
    rows=(
        Row(
            "Do they answer?",
            (
                panel(
                    "Silence",
                    "s",
                    "Time since the last answer to any server. Above 10 s: runbook GuerdonEngineAway.",
                    (f"max by (engine) (guerdon_engine_silent_seconds{{{J}}})", "{{engine}}"),
                    limits=(10,),
                ),
                panel(
                    "A small question (p99)",
                    "s",
                    "Asked every second or two. Slow while batches are fast: the network, or this process lacks CPU.",
                    (quantile(0.99, "guerdon_engine_answer_seconds", J, "engine"), "{{engine}}"),
                ),
                STAGES,
            ),
        ),
        Row(
            "PostgreSQL",
            (
                panel(
                    "Connections",
                    "short",
                    "By pool. All busy for long: slow statements or locks; runbook GuerdonConnectionsExhausted.",
                    (f"sum by (pool, state) (guerdon_pool_connections{{{J}}})", "{{pool}} {{state}}"),
                    (f"sum by (pool) (guerdon_pool_connections_max{{{J}}})", "{{pool}} at most"),
                ),
                panel(
                    "Waits for a connection",
                    "s",
                    "p99, by pool. Above a few ms: raise postgres_connections_max, or find what holds them.",
                    (quantile(0.99, "guerdon_pool_wait_seconds", J, "pool"), "{{pool}}"),
                ),
                panel(
                    "Waiting callers",
                    "short",
                    "For a connection, now. Not 0 for long: as above.",
                    (f"sum by (pool) (guerdon_pool_waiting{{{J}}})", "{{pool}}"),
                ),
                panel(
                    "Commits",
                    "ops",
                    "A second, and what happened to them. unknown: no answer in time, resolved by"
                    " fences. poison: an item that the ledger can't book, a defect: look at the log.",
                    (rate("guerdon_batch_seconds_count", f'{J}, stage="commit"'), "commits"),
                    (rate("guerdon_commit_events_total", J, "event"), "{{event}}"),
                ),
            ),
        ),
        Row(
            "Redis and the gate",
            (
                panel(
                    "Memory",
                    "bytes",
                    "Used, and maxmemory (0: no limit). Full, the gate admits nobody: runbook GuerdonRedisNearlyFull.",
                    (f"max(guerdon_redis_memory_bytes{{{J}}})", "used"),
                    (f"max(guerdon_redis_memory_max_bytes{{{J}}})", "maxmemory"),
                ),
                panel(
                    "Gate",
                    "ops",
                    "opened, adopted, closed: new epochs, after Redis was lost or restarted. unavailable:"
                    " Redis did not answer. dropped: settlements that the sweeper will make up for.",
                    (rate("guerdon_gate_events_total", f'{J}, event!~"settled|drifts"', "event"), "{{event}}"),
                ),
                panel(
                    "Comparisons with the ledger",
                    "ops",
                    "Every second for each running promotion. drifted: see the"
                    " next panel. None: runbook GuerdonSweeperStuck.",
                    (rate("guerdon_gate_reconciliations_total", J, "result"), "{{result}}"),
                ),
                DRIFT,
            ),
        ),
        Row(
            "Admissions",
            (
                panel(
                    "Open",
                    "short",
                    "Requests between gate and settlement. Grows only while PostgreSQL is slow or away.",
                    (f"max(guerdon_open_admissions{{{J}}})", "open"),
                ),
                OPEN_AGE,
                panel(
                    "Fenced",
                    "ops",
                    "Admissions that nobody settled, ruled out by a fence; of dead servers, mostly.",
                    (rate("guerdon_fenced_admissions_total", J, "found"), "{{found}}"),
                ),
                panel(
                    "Sweeper",
                    "ops",
                    "Rounds, by how they ended. No `done`: runbook GuerdonSweeperStuck.",
                    (rate("guerdon_sweeps_total", J, "result"), "{{result}}"),
                ),
            ),
        ),
    ),
)

_WINDOWS = ("5m", "1h", "6h", "3d")


def objective(what: str, series: str, budget: float, *, bad: str, every: str, alert: str) -> Row:
    """bad, every: increase over the range; what is left of the budget, and how fast it burns."""
    return Row(
        what,
        (
            stat(
                "Kept",
                "percentunit",
                f"Over the range that is shown. Objective: {1 - budget:.3%}.",
                f"1 - {bad} / {every}",
                limits=(1 - 2 * budget, 1 - budget),
                falling=True,
                minimum=None,
                maximum=1,
            ),
            stat(
                "Left of the budget",
                "percentunit",
                "What may still go wrong in the range that is shown. Below 0: stop risky changes, mend first.",
                f"1 - ({bad} / {every}) / {budget}",
                limits=(0, 0.25),
                falling=True,
                minimum=None,
                maximum=1,
            ),
            panel(
                "Burn rate",
                "short",
                f"1: the budget lasts 30 days. 14.4: 2 days; this pages. Runbook {alert}.",
                *((f"{series}:ratio_rate{window}{{{J}}} / {budget}", window) for window in _WINDOWS),
                limits=(6, 14.4),
            ),
        ),
    )


_SLOW = 'grpc_method="IssuePrize"'
SLO = Dashboard(
    name="slo",
    title="objectives",
    about="Two objectives over 30 days. Needs deploy/prometheus/recording.yml.",
    since="30d",
    refresh="1m",
    rows=(
        objective(
            "99.9 % of calls do not fail by our fault",
            "guerdon:call_errors",
            0.001,
            bad=f"sum(increase(grpc_server_handled_total{{{FAILED}}}[$__range]))",
            every=f"sum(increase(grpc_server_handled_total{{{RPC}}}[$__range]))",
            alert="GuerdonAvailabilityBurn",
        ),
        objective(
            "99 % of IssuePrize within 50 ms",
            "guerdon:slow_issues",
            0.01,
            bad=f"(sum(increase(grpc_server_handling_seconds_count{{{J}, {_SLOW}}}[$__range]))"
            f' - sum(increase(grpc_server_handling_seconds_bucket{{{J}, {_SLOW}, le="0.05"}}[$__range])))',
            every=f"sum(increase(grpc_server_handling_seconds_count{{{J}, {_SLOW}}}[$__range]))",
            alert="GuerdonLatencyBurn",
        ),
        Row(
            "What burns it",
            (
                panel(
                    "Failed calls by status",
                    "reqps",
                    "Which fault: see `Calls by status` in the overview.",
                    (rate("grpc_server_handled_total", FAILED, "grpc_code"), "{{grpc_code}}"),
                    stacked=True,
                ),
                panel(
                    "Failed calls by method",
                    "reqps",
                    "Whose calls fail: ask them first what they see.",
                    (rate("grpc_server_handled_total", FAILED, "grpc_method"), "{{grpc_method}}"),
                    stacked=True,
                ),
                panel(
                    "Items that failed inside of batches",
                    "reqps",
                    "A batch answers OK although items failed; these are"
                    " not in the objective above. Callers repeat them.",
                    (rate("guerdon_outcomes_total", f'{J}, outcome="error"'), "items"),
                ),
            ),
        ),
    ),
)

DASHBOARDS = (OVERVIEW, PROMOTION, ENGINES, SLO)
