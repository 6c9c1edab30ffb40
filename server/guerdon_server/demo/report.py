"""What a person sees of the demo: what will happen, phases with their times, a table at the end. One screen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from time import perf_counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from guerdon_server.demo.comparison import Row, dollars
from guerdon_server.demo.delivery import Delivery
from guerdon_server.demo.result import DeliveryOutcome, Result
from guerdon_server.demo.scenario import CASHBACK_CAP_CENTS, PrizeName, Scenario

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_REFRESH_SECONDS = 0.1
_NAME_WIDTH = 45
_FIGURE_WIDTHS = (17, 13)
_UNITS = {PrizeName.CASHBACK: dollars, PrizeName.COUPON: "{:,}".format, PrizeName.COINS: "{:,}".format}


class Screen:
    """Writes to one console; phases add their seconds to `seconds`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}

    def opening(self, result: Result, scenario: Scenario, *, twins: int, kept: bool, crash: bool) -> None:
        """Say what will happen and where the data lies."""
        asks = 3 * result.purchases
        self._print(
            f"Guerdon demo: {result.purchases:,} real purchases (CDNOW, 1997-98), {asks:,} reward requests",
            style="bold",
        )
        self._print(
            f"Each purchase asks for 5 % cashback (at most {dollars(CASHBACK_CAP_CENTS)}; budget"
            f" {dollars(scenario.cashback_budget_cents)}), a welcome coupon (one each; {scenario.coupon_stock:,} for"
            f" {result.customers:,} customers) and a coin per CD, in date order; {twins:,} purchases are delivered"
            " twice at the same moment. Then every total of the ledger is compared with the file, and everything is"
            " delivered once more."
        )
        if crash:
            self._print("On the way the server is killed (SIGKILL) three times and started again.")
        self._print(
            "PostgreSQL (fsync on), Valkey and the server run as our children on 127.0.0.1. Data:"
            f" {result.data} ({'kept' if kept else 'removed at the end'})"
        )
        self._print()

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[str], None]]:
        """One step: its line appears when it is done, with its seconds and what was noted."""
        notes: list[str] = []
        started = perf_counter()
        with self.console.status(f"{name} …"):
            yield notes.append
        self._done(name, perf_counter() - started, " ".join(notes))

    @asynccontextmanager
    async def delivering(self, name: str, delivery: Delivery, total: int) -> AsyncIterator[None]:
        """A step with a bar, which follows the delivery; a line each quarter where there is no terminal."""
        started = perf_counter()
        columns = (BarColumn(bar_width=14), MofNCompleteColumn(), TextColumn("{task.fields[counts]}"))
        quiet = not self.console.is_terminal  # a bar in a file is a page of rubbish
        with Progress(*columns, console=self.console, transient=True, auto_refresh=False, disable=quiet) as progress:
            task = progress.add_task(name, total=total, counts="")

            quarters = [3, 2, 1]

            def show() -> None:
                progress.update(task, completed=delivery.settled_count, counts=_counts(delivery), refresh=True)
                if quiet and quarters and 4 * delivery.settled_count >= quarters[-1] * total:
                    self._print(f"  {25 * quarters.pop()} %: {_counts(delivery)}", style="dim")

            follower = asyncio.create_task(_repeat(show))
            try:
                yield
            finally:
                follower.cancel()
                with suppress(asyncio.CancelledError):
                    await follower
                show()
        self._done(name, perf_counter() - started, _counts(delivery))

    def _done(self, name: str, seconds: float, note: str) -> None:
        self.seconds[name] = round(seconds, 3)
        self._print(Text.assemble(("✓ ", "green"), f"{name:<34}{seconds:6.1f} s  ", (note, "dim")))

    def summary(self, result: Result) -> None:
        """The tables at the end, and the verdict."""
        self._print()
        if result.first is not None:
            self.console.print(_prizes(result.first))
            self._print(_speed(result.first), style="dim")
        for crash in result.crashes:
            self._print(
                f"Killed when {crash.moment}, after {crash.answer_count:,} answers: back after {crash.away_seconds:.1f}"
                f" s, {crash.lost_count:,} requests without an answer, delivered again."
            )
        self._print()
        self._rows("Ledger and file", ("ledger", "from the file"), result.from_file)
        self._rows("Promises", ("found", "must be"), (*result.promises, *result.unchanged))
        self._verified(result.verified)
        self._verdict(result)

    def _rows(self, title: str, columns: tuple[str, str], rows: Sequence[Row]) -> None:
        if not rows:
            return
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("")
        table.add_column(title, width=_NAME_WIDTH, no_wrap=True)
        for column, width in zip(columns, _FIGURE_WIDTHS, strict=True):
            table.add_column(column, justify="right", min_width=width, no_wrap=True)
        for row in rows:
            table.add_row(_mark(row.ok), row.name, row.found, row.expected, style="" if row.ok else "bold red")
        self.console.print(table)

    def _verified(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if not row.ok:
                self._print(Text.assemble(_mark(ok=False), f" verify: {row.name}: {row.found} ({row.expected})"))
        if rows and all(row.ok for row in rows):
            self._print(
                Text.assemble(_mark(ok=True), f" guerdon verify: {len(rows)} invariants of the books and gate hold")
            )

    def _verdict(self, result: Result) -> None:
        wrong = sum(not row.ok for row in result.rows)
        if result.passed:
            self._print(
                f"All {len(result.rows)} checks hold, in {sum(self.seconds.values()):.0f} s.", style="bold green"
            )
        elif result.error:
            self._print(f"The demo stopped: {result.error}", style="bold red")
        else:
            self._print(f"{wrong} of {len(result.rows)} checks failed.", style="bold red")
        if result.data_kept:
            self._print(f"Data and logs: {result.data}")

    def _print(self, text: str | Text = "", style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, highlight=False)


async def _repeat(show: Callable[[], None]) -> None:
    while True:
        show()
        await asyncio.sleep(_REFRESH_SECONDS)


def _counts(delivery: Delivery) -> str:
    answers = delivery.answers
    rejected = len(answers.by_request) - answers.granted.total()
    lost = f", {answers.lost_count:,} lost" if answers.lost_count else ""
    return f"{answers.granted.total():,} granted, {rejected:,} rejected{lost}"


def _prizes(outcome: DeliveryOutcome) -> Table:
    table = Table(box=None, pad_edge=False)
    for column, justify in (("prize", "left"), ("granted", "right"), ("value", "right"), ("rejected", "left")):
        table.add_column(column, justify="right" if justify == "right" else "left", min_width=10)
    for name, prize in outcome.prizes.items():
        amount = _UNITS[PrizeName(name)](prize.units) if prize.units else "-"
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in prize.rejected.items())
        table.add_row(name, f"{prize.granted:,}", amount, reasons or "-")
    return table


def _speed(outcome: DeliveryOutcome) -> str:
    grants = f"{outcome.new_grants_per_second:,.0f} durable grants/s, " if outcome.new_grants else ""
    again = f", {outcome.asked_again:,} asked again for what was given back" if outcome.asked_again else ""
    return (
        f"{outcome.answers:,} answers in {outcome.seconds:.1f} s, {outcome.replays:,} of them replays{again}: {grants}"
        f"{outcome.answers_per_second:,.0f} answers/s; p50 {outcome.latency_ms_p50:.1f} ms,"
        f" p99 {outcome.latency_ms_p99:.1f} ms"
    )


def _mark(ok: bool) -> Text:
    return Text("✓", style="green") if ok else Text("✗", style="bold red")
