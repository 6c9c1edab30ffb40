"""More and more coupons a second, to the knee: the rate up to which every target is kept."""

from __future__ import annotations

from locust import task

from loadtest.generator.stage import NewPrize, Stage
from loadtest.generator.user import GuerdonUser

# Limited, so that gate and ledger count it, and more than any run can give.
_PLENTY = 10**12


class Ramp(GuerdonUser):
    """A new user for each call."""

    @classmethod
    def prepare(cls, stage: Stage) -> None:
        stage.promotion("ramp", [NewPrize("coupon", stock=_PLENTY, limit_per_user=1)])

    @task
    def ask(self) -> None:
        self.issue("ramp", "coupon", user_id=self.new_id("u"))
