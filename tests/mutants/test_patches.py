"""The mutants can be tried on the tree as it is, and a trial calls nothing killed that no test has seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.patches import Mutant, mutants, problems
from tests.mutants.trying import SMOKE, Verdict, failed_in, judged

TEST = "tests/ledger/test_it.py::test_it"


def test_every_patch_applies_and_every_test_that_it_names_exists() -> None:
    found = mutants()
    assert len(found) >= 20
    assert problems(found) == [], "make the patch anew on the code as it is: scripts/mutants NAME shows that it is seen"


def test_a_patch_that_does_not_apply_and_a_test_that_there_is_not_are_told() -> None:
    good = mutants()[0]
    (unfit,) = problems([Mutant(good.name, good.patch.replace("\n-", "\n-never there "), good.killers)])
    assert "does not apply" in unfit
    lost = Mutant(good.name, good.patch, [f"{TEST}[1]"])
    assert problems([lost, good]) == [
        f"{good.name[:2]} is used twice: renumber one",
        f"{good.name}: there is no test {TEST}[1]",
    ]


def case(test: str, inner: str = "") -> str:
    file, _, name = test.partition("::")
    return f'<testcase classname="{file.removesuffix(".py").replace("/", ".")}" name="{name}">{inner}</testcase>'


SMOKE_PASSES = case(SMOKE)


@pytest.mark.parametrize(
    ("cases", "verdict"),
    [
        (SMOKE_PASSES + case(TEST, '<failure message="assert"/>'), Verdict.KILLED),
        (SMOKE_PASSES + case(f"{TEST}[1]") + case(f"{TEST}[2]", '<failure message="assert"/>'), Verdict.KILLED),
        (SMOKE_PASSES + case(TEST) + case(TEST, '<error message="failed on teardown: proof"/>'), Verdict.KILLED),
        (SMOKE_PASSES + case(TEST), Verdict.SURVIVED),
        (SMOKE_PASSES + case(f"{TEST}_too", '<failure message="assert"/>') + case(TEST), Verdict.SURVIVED),
        (SMOKE_PASSES + case(TEST, '<error message="failed on setup: no server"/>'), Verdict.BROKEN),
        (SMOKE_PASSES + case(TEST, '<skipped message="why"/>'), Verdict.BROKEN),
        (SMOKE_PASSES + '<testcase classname="" name="tests.ledger.test_it">'
         '<error message="collection failure"/></testcase>', Verdict.BROKEN),
        (case(SMOKE, '<failure message="x"/>') + case(TEST, '<failure message="x"/>'), Verdict.BROKEN),
        ("", Verdict.BROKEN),
    ],
)  # fmt: skip
def test_only_a_test_that_was_called_and_failed_kills(tmp_path: Path, cases: str, verdict: Verdict) -> None:
    report = tmp_path / "report.xml"
    report.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>", encoding="utf-8")
    assert judged(Mutant("01-it", "", [TEST]), failed_in(report))[0] is verdict
