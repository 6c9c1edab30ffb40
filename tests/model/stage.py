"""Two servers on one database and one gate, and plays on them: each a promotion of its own, beside a model of it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count

from guerdon.v1 import account_pb2 as account
from guerdon.v1 import entrance_pb2 as entrance
from guerdon.v1 import prize_pb2
from guerdon.v1 import promotion_pb2 as promotion
from guerdon_server.platform import postgres
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, fresh
from tests.model.calls import (
    BatchCall,
    BindCall,
    BudgetCall,
    Call,
    Clock,
    Expected,
    GoCall,
    IssueCall,
    LimitCall,
    Memory,
    ResolveCall,
    RuleCall,
    StockCall,
    Told,
    ValidityCall,
    WindowCall,
    budget_level,
    make,
    send,
    stock_level,
    wire_validity,
    wire_value,
)
from tests.model.model import Account, Attribute, Item, Model, Rate, Validity
from tests.model.programs import (
    ASSETS,
    ATTRIBUTE,
    ENTRANCES,
    UNBOUND,
    USERS,
    AdjustBudget,
    AdjustStock,
    Again,
    Amount,
    Ask,
    Batch,
    Bind,
    Goes,
    Issue,
    Pass,
    Resolve,
    SetLimit,
    SetRule,
    SetUp,
    SetValidity,
    SetWindow,
    Step,
)

_INT64_MAX = 2**63 - 1
ELSEWHERE = "elsewhere"
Trial = dict[tuple[str, str], tuple[int, int, int]]


class Disagreement(AssertionError):
    """Server and model differ; the message is the whole play."""


class Stage:
    """`desks`: one for each server. `pool`: the database behind both. `settings`: theirs. `hours`: the time now."""

    def __init__(self, desks: Sequence[Desk], pool: postgres.Pool, settings: Settings, clock: Clock) -> None:
        self.desks = desks
        self.pool = pool
        self.settings = settings
        self.clock = clock
        self.hours = 0.0
        self.offset_us = 0  # of the database's clock
        self._plays = count(1)

    def __repr__(self) -> str:
        return "stage"

    async def furnish(self) -> None:
        """The entrances, and another promotion with a prize."""
        for number in range(ENTRANCES):
            made = entrance.Entrance(entrance_id=f"door-{number}")
            await self.desks[0].entrances.CreateEntrance(
                entrance.CreateEntranceRequest(entrance=made, request_id=fresh("entrance"))
            )
        await self.desks[0].opens(ELSEWHERE, entrances=())
        await self.desks[0].coupon(f"{ELSEWHERE}-prize", promotion_id=ELSEWHERE)

    async def pass_hours(self, hours: int) -> None:
        """Time goes by, for everybody. What really went by since the last time is taken back, so that hours count."""
        self.hours += hours
        self.offset_us = round((self.clock.base + self.hours * 3600 - time.time()) * 1e6)
        await self.pool.execute("UPDATE guerdon.clock SET offset_us = $1", self.offset_us)

    @asynccontextmanager
    async def play(self, set_up: SetUp, model: Model | None = None) -> AsyncIterator[Play]:
        """A promotion of its own, active, on the servers and in the model. It is ended afterwards, so that the servers
        do not look after more and more of them."""
        play = Play(self, model or Model(), f"{next(self._plays)}")
        await play.open(set_up)
        try:
            yield play
        finally:
            await send(self.desks[0], GoCall(play.promotion, "ENDED"), self.clock)  # it may have been before

    async def trial_balance(self) -> Trial:
        """As the server has it; it must say of itself that it is balanced."""
        answer = await self.desks[0].accounts.GetTrialBalance(account.GetTrialBalanceRequest())
        assert answer.balanced
        return {
            (line.asset, _kind(line.kind)): (line.account_count, int(line.debits_units), int(line.credits_units))
            for line in answer.lines
        }


class Play:
    """One promotion on the servers and in a model, and all that is said. Ids begin with the name of the play."""

    def __init__(self, stage: Stage, model: Model, name: str) -> None:
        self.stage = stage
        self.model = model
        self.name = name
        self.promotion = f"{name}-promotion"
        self.users = [f"{name}-user{number}" for number in range(USERS)]
        self.prizes: list[str] = []
        self.memory = Memory(stage.clock)
        self.log: list[str] = []
        self._issued: list[IssueCall | BatchCall] = []
        self._trial_before: Trial = {}
        self._model_before: Trial = {}

    async def open(self, set_up: SetUp) -> None:
        """Set it up on both sides."""
        self.open_model(set_up)
        self._model_before = _elsewhere_only(self.model)
        self._trial_before = await self.stage.trial_balance()
        desk, clock = self.stage.desks[0], self.stage.clock
        wire_budgets = [
            promotion.Budget(asset=asset, unlimited=True)
            if units is None
            else promotion.Budget(asset=asset, units=units)
            for asset, units in zip(ASSETS, set_up.budgets, strict=True)
        ]
        made = promotion.Promotion(promotion_id=self.promotion, entrance_ids=_BOUND, budgets=wire_budgets)
        await desk.promotions.CreatePromotion(
            promotion.CreatePromotionRequest(promotion=made, request_id=fresh("create"))
        )
        for prize_id, new in zip(self.prizes, set_up.prizes, strict=True):
            await desk.offers(
                prize_id,
                promotion_id=self.promotion,
                kind=prize_pb2.PrizeKind.Value(f"PRIZE_KIND_{new.kind}"),
                value=wire_value(new.asset, new.rule) if new.rule else None,
                stock=prize_pb2.Stock(unlimited=True) if new.stock is None else prize_pb2.Stock(units=new.stock),
                limit_per_user=new.limit,
                validity=wire_validity(self.model.prizes[prize_id].validity, clock),
            )
        await desk.goes("SCHEDULED", self.promotion)

    def open_model(self, set_up: SetUp) -> None:
        """Set it up in the model."""
        model = self.model
        model.now = self.stage.hours
        model.entrances |= {_entrance(number) for number in range(ENTRANCES)}
        model.create_promotion(ELSEWHERE, (), {})
        model.create_prize(f"{ELSEWHERE}-prize", ELSEWHERE, kind="COUPON")
        model.create_promotion(self.promotion, _BOUND, dict(zip(ASSETS, set_up.budgets, strict=True)))
        for number, new in enumerate(set_up.prizes):
            prize_id = f"{self.name}-prize{number}"
            self.prizes.append(prize_id)
            model.create_prize(
                prize_id,
                self.promotion,
                kind=new.kind,
                asset=new.asset,
                rule=new.rule,
                stock=new.stock,
                limit=new.limit,
                validity=new.validity and self._from_now(new.validity),
            )
        model.transition(self.promotion, "SCHEDULED")

    # --- one step after the other ---------------------------------------------------------------------------------

    async def take(self, server: int, step: Step) -> None:
        """A step on a server and in the model. Raises Disagreement."""
        if isinstance(step, Pass):
            await self.stage.pass_hours(step.hours)
            self.model.now = self.stage.hours
            self.log.append(f"{step.hours} hours go by")
            return
        call = self.call(step)
        if call is None:
            return
        told = await send(self.stage.desks[server], call, self.stage.clock)
        self.judge(server, call, make(self.model, call), told)

    def judge(self, server: int, call: Call, expected: Expected, told: Told) -> None:
        """Note what was said; raises Disagreement."""
        why = self.memory.disagreement(call, expected, told)
        self.log.append(f"server {server}: {call}\n      server: {told}\n      model:  {expected}")
        if why:
            self.fail(why)

    def fail(self, why: str) -> None:
        """Raises Disagreement with all that was said."""
        lines = [f"{number:3}. {line}" for number, line in enumerate(self.log, 1)]
        raise Disagreement("\n".join([why, *lines, why]).replace(f"{self.name}-", ""))

    def call(self, step: Step) -> Call | None:  # noqa: PLR0911
        """What exactly is asked, as things are in the model; None: there is nothing to repeat."""
        match step:
            case Issue(ask, door):
                return self._remember(IssueCall(self.promotion, _entrance(door), self.item(ask)))
            case Batch(asks, together, door):
                items = tuple(self.item(ask) for ask in asks)
                return self._remember(BatchCall(self.promotion, _entrance(door), items, together))
            case Again(which):
                return self._issued[which % len(self._issued)] if self._issued else None
            case Resolve(request, cancel):
                return ResolveCall(self.promotion, f"{self.name}-r{request}", cancel)
            case AdjustStock(number, amount, request):
                prize_id = self._prize(number)
                delta = self._delta(amount, self.model.stock(prize_id).remaining)
                return StockCall(prize_id, delta, f"{self.name}-s{request}")
            case AdjustBudget(number, amount, request):
                delta = self._delta(amount, self.model.budget(self.promotion, ASSETS[number]).remaining)
                return BudgetCall(self.promotion, ASSETS[number], delta, f"{self.name}-b{request}")
            case Goes(target):
                return GoCall(self.promotion, target)
            case SetLimit(number, limit):
                return LimitCall(self._prize(number), limit)
            case SetRule(number, rule):
                return RuleCall(self._prize(number), rule)
            case SetValidity(number, validity):
                return ValidityCall(self._prize(number), validity and self._from_now(validity))
            case Bind(doors):
                return BindCall(self.promotion, tuple(_entrance(door) for door in doors))
            case SetWindow(starts, ends):
                now = self.stage.hours
                return WindowCall(
                    self.promotion, None if starts is None else now + starts, None if ends is None else now + ends
                )
        raise AssertionError(step)

    def _remember(self, call: IssueCall | BatchCall) -> IssueCall | BatchCall:
        self._issued.append(call)
        return call

    def _prize(self, number: int) -> str:
        return self.prizes[number % len(self.prizes)]

    def _from_now(self, validity: Validity) -> Validity:
        until = validity.until
        return validity if until is None else Validity(until=self.stage.hours + until)

    def item(self, ask: Ask) -> Item:
        """Of one reward that is asked for."""
        prize_id = self._prize(ask.prize)
        prize = self.model.prizes[prize_id]
        units, name = (
            ask.amount.units,
            ATTRIBUTE,
        )  # where nothing is computed from it, it is no matter
        if isinstance(prize.rule, Rate):
            name = prize.rule.attribute
            if ask.amount.edge:
                left = self.model.budget(self.promotion, prize.asset).remaining
                units = max(0, (left or 0) + units) * 10_000 // prize.rule.basis_points
        spoiled: dict[str, Attribute] = {"text": "much", "boolean": True, "negative": -1}
        attributes = {name: spoiled.get(ask.flaw, max(0, min(units, _INT64_MAX)))}
        if ask.flaw == "missing":
            attributes.clear()
        if ask.flaw == "prize_unknown":
            prize_id = f"{self.name}-nothing"
        elif ask.flaw == "prize_elsewhere":
            prize_id = f"{ELSEWHERE}-prize"
        return Item(
            prize_id,
            self.users[ask.user],
            f"{self.name}-r{ask.request}",
            f"order-{len(self.log)}",
            attributes,
            ask.flaw if ask.flaw in ("user_id", "reference") else "",
        )

    @staticmethod
    def _delta(amount: Amount, left: int | None) -> int:
        return -((left or 0) + amount.units) if amount.edge else amount.units

    # --- the books ------------------------------------------------------------------------------------------------

    async def compare_books(self, desk: Desk) -> None:
        """Every account, stock, budget and the trial balance are those of the model. Raises Disagreement."""
        model = self.model
        ours, theirs = self.model_books(), await self.books(desk)
        if ours != theirs:
            self.fail(f"the books differ: server {_only(theirs, ours)}, model {_only(ours, theirs)}")
        for prize_id in self.prizes:
            stock = stock_level(await desk.stock(prize_id))
            if stock != model.stock(prize_id):
                self.fail(f"the stock of {prize_id} is {stock}, in the model {model.stock(prize_id)}")
        seen = await desk.promotions.GetPromotion(promotion.GetPromotionRequest(promotion_id=self.promotion))
        state = promotion.PromotionState.Name(seen.state).removeprefix("PROMOTION_STATE_")
        if state != model.state(self.promotion):
            self.fail(f"the promotion is {state}, in the model {model.state(self.promotion)}")
        budgets = {budget.asset: budget_level(budget) for budget in seen.budgets}
        expected = {asset: pot.level() for asset, pot in model.promotions[self.promotion].budgets.items()}
        if budgets != expected:
            self.fail(f"the budgets are {budgets}, in the model {expected}")
        trial = _difference(await self.stage.trial_balance(), self._trial_before)
        expected_trial = _difference(model.trial_balance(), self._model_before)
        if trial != expected_trial:
            self.fail(f"the trial balance grew by {trial}, in the model by {expected_trial}")

    def model_books(self) -> dict[Account, tuple[int, int]]:
        """Debits and credits of every account of the promotion and of the users, as the model has them."""
        return {key: sums for key, sums in self.model.balances().items() if key[1] != ELSEWHERE}

    async def books(self, desk: Desk) -> dict[Account, tuple[int, int]]:
        """Debits and credits of every account of the promotion and of the users, as a server has them."""
        found: dict[Account, tuple[int, int]] = {}
        for owner in ({"promotion_id": self.promotion}, *({"user_id": user} for user in self.users)):
            answer = await desk.accounts.ListBalances(account.ListBalancesRequest(page_size=500, **owner))
            for balance in answer.balances:
                key = balance.account
                whose = next(iter(owner.values()))
                found[_kind(key.kind), whose, key.prize_id or key.asset] = (balance.debits_units, balance.credits_units)
        return found


def _entrance(number: int) -> str:
    return f"door-{number}"


_BOUND = [_entrance(number) for number in range(UNBOUND)]


def _elsewhere_only(model: Model) -> Trial:
    """The part of the model's trial balance that is not of the play."""
    other = Model()
    other.promotions = {ELSEWHERE: model.promotions[ELSEWHERE]}
    other.prizes = {name: it for name, it in model.prizes.items() if it.promotion == ELSEWHERE}
    return other.trial_balance()


def _kind(kind: account.AccountKind.ValueType) -> str:
    return account.AccountKind.Name(kind).removeprefix("ACCOUNT_KIND_")


def _only(these: dict[Account, tuple[int, int]], those: dict[Account, tuple[int, int]]) -> object:
    return {key: value for key, value in these.items() if those.get(key) != value}


def _difference(after: Trial, before: Trial) -> Trial:
    grown = {}
    for key, sums in after.items():
        old = before.get(key, (0, 0, 0))
        grown[key] = (sums[0] - old[0], sums[1] - old[1], sums[2] - old[2])
    return {key: sums for key, sums in grown.items() if any(sums)}
