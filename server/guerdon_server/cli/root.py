"""The top of the command line: which commands there are, their one-line help, how failures end.

Nothing here imports a command before it is called for: `guerdon --help` has to be instant.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import click

from guerdon_server.cli.first_steps import FIRST_STEPS, example
from guerdon_server.cli.options import json_option, target_option, used_request_id


class _Lazy(NamedTuple):
    module: str
    attribute: str
    help: str


_SECTIONS: Final[Mapping[str, Mapping[str, _Lazy]]] = {
    "Running it": {
        "up": _Lazy("up", "up", "Serve here and now, on a PostgreSQL and Valkey of its own."),
        "demo": _Lazy("demo", "demo", "Replay 6,919 real purchases and prove the books."),
        "serve": _Lazy("serve", "serve", "Serve on your PostgreSQL and Redis."),
        "migrate": _Lazy("migrate", "migrate", "Bring the database to the version of this program."),
        "verify": _Lazy("verify", "verify", "Prove the promises about the books, and say what was compared."),
        "buckets": _Lazy("buckets", "buckets", "Spread the gate of one promotion over several Redis primaries."),
        "bench": _Lazy("bench", "bench", "Measure throughput and CPU per call beside a bare echo."),
        "config": _Lazy("config", "config", "Show the effective settings, or a template of the settings file."),
        "health": _Lazy("health", "health", "Ask whether the server takes calls; for containers."),
    },
    "Preparing rewards": {
        "entrance": _Lazy("entrance", "entrance", "The places where rewards are asked for."),
        "promotion": _Lazy("promotion", "promotion", "When, where and within which budget prizes are given away."),
        "prize": _Lazy("prize", "prize", "What is given: coupons, coins, cashback, goods."),
    },
    "Giving and looking": {
        "issue": _Lazy("issue", "issue", "Give one prize to one user, or thousands from a file."),
        "issuance": _Lazy("issuance", "issuance", "What was given, and what became of a request."),
        "account": _Lazy("account", "account", "Balances, statements and the trial balance of the ledger."),
    },
}
_COMMANDS: Final = {name: lazy for section in _SECTIONS.values() for name, lazy in section.items()}
_OURS: Final = {"worker": _Lazy("worker", "worker", "What `guerdon serve --workers` starts.")}


class Root(click.Group):
    """Finds commands by name in `_SECTIONS`, and turns what they raise into words and an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, lazy in _COMMANDS.items() if _exists(lazy)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = _COMMANDS.get(cmd_name) or _OURS.get(cmd_name)
        if lazy is None or not _exists(lazy):
            return None
        command: click.Command = getattr(importlib.import_module(f"guerdon_server.cli.{lazy.module}"), lazy.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in _SECTIONS.items():
            rows = [(name, lazy.help) for name, lazy in commands.items() if _exists(lazy)]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            request_id = used_request_id(ctx)
            if request_id:  # it may be one that we made up, and nobody else knows it
                click.echo(f"Interrupted. Repeat it with --request-id {request_id}: it is done once.", err=True)
            ctx.exit(130)
        except Exception as error:
            from guerdon_server.cli.failures import failure_of, report  # noqa: PLC0415  only where something failed

            failure = failure_of(error, ctx)
            if failure is None:
                raise
            report(failure, ctx)
            ctx.exit(failure.exit_code)


def _exists(lazy: _Lazy) -> bool:
    return importlib.util.find_spec(f"guerdon_server.cli.{lazy.module}") is not None


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=(
        "Exit status: 0 done; 1 refused (or a promise violated); 2 wrong use, wrong settings, a malformed value;"
        " 3 no answer: the outcome is unknown, repeat the same command with the same --request-id."
    ),
    help=f"""Guerdon gives rewards - coupons, coins, cashback, goods - to the right user, once, and never more of them
    than there are. Every grant is a balanced double entry in a ledger.

    In one terminal start it; it brings its own database, and keeps its data:

    {example("guerdon up")}

    In another terminal, the first reward:

    {example(*FIRST_STEPS)}

    Each command explains itself: guerdon promotion --help, guerdon promotion create --help. All of them take --json:
    one JSON document, or one a line, and nothing else on the standard output.
    """,
)
@target_option
@json_option
@click.version_option(package_name="guerdon-server", message="guerdon %(version)s")
def guerdon() -> None: ...
