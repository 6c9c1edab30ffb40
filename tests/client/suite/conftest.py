"""One behaviour suite for the fake and for the server: what holds for one holds for the other."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from guerdon import (
    UNLIMITED,
    AsyncClient,
    BatchItem,
    Capacity,
    Granted,
    IssueOutcome,
    Prize,
    PrizeKind,
    PrizeValue,
    Promotion,
    PromotionState,
    Validity,
)
from guerdon.fake import FakeAsyncClient


@pytest.fixture(params=["fake", "server"])
def target(request: pytest.FixtureRequest) -> str | None:
    """Where the server listens; None for the fake. The server is started only for the tests that use it."""
    if request.param == "fake":
        return None
    server_target: str = request.getfixturevalue("server_target")
    return server_target


@pytest_asyncio.fixture(loop_scope="session")
async def client(target: str | None) -> AsyncIterator[AsyncClient]:
    async with FakeAsyncClient() if target is None else AsyncClient(target, timeout=20.0) as opened:
        yield opened


@dataclass(slots=True)
class Shop:
    """A promotion of its own at an entrance of its own: no test sees another's, so all can share one server."""

    client: AsyncClient
    name: str
    count: int = 0

    @property
    def promotion_id(self) -> str:
        return f"{self.name}-promotion"

    @property
    def entrance_id(self) -> str:
        return f"{self.name}-entrance"

    def fresh(self, what: str = "request") -> str:
        self.count += 1
        return f"{self.name}-{what}-{self.count}"

    async def opens(self, *, budgets: dict[str, Capacity] | None = None) -> Promotion:
        """Creates the entrance and the promotion, which is active afterwards."""
        await self.client.create_entrance(entrance_id=self.entrance_id, request_id=self.fresh())
        await self.client.create_promotion(
            promotion_id=self.promotion_id,
            entrance_ids=[self.entrance_id],
            budgets=budgets,
            request_id=self.fresh(),
        )
        return await self.goes(PromotionState.SCHEDULED)

    async def goes(self, state: PromotionState) -> Promotion:
        return await self.client.transition_promotion(
            promotion_id=self.promotion_id, target_state=state, request_id=self.fresh()
        )

    async def prize(
        self,
        *,
        kind: PrizeKind = PrizeKind.COUPON,
        stock: Capacity = UNLIMITED,
        value: PrizeValue | None = None,
        limit_per_user: int = 0,
        validity: Validity | None = None,
    ) -> Prize:
        return await self.client.create_prize(
            prize_id=self.fresh("prize"),
            promotion_id=self.promotion_id,
            kind=kind,
            stock=stock,
            value=value,
            limit_per_user=limit_per_user,
            validity=validity,
            request_id=self.fresh(),
        )

    async def issue(
        self,
        prize: Prize,
        *,
        user_id: str = "ann",
        request_id: str | None = None,
        attributes: dict[str, int | str] | None = None,
        reference: str = "",
    ) -> IssueOutcome:
        return await self.client.issue_prize(
            promotion_id=self.promotion_id,
            entrance_id=self.entrance_id,
            prize_id=prize.prize_id,
            user_id=self.user(user_id),
            request_id=request_id or self.fresh(),
            attributes=dict(attributes or {}),
            reference=reference,
        )

    async def grant(self, prize: Prize, **how: str) -> Granted:
        outcome = await self.issue(prize, user_id=how.get("user_id", "ann"), request_id=how.get("request_id"))
        assert isinstance(outcome, Granted), outcome
        return outcome

    def item(self, prize: Prize, *, user_id: str = "ann", request_id: str | None = None) -> BatchItem:
        return BatchItem(prize.prize_id, self.user(user_id), request_id or self.fresh())

    def user(self, name: str) -> str:
        return f"{self.name}-{name}"


@pytest.fixture
def shop(client: AsyncClient) -> Shop:
    return Shop(client, f"s{uuid.uuid4().hex[:12]}")
