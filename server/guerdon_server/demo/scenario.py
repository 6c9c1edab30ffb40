"""The promotion of the demo and the three requests of each purchase."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from guerdon_server.demo.purchases import Purchase

ENTRANCE = "checkout"
CASH = "USD/2"
COIN = "COIN"
CASHBACK_BASIS_POINTS = 500
CASHBACK_CAP_CENTS = 500
COINS_BASIS_POINTS = 10_000
_ALL_PURCHASES = 6919
_COUPON_STOCK = 2000
_CASHBACK_BUDGET_CENTS = 1_000_000
_TWIN_SHARE = 0.1


class PrizeName(StrEnum):
    CASHBACK = "cashback"
    COUPON = "welcome-coupon"
    COINS = "coins"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: a prize for one purchase. The request id comes from the line, so that identical lines differ."""

    line: int
    customer: str
    prize: PrizeName
    request_id: str
    prize_id: str
    user_id: str
    reference: str
    attributes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Visit:
    """One purchase as an event: its three requests; `twin`: delivered twice at the same moment."""

    purchase: Purchase
    asks: tuple[Ask, ...]
    twin: bool


@dataclass(frozen=True, slots=True)
class Scenario:
    """Ids carry the promotion's, so that runs of different size can share one data folder."""

    promotion_id: str
    coupon_stock: int
    cashback_budget_cents: int
    twin_seed: int

    def prize_id(self, prize: PrizeName) -> str:
        return f"{self.promotion_id}-{prize}"

    def user_id(self, customer: str) -> str:
        return f"{self.promotion_id}:{customer}"

    def visits(self, purchases: Sequence[Purchase]) -> Sequence[Visit]:
        """One for each purchase, in the given order; the same seed doubles the same ones."""
        chosen = random.Random(self.twin_seed)  # noqa: S311  no secret
        return tuple(Visit(each, self._asks(each), chosen.random() < _TWIN_SHARE) for each in purchases)

    def _asks(self, purchase: Purchase) -> tuple[Ask, ...]:
        return (
            self._ask(purchase, PrizeName.CASHBACK, {"order_cents": purchase.cents}),
            self._ask(purchase, PrizeName.COUPON, {}),
            self._ask(purchase, PrizeName.COINS, {"cds": purchase.cds}),
        )

    def _ask(self, purchase: Purchase, prize: PrizeName, attributes: Mapping[str, int]) -> Ask:
        return Ask(
            line=purchase.line,
            customer=purchase.customer,
            prize=prize,
            request_id=f"line-{purchase.line}-{prize}",
            prize_id=self.prize_id(prize),
            user_id=self.user_id(purchase.customer),
            reference=f"line-{purchase.line}",
            attributes=attributes,
        )


def scenario(*, purchase_count: int, twin_seed: int) -> Scenario:
    """The demo's promotion; for fewer purchases than the file has, stock and budget shrink in proportion."""
    if purchase_count == _ALL_PURCHASES:
        return Scenario("cdnow", _COUPON_STOCK, _CASHBACK_BUDGET_CENTS, twin_seed)
    return Scenario(
        f"cdnow-{purchase_count}",
        _COUPON_STOCK * purchase_count // _ALL_PURCHASES,
        _CASHBACK_BUDGET_CENTS * purchase_count // _ALL_PURCHASES,
        twin_seed,
    )
