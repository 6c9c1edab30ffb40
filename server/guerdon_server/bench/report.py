"""What a person sees of a bench."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.table import Table

from guerdon_server.bench.open_loop import Offered
from guerdon_server.bench.result import GENERATOR, POSTGRES, SERVER, VALKEY, Figure, Result, Verdict, Window
from guerdon_server.bench.servers import PROCESSES, Compared, Servers
from guerdon_server.bench.soak import Sample, Soak


class Screen:
    """Writes to one console: a line that changes while it runs, a table at the end."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._status: Status | None = None

    def step(self, text: str) -> None:
        self._tell(f"{text} …")

    def window(self, title: str, number: int, window: Window) -> None:
        which = f"round {number}" if number else "warm-up"
        self._tell(
            f"{which}: {title} {window.calls_per_second:,.0f} calls/s,"
            f" server {window.cpu_us_per_call[SERVER]:,.0f} µs a call …"
        )

    def offered(self, title: str, number: int, offered: Offered) -> None:
        self._tell(
            f"round {number}: {title} at {offered.share:g} x capacity: {offered.goodput:,.0f} of {offered.rate:,.0f}"
            f" calls/s, p99 {offered.p99_ms:,.0f} ms …"
        )

    def sampled(self, sample: Sample) -> None:
        self.console.print(
            f"{sample.minutes:5.1f} min {sample.grants:>10,} grants {sample.granted_per_second:>6,.0f}/s"
            f"  MB: server {_megabytes(*sample.server_bytes)}, PostgreSQL {_megabytes(sample.postgres_bytes)},"
            f" Valkey {_megabytes(sample.valkey_bytes)}, disk {_megabytes(sample.database_bytes)}"
        )

    def end(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def summary(self, result: Result) -> None:
        """Everything, or why there is nothing."""
        self.end()
        if result.error:
            self.console.print(f"The bench stopped: {result.error}", style="bold red", markup=False)
        if result.about:
            self._surroundings(result)
        if result.servers:
            for table in _servers(result.servers):
                self.console.print(table)
        if result.soak and result.soak.samples:
            self._soak(result.soak)
        if result.rows:
            self.console.print(_throughput(result))
            self.console.print(_costs(result))
        if result.open_rows:
            self.console.print(_open_loop(result))
        for title, verdict in result.verdicts:
            self._verdict(title, verdict)
        if result.invariants:
            wrong = [check for check in result.invariants if not check.ok]
            compared = sum(check.compared for check in result.invariants)
            text = f"books: {len(result.invariants)} invariants, {compared:,} comparisons, {len(wrong)} violated"
            self.console.print(("✗ " if wrong else "✓ ") + text, style="red" if wrong else "green")
            for check in wrong:
                self.console.print(f"    {check.promise} {'; '.join(check.violations)}", style="red", markup=False)

    def _tell(self, text: str) -> None:
        if self._status is None:
            self._status = self.console.status(text)
            self._status.start()
        self._status.update(text)

    def _surroundings(self, result: Result) -> None:
        machine, versions, options = (result.about[name] for name in ("machine", "versions", "options"))
        self.console.print(
            f"{machine['cpu']}, {machine['cores_used']} of {machine['cores_there']} cores for generator, server,"
            f" PostgreSQL {versions['postgres']} (fsync {options['postgresql_fsync']}, huge pages"
            f" {options['postgresql_huge_pages_status']}) and Valkey"
            f" {versions['valkey']}; Python {versions['python']}, grpcio {versions['grpcio']};"
            f" {_how_long(options)}",
            markup=False,
        )
        if options["generator"] == "python":
            self.console.print(
                f"The generator is the Python one ({options['generator_note'] or 'as asked'}), which takes the server's"
                " cores. Read the CPU per call, not the throughput.",
                style="yellow",
                markup=False,
            )
        windows = _windows(result)
        elsewhere = max((window.elsewhere_cores for window in windows), default=0.0)
        if elsewhere > 0.1:
            self.console.print(
                f"Others kept up to {elsewhere:.1f} cores busy meanwhile: throughput is less than it could be.",
                style="yellow",
            )

        refused, items = sum(window.refused for window in windows), sum(window.refused_items for window in windows)
        if refused or items:
            self.console.print(
                f"{refused:,} calls, and {items:,} items of others, were refused as OVERLOADED although few were in"
                " flight: the machine was too busy to measure anything on it.",
                style="yellow",
            )

    def _soak(self, soak: Soak) -> None:
        first, last = soak.fifths
        echo_first, echo_last = soak.echo_fifths
        end = soak.samples[-1]
        self.console.print(
            f"{end.grants:,} grants; {_number(first)} a second in the first fifth, {_number(last)} in the last; bytes a"
            f" grant: database {end.database_bytes / end.grants:,.0f}, Valkey {end.valkey_bytes / end.grants:,.0f}"
        )
        self.console.print(
            f"A bare echo of the same calls meanwhile: {_number(echo_first)} a second, and {_number(echo_last)}: the"
            f" machine itself was {echo_last / echo_first:.2f} times as fast."
        )

    def _verdict(self, title: str, verdict: Verdict) -> None:
        mark, style = ("✓", "green") if verdict.ok else ("✗", "red")
        self.console.print(
            f"{mark} {title}: {verdict.what} {_number(verdict.target)}: {_number(verdict.measured)}",
            style=style,
            markup=False,
        )


def _how_long(options: Mapping[str, Any]) -> str:
    if options["soak_minutes"]:
        return f"{options['soak_minutes']:g} minutes"
    return f"{options['rounds']} rounds of {options['seconds']:g} s, interleaved; medians (least-most)"


def _windows(result: Result) -> Sequence[Window]:
    found = [window for row in result.rows for window in row.windows]
    found += [window for row in (result.servers.rows if result.servers else ()) for window in row.windows]
    return [*found, *(sample.window for sample in (result.soak.samples if result.soak else ()))]


def _servers(servers: Servers) -> Iterator[Table]:
    predicted = {id(row): compared for row, compared in servers.throughput()}
    table = _table("servers", "grants/s", "least-most", "model", "off", "call ms", "waiting")
    costs = _table("µs of CPU per grant", "server", "postgres", "valkey", "client", "a commit", "ms")
    for row in servers.rows:
        granted = row.granted_per_second
        title = f"{row.servers}, {row.workload.title}"
        table.add_row(
            title,
            _number(granted.median),
            f"{granted.least:,.0f}-{granted.most:,.0f}",
            *_compared(predicted.get(id(row))),
            *(f"{figure.median:.1f}" for figure in (row.call_ms, row.waiting_ms)),
        )
        costs.add_row(
            title,
            *(f"{row.cpu_us_per_item(process).median:.1f}" for process in PROCESSES),
            _number(row.items_per_commit.median),
            f"{row.commit_ms.median:.1f}",
        )
    yield table
    yield costs
    if servers.offered:
        table = _table("at random moments", "× capacity", "calls/s", "mean ms", "model", "off", "p99 ms")
        for offered, compared in servers.latency():
            table.add_row(
                f"{offered.servers} server{'s' if offered.servers > 1 else ''}",
                f"{offered.share:g}",
                _number(offered.median("rate")),
                f"{compared.measured:.1f}",
                *_compared(compared),
                f"{offered.median('p99_ms'):.1f}",
            )
        yield table


def _compared(compared: Compared | None) -> tuple[str, str]:
    """The model's figure, and by how much it is off."""
    if compared is None:
        return "", ""
    if compared.predicted is None or compared.off is None:
        return "no steady state", ""
    return _number(compared.predicted), f"{compared.off:+.0%}"


def _megabytes(*sizes: int) -> str:
    return " ".join(f"{size / 1e6:,.0f}" for size in sizes)


def _throughput(result: Result) -> Table:
    table = _table("throughput", "calls/s", "grants/s", "least-most", "p50 ms", "p99 ms")
    table.add_row("bare echo", _number(Figure.of(w.calls_per_second for w in result.echo_windows).median))
    for row in result.rows:
        granted = row.granted_per_second
        table.add_row(
            row.title,
            _number(row.calls_per_second.median),
            _number(granted.median) if granted.most else "-",
            f"{granted.least:,.0f}-{granted.most:,.0f}" if granted.most else "-",
            f"{row.p_ms('p50_ms'):.1f}",
            f"{row.p_ms('p99_ms'):.1f}",
        )
    return table


def _costs(result: Result) -> Table:
    table = _table("µs of CPU per item", "server", "× echo", "least-most", "postgres", "valkey", "client")
    echo, generator = (
        Figure.of(window.cpu_us_per_call[process] for window in result.echo_windows) for process in (SERVER, GENERATOR)
    )
    table.add_row("bare echo", f"{echo.median:.1f}", "1", "", "", "", f"{generator.median:.1f}")
    for row in result.rows:
        ratio = row.echo_ratio
        table.add_row(
            row.title,
            f"{row.cpu_us_per_item(SERVER).median:.1f}",
            f"{ratio.median / row.items_per_call:.2f}",
            f"{ratio.least / row.items_per_call:.2f}-{ratio.most / row.items_per_call:.2f}",
            *(f"{row.cpu_us_per_item(process).median:.1f}" for process in (POSTGRES, VALKEY, GENERATOR)),
        )
    return table


def _open_loop(result: Result) -> Table:
    table = _table("on a schedule", "× capacity", "kept", "least-most", "p50 ms", "p99 ms", "most ms", "refused")
    for alone in result.alone_rows:
        ms = [f"{alone.p_ms(which):.1f}" for which in ("p50_ms", "p99_ms", "most_ms")]
        table.add_row(alone.title, "", "", "", *ms, "")
    for row in result.open_rows:
        table.add_row(
            row.title,
            f"{row.share:g}",
            f"{row.kept.median:.2f}",
            f"{row.kept.least:.2f}-{row.kept.most:.2f}",
            *(f"{row.p_ms(which):.1f}" for which in ("p50_ms", "p99_ms", "most_ms")),
            f"{row.refused_share():.0%}",
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
