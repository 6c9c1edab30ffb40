"""What a run plays with: its promotions and prizes, made before the load and looked at after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from guerdon import UNLIMITED, Capacity, Client, PrizeKind, PrizeStock, PrizeValue, PromotionState
from loadtest.errors import LoadTestError
from loadtest.plan import Check, Plan
from loadtest.tally import Tally

UNKNOWN = "unknown"
"""Count of rewards whose call ended in an error: they may have been granted."""


@dataclass(frozen=True, slots=True)
class NewPrize:
    """A prize to be made; `name` is unique in the run."""

    name: str
    kind: PrizeKind = PrizeKind.COUPON
    stock: Capacity = UNLIMITED
    value: PrizeValue | None = None
    limit_per_user: int = 0


class Stage:
    """Names of a run and its catalogue: everything is called by a short name, which `id` makes unique."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._prizes: list[str] = []

    def id(self, name: str) -> str:
        """The id that a short name has in this run."""
        return f"{self.plan.run}-{name}"

    @property
    def entrance_id(self) -> str:
        """The one entrance of the run."""
        return self.id("entrance")

    def data(self, name: str) -> int:
        """A number of the suite's table `data`. Raises LoadTestError if it is not there."""
        if name not in self.plan.profile.data:
            raise LoadTestError(f"the profile's [{self.plan.suite}.data] lacks {name}: the suite needs it.")
        return int(self.plan.profile.data[name])

    @cached_property
    def client(self) -> Client:
        """For preparing and checking; the users have channels of their own."""
        return Client(self.plan.target, principal="loadtest", timeout=30, credentials=self.plan.credentials())

    def open(self) -> None:
        """Make the entrance."""
        self.client.create_entrance(
            entrance_id=self.entrance_id, display_name="Load test", request_id=f"{self.entrance_id}-create"
        )

    def promotion(self, name: str, prizes: Sequence[NewPrize], budgets: Mapping[str, Capacity] | None = None) -> None:
        """Make a promotion with prizes, active from now on."""
        promotion_id = self.id(name)
        self.client.create_promotion(
            promotion_id=promotion_id,
            entrance_ids=[self.entrance_id],
            budgets=budgets or {},
            request_id=f"{promotion_id}-create",
        )
        for prize in prizes:
            self.client.create_prize(
                prize_id=self.id(prize.name),
                promotion_id=promotion_id,
                kind=prize.kind,
                stock=prize.stock,
                value=prize.value,
                limit_per_user=prize.limit_per_user,
                request_id=f"{self.id(prize.name)}-create",
            )
            self._prizes.append(prize.name)
        self.client.transition_promotion(
            promotion_id=promotion_id, target_state=PromotionState.SCHEDULED, request_id=f"{promotion_id}-start"
        )

    def stock(self, prize: str) -> PrizeStock:
        """As the ledger has it."""
        return self.client.get_prize_stock(prize_id=self.id(prize))

    def granted_is_issued(self, tally: Tally) -> Iterator[Check]:
        """That the ledger has what the callers were told, no more and no less; errors leave the difference open."""
        issued = sum(self.stock(prize).issued_units for prize in self._prizes)
        granted = sum(tally.counts[granted_of(prize)] for prize in self._prizes)
        unknown = tally.counts[UNKNOWN]
        yield Check(
            "grants in the ledger = grants answered",
            f"{issued:,}",
            f"{granted:,}" + (f" to {granted + unknown:,} ({unknown:,} unknown)" if unknown else ""),
            granted <= issued <= granted + unknown and granted > 0,
        )


def granted_of(prize: str) -> str:
    """The count of a prize's requests that were answered with a grant, each once."""
    return f"granted {prize}"


def none_of(tally: Tally, count: str) -> Check:
    """That a count of the suite's own stayed at zero."""
    return Check(count, f"{tally.counts[count]:,}", "0", not tally.counts[count])
