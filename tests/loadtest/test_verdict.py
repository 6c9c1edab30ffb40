"""The verdict: a run that kept everything passes, and each thing that can be missed makes it fail and is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from loadtest.generate import Sample
from loadtest.plan import Check, Drive, Driven
from loadtest.profile import Phase, SuiteProfile, Targets
from loadtest.tally import BROKEN, Tally
from loadtest.verdict import Verdict, books, judge

from guerdon_server.core.ledger.invariants import Check as Invariant

RIGHT = books([Invariant("floors", "No account is below its floor.", 12, "accounts", 0, [])])
PHASE = Phase(seconds=12, calls_per_second=100, name="crowd")


def suite(*phases: Phase, **targets: float) -> SuiteProfile:
    """One phase of 12 s, of which 10 are judged."""
    return SuiteProfile(phases or (PHASE,), replace(Targets(p99_ms_max=50), **targets), {})


def drive(
    *phases: Phase, per_second: float = 1.0, ms: float = 10.0, failed: int = 0, checks: Sequence[Check] = ()
) -> Drive:
    """Every second of each phase alike: `per_second` of what is wanted, `failed` of them wrong."""
    tally, driven, at = Tally(), [], 1000
    for phase in phases or (PHASE,):
        end = at + int(phase.seconds)
        for second in range(at, end):
            for number in range(round(per_second * phase.calls_per_second)):
                tally.record("issue", began=second, ms=ms, outcomes={}, error="UNAVAILABLE" if number < failed else "")
        driven.append(Driven(phase, at, end))
        at = end
    return Drive(tally, driven, list(checks))


def samples(seconds: int = 12, *, server_mb: Sequence[float] = (), **cores: float) -> list[Sample]:
    """Of each second."""
    cores = cores or {"generator": 0.3}
    return [
        Sample(
            1000 + at,
            {name.replace("_", " "): at * used for name, used in cores.items()},
            int(server_mb[at * len(server_mb) // (seconds + 1)] * 1e6) if server_mb else 0,
        )
        for at in range(seconds + 1)
    ]


def test_what_kept_everything_passes() -> None:
    verdict = judge(suite(), drive(), samples(), RIGHT)
    assert verdict.misses == []
    assert verdict.passed
    (phase,) = verdict.phases
    assert phase.figures.seconds == 10
    assert phase.figures.achieved_ratio == pytest.approx(1)
    assert phase.figures.generator_cpu == pytest.approx(0.3)


def the_miss(verdict: Verdict) -> str:
    """The only one."""
    assert not verdict.passed
    (miss,) = verdict.misses
    return miss


def test_too_slow_a_rate() -> None:
    assert judge(suite(), drive(per_second=0.98), samples(), RIGHT).passed
    miss = the_miss(judge(suite(), drive(per_second=0.97), samples(), RIGHT))
    assert miss == "phase crowd: 97.0 right answers/s of 100 wanted: 0.970, must be at least 0.98"


def test_too_high_a_latency() -> None:
    assert "phase crowd: p99 6" in the_miss(judge(suite(), drive(ms=60), samples(), RIGHT))
    assert "must be at most 50 ms" in the_miss(judge(suite(), drive(ms=60), samples(), RIGHT))
    assert "p50 1" in the_miss(judge(suite(p50_ms_max=5), drive(), samples(), RIGHT))


def test_a_phase_may_have_a_limit_of_its_own() -> None:
    patient = replace(PHASE, p99_ms_max=100)
    assert judge(suite(patient), drive(patient, ms=60), samples(), RIGHT).passed


def test_errors() -> None:
    miss = the_miss(judge(suite(), drive(failed=1), samples(), RIGHT))
    assert miss == "phase crowd: 10 of 1,000 calls failed: 0.01000, must be at most 0"
    assert judge(suite(error_ratio_max=0.01), drive(failed=1), samples(), RIGHT).passed


def test_wrong_answers_are_no_part_of_the_rate() -> None:
    verdict = judge(suite(error_ratio_max=1), drive(failed=3), samples(), RIGHT)
    assert "97.0 right answers/s" in the_miss(verdict)


def test_a_generator_that_measured_itself() -> None:
    verdict = judge(suite(), drive(), samples(generator=0.2, generator_1=0.5, generator_2=0.85, server=1.9), RIGHT)
    assert "a process of the generator used 85 % of a core, must be at most 80 %" in the_miss(verdict)
    assert judge(suite(), drive(), samples(generator=0.2, generator_1=0.79, generator_2=0.79), RIGHT).passed


def test_a_generator_that_was_not_measured() -> None:
    assert "CPU was not measured" in the_miss(judge(suite(), drive(), [], RIGHT))


def test_books_that_do_not_balance() -> None:
    wrong = Invariant("floors", "No account is below its floor.", 12, "accounts", 1, ["account 7: -1 < 0"])
    miss = the_miss(judge(suite(), drive(), samples(), books([wrong])))
    assert "books (guerdon verify): 0 of 1 invariants hold" in miss
    assert "floors (account 7: -1 < 0)" in miss
    assert not books([]).ok


def test_books_that_nobody_could_look_at_are_told_and_no_miss() -> None:
    verdict = judge(suite(), drive(), samples(), None)
    assert verdict.passed
    assert "books were NOT verified" in " ".join(verdict.notes)


def test_a_machine_on_which_others_work_is_told() -> None:
    busy = [replace(sample, others_seconds=1.5 * sample.at) for sample in samples()]
    verdict = judge(suite(), drive(), busy, RIGHT)
    assert verdict.passed
    assert "Others kept 1.5 cores of this machine busy" in verdict.notes[0]
    assert judge(suite(), drive(), samples(), RIGHT).notes == []


def test_a_check_of_the_suite() -> None:
    verdict = judge(suite(), drive(checks=[Check("tickets left", "3", "0", False)]), samples(), RIGHT)
    assert the_miss(verdict) == "tickets left: 3, must be 0"


def test_a_suite_whose_tasks_break_off() -> None:
    broken = drive()
    broken.tally.counts[BROKEN] += 2
    assert the_miss(judge(suite(), broken, samples(), RIGHT)) == f"{BROKEN}: 2, must be 0"


def test_a_run_that_ended_early() -> None:
    later = replace(PHASE, name="after")
    assert "only 1 of 2 phases were driven" in the_miss(judge(suite(PHASE, later), drive(), samples(), RIGHT))


def test_a_phase_in_which_nothing_was_answered() -> None:
    assert "0.0 right answers/s" in the_miss(judge(suite(), drive(per_second=0), samples(), RIGHT))


def steps() -> list[Phase]:
    """Of a ramp; the last is beyond what must be kept."""
    return [
        Phase(12, 100, "1"),
        Phase(12, 200, "2"),
        Phase(12, 300, "3", judged=False),
    ]


def ramp(*, slow_from: int, most: float, generator: float = 0.3) -> Verdict:
    """A ramp whose steps from that number on take 60 ms."""
    parts = drive(*steps())
    for (second, _), calls in parts.tally.calls.items():
        if second >= 1000 + 12 * (slow_from - 1):
            calls.latencies = drive(PHASE, ms=60).tally.calls[1000, "issue"].latencies
    return judge(suite(*steps(), knee_calls_per_second_min=most), parts, samples(36, generator=generator), RIGHT)


def test_the_knee_is_the_last_rate_at_which_all_was_kept() -> None:
    verdict = ramp(slow_from=3, most=200)
    assert verdict.passed  # nothing has to be kept in the last step
    assert (verdict.rows[0].name, verdict.rows[0].found) == ("knee, calls/s", "200")


def test_a_knee_that_comes_too_early() -> None:
    verdict = ramp(slow_from=2, most=200)
    assert "knee, calls/s: 100, must be at least 200" in verdict.misses
    assert any(miss.startswith("phase 2: p99") for miss in verdict.misses)


def test_a_knee_of_the_generator_is_told_as_such() -> None:
    busy = ramp(slow_from=9, most=100, generator=0.9)
    assert "knee, calls/s: 0 (there the generator was the limit), must be at least 100" in busy.misses


def test_a_soak_that_gets_slower() -> None:
    long = Phase(42, 100, "long")
    slower = drive(long)
    for (second, _), calls in slower.tally.calls.items():
        if second >= 1030:
            calls.latencies = drive(PHASE, ms=40).tally.calls[1000, "issue"].latencies
    assert judge(suite(long, p99_growth_max=1.5), drive(long), samples(42), RIGHT).passed
    miss = the_miss(judge(suite(long, p99_growth_max=1.5), slower, samples(42), RIGHT))
    assert miss.startswith("p99, last quarter ÷ first: ")


def test_a_server_that_grows() -> None:
    targets = {"server_mb_max": 200.0, "server_growth_max": 1.05}
    assert judge(suite(**targets), drive(), samples(server_mb=[80, 100, 100, 102]), RIGHT).passed
    growing = judge(suite(**targets), drive(), samples(server_mb=[80, 100, 110, 120]), RIGHT)
    assert the_miss(growing).startswith("memory of the server, end ÷ middle: 1.200")
    large = judge(suite(**targets), drive(), samples(server_mb=[201]), RIGHT)
    assert the_miss(large) == "memory of the server, MB: 201, must be at most 200"


def test_memory_that_nobody_could_look_at_is_told() -> None:
    verdict = judge(suite(server_mb_max=200), drive(), samples(), RIGHT)
    assert verdict.passed
    assert "memory was NOT looked at" in " ".join(verdict.notes)
