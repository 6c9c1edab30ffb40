"""Whether the tests see deliberate defects: applies each to a scratch copy and runs the tests that must fail there.

Exits 0 if all were killed. A mutant that survives is a missing test.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from tests.mutants.patches import ROOT, Mutant, mutants, problems
from tests.mutants.trying import SMOKE, Trial, Verdict, copied, failing, tested, tried


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    options = _parser().parse_args(arguments)
    chosen = _chosen(options.names)
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name}\n  {mutant.defect}", *mutant.killers, sep="\n    ")
        return 0
    told = problems(chosen)
    print(*told, sep="\n", end="\n" if told else "")
    if told or options.check:
        print(f"{len(chosen)} mutants: {len(told)} problems" if told else f"{len(chosen)} mutants can be tried")
        return 1 if told else 0
    with _folder() as work:
        return _run(chosen, work, jobs=options.jobs, verbose=options.verbose)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/mutants", description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", help="a number, or a part of a name; all without")
    parser.add_argument("--check", action="store_true", help="only whether the patches apply and the tests exist")
    parser.add_argument("--list", action="store_true", help="what there is, and what kills it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once (%(default)s)")
    parser.add_argument("--verbose", action="store_true", help="what pytest said of each, not only of survivors")
    return parser


def _chosen(names: Sequence[str]) -> list[Mutant]:
    found = mutants()
    chosen = {name: [mutant for mutant in found if _is_named(mutant, name)] for name in names}
    for name, some in chosen.items():
        if not some:
            sys.exit(f"scripts/mutants: there is no mutant {name}; see scripts/mutants --list")
    return [mutant for mutant in found if not names or any(mutant in some for some in chosen.values())]


def _is_named(mutant: Mutant, name: str) -> bool:
    return int(name) == int(mutant.name.partition("-")[0]) if name.isdecimal() else name in mutant.name


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="guerdon-mutants-")).resolve()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(chosen: Sequence[Mutant], work: Path, *, jobs: int, verbose: bool) -> int:
    pristine = copied(ROOT, work / "pristine")
    killers = list(dict.fromkeys(test for mutant in chosen for test in mutant.killers))
    print(f"without a defect: {len(killers)} tests ...", flush=True)
    found, log = tested(pristine, [SMOKE, *killers])
    unfit = [test for test in (SMOKE, *killers) if failing(test, found or {}) is not False]
    if unfit:
        print(log, "without a defect these do not pass:", *unfit, sep="\n")
        return 1
    print(f"they pass. {len(chosen)} mutants, {jobs} at once:", flush=True)
    trials: list[Trial] = []
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        for done in as_completed([pool.submit(tried, mutant, pristine, work) for mutant in chosen]):
            trial = done.result()
            trials.append(trial)
            print(f"{trial.verdict:<9} {trial.seconds:4.0f} s  {trial.mutant.name}", flush=True)
            if verbose or trial.verdict is not Verdict.KILLED:
                print(trial.log, flush=True)
    _tell(sorted(trials, key=lambda trial: trial.mutant.name))
    return 0 if all(trial.verdict is Verdict.KILLED for trial in trials) else 1


def _tell(trials: Sequence[Trial]) -> None:
    width = max(len(trial.mutant.name) for trial in trials)
    print(f"\n{'mutant':<{width}}  verdict   seconds  killed by")
    for trial in trials:
        first, *others = trial.mutant.killers
        print(f"{trial.mutant.name:<{width}}  {trial.verdict:<9} {trial.seconds:7.1f}  {first}")
        for other in others:
            print(f"{'':<{width}}  {'':<9} {'':>7}  {other}")
        if trial.why:
            print(f"{'':<{width}}  {trial.why}")
    killed = sum(trial.verdict is Verdict.KILLED for trial in trials)
    print(f"\n{killed} of {len(trials)} killed")


if __name__ == "__main__":
    sys.exit(main())
