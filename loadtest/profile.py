"""Profiles: how fast each suite goes on a machine of a size, and what it must keep. One TOML file each."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypeVar

from loadtest.errors import LoadTestError

FOLDER: Final = Path(__file__).parent / "profiles"
_WHOLE_SECONDS_MIN: Final = 2
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a run with one rate. `judged` False: driven and drawn, but no target has to be kept in it."""

    seconds: float
    calls_per_second: float
    name: str = ""
    judged: bool = True
    p99_ms_max: float = 0.0
    """Instead of the suite's; 0: the suite's."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What a run must keep, in every judged phase. 0: no such target, where the default is 0."""

    p99_ms_max: float
    p50_ms_max: float = 0.0
    error_ratio_max: float = 0.0
    """Of the calls: gRPC errors, and answers that the suite does not allow for."""
    achieved_ratio_min: float = 0.98
    """Right answers a second ÷ the rate of the phase."""
    generator_cpu_max: float = 0.8
    """Cores that one process of the generator may use; above, it has measured itself."""
    knee_calls_per_second_min: float = 0.0
    """The rate up to which everything is kept."""
    p99_growth_max: float = 0.0
    """p99 of the last quarter of the run ÷ p99 of its first quarter."""
    server_mb_max: float = 0.0
    """Resident memory of the server; known only of one that the run started."""
    server_growth_max: float = 0.0
    """Memory of the server at the end ÷ in the middle of the run."""


@dataclass(frozen=True, slots=True)
class SuiteProfile:
    """One suite at one size. `data`: numbers that the suite's own code knows (stock, users, ...)."""

    phases: tuple[Phase, ...]
    targets: Targets
    data: Mapping[str, float]
    settle_seconds: float = 2.0
    """At the beginning of each phase, not judged: users are being started or stopped."""
    deadline_seconds: float = 5.0
    """Of a call with all its repetitions."""
    user_calls_per_second_max: float = 0.0
    """Rate of one simulated user, who has one call in flight; 0: so low that a call may take twice the p99 allowed."""

    @property
    def seconds(self) -> float:
        """The whole run."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def task_seconds_max(self) -> float:
        """So long users who are told to stop may take to finish: a task makes a few calls one after the other."""
        return 5 * self.deadline_seconds

    @property
    def user_rate(self) -> float:
        """Calls a second of one user, such that the slowest phase has a whole number of users."""
        p99_seconds = max(phase.p99_ms_max or self.targets.p99_ms_max for phase in self.phases) / 1000
        slowest = min(phase.calls_per_second for phase in self.phases)
        return slowest / math.ceil(slowest / (self.user_calls_per_second_max or 1 / (2 * p99_seconds)))

    def users(self, phase: Phase) -> int:
        """How many of them make its rate."""
        return math.ceil(phase.calls_per_second / self.user_rate - 1e-9)


@dataclass(frozen=True, slots=True)
class Profile:
    """`processes` of the generator; `channels` of each, so that calls reach every worker of a server."""

    name: str
    suites: Mapping[str, SuiteProfile] = field(repr=False)
    about: str = ""
    processes: int = 1
    channels: int = 4

    def suite(self, name: str) -> SuiteProfile:
        """Raises LoadTestError if the profile does not have it."""
        if name not in self.suites:
            known = ", ".join(self.suites) or "none"
            raise LoadTestError(f"profile {self.name} has no suite {name} (it has {known}): add a table [{name}].")
        return self.suites[name]


def names() -> list[str]:
    """Of the profiles that come along."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Profile:
    """By name, or the path of a TOML file. Raises LoadTestError that names the field."""
    path = FOLDER / f"{name}.toml" if name in names() else Path(name)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadTestError(f"there is no profile {name}: choose {', '.join(names())}, or name a TOML file.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LoadTestError(f"{path}: {error}") from None
    return parse(document, name=path.stem, where=str(path))


def parse(document: Mapping[str, Any], *, name: str, where: str) -> Profile:
    """The profile in a TOML document. Raises LoadTestError that names the field."""
    suites = {key: _suite(value, f"{where}: {key}") for key, value in document.items() if isinstance(value, Mapping)}
    plain = {key: value for key, value in document.items() if key not in suites}
    return _build(Profile, plain, where, name=name, suites=suites)


def _suite(table: Mapping[str, Any], where: str) -> SuiteProfile:
    table = dict(table)
    targets = _build(Targets, _part(table, "targets", dict, where), f"{where}.targets")
    phases = _part(table, "phases", list, where)
    data = table.pop("data", {})
    for key, value in data.items():
        _number(value, f"{where}.data.{key}")
    built = tuple(_phase(each, number, f"{where}.phases[{number}]") for number, each in enumerate(phases))
    if not built:
        raise LoadTestError(f"{where}.phases: at least one is needed.")
    suite = _build(SuiteProfile, table, where, phases=built, targets=targets, data=data)
    for number, phase in enumerate(built):
        if phase.seconds < suite.settle_seconds + _WHOLE_SECONDS_MIN:
            least = suite.settle_seconds + _WHOLE_SECONDS_MIN
            raise LoadTestError(
                f"{where}.phases[{number}].seconds is {phase.seconds:g}: at least {least:g} are needed"
                f" (settle_seconds + {_WHOLE_SECONDS_MIN}), or nothing of it can be judged."
            )
    if len({phase.name for phase in built}) < len(built):
        raise LoadTestError(f"{where}.phases: two of them have the same name; give each its own.")
    if not targets.p99_ms_max:
        raise LoadTestError(f"{where}.targets.p99_ms_max must be above 0.")
    return suite


def _phase(table: object, number: int, where: str) -> Phase:
    if not isinstance(table, Mapping):
        raise LoadTestError(f"{where}: a table like {{seconds = 30, calls_per_second = 200}} is needed.")
    phase = _build(Phase, {"name": f"{number + 1}", **table}, where)
    if not phase.calls_per_second:
        raise LoadTestError(f"{where}.calls_per_second must be above 0.")
    return phase


def _part(table: dict[str, Any], key: str, kind: type[T], where: str) -> T:
    value = table.pop(key, None)
    if not isinstance(value, kind):
        raise LoadTestError(f"{where}.{key} is missing, or is no {'list' if kind is list else 'table'}.")
    return value


def _build(cls: type[T], table: Mapping[str, Any], where: str, **ready: Any) -> T:
    """An instance from the table, whose keys and types are those of the dataclass, and from what is ready."""
    known = {each.name: each for each in fields(cls) if each.name not in ready}  # type: ignore[arg-type]
    if unknown := sorted(table.keys() - known.keys()):
        raise LoadTestError(f"{where}.{unknown[0]}: no such setting; there are {', '.join(sorted(known))}.")
    for key, each in known.items():
        if key not in table and each.default is MISSING:
            raise LoadTestError(f"{where}.{key} is missing.")
        if key in table:
            _typed(table[key], str(each.type), f"{where}.{key}")
    return cls(**ready, **table)


def _typed(value: object, kind: str, where: str) -> None:
    if kind in ("str", "bool"):
        if type(value).__name__ != kind:
            raise LoadTestError(f"{where} must be {'a text' if kind == 'str' else 'true or false'}, not {value!r}.")
        return
    _number(value, where)
    if kind == "int" and (not isinstance(value, int) or value < 1):
        raise LoadTestError(f"{where} must be a whole number of at least 1, not {value!r}.")


def _number(value: object, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise LoadTestError(f"{where} must be a number of at least 0, not {value!r}.")
