"""Profiles: what comes along is whole, and what is wrong is refused by the name of its field."""

from __future__ import annotations

from typing import Any

import pytest
from loadtest import profile as profiles
from loadtest.errors import LoadTestError
from loadtest.suites import titles


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_has_every_suite(name: str) -> None:
    profile = profiles.load(name)
    assert profile.suites.keys() == titles().keys()
    assert profile.about


@pytest.mark.parametrize("name", profiles.names())
def test_a_flash_sale_can_sell_out_and_goes_on(name: str) -> None:
    suite = profiles.load(name).suite("flash_sale")
    crowd = sum(phase.seconds * phase.calls_per_second for phase in suite.phases)
    assert 0.2 * crowd < suite.data["stock"] < 0.6 * crowd


@pytest.mark.parametrize("name", profiles.names())
def test_a_spike_is_ten_times_the_ordinary_and_all_of_it_is_judged(name: str) -> None:
    before, spike, after = profiles.load(name).suite("spike").phases
    assert spike.calls_per_second == 10 * before.calls_per_second == 10 * after.calls_per_second
    assert before.judged
    assert spike.judged
    assert after.judged


@pytest.mark.parametrize("name", profiles.names())
def test_no_profile_weakens_what_every_run_must_keep(name: str) -> None:
    for suite in profiles.load(name).suites.values():
        targets = suite.targets
        assert (targets.achieved_ratio_min, targets.generator_cpu_max, targets.error_ratio_max) == (0.98, 0.8, 0)


def document(**changes: Any) -> dict[str, Any]:
    """A suite that is right, changed."""
    suite = {
        "phases": [{"seconds": 10, "calls_per_second": 90}],
        "targets": {"p99_ms_max": 50},
        "data": {"stock": 5},
    }
    return {"flash_sale": {**suite, **changes}}


def parse(found: dict[str, Any]) -> profiles.Profile:
    """As if read from mine.toml."""
    return profiles.parse(found, name="mine", where="mine.toml")


def test_defaults_are_the_targets_of_the_project() -> None:
    suite = parse(document()).suite("flash_sale")
    assert suite.targets == profiles.Targets(p99_ms_max=50)
    assert suite.phases == (profiles.Phase(10, 90, "1"),)


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        ({"speed": 3}, r"mine\.toml\.speed: no such setting; there are about, channels, processes"),
        ({"processes": 0}, r"mine\.toml\.processes must be a whole number of at least 1, not 0"),
        ({"about": 7}, r"mine\.toml\.about must be a text, not 7"),
        (document(rate=1), r"mine\.toml: flash_sale\.rate: no such setting"),
        (document(targets={}), r"flash_sale\.targets\.p99_ms_max is missing"),
        (document(targets={"p99_ms_max": 0}), r"flash_sale\.targets\.p99_ms_max must be above 0"),
        (document(targets={"p99_ms_max": "fast"}), r"targets\.p99_ms_max must be a number of at least 0, not 'fast'"),
        (document(targets=3), r"flash_sale\.targets is missing, or is no table"),
        (document(phases=[]), r"flash_sale\.phases: at least one"),
        (document(phases={}), r"flash_sale\.phases is missing, or is no list"),
        (document(phases=[7]), r"phases\[0\]: a table like"),
        (document(phases=[{"seconds": 9}]), r"phases\[0\]\.calls_per_second is missing"),
        (document(phases=[{"seconds": 9, "calls_per_second": 0}]), r"phases\[0\]\.calls_per_second must be above 0"),
        (document(phases=[{"seconds": 3, "calls_per_second": 9}]), r"phases\[0\]\.seconds is 3: at least 4 are needed"),
        (document(phases=[{"seconds": 9, "calls_per_second": 9, "judged": 1}]), r"judged must be true or false, not 1"),
        (document(phases=[{"seconds": 9, "calls_per_second": 9, "name": "a"}] * 2), "two of them have the same name"),
        (document(data={"stock": -1}), r"flash_sale\.data\.stock must be a number of at least 0, not -1"),
    ],
)
def test_what_is_wrong_is_named(found: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LoadTestError, match=complaint):
        parse(found)


def test_a_suite_that_is_not_there_is_named_with_the_mend() -> None:
    with pytest.raises(
        LoadTestError, match=r"profile mine has no suite soak \(it has flash_sale\): add a table \[soak\]"
    ):
        parse(document()).suite("soak")


def test_a_profile_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(LoadTestError, match="no profile huge: choose ci, medium, small, or name a TOML file"):
        profiles.load("huge")


@pytest.mark.parametrize("wanted", [10.0, 90.0, 1234.0])
def test_users_make_the_rate_and_each_has_time_for_twice_the_p99(wanted: float) -> None:
    suite = parse(document(phases=[{"seconds": 9, "calls_per_second": wanted}])).suite("flash_sale")
    (phase,) = suite.phases
    assert suite.users(phase) * suite.user_rate == pytest.approx(wanted)
    assert 1 / suite.user_rate >= 2 * 0.050
