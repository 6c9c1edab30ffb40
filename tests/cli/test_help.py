"""The help is a tutorial, and instant."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from guerdon_server.cli.first_steps import FIRST_STEPS
from guerdon_server.cli.root import guerdon


def all_commands(command: click.Command, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    found = [path]
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            child = command.get_command(ctx, name)
            assert child is not None
            found += all_commands(child, (*path, name))
    return found


def test_the_first_help_shows_the_way_to_the_first_reward() -> None:
    text = CliRunner().invoke(guerdon, ["--help"]).output
    lines = [line.strip() for line in text.splitlines()]
    assert [line for line in lines if line in FIRST_STEPS] == list(FIRST_STEPS)
    assert "guerdon up" in lines


@pytest.mark.parametrize("path", all_commands(guerdon, ()), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    done = CliRunner().invoke(guerdon, [*path, "--help"])
    assert done.exit_code == 0
    usage, explanation = done.output.split("\n\n")[:2]
    assert usage.startswith("Usage: ")
    assert len(explanation.split()) >= 3


def test_the_help_loads_nothing_heavy() -> None:
    # What makes it slow is what it imports; a clock would only measure this machine.
    script = """
import json, sys
from guerdon_server.cli.root import guerdon
guerdon(["--help"], standalone_mode=False)
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & {"grpc", "rich", "asyncpg", "google.protobuf", "redis", "uvloop", "asyncio"}


def test_an_unknown_command_is_wrong_use() -> None:
    assert CliRunner().invoke(guerdon, ["prise"]).exit_code == 2
