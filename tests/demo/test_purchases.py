"""The file is what PROVENANCE.md says, and is read as it is."""

from __future__ import annotations

from datetime import date

import pytest

from guerdon_server.demo.expectation import cashback_cents, expect
from guerdon_server.demo.purchases import Purchase, PurchaseError, in_date_order, parse, read_purchases


def test_the_sample_is_complete() -> None:
    purchases = read_purchases()
    assert len(purchases) == 6919
    assert len({purchase.customer for purchase in purchases}) == 2357
    assert [purchase.line for purchase in purchases] == list(range(1, 6920))
    assert purchases[0] == Purchase(line=1, customer="00004", day=date(1997, 1, 1), cds=2, cents=2933)
    assert sum(purchase.cents == 0 for purchase in purchases) == 8
    alike = {(each.customer, each.day, each.cds, each.cents) for each in purchases}
    assert len(purchases) - len(alike) == 21


def test_the_totals_of_the_file() -> None:
    expectation = expect(read_purchases())
    assert (expectation.purchase_count, expectation.customer_count) == (6919, 2357)
    assert expectation.coins == 16_479
    assert expectation.cashback_cents == 1_141_981  # $11,419.81
    assert expectation.zero_value_count == 8
    assert expectation.coupons(2000) == 2000
    assert expectation.coupons(3000) == 2357


@pytest.mark.parametrize(
    ("order_cents", "cents"),
    [(0, 0), (9, 0), (10, 1), (29, 1), (30, 2), (2933, 147), (9989, 499), (9990, 500), (10_000, 500), (1_000_000, 500)],
)
def test_cashback_is_five_percent_half_up_and_capped(order_cents: int, cents: int) -> None:
    assert cashback_cents(order_cents) == cents


def test_date_order_keeps_the_order_of_the_file_within_a_day() -> None:
    ordered = in_date_order(read_purchases())
    assert [each.day for each in ordered] == sorted(each.day for each in ordered)
    per_day = [(each.day, each.line) for each in ordered]
    assert per_day == sorted(per_day)


def test_blank_lines_and_line_ends_don_t_matter_but_lines_keep_their_number() -> None:
    purchases = list(parse("\r\n 00004 0001 19970101  2   29.33\r\n".splitlines()))
    assert [(each.line, each.cents) for each in purchases] == [(2, 2933)]


@pytest.mark.parametrize(
    "line",
    [
        "00004 0001 19970101 2",
        "00004 0001 19970231 2 1.00",
        "00004 0001 1997010x 2 1.00",
        "00004 0001 19970101 0 1.00",
        "00004 0001 19970101 2 -1.00",
        "00004 0001 19970101 2 1.005",
        "00004 0001 19970101 2 NaN",
        "00004 0001 19970101 2 Infinity",
        "00004 0001 19970101 two 1.00",
    ],
)
def test_a_line_that_makes_no_sense_is_named(line: str) -> None:
    with pytest.raises(PurchaseError, match="line 1"):
        list(parse([line]))
