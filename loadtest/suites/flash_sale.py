"""A crowd on one prize, until it is sold out and after.

data: stock (less than the crowd, or it is not sold out and the run fails).
"""

from __future__ import annotations

from collections.abc import Iterator

from locust import task

from loadtest.generator.stage import UNKNOWN, NewPrize, Stage, granted_of
from loadtest.generator.user import GRANTED, SOLD_OUT, GuerdonUser
from loadtest.plan import Check
from loadtest.tally import Tally


class FlashSale(GuerdonUser):
    """Everybody asks once, one ticket each."""

    @classmethod
    def prepare(cls, stage: Stage) -> None:
        stage.promotion("sale", [NewPrize("ticket", stock=stage.data("stock"), limit_per_user=1)])

    @task
    def ask(self) -> None:
        self.issue("sale", "ticket", user_id=self.new_id("u"), allow={GRANTED, SOLD_OUT})

    @classmethod
    def checks(cls, stage: Stage, tally: Tally) -> Iterator[Check]:
        stock, left = stage.data("stock"), stage.stock("ticket")
        granted, unknown = tally.counts[granted_of("ticket")], tally.counts[UNKNOWN]
        refused = tally.outcomes[f"IssuePrize: {SOLD_OUT}"]
        yield from super().checks(stage, tally)
        yield Check("tickets in the ledger", f"{left.issued_units:,}", f"{stock:,}", left.issued_units == stock)
        yield Check("tickets left", f"{left.remaining_units:,}", "0", left.remaining_units == 0)
        yield Check("tickets answered", f"{granted:,}", f"{stock:,}", granted <= stock <= granted + unknown)
        yield Check("refused because it was sold out", f"{refused:,}", "above 0", refused > 0)
