"""Whether a run kept its targets, and if not, why: from figures alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from guerdon_server.core.ledger.invariants import Check as Invariant
from loadtest.generate import Sample
from loadtest.plan import Check, Drive, Driven
from loadtest.profile import Phase, SuiteProfile
from loadtest.tally import BROKEN, Calls, whole_seconds

_GENERATOR = "generator"
_OTHERS_CORES_MAX = 0.1


@dataclass(frozen=True, slots=True)
class Figures:
    """One phase, without the seconds in which it settled. `cpu`: cores by process."""

    phase: Phase
    seconds: int
    calls: Calls
    cpu: dict[str, float]

    @property
    def right_per_second(self) -> float:
        """Right answers."""
        return (self.calls.count - self.calls.failed) / self.seconds if self.seconds else 0.0

    @property
    def achieved_ratio(self) -> float:
        """Of the rate that the phase asks for."""
        return self.right_per_second / self.phase.calls_per_second

    @property
    def error_ratio(self) -> float:
        """Of the calls."""
        return self.calls.failed / self.calls.count if self.calls.count else 0.0

    @property
    def generator_cpu(self) -> float | None:
        """Cores of the busiest process of the generator; None: not measured."""
        return max((cores for name, cores in self.cpu.items() if name.startswith(_GENERATOR)), default=None)


@dataclass(frozen=True, slots=True)
class Judged:
    """A phase and what it missed."""

    figures: Figures
    misses: tuple[str, ...]


@dataclass(slots=True)
class Verdict:
    """`rows`: what was looked at over the whole run. `misses`: every reason why it did not pass."""

    phases: list[Judged] = field(default_factory=list)
    rows: list[Check] = field(default_factory=list)
    misses: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing was missed."""
        return not self.misses


def judge(suite: SuiteProfile, drive: Drive, samples: Sequence[Sample], proved: Check | None) -> Verdict:
    """`proved`: what `books` makes; None: they were not to be looked at, which is said and is no miss."""
    verdict = Verdict(phases=[_judged(suite, drive, driven, samples) for driven in drive.phases])
    for judged in verdict.phases:
        if judged.figures.phase.judged:
            verdict.misses += [f"phase {judged.figures.phase.name}: {miss}" for miss in judged.misses]
    if len(drive.phases) < len(suite.phases):
        verdict.misses.append(f"only {len(drive.phases)} of {len(suite.phases)} phases were driven")
    verdict.rows += [*_over_the_run(suite, drive, samples, verdict), *drive.checks]
    if broken := drive.tally.counts[BROKEN]:
        verdict.rows.append(Check(BROKEN, f"{broken:,}", "0", False))
    if (others := _others(samples)) > _OTHERS_CORES_MAX:
        verdict.notes.append(
            f"Others kept {others:.1f} cores of this machine busy meanwhile: latencies are higher than they need be."
        )
    if proved is None:
        verdict.notes.append("The books were NOT verified: give both --postgres-dsn and --redis-url.")
    else:
        verdict.rows.append(proved)
    verdict.misses += [f"{row.name}: {row.found}, must be {row.must_be}" for row in verdict.rows if not row.ok]
    return verdict


def _judged(suite: SuiteProfile, drive: Drive, driven: Driven, samples: Sequence[Sample]) -> Judged:
    begin = driven.begin + suite.settle_seconds
    calls = drive.tally.between(begin, driven.end)
    seconds = len(whole_seconds(begin, driven.end))
    figures = Figures(driven.phase, seconds, calls, _cores(samples, begin, driven.end))
    return Judged(figures, tuple(_misses(suite, figures)))


def _misses(suite: SuiteProfile, figures: Figures) -> Iterator[str]:
    targets, phase, calls = suite.targets, figures.phase, figures.calls
    if figures.achieved_ratio < targets.achieved_ratio_min:
        yield (
            f"{figures.right_per_second:,.1f} right answers/s of {phase.calls_per_second:,.0f} wanted:"
            f" {figures.achieved_ratio:.3f}, must be at least {targets.achieved_ratio_min:g}"
        )
    for share, most in ((0.5, targets.p50_ms_max), (0.99, phase.p99_ms_max or targets.p99_ms_max)):
        ms = calls.percentile_ms(share)
        if most and ms > most:
            yield f"p{100 * share:g} {ms:,.1f} ms, must be at most {most:g} ms"
    if figures.error_ratio > targets.error_ratio_max:
        yield (
            f"{calls.failed:,} of {calls.count:,} calls failed: {figures.error_ratio:.5f},"
            f" must be at most {targets.error_ratio_max:g}"
        )
    cpu = figures.generator_cpu
    if cpu is None:
        yield "the generator's CPU was not measured"
    elif cpu > targets.generator_cpu_max:
        yield (
            f"a process of the generator used {100 * cpu:.0f} % of a core, must be at most"
            f" {100 * targets.generator_cpu_max:.0f} %: it measured itself (use more --processes, or a lower rate)"
        )


def _cores(samples: Sequence[Sample], begin: float, end: float) -> dict[str, float]:
    """By process: CPU seconds ÷ seconds between the last sample before that time, or its first, and its last."""
    until = [sample for sample in samples if sample.at <= end]
    first = next((sample for sample in reversed(until) if sample.at <= begin), until[0] if until else None)
    if first is None or first.at == until[-1].at:
        return {}
    last = until[-1]
    names = first.cpu_seconds.keys() & last.cpu_seconds.keys()
    return {name: (last.cpu_seconds[name] - first.cpu_seconds[name]) / (last.at - first.at) for name in sorted(names)}


def _others(samples: Sequence[Sample]) -> float:
    """Cores that others used; 0 where nobody looked."""
    if len(samples) < 2:
        return 0.0
    first, last = samples[0], samples[-1]
    return (last.others_seconds - first.others_seconds) / (last.at - first.at)


def _knee(phases: Sequence[Judged], least: float) -> Check:
    """The rate up to which every phase kept its targets, and whether the generator was what kept it from more."""
    knee, note = 0.0, ""
    for judged in sorted(phases, key=lambda judged: judged.figures.phase.calls_per_second):
        if judged.misses:
            note = " (there the generator was the limit)" if any("generator" in miss for miss in judged.misses) else ""
            break
        knee = judged.figures.phase.calls_per_second
    return Check("knee, calls/s", f"{knee:,.0f}{note}", f"at least {least:,.0f}", knee >= least)


def _over_the_run(suite: SuiteProfile, drive: Drive, samples: Sequence[Sample], verdict: Verdict) -> Iterator[Check]:
    targets = suite.targets
    if least := targets.knee_calls_per_second_min:
        yield _knee(verdict.phases, least)
    if drive.phases and (most := targets.p99_growth_max):
        growth = _p99_growth(drive, suite.settle_seconds)
        yield Check("p99, last quarter ÷ first", f"{growth:.2f}", f"at most {most:g}", growth <= most)
    sizes = [sample.server_bytes for sample in samples if sample.server_bytes]
    if targets.server_mb_max or targets.server_growth_max:
        if not sizes:
            verdict.notes.append("The server's memory was NOT looked at: it is not a process of this run.")
            return
        if most := targets.server_mb_max:
            mb = max(sizes) / 1e6
            yield Check("memory of the server, MB", f"{mb:.0f}", f"at most {most:g}", mb <= most)
        if most := targets.server_growth_max:
            growth = sizes[-1] / sizes[len(sizes) // 2]
            yield Check("memory of the server, end ÷ middle", f"{growth:.3f}", f"at most {most:g}", growth <= most)


def _p99_growth(drive: Drive, settle_seconds: float) -> float:
    seconds = whole_seconds(drive.phases[0].begin + settle_seconds, drive.phases[-1].end)
    quarter = max(1, len(seconds) // 4)
    begins = (seconds.start, seconds.stop - quarter)
    first, last = (drive.tally.between(begin, begin + quarter).percentile_ms(0.99) for begin in begins)
    return last / first if first else float("inf")


def books(invariants: Sequence[Invariant]) -> Check:
    """What `guerdon verify` found."""
    wrong = [f"{check.name} ({'; '.join(check.violations)})" for check in invariants if not check.ok]
    compared = sum(check.compared for check in invariants)
    found = f"{len(invariants) - len(wrong)} of {len(invariants)} invariants hold, {compared:,} comparisons"
    return Check("books (guerdon verify)", ": ".join([found, *wrong]), "all", bool(invariants) and not wrong)
