"""What a person sees of a run: how far it is, and at the end the verdict in tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from loadtest.run import Outcome
from loadtest.verdict import Judged, Verdict

_LINE_EVERY = 10  # where there is no terminal: a line that changes would be a page of rubbish


class Screen:
    """Writes to one console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._status: Status | None = None
        self._told = 0

    def step(self, text: str) -> None:
        """Something begins."""
        if self.console.is_terminal:
            self._tell(f"{text} …")
        else:
            self.console.print(f"{text} …", markup=False)

    def progress(self, told: Mapping[str, Any]) -> None:
        """What the generator told."""
        failed = f", {told['failed']:,} failed" if told["failed"] else ""
        text = (
            f"phase {told['phase'] or '-'}: {told['users']:,} users, {told['calls_per_second']:,.0f} calls/s,"
            f" p99 {told['p99_ms']:,.0f} ms; {told['calls']:,} calls{failed}"
        )
        if self.console.is_terminal:
            self._tell(text)
        elif self._told % _LINE_EVERY == 0:
            self.console.print(f"  {text}", markup=False, soft_wrap=True)
        self._told += 1

    def end(self) -> None:
        """No more progress."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def summary(self, outcome: Outcome) -> None:
        """The tables, and what was missed."""
        self.end()
        verdict = outcome.verdict
        self.console.print(phases_table(verdict))
        self.console.print(_outcomes_table(outcome))
        self.console.print(_rows_table(verdict))
        for error, count in outcome.drive.tally.errors.most_common(10):
            self.console.print(f"  {count:,} × {error}", style="yellow", markup=False, soft_wrap=True)
        for note in verdict.notes:
            self.console.print(note, style="yellow", markup=False)
        for miss in verdict.misses:
            self.console.print(f"✗ {miss}", style="red", markup=False, soft_wrap=True)
        text = f"{outcome.options.suite}, profile {outcome.options.profile.name}: "
        text += "every target was kept" if verdict.passed else f"FAILED, {len(verdict.misses)} missed"
        self.console.print(text, style="bold green" if verdict.passed else "bold red", markup=False)

    def _tell(self, text: str) -> None:
        if self._status is None:
            self._status = self.console.status(text)
            self._status.start()
        self._status.update(text)


def phases_table(verdict: Verdict) -> Table:
    """A line for each phase."""
    table = Table("", "phase", title="Phases", title_justify="left")
    for column in ("calls/s wanted", "achieved", "ratio", "p50 ms", "p99 ms", "errors", "generator, % of a core"):
        table.add_column(column, justify="right")
    for judged in verdict.phases:
        figures = judged.figures
        cpu = figures.generator_cpu
        table.add_row(
            mark(judged),
            Text(figures.phase.name),
            f"{figures.phase.calls_per_second:,.0f}",
            f"{figures.right_per_second:,.1f}",
            f"{figures.achieved_ratio:.3f}",
            f"{figures.calls.percentile_ms(0.5):,.1f}",
            f"{figures.calls.percentile_ms(0.99):,.1f}",
            f"{figures.calls.failed:,}",
            "-" if cpu is None else f"{100 * cpu:.0f}",
        )
    return table


def mark(judged: Judged) -> str:
    """Kept, missed, or past its targets where none had to be kept."""
    if not judged.misses:
        return "[green]✓[/]"
    return "[red]✗[/]" if judged.figures.phase.judged else "[yellow]·[/]"


def _outcomes_table(outcome: Outcome) -> Table:
    table = Table("answers", title="Answers", title_justify="left")
    table.add_column("count", justify="right")
    for name, count in sorted(outcome.drive.tally.outcomes.items()):
        table.add_row(Text(name), f"{count:,}")
    return table


def _rows_table(verdict: Verdict) -> Table:
    table = Table("", "looked at", "found", "must be", title="Over the whole run", title_justify="left")
    for row in verdict.rows:
        table.add_row("[green]✓[/]" if row.ok else "[red]✗[/]", *map(Text, (row.name, row.found, row.must_be)))
    return table
