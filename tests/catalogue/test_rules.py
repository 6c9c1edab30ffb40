"""The value rule against exact fractions, expiry, and limits."""

from __future__ import annotations

import datetime as dt
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon_server.core.ledger.postgres.capacity import UNITS_MAX
from guerdon_server.core.prize.model import FixedValue, RateValue, Rounding, ValidDays, ValidUntil
from guerdon_server.core.prize.rules import expires_at, value_of

units = st.integers(1, UNITS_MAX)


def rate(
    basis_points: int,
    rounding: Rounding = Rounding.HALF_UP,
    *,
    floor_units: int | None = None,
    cap_units: int | None = None,
) -> RateValue:
    return RateValue("cents", basis_points, floor_units, cap_units, rounding)


@pytest.mark.parametrize(
    ("basis", "basis_points", "expected"),
    [
        (0, 500, (0, 0, 0, 0)),
        (1, 1, (0, 0, 0, 1)),
        (9, 500, (0, 0, 0, 1)),
        (10, 500, (1, 0, 0, 1)),  # exactly a half
        (11, 500, (1, 1, 0, 1)),
        (30, 500, (2, 2, 1, 2)),
        (50, 500, (3, 2, 2, 3)),
        (20, 500, (1, 1, 1, 1)),
        (1, 1_000_000, (100, 100, 100, 100)),
        (UNITS_MAX, 10_000, (UNITS_MAX, UNITS_MAX, UNITS_MAX, UNITS_MAX)),
        (2**63 - 1, 1, (922337203685478, 922337203685478, 922337203685477, 922337203685478)),
    ],
)
def test_the_four_roundings(basis: int, basis_points: int, expected: tuple[int, ...]) -> None:
    roundings = (Rounding.HALF_UP, Rounding.HALF_EVEN, Rounding.DOWN, Rounding.UP)
    assert tuple(value_of(rate(basis_points, rounding), basis) for rounding in roundings) == expected


@given(
    basis=st.integers(0, 2**63 - 1),
    basis_points=st.integers(1, 1_000_000),
    rounding=st.sampled_from(Rounding),
    bounds=st.tuples(st.none() | units, st.none() | units),
)
def test_the_value_is_the_exact_fraction_rounded_then_raised_then_cut(
    basis: int, basis_points: int, rounding: Rounding, bounds: tuple[int | None, int | None]
) -> None:
    exact = Fraction(basis * basis_points, 10_000)
    whole = exact.numerator // exact.denominator
    half = Fraction(1, 2)
    expected = {
        Rounding.DOWN: whole,
        Rounding.UP: -(-exact.numerator // exact.denominator),
        Rounding.HALF_UP: (exact + half).__floor__(),
        Rounding.HALF_EVEN: round(exact),  # Python rounds fractions half to even
    }[rounding]
    floor_units, cap_units = bounds
    if expected > 0 and floor_units is not None:
        expected = max(expected, floor_units)
    if cap_units is not None:
        expected = min(expected, cap_units)
    value = value_of(rate(basis_points, rounding, floor_units=floor_units, cap_units=cap_units), basis)
    assert value == expected
    assert type(value) is int


def test_a_floor_raises_no_zero() -> None:
    assert value_of(rate(500, floor_units=100), 9) == 0
    assert value_of(rate(500, floor_units=100), 10) == 100


def test_a_fixed_value_needs_no_attribute() -> None:
    assert value_of(FixedValue(7), 0) == 7
    assert value_of(FixedValue(7), 10**30) == 7


def test_the_cashback_of_the_demo() -> None:
    cashback = rate(500, cap_units=500)
    assert [value_of(cashback, cents) for cents in (0, 10, 1177, 10_000, 99_999)] == [0, 1, 59, 500, 500]


def test_when_a_grant_expires() -> None:
    issued = dt.datetime(2026, 3, 28, 12, tzinfo=dt.UTC)
    until = dt.datetime(2027, 1, 1, tzinfo=dt.UTC)
    assert expires_at(None, issued) is None
    assert expires_at(ValidUntil(until), issued) == until
    assert expires_at(ValidDays(2), issued) == dt.datetime(2026, 3, 30, 12, tzinfo=dt.UTC)
    assert expires_at(ValidDays(36_500), issued) == issued + dt.timedelta(days=36_500)
