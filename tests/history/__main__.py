"""python -m tests.history FILE: checks a recorded history again."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from tests.history.record import History
from tests.history.report import NODES_MAX, check

_ABOUT = """\
Checks that every answer in a recorded history has an explanation: an order of all calls, each at some moment between
being sent and being answered, in which every answer is right. Each prize, budget, wallet, holding and request is
checked by itself, first in the order in which the ledger numbered its grants, then, if that does not do, in any.

linearizable  there is such an order
violation     there is none; the smallest part that has none is printed, with the reasons
undecided     none was found within --nodes-max; counts as a failure

A line of FILE is a JSON object: the header, a prize, a budget, or an operation (tests/history/record.py).
"""
_EXIT = "Exit status: 0 all linearizable, 1 violations or undecided, 2 FILE can't be read."


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m tests.history",
        description=_ABOUT,
        epilog=_EXIT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="what History.save wrote")
    parser.add_argument(
        "--all", action="store_true", help="a verdict for each wallet and request too, also if it holds"
    )
    parser.add_argument("--nodes-max", type=int, default=NODES_MAX, help="places tried for an object (%(default)s)")
    parser.add_argument("--held-seconds-max", type=float, help="instead of the file's (record.Rules says what it is)")
    given = parser.parse_args(arguments)
    try:
        history = History.load(given.file)
        if given.held_seconds_max is not None:
            history.rules = replace(history.rules, held_seconds_max=given.held_seconds_max)
        report = check(history, nodes_max=given.nodes_max)
    except (OSError, ValueError) as error:
        print(f"can't check {given.file}: {error}", file=sys.stderr)
        return 2
    for verdict in report.verdicts:
        if given.all or (verdict.name.startswith(("prize ", "budget ")) and not verdict.explanation):
            print(verdict)
    print(report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
