"""What two real servers answer to a crowd, recorded and checked."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest_asyncio

from guerdon.v1 import account_pb2 as account
from guerdon.v1 import prize_pb2 as prize
from guerdon_server import bootstrap
from guerdon_server.settings import Settings
from tests.history.record import Budget, History, Kind, Operation, Outcome, Prize
from tests.history.report import check
from tests.issuing.desk import Desk, Refusal, ask, fresh, opened, outcome, reason

_CLERKS = 16
_CALLS = 25


@pytest_asyncio.fixture(loop_scope="session")
async def desks(settings: Settings, server_target: str) -> AsyncIterator[list[Desk]]:
    """Two servers on one ledger and one gate."""
    async with opened(server_target) as one, bootstrap.running(settings) as second, opened(second.grpc) as other:
        yield [one, other]


async def _issue(history: History, desk: Desk, request: prize.IssuePrizeRequest, amount: int) -> None:
    call = history.begin(
        Kind.ISSUE,
        promotion_id=request.promotion_id,
        prize_id=request.prize_id,
        user_id=request.user_id,
        request_id=request.request_id,
        amount=amount,
    )
    answer = await outcome(desk.issue(request))
    if isinstance(answer, Refusal):
        assert answer.code == "ABORTED", answer
        history.end(call, Outcome.FAILED, reason=answer.reason)
    elif answer.WhichOneof("outcome") == "granted":
        how = Outcome.REPLAYED if answer.replayed else Outcome.GRANTED
        history.end(call, how, issuance_id=answer.granted.issuance_id)
    elif answer.WhichOneof("outcome") == "rejected":
        history.end(call, Outcome.REJECTED, reason=reason(answer.rejected))
    else:
        history.end(call, Outcome.PENDING)


def _stock(history: History, call: Operation, stock: prize.PrizeStock) -> None:
    history.end(call, Outcome.OK, capacity=stock.units, issued=stock.issued_units, remaining=stock.remaining_units)


async def _clerk(history: History, desks: list[Desk], chance: random.Random) -> None:
    asked: list[tuple[prize.IssuePrizeRequest, int]] = []
    for _ in range(_CALLS):
        if not asked or chance.random() < 0.85:
            of, amount = chance.choice([("mug", 0), ("coins", 7)])
            asked.append((ask(user_id=f"u{chance.randrange(25)}", promotion_id="h", prize_id=of), amount))
            request, amount = asked[-1]
        else:
            request, amount = chance.choice(asked)
        await _issue(history, chance.choice(desks), request, amount)


async def _operator(history: History, desks: list[Desk], chance: random.Random) -> None:
    for _ in range(8):
        desk = chance.choice(desks)
        delta = chance.choice([-2, 3, 5])
        call = history.begin(Kind.ADJUST_STOCK, promotion_id="h", prize_id="mug", amount=delta)
        adjusted = await outcome(
            desk.prizes.AdjustPrizeStock(
                prize.AdjustPrizeStockRequest(prize_id="mug", delta_units=delta, request_id=fresh("adjust"))
            )
        )
        if isinstance(adjusted, Refusal):
            history.end(call, Outcome.REJECTED, reason=adjusted.reason)
        else:
            _stock(history, call, adjusted.stock)
        for kind, to in ((Kind.PAUSE, "PAUSED"), (Kind.RESUME, "ACTIVE")):
            call = history.begin(kind, promotion_id="h")
            await chance.choice(desks).goes(to, "h")
            history.end(call, Outcome.OK)


async def _auditor(history: History, desks: list[Desk], chance: random.Random) -> None:
    for _ in range(40):
        desk = chance.choice(desks)
        call = history.begin(Kind.READ_STOCK, promotion_id="h", prize_id="mug")
        _stock(history, call, await desk.stock("mug"))
        user_id = f"u{chance.randrange(25)}"
        call = history.begin(Kind.READ_BALANCE, user_id=user_id, asset="COIN")
        key = account.AccountKey(kind=account.ACCOUNT_KIND_WALLET, user_id=user_id, asset="COIN")
        balance = await outcome(desk.accounts.GetBalance(account.GetBalanceRequest(account=key)))
        units = 0 if isinstance(balance, Refusal) else balance.balance_units  # NOT_FOUND: never had any
        history.end(call, Outcome.OK, balance=units)


async def test_two_servers_answer_a_crowd_as_if_there_was_one_caller_at_a_time(desks: list[Desk]) -> None:
    await desks[0].opens("h", budgets={"COIN": 700})
    await desks[0].coupon("mug", promotion_id="h", stock=120, limit=6)
    await desks[0].offers(
        "coins",
        promotion_id="h",
        kind=prize.PRIZE_KIND_COIN,
        stock=prize.Stock(unlimited=True),
        value=prize.PrizeValue(asset="COIN", fixed_units=7),
    )
    history = History(
        prizes=[Prize("h", "mug", 120, 6), Prize("h", "coins", None, 0, "COIN", wallet=True)],
        budgets=[Budget("h", "COIN", 700)],
    )
    await asyncio.gather(
        *(_clerk(history, desks, random.Random(n)) for n in range(_CLERKS)),
        _operator(history, desks, random.Random(-1)),
        _auditor(history, desks, random.Random(-2)),
    )
    # With nobody else there, the gate has to let pass exactly what is left.
    for prize_id, amount, said in (("mug", 0, "SOLD_OUT"), ("coins", 7, "BUDGET_EXHAUSTED")):
        for number in range(200):
            request = ask(user_id=f"late-{number}", promotion_id="h", prize_id=prize_id)
            await _issue(history, desks[number % 2], request, amount)
            if history.operations[-1].reason == said:
                break
        assert history.operations[-1].reason == said
    await _auditor(history, desks, random.Random(-3))
    report = check(history)
    assert report.ok, report


async def test_a_raised_limit_holds_at_every_server_at_once(desks: list[Desk]) -> None:
    history = History()
    for number in range(5):
        promotion_id, prize_id = f"raised-{number}", f"raised-mug-{number}"
        await desks[0].opens(promotion_id)
        await desks[0].coupon(prize_id, promotion_id=promotion_id, stock=10, limit=1)
        history.prizes.append(Prize(promotion_id, prize_id, 10, 1))
        await _issue(history, desks[1], ask(promotion_id=promotion_id, prize_id=prize_id), 0)
        call = history.begin(Kind.SET_LIMIT, promotion_id=promotion_id, prize_id=prize_id, amount=5)
        await desks[0].updates_prize(["limit_per_user"], prize_id, limit_per_user=5)
        history.end(call, Outcome.OK)
        await _issue(history, desks[1], ask(promotion_id=promotion_id, prize_id=prize_id), 0)
    report = check(history)
    assert report.ok, report


async def test_a_lowered_value_holds_at_every_server_at_once(desks: list[Desk]) -> None:
    for number in range(5):
        promotion_id, prize_id = f"lowered-{number}", f"lowered-coins-{number}"
        await desks[0].opens(promotion_id, budgets={"COIN": 15})
        await desks[0].offers(
            prize_id,
            promotion_id=promotion_id,
            kind=prize.PRIZE_KIND_COIN,
            stock=prize.Stock(unlimited=True),
            value=prize.PrizeValue(asset="COIN", fixed_units=10),
        )
        await desks[1].grant(ask(promotion_id=promotion_id, prize_id=prize_id))
        cheaper = prize.PrizeValue(asset="COIN", fixed_units=5)
        await desks[0].updates_prize(["value.fixed_units"], prize_id, value=cheaper)
        granted = await desks[1].grant(ask(promotion_id=promotion_id, prize_id=prize_id))
        assert granted.value.units == 5
