"""What the ledger says, asked over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from guerdon import AccountKey, AsyncClient, Balance, Budget, Page, PrizeStock, TrialBalance
from guerdon_server.demo.scenario import PrizeName, Scenario

_READERS = 32


@dataclass(frozen=True, slots=True)
class Books:
    """One look at everything the demo's promotion touches; `users` by customer, `budgets` by asset."""

    stocks: Mapping[PrizeName, PrizeStock]
    budgets: Mapping[str, Budget]
    promotion: Mapping[AccountKey, Balance]
    users: Mapping[str, Mapping[AccountKey, Balance]]
    trial_balance: TrialBalance

    @property
    def account_count(self) -> int:
        """Accounts whose balances were read."""
        return len(self.promotion) + sum(map(len, self.users.values()))


class _Ask(Protocol):
    def __call__(self, *, page_token: str) -> Awaitable[Page[Balance]]: ...


async def read_books(client: AsyncClient, scenario: Scenario, customers: Iterable[str]) -> Books:
    """All figures, while nothing is being issued. Raises GuerdonError."""
    promotion = await client.get_promotion(promotion_id=scenario.promotion_id)
    return Books(
        stocks={prize: await client.get_prize_stock(prize_id=scenario.prize_id(prize)) for prize in PrizeName},
        budgets={budget.asset: budget for budget in promotion.budgets},
        promotion=await _balances(partial(client.list_balances, promotion_id=scenario.promotion_id)),
        users=await _users(client, scenario, customers),
        trial_balance=await client.get_trial_balance(),
    )


async def _users(
    client: AsyncClient, scenario: Scenario, customers: Iterable[str]
) -> Mapping[str, Mapping[AccountKey, Balance]]:
    found: dict[str, Mapping[AccountKey, Balance]] = {}
    left = iter(customers)

    async def read() -> None:
        for customer in left:
            ask = partial(client.list_balances, user_id=scenario.user_id(customer))
            found[customer] = await _balances(ask)

    async with asyncio.TaskGroup() as group:
        for _ in range(_READERS):
            group.create_task(read())
    return found


async def _balances(ask: _Ask) -> Mapping[AccountKey, Balance]:
    return {balance.account: balance async for balance in _all_pages(ask)}


async def _all_pages(ask: _Ask) -> AsyncIterator[Balance]:
    token = ""
    while True:
        page = await ask(page_token=token)
        for balance in page.items:
            yield balance
        token = page.next_page_token
        if not token:
            return
