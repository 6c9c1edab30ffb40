"""`python -m loadtest`: see scripts/loadtest."""

from __future__ import annotations

import asyncio
import datetime as dt
import signal
import sys
from pathlib import Path

import click
import uvloop
from rich.console import Console

from guerdon_server.platform.engines import process as engine_processes
from loadtest import profile as profiles
from loadtest.errors import LoadTestError
from loadtest.page import write_page
from loadtest.run import Options, Outcome, run
from loadtest.screen import Screen
from loadtest.suites import titles

_INTERRUPTED = 130
_FILE_WIDTH = 140


def _epilog() -> str:
    lines = "\n".join(f"  {name:<12}  {title}" for name, title in titles().items())
    return f"\b\nSuites:\n{lines}\n\n\b\nProfiles: {', '.join(profiles.names())}, or a TOML file of your own."


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=_epilog())
@click.argument("suite", type=click.Choice(list(titles())))
@click.option(
    "--profile",
    "profile_name",
    metavar="NAME|FILE",
    default="small",
    show_default=True,
    help="Rates and targets for a machine of a size: ci (a busy one), small (2 cores), medium (8), or a TOML file.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 256),
    help="Of the generator; one uses at most one core. [default: the profile's]",
)
@click.option("--web", is_flag=True, help="Show Locust's own page on 127.0.0.1 while it runs.")
@click.option("--web-port", type=click.IntRange(1, 65535), help="Of that page. [default: a free one]")
@click.option(
    "--host",
    metavar="HOST:PORT",
    default="",
    help="Load a system that runs there instead of one of our own. It gets promotions, prizes and grants that stay.",
)
@click.option(
    "--ca",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Speak TLS to it, and trust a server whose certificate one of these has signed (PEM).",
)
@click.option(
    "--postgres-dsn",
    metavar="DSN",
    envvar="GUERDON_POSTGRES_DSN",
    default="",
    help="PostgreSQL of that system. Its books are verified only if both stores are named; otherwise the verdict says"
    " that they were not. [env var: GUERDON_POSTGRES_DSN]",
)
@click.option(
    "--redis-url",
    metavar="URL",
    envvar="GUERDON_REDIS_URL",
    default="",
    help="Redis or Valkey of that system. [env var: GUERDON_REDIS_URL]",
)
@click.option(
    "--report",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where report.html, locust.html, result.json and the logs go. [default: .guerdon/loadtest/SUITE-TIME]",
)
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False, writable=True),
    help="A folder on the disk to be loaded; what is written there is removed at the end.",
)
def main(
    *,
    suite: str,
    profile_name: str,
    processes: int | None,
    web: bool,
    web_port: int | None,
    host: str,
    ca: Path | None,
    postgres_dsn: str,
    redis_url: str,
    folder: Path | None,
    data: Path | None,
) -> None:
    """Load Guerdon at given rates and say whether it kept its targets.

    Starts PostgreSQL (fsync on), Valkey and a server of its own, drives them with Locust through the phases of the
    suite, compares what callers were told with the ledger, proves the books (guerdon verify), and ends with a verdict:
    each phase beside its targets, every miss with its reason, and a page with plots.

    Exit status: 0 if every target was kept, 1 if one was missed (achieved/target below 0.98, latency, errors, the
    generator's own CPU above 80 % of a core, a check of the suite, the books), 2 for wrong arguments, 3 if it could
    not be run or judged, 130 after Ctrl-C.

    \b
      scripts/loadtest flash_sale                        everything embedded, profile small
      scripts/loadtest steady_day --processes 2 --web    two processes, and Locust's page to watch
      scripts/loadtest soak --profile medium
      scripts/loadtest ramp --host 10.0.0.7:7450         a deployed system, books not verified
    """
    console = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
    screen = Screen(console)
    if host and ":" not in host:
        raise click.BadParameter(f"{host}: a port is needed, as in {host}:7450.", param_hint="--host")
    if ca and not host:
        raise click.BadParameter("only for a system that runs somewhere: give --host, too.", param_hint="--ca")
    stamp = dt.datetime.now().strftime("%Y%m%d-%H%M%S")
    try:
        profile = profiles.load(profile_name)
        profile.suite(suite)
        options = Options(
            suite=suite,
            profile=profile,
            folder=folder or Path(".guerdon") / "loadtest" / f"{suite}-{stamp}",
            host=host,
            ca=ca.absolute() if ca else None,
            postgres_dsn=postgres_dsn if host else "",
            redis_url=redis_url if host else "",
            processes=processes or profile.processes,
            web_port=(web_port or engine_processes.free_port()) if web or web_port else None,
            data=data,
        )
        _opening(console, options)
        outcome = _run(options, screen)
        screen.summary(outcome)
        page = write_page(outcome)
    except LoadTestError as error:
        screen.end()
        console.print(f"scripts/loadtest: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(3)
    except (KeyboardInterrupt, asyncio.CancelledError):
        screen.end()
        console.print("Stopped: everything that was started has ended.", style="bold")
        sys.exit(_INTERRUPTED)
    console.print(f"report: {page}", markup=False, soft_wrap=True)
    sys.exit(0 if outcome.verdict.passed else 1)


def _opening(console: Console, options: Options) -> None:
    suite = options.profile.suite(options.suite)
    where = options.host or "PostgreSQL, Valkey and a server of our own"
    lines = [
        f"{options.suite}: {titles()[options.suite]}",
        f"profile {options.profile.name}, {suite.seconds:,.0f} s in {len(suite.phases)} phases,"
        f" {options.processes} processes of the generator; on {where}. Ctrl-C stops.",
    ]
    if options.web_port is not None:
        lines.append(f"Locust's page: http://127.0.0.1:{options.web_port}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _run(options: Options, screen: Screen) -> Outcome:
    async def stoppable() -> Outcome:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await run(options, screen)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(stoppable())


if __name__ == "__main__":
    main(prog_name="scripts/loadtest")
