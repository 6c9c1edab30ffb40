"""The purchases of the CDNOW sample, as the file has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from importlib.resources import files

_COLUMNS = 5


@dataclass(frozen=True, slots=True)
class Purchase:
    """One line of the file. `line` counts from 1 and tells identical lines apart; `cents` is the order's total."""

    line: int
    customer: str
    day: date
    cds: int
    cents: int


class PurchaseError(ValueError):
    """A line of the file is not what it should be; the message names it."""


def read_purchases() -> Sequence[Purchase]:
    """All purchases of the sample that comes with this package, in the order of the file."""
    text = (files("guerdon_server.demo") / "cdnow_sample.txt").read_text(encoding="ascii")
    return tuple(parse(text.splitlines()))


def parse(lines: Iterable[str]) -> Iterator[Purchase]:
    """One purchase for each line that is not blank. Raises PurchaseError."""
    for number, line in enumerate(lines, start=1):
        columns = line.split()
        if columns:
            yield _purchase(number, columns)


def in_date_order(purchases: Iterable[Purchase]) -> Sequence[Purchase]:
    """By day; within a day as in the file, so that one customer's purchases stay in order."""
    return tuple(sorted(purchases, key=lambda purchase: (purchase.day, purchase.line)))


def _purchase(number: int, columns: Sequence[str]) -> Purchase:
    if len(columns) != _COLUMNS:
        raise PurchaseError(f"line {number}: {len(columns)} columns instead of {_COLUMNS}")
    customer, _, day, cds, dollars = columns
    try:
        cents = Decimal(dollars) * 100
        purchase = Purchase(
            line=number,
            customer=customer,
            day=date(int(day[:4]), int(day[4:6]), int(day[6:])),
            cds=int(cds),
            cents=int(cents),
        )
    except (ValueError, InvalidOperation, OverflowError) as error:
        raise PurchaseError(f"line {number}: {' '.join(columns)}: {error}") from error
    if purchase.cents != cents or purchase.cents < 0 or purchase.cds < 1:
        raise PurchaseError(f"line {number}: {' '.join(columns)}: not whole cents and at least one CD")
    return purchase
