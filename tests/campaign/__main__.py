"""`python -m tests.campaign`: see scripts/campaign."""

from __future__ import annotations

import asyncio
import secrets
import sys
from itertools import islice
from pathlib import Path

import click
import uvloop
from rich.console import Console

from tests.campaign.faults import FAULTS
from tests.campaign.plan import rounds
from tests.campaign.rounds import Played
from tests.campaign.run import Options, run

_POSITIVE = click.FloatRange(0, min_open=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    default=3.0,
    show_default=True,
    help="How long new rounds are begun.",
)
@click.option("--seed", type=int, help="Of the schedule of faults and of the load; one is drawn if it is missing.")
@click.option("--fault", "only", multiple=True, help="Only this one (may be repeated); --list names them.")
@click.option(
    "--scale", type=click.FloatRange(0.1, 10), default=1.0, show_default=True, help="Multiplies how long faults last."
)
@click.option("--servers", type=click.IntRange(2, 8), default=2, show_default=True, help="Server processes.")
@click.option("--first", type=click.IntRange(1), default=1, help="Begin with this round of the seed's schedule.")
@click.option("--rounds", "rounds_max", type=click.IntRange(1), default=1_000_000, help="At most so many rounds.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the report there.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep logs of broken rounds there.")
@click.option("--list", "listing", is_flag=True, help="Name the faults and how each is done, and stop.")
@click.option("--plan", type=click.IntRange(1), help="Print so many rounds of the seed's schedule, and stop.")
def main(
    *,
    minutes: float,
    seed: int | None,
    only: tuple[str, ...],
    scale: float,
    servers: int,
    first: int,
    rounds_max: int,
    json_path: Path | None,
    keep: Path | None,
    listing: bool,
    plan: int | None,
) -> None:
    """Attack Guerdon and look whether its promises hold.

    Real PostgreSQL (a primary and a synchronous standby), real Valkey (a primary and a replica) and several servers are
    started on this machine, with proxies between them. Callers issue, repeat, batch, cancel and read; operators pause,
    recall and change rules; faults strike in the order that the seed gives. Everything that callers were told is
    compared with the ledger, in SQL of the campaign's own, and with a sequential model. The end is a table of faults
    and a table of promises; the exit status is 1 if one of them was broken.

    \b
      scripts/campaign                          3 minutes, a seed of its own
      scripts/campaign --minutes 30 --seed 7    longer; the same seed gives the same schedule
      scripts/campaign --fault redis-frozen --rounds 1
    """
    console = Console(width=None if sys.stdout.isatty() else 160)
    names = [fault.name for fault in FAULTS]
    if unknown := sorted(set(only) - set(names)):
        raise click.BadParameter(
            f"{', '.join(unknown)}: no such fault; there are {', '.join(names)}", param_hint="fault"
        )
    if listing:
        for fault in FAULTS:
            console.print(f"{fault.name:<28} {fault.how}", highlight=False)
        return
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    if plan is not None:
        for planned in islice(rounds(seed, only=only), plan):
            console.print(f"{planned.number:>4}  {', '.join(map(str, planned.strikes))}", highlight=False)
        return
    console.print(f"seed {seed}, {minutes:g} minutes, {servers} servers; Ctrl-C stops", highlight=False)
    options = Options(seed, minutes, only, servers, scale, rounds_max, first, keep)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(run(options, lambda played: _tell(console, played)))
    report.show(console)
    if json_path is not None:
        report.save(json_path)
    sys.exit(0 if report.held else 1)


def _tell(console: Console, played: Played) -> None:
    recovery = "".join(f" {seconds:.1f} s" for seconds in played.recovery_seconds.values())
    mark = "[red]✗[/]" if played.findings.broken or played.error else "[green]✓[/]"
    strikes = ", ".join(map(str, played.round.strikes))
    notes = "; ".join(note for of_fault in played.notes.values() for note in of_fault)
    console.print(
        f"{mark} {played.round.number:>3}  {strikes:<58} {played.calls:>6,} calls  {played.unknown:>3} resolved "
        f" recovered{recovery or ' -'}  ({played.seconds:.0f} s) [dim]{notes}[/]",
        highlight=False,
        soft_wrap=True,
    )
    for promise, text in played.findings.broken:
        console.print(f"        [red]{promise}[/]: {text[:600]}", highlight=False, soft_wrap=True)
    if played.error:
        console.print(f"        [red]{played.error}[/]", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main(prog_name="scripts/campaign")
