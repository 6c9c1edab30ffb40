"""What the groups `promotion`, `prize`, `entrance` share."""

from __future__ import annotations

from typing import Any

import click


class ResourceGroup(click.Group):
    """A group of verbs; `aliases` are other words for a verb."""

    def __init__(self, *args: Any, aliases: dict[str, str] | None = None, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._aliases = aliases or {}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, self._aliases.get(cmd_name, cmd_name))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which one needs them


# "-5.00" is an amount here, not an option.
SIGNED_ARGUMENTS = {"ignore_unknown_options": True}
