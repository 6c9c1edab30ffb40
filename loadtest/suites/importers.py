"""Importers of lists: batch after batch, each item a reward; now and then a batch is delivered once more.

data: batch (items of one, at most 1,000), again_percent (of the batches).
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from locust import task

from guerdon import UNLIMITED, FixedValue, PrizeKind
from guerdon.v1.prize_pb2 import BatchIssuePrizesResponse
from loadtest.generator.stage import NewPrize, Stage, none_of
from loadtest.generator.user import GuerdonUser
from loadtest.plan import Check
from loadtest.tally import Tally

_CONTRADICTIONS = "items answered otherwise the second time"


class Importers(GuerdonUser):
    """Rates are in batches a second."""

    _last: tuple[list[str], list[str], BatchIssuePrizesResponse] | None = None

    @classmethod
    def prepare(cls, stage: Stage) -> None:
        stage.promotion(
            "import", [NewPrize("points", PrizeKind.COIN, value=FixedValue("COIN", 5))], {"COIN": UNLIMITED}
        )

    @task
    def deliver(self) -> None:
        if self._last is not None and random.randrange(100) < self.stage.data("again_percent"):
            self._once_more(*self._last)
            return
        size = range(self.stage.data("batch"))
        users, requests = [self.new_id("u") for _ in size], [self.new_id("r") for _ in size]
        answer = self.batch("import", "points", user_ids=users, request_ids=requests)
        self._last = None if answer is None else (users, requests, answer)

    def _once_more(self, users: list[str], requests: list[str], first: BatchIssuePrizesResponse) -> None:
        answer = self.batch("import", "points", user_ids=users, request_ids=requests, again=True)
        if answer is not None:
            pairs = zip(first.results, answer.results, strict=True)
            self.tally.counts[_CONTRADICTIONS] += sum(one.granted != other.granted for one, other in pairs)
            self.tally.counts["batches compared"] += 1

    @classmethod
    def checks(cls, stage: Stage, tally: Tally) -> Iterator[Check]:
        yield from super().checks(stage, tally)
        compared = tally.counts["batches compared"]
        yield Check("batches delivered twice and compared", f"{compared:,}", "above 0", compared > 0)
        yield none_of(tally, _CONTRADICTIONS)
