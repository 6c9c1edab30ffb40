"""What every mutant must still do: a defect that stops everything would prove no test."""

from __future__ import annotations

from tests.issuing.desk import ask, opened


async def test_an_ordinary_day(server_target: str) -> None:
    async with opened(server_target) as desk:
        await desk.opens(budgets={"USD/2": 1000})
        await desk.coupon(stock=100, limit=5)
        await desk.cashback()
        granted = await desk.grant(ask("r-1"))
        assert (await desk.grant(ask("r-2", prize_id="cashback", order_cents=1000))).value.units == 50
        await desk.grant(ask("r-3", user_id="bob"))
        assert (await desk.became("r-1")).granted == granted
        assert (await desk.stock()).issued_units == 2
