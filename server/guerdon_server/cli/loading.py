"""The settings of a server, from file, environment and flags, as every command of the operator reads them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from guerdon_server.cli.options import NOT_SETTINGS
from guerdon_server.cli.params import fail_usage
from guerdon_server.platform.config import Loaded, SettingsError, load
from guerdon_server.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

CONNECTIONS: Final = ("postgres_dsn", "redis_url")


def settings_options(command: F) -> F:
    """--config and --set, for every command that reads settings."""
    command = click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="NAME=VALUE",
        help="Any setting; `guerdon config template` lists them. Repeat for more.",
    )(command)
    return click.option(
        "--config",
        "config_file",
        envvar="GUERDON_CONFIG",
        type=click.Path(path_type=Path),
        help="A TOML file with settings. [env var: GUERDON_CONFIG]",
    )(command)


def connection_options(command: F) -> F:
    """--postgres-dsn and --redis-url."""
    for name, text in (("--redis-url", "Redis or Valkey."), ("--postgres-dsn", "PostgreSQL.")):
        command = click.option(name, metavar="URL", help=f"{text} Better in the environment, where nobody sees it.")(
            command
        )
    return command


def port_options(command: F) -> F:
    """--grpc-port and --metrics-port; checked with all other settings."""
    command = click.option("--metrics-port", metavar="N", help="Port of the Prometheus metrics; 0 takes a free one.")(
        command
    )
    return click.option("--grpc-port", metavar="N", help="Port of gRPC; 0 takes a free one.")(command)


def overrides_of(assignments: tuple[str, ...], **flags: str | None) -> dict[str, object]:
    """What the command line says: `--set` and the named flags, by the name of the setting."""
    given: dict[str, object] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            fail_usage(f"{assignment!r} is no setting; write NAME=VALUE.", "--set")
        given[name.strip()] = value
    return given | {name: value for name, value in flags.items() if value is not None}


def load_settings(
    config_file: Path | None, overrides: Mapping[str, object], *, without: Mapping[str, str] | None = None
) -> Loaded[Settings]:
    """The settings; raises SettingsError with every problem.

    `without`: required settings that this command can do without, and what stands for them where nobody gave them.
    """

    def loaded(given: Mapping[str, object]) -> Loaded[Settings]:
        return load(Settings, env=os.environ, toml_path=config_file, overrides=given, reserved=NOT_SETTINGS)

    try:
        return loaded(overrides)
    except SettingsError as error:
        missing = {problem.field for problem in error.problems if problem.source == "nowhere"}
        stand_ins = {name: value for name, value in (without or {}).items() if name in missing}
        if not stand_ins:
            raise
    return loaded({**overrides, **stand_ins})
