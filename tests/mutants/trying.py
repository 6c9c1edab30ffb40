"""Trying one mutant: a scratch copy of the tree, the patch, and the tests that must see it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.mutants.patches import Mutant, apply

SMOKE = "tests/mutants/test_smoke.py::test_an_ordinary_day"
"""What every mutant must still do: a defect that breaks everything at once proves no test."""
_SECONDS_MAX = 300
_INTERRUPT_SECONDS_MAX = 20


class Verdict(StrEnum):
    """killed: each of its tests failed. SURVIVED: a missing test. BROKEN: nothing can be said: it does not even run, or
    its tests could not be started. HUNG: no answer in time, which is no failed test either."""

    KILLED = "killed"
    SURVIVED = "SURVIVED"
    BROKEN = "BROKEN"
    HUNG = "HUNG"


@dataclass(frozen=True, slots=True)
class Trial:
    """How it went. `log`: what pytest said."""

    mutant: Mutant
    verdict: Verdict
    why: str
    seconds: float
    log: str


def copied(root: Path, into: Path) -> Path:
    """A copy of the sources of a checkout: tracked files, and new ones that are not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():  # a tracked one may have been deleted
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, into / name)
    return into


def failed_in(report: Path) -> Mapping[str, bool]:
    """Of each test that was called: whether it failed. One whose fixtures could not even be set up was not called;
    one whose fixtures found something wrong afterwards has failed."""
    found: dict[str, bool] = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314  pytest's own
        test = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        errors = [error.get("message") or "" for error in case.iter("error")]
        if any(not message.startswith("failed on teardown") for message in errors) or case.find("skipped") is not None:
            continue
        found[test] = found.get(test, False) or bool(errors) or case.find("failure") is not None
    return found


def failing(test: str, found: Mapping[str, bool]) -> bool | None:
    """Whether a test, or any of its parameters, failed; None: it was not called."""
    cases = [failed for name, failed in found.items() if name == test or name.startswith(f"{test}[")]
    return any(cases) if cases else None


def judged(mutant: Mutant, found: Mapping[str, bool]) -> tuple[Verdict, str]:
    """The verdict, and why it is no better one."""
    if failing(SMOKE, found) is not False:
        return Verdict.BROKEN, "an ordinary grant is not made any more"
    for test in mutant.killers:
        if failing(test, found) is None:
            return Verdict.BROKEN, f"{test} was not called"
    passed = [test for test in mutant.killers if not failing(test, found)]
    return (Verdict.SURVIVED, f"{' and '.join(passed)} passed") if passed else (Verdict.KILLED, "")


def tried(mutant: Mutant, pristine: Path, work: Path) -> Trial:
    """Applies it to a copy of the pristine copy, and runs its tests there."""
    started = time.monotonic()
    tree = work / mutant.name
    shutil.copytree(pristine, tree)
    try:
        apply(mutant, tree).check_returncode()
        found, log = tested(tree, [SMOKE, *mutant.killers])
        verdict, why = judged(mutant, found) if found is not None else (Verdict.HUNG, f"after {_SECONDS_MAX} s")
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    return Trial(mutant, verdict, why, time.monotonic() - started, log)


def tested(tree: Path, tests: Sequence[str]) -> tuple[Mapping[str, bool] | None, str]:
    """Runs tests in a tree, on the code of that tree: which failed (None: no end in time), and what pytest said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GUERDON_")}
    # Before the site's packages, where the checkout itself is installed; also for the servers that tests start.
    environment["PYTHONPATH"] = os.pathsep.join([str(tree / "server"), str(tree / "clients/python")])
    _assert_code_is_of(tree, environment)
    report, log = tree / "report.xml", tree / "report.log"
    with log.open("w") as output:
        run = subprocess.Popen(  # noqa: S603  pytest
            [
                *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "--rootdir", str(tree)),
                *(f"--junitxml={report}", "-o", "junit_logging=no", *dict.fromkeys(tests)),
            ],
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        ended = _waited(run)
    found = failed_in(report) if ended and report.exists() else {} if ended else None
    return found, log.read_text(errors="replace")


def _assert_code_is_of(tree: Path, environment: Mapping[str, str]) -> None:
    asked = "import guerdon, guerdon_server; print(guerdon.__file__, guerdon_server.__file__, sep='\\n')"
    files = subprocess.run(  # noqa: S603  our own question
        [sys.executable, "-c", asked], cwd=tree, env=environment, check=True, capture_output=True, text=True
    ).stdout.split("\n")
    assert all(Path(file).is_relative_to(tree) for file in files if file), f"the code of another tree is used: {files}"


def _waited(run: subprocess.Popen[bytes]) -> bool:
    """Whether it ended by itself. Interrupted first, so that fixtures stop their engines (which die with it anyway)."""
    try:
        run.wait(_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        run.send_signal(signal.SIGINT)
        try:
            run.wait(_INTERRUPT_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        return False
    return True
