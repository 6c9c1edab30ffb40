"""What the file alone says the rewards must come to.

Deliberately apart: nothing here is shared with the server, its rules or the scenario, and it is plain arithmetic, so
that agreement of the two means something.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from guerdon_server.demo.purchases import Purchase

_CASHBACK_SHARE = Decimal("0.05")
_CASHBACK_CENTS_MAX = 500


@dataclass(frozen=True, slots=True)
class Expectation:
    """`cashback_by_line`: cents that each order earns while the budget lasts; `coins_by_customer`: one for each CD."""

    purchase_count: int
    customer_count: int
    cashback_by_line: Mapping[int, int]
    coins_by_customer: Mapping[str, int]

    @property
    def cashback_cents(self) -> int:
        """What cashback would cost without a budget."""
        return sum(self.cashback_by_line.values())

    @property
    def zero_value_count(self) -> int:
        """Orders that earn no cashback, whatever the budget."""
        return sum(cents == 0 for cents in self.cashback_by_line.values())

    @property
    def coins(self) -> int:
        return sum(self.coins_by_customer.values())

    def coupons(self, stock: int) -> int:
        """One for each customer, as long as there are any."""
        return min(stock, self.customer_count)


def expect(purchases: Iterable[Purchase]) -> Expectation:
    """Add the file up."""
    cashback: dict[int, int] = {}
    coins: Counter[str] = Counter()
    for purchase in purchases:
        cashback[purchase.line] = cashback_cents(purchase.cents)
        coins[purchase.customer] += purchase.cds
    return Expectation(
        purchase_count=len(cashback), customer_count=len(coins), cashback_by_line=cashback, coins_by_customer=coins
    )


def cashback_cents(order_cents: int) -> int:
    """5 % of the order, half a cent rounds up, at most $5.00."""
    exact = order_cents * _CASHBACK_SHARE
    return min(_CASHBACK_CENTS_MAX, int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP)))
