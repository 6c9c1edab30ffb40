"""Amounts and times as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon_server.cli.amounts import UNITS_MAX, AmountError, format_units, parse_units
from guerdon_server.cli.attributes import parse_value, split_name
from guerdon_server.cli.instants import parse_instant

ASSETS = st.sampled_from(["COIN", "USD/2", "KWD/3", "POINT/0", "BTC/8"])


@given(st.integers(-UNITS_MAX, UNITS_MAX), ASSETS)
def test_what_is_shown_can_be_given_back(units: int, asset: str) -> None:
    assert parse_units(format_units(units, asset), asset) == units


@pytest.mark.parametrize(
    ("text", "asset", "units"),
    [
        ("10000.00", "USD/2", 1_000_000),
        ("5", "USD/2", 500),
        ("+0.5", "USD/2", 50),
        ("-5.00", "USD/2", -500),
        ("7", "COIN", 7),
    ],
)
def test_amounts_have_the_decimals_of_their_asset(text: str, asset: str, units: int) -> None:
    assert parse_units(text, asset) == units


@pytest.mark.parametrize(
    ("text", "asset"),
    [
        ("1.001", "USD/2"),
        ("1.5", "COIN"),
        ("1,000.00", "USD/2"),
        ("1e3", "COIN"),
        ("", "COIN"),
        ("٣", "COIN"),
        (".5", "USD/2"),
        ("90071992547409.92", "USD/2"),
        ("9" * 200, "COIN"),
        ("1", "usd"),
        ("1", "USD/"),
    ],
)
def test_what_is_no_amount_is_refused(text: str, asset: str) -> None:
    with pytest.raises(AmountError):
        parse_units(text, asset)


def test_times_say_their_zone_or_are_relative() -> None:
    now = datetime(2026, 5, 1, tzinfo=UTC)
    assert parse_instant("2026-05-01T02:00:00+02:00") == now
    assert parse_instant("+90m", now=now) == now + timedelta(minutes=90)
    assert parse_instant("now", now=now) == now
    for text in ("2026-05-01T00:00:00", "2026-05-01", "tomorrow", "+7y", "+999999w", ""):
        with pytest.raises(ValueError, match="time"):
            parse_instant(text)


def test_attributes_are_integers_where_they_are_written_so() -> None:
    assert parse_value("1999") == 1999
    assert parse_value("-1") == -1
    assert parse_value("007") == "007"
    assert parse_value("9223372036854775808") == "9223372036854775808"
    assert parse_value("true") == "true"
    assert parse_value("true", "bool") is True
    assert parse_value("a,b", "list") == ("a", "b")
    assert split_name("order_cents:int") == ("order_cents", "int")
    assert split_name("a:b") == ("a:b", "")
    for kind, text in (("int", "x"), ("int", str(2**63)), ("bool", "yes"), ("time", "noon")):
        with pytest.raises(ValueError, match=text):
            parse_value(text, kind)
