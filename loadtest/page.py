"""What a run leaves: report.html for people, result.json for machines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from loadtest.plan import Driven, write_json
from loadtest.plot import COLOURS, Band, Line, plot
from loadtest.run import Outcome
from loadtest.suites import titles
from loadtest.tally import total

_LINES_MAX = len(COLOURS)


@dataclass(frozen=True, slots=True)
class _Plot:
    title: str
    lines: list[Line]
    drawing: Markup


def write_page(outcome: Outcome) -> Path:
    """Write both into the run's folder; the path of the page."""
    folder = outcome.options.folder
    write_json(folder / "result.json", document(outcome))
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    )
    options, verdict, tally = outcome.options, outcome.verdict, outcome.drive.tally
    page = template.render(
        suite=options.suite,
        title=titles()[options.suite],
        profile=options.profile.name,
        where=options.host or "PostgreSQL, Valkey and a server of its own",
        hosted=bool(options.host),
        about=outcome.about,
        verdict=verdict,
        plots=list(_plots(outcome)),
        colours=COLOURS,
        calls=_calls(outcome),
        errors=tally.errors.most_common(50),
        settle=f"{options.profile.suite(options.suite).settle_seconds:g}",
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def document(outcome: Outcome) -> dict[str, Any]:
    """Everything, for machines."""
    verdict = outcome.verdict
    return {
        "suite": outcome.options.suite,
        "profile": outcome.options.profile.name,
        "host": outcome.options.host,
        **outcome.about,
        "passed": verdict.passed,
        "misses": verdict.misses,
        "notes": verdict.notes,
        "phases": [
            {
                **asdict(judged.figures.phase),
                "seconds_judged": judged.figures.seconds,
                "calls": judged.figures.calls.count,
                "failed": judged.figures.calls.failed,
                "achieved_ratio": round(judged.figures.achieved_ratio, 4),
                **{
                    f"p{100 * share:g}_ms": round(judged.figures.calls.percentile_ms(share), 2)
                    for share in (0.5, 0.95, 0.99)
                },
                "cores": {name: round(cores, 3) for name, cores in judged.figures.cpu.items()},
                "misses": judged.misses,
            }
            for judged in verdict.phases
        ],
        "checks": [asdict(row) for row in verdict.rows],
        "tally": outcome.drive.tally.to_json(),
        "targets": asdict(outcome.options.profile.suite(outcome.options.suite).targets),
    }


def _calls(outcome: Outcome) -> list[dict[str, Any]]:
    tally = outcome.drive.tally
    found = []
    for name in tally.names:
        answers = {key.split(": ", 1)[1]: n for key, n in tally.outcomes.items() if key.split(": ", 1)[0] == name}
        found.append(
            {
                "name": name,
                "calls": total(calls for (_, called), calls in tally.calls.items() if called == name),
                "answers": ", ".join(f"{count:,} {answer}" for answer, count in sorted(answers.items())),
            }
        )
    return found


def _plots(outcome: Outcome) -> Iterator[_Plot]:
    phases = outcome.drive.phases
    if not phases:
        return
    zero, end = phases[0].begin, phases[-1].end
    bands = [Band(driven.phase.name, driven.begin - zero, driven.end - zero) for driven in phases]
    for title, lines in (
        ("Calls a second", _rates(outcome, zero, end)),
        ("Latency, ms", _latencies(outcome, zero, end)),
        ("Cores used by process", _cores(outcome, zero, end)),
        ("Memory of the server, MB", _memory(outcome, zero, end)),
    ):
        if any(line.points for line in lines):
            yield _Plot(title, lines, plot(lines, bands))


def _rates(outcome: Outcome, zero: float, end: float) -> list[Line]:
    """Whole seconds only: the first and the last are cut."""
    seconds = {at: calls for at, calls in outcome.drive.tally.by_second().items() if zero <= at and at + 1 <= end}
    wanted = _steps(outcome.drive.phases, zero, lambda driven: driven.phase.calls_per_second)
    return [
        Line("right answers", [(at + 0.5 - zero, calls.count - calls.failed) for at, calls in seconds.items()]),
        Line("failed", [(at + 0.5 - zero, calls.failed) for at, calls in seconds.items()]),
        Line("wanted", wanted, dashed=True),
    ]


def _latencies(outcome: Outcome, zero: float, end: float) -> list[Line]:
    seconds = {at: calls for at, calls in outcome.drive.tally.by_second().items() if zero <= at and at + 1 <= end}
    targets = outcome.options.profile.suite(outcome.options.suite).targets
    limit = _steps(outcome.drive.phases, zero, lambda driven: driven.phase.p99_ms_max or targets.p99_ms_max)
    seen = [
        Line(f"p{100 * share:g}", [(at + 0.5 - zero, calls.percentile_ms(share)) for at, calls in seconds.items()])
        for share in (0.5, 0.99)
    ]
    most = max((y for line in seen for _, y in line.points), default=0.0)
    # A limit far above everything would press the curves flat; it is in the table.
    shown = [Line("p99 allowed", limit, dashed=True)] if min(y for _, y in limit) <= 4 * most else []
    return [*seen, *shown]


def _cores(outcome: Outcome, zero: float, end: float) -> list[Line]:
    samples = [sample for sample in outcome.samples if zero <= sample.at <= end]
    names = sorted({name for sample in samples for name in sample.cpu_seconds})[:_LINES_MAX]
    return [
        Line(
            name,
            [
                (after.at - zero, (after.cpu_seconds[name] - before.cpu_seconds[name]) / (after.at - before.at))
                for before, after in pairwise(samples)
                if name in before.cpu_seconds and name in after.cpu_seconds
            ],
        )
        for name in names
    ]


def _memory(outcome: Outcome, zero: float, end: float) -> list[Line]:
    points = [
        (sample.at - zero, sample.server_bytes / 1e6)
        for sample in outcome.samples
        if zero <= sample.at <= end and sample.server_bytes
    ]
    return [Line("resident", points)]


def _steps(phases: list[Driven], zero: float, value: Any) -> list[tuple[float, float]]:
    return [(at - zero, value(driven)) for driven in phases for at in (driven.begin, driven.end)]
