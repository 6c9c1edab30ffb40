"""`guerdon config`: which settings are in effect, and which there are."""

from __future__ import annotations

from pathlib import Path

import click

from guerdon_server.cli.first_steps import examples
from guerdon_server.cli.loading import CONNECTIONS, connection_options, load_settings, overrides_of, settings_options
from guerdon_server.cli.options import json_option
from guerdon_server.cli.output import emit_list
from guerdon_server.platform.config import Row, to_toml_template
from guerdon_server.settings import Settings

_ABSENT = "not set"


@click.group(
    epilog=examples(
        "guerdon config template > guerdon.toml", "guerdon config show --config guerdon.toml --set log_level=debug"
    )
)
def config() -> None:
    """The settings of a server.

    They come from, the later wins: their defaults, a TOML file (--config), the environment (GUERDON_ and the name in
    capitals), the command line (--set NAME=VALUE). Wrong ones are refused, all at once, with the mend.
    """


@config.command(epilog=examples("guerdon config show", "guerdon config show --config guerdon.toml --json"))
@settings_options
@connection_options
@json_option
def show(
    *, config_file: Path | None, assignments: tuple[str, ...], postgres_dsn: str | None, redis_url: str | None
) -> None:
    """Show the effective settings and where each comes from; secrets are masked."""
    overrides = overrides_of(assignments, postgres_dsn=postgres_dsn, redis_url=redis_url)
    loaded = load_settings(config_file, overrides, without=dict.fromkeys(CONNECTIONS, ""))
    rows = [_row(row, getattr(loaded.settings, row.name)) for row in loaded.rows()]
    emit_list(
        rows,
        {
            "setting": lambda row: row.name,
            "value": lambda row: row.value,
            "from": lambda row: row.source,
            "meaning": lambda row: row.doc,
        },
        empty="",
    )


def _row(row: Row, value: object) -> Row:
    if row.name in CONNECTIONS and not value:
        return Row(row.name, _ABSENT, "nowhere", f"{row.doc} `guerdon serve` needs it.")
    return row


@config.command(epilog=examples("guerdon config template > guerdon.toml"))
def template() -> None:
    """Print a settings file with every setting, its meaning, limits and default, commented out."""
    click.echo(to_toml_template(Settings))
