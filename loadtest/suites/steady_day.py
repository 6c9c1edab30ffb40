"""An ordinary day: many promotions, a few of them popular; rewards, batches, statements and lists.

data: promotions, users, batch (items of one).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import ClassVar

from locust import task

from guerdon import UNLIMITED, FixedValue, PrizeKind, RateValue, Rounding
from guerdon.v1.account_pb2 import ACCOUNT_KIND_WALLET, AccountKey, ListEntriesRequest
from guerdon.v1.entrance_pb2 import ListEntrancePromotionsRequest
from guerdon.v1.prize_pb2 import ListIssuancesRequest
from loadtest.generator.stage import NewPrize, Stage
from loadtest.generator.user import GRANTED, LIMIT_REACHED, GuerdonUser

_ZIPF = 1.1
_PAGE = 20
_COIN, _CASH = "COIN", "USD/2"
# Limited, so that gate and ledger count it, and more than any run can give.
_PLENTY = 10**12


class SteadyDay(GuerdonUser):
    """The k-th promotion is asked for in proportion to 1/k^1.1."""

    _popularity: ClassVar[Sequence[float]] = ()

    @classmethod
    def set_up(cls, stage: Stage) -> None:
        super().set_up(stage)
        count = stage.data("promotions")
        cls._popularity = list(itertools.accumulate(1 / rank**_ZIPF for rank in range(1, count + 1)))

    @classmethod
    def prepare(cls, stage: Stage) -> None:
        five_percent = RateValue(_CASH, "order_cents", 500, None, 500, Rounding.HALF_UP)
        for number in range(stage.data("promotions")):
            prizes = [
                NewPrize(f"coins-{number}", PrizeKind.COIN, value=FixedValue(_COIN, 10)),
                NewPrize(f"coupon-{number}", stock=_PLENTY, limit_per_user=3),
                NewPrize(f"cashback-{number}", PrizeKind.CASHBACK, value=five_percent),
            ]
            stage.promotion(f"day-{number}", prizes, {_COIN: UNLIMITED, _CASH: _PLENTY})

    @task(40)
    def coins(self) -> None:
        number = self._promotion()
        self.issue(f"day-{number}", f"coins-{number}", user_id=self._somebody())

    @task(20)
    def coupon(self) -> None:
        number = self._promotion()
        allow = {GRANTED, LIMIT_REACHED}
        self.issue(f"day-{number}", f"coupon-{number}", user_id=self._somebody(), allow=allow)

    @task(15)
    def cashback(self) -> None:
        number = self._promotion()
        order = {"order_cents": random.randint(100, 20_000)}
        self.issue(f"day-{number}", f"cashback-{number}", user_id=self._somebody(), attributes=order)

    @task(5)
    def salary(self) -> None:
        number = self._promotion()
        users = [self._somebody() for _ in range(self.stage.data("batch"))]
        self.batch(f"day-{number}", f"coins-{number}", user_ids=users)

    @task(8)
    def statement(self) -> None:
        account = AccountKey(kind=ACCOUNT_KIND_WALLET, user_id=self._somebody(), asset=_COIN)
        request = ListEntriesRequest(account=account, page_size=_PAGE)
        self.read("ListEntries", self.stubs.accounts.ListEntries, request)

    @task(6)
    def history(self) -> None:
        request = ListIssuancesRequest(user_id=self._somebody(), page_size=_PAGE)
        self.read("ListIssuances", self.stubs.prizes.ListIssuances, request)

    @task(6)
    def shop_window(self) -> None:
        request = ListEntrancePromotionsRequest(
            entrance_id=self.stage.entrance_id, user_id=self._somebody(), page_size=_PAGE
        )
        self.read("ListEntrancePromotions", self.stubs.entrances.ListEntrancePromotions, request)

    def _promotion(self) -> int:
        return random.choices(range(len(self._popularity)), cum_weights=self._popularity)[0]

    def _somebody(self) -> str:
        return self.stage.id(f"u-{random.randrange(self.stage.data('users'))}")
