"""The commands of a first experience: in the help, and printed by `guerdon up`."""

from __future__ import annotations

from typing import Final

FIRST_STEPS: Final = (
    "guerdon entrance create checkout",
    "guerdon promotion create spring --entrance checkout --budget COIN=1000",
    "guerdon prize create welcome --promotion spring --kind coin --asset COIN --value 10 --limit-per-user 1",
    "guerdon promotion transition spring scheduled",
    "guerdon issue --promotion spring --entrance checkout --prize welcome --user ada --request-id first-1",
)
"""From an empty server to the first reward."""

LOOK_AFTERWARDS: Final = "guerdon account balances --user ada"


def example(*commands: str) -> str:
    """A paragraph of a help text that keeps its lines (\\b is click's mark for that)."""
    return "\n    ".join(["\b", *(f"  {command}" for command in commands)])


def examples(*commands: str) -> str:
    """The epilog of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)
