"""Delivery and comparison, against the client's own fake: no server, and every deviation is found."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import grpc
import pytest
import pytest_asyncio

from guerdon import UNLIMITED, AsyncClient, Granted, Rejected, RejectionReason
from guerdon.fake import FakeGuerdon
from guerdon_server.demo.answers import Answers
from guerdon_server.demo.books import Books, read_books
from guerdon_server.demo.comparison import (
    Row,
    compare_again,
    compare_with_answers,
    compare_with_file,
    dollars,
    refused_for_lack,
)
from guerdon_server.demo.delivery import Delivery
from guerdon_server.demo.expectation import Expectation, expect
from guerdon_server.demo.promotion import ensure_promotion
from guerdon_server.demo.purchases import in_date_order, read_purchases
from guerdon_server.demo.result import delivery_outcome, percentile
from guerdon_server.demo.scenario import CASH, PrizeName, Scenario, Visit, scenario

PURCHASES = 300


@dataclass(frozen=True, slots=True)
class Run:
    """One delivery of everything to the fake, and what its ledger says."""

    client: AsyncClient
    plan: Scenario
    visits: Sequence[Visit]
    expectation: Expectation
    answers: Answers
    books: Books

    def rows(self) -> Sequence[Row]:
        return (
            *compare_with_file(self.expectation, self.plan, self.answers, self.books),
            *compare_with_answers(self.answers, self.books),
        )

    def wrong(self) -> set[str]:
        return {row.name for row in self.rows() if not row.ok}


async def _run(fake: FakeGuerdon) -> Run:
    purchases = in_date_order(read_purchases())[:PURCHASES]
    plan = scenario(purchase_count=PURCHASES, twin_seed=1)
    visits, expectation = plan.visits(purchases), expect(purchases)
    client = fake.async_client()
    await ensure_promotion(client, plan)
    delivery = Delivery(client, plan, serving=_serving())
    await delivery.in_order(visits)
    assert delivery.settled_count == 3 * PURCHASES
    books = await read_books(client, plan, expectation.coins_by_customer)
    return Run(client, plan, visits, expectation, delivery.answers, books)


def _serving() -> asyncio.Event:
    serving = asyncio.Event()
    serving.set()
    return serving


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def run() -> Run:
    """A finished run; tests change copies of it only."""
    return await _run(FakeGuerdon())


async def test_ledger_and_file_agree(run: Run) -> None:
    assert run.wrong() == set()
    twins = sum(visit.twin for visit in run.visits)
    assert 0.05 < twins / PURCHASES < 0.15
    assert run.answers.answer_count == 3 * (PURCHASES + twins)
    assert run.answers.changes_of_mind == []
    assert run.answers.replay_count > 0
    outcome = delivery_outcome(run.answers, seconds=2.0, asked_again=0)
    assert outcome.prizes["welcome-coupon"].granted == run.plan.coupon_stock
    assert outcome.prizes["cashback"].rejected["BUDGET_EXHAUSTED"] > 0
    assert outcome.new_grants_per_second == run.answers.granted.total() / 2


async def test_the_second_delivery_moves_nothing(run: Run) -> None:
    again = Delivery(run.client, run.plan, serving=_serving())
    await again.in_order(run.visits)
    after = await read_books(run.client, run.plan, run.expectation.coins_by_customer)
    assert [row for row in compare_again(run.answers, again.answers, run.books, after) if not row.ok] == []
    assert again.answers.new_grant_count == 0


async def test_a_second_run_finds_the_promotion_and_repeats_its_grants() -> None:
    fake = FakeGuerdon()
    first = await _run(fake)
    assert await ensure_promotion(first.client, first.plan)
    second = await _run(fake)
    assert second.wrong() == set()
    assert second.answers.new_grant_count == 0


async def test_a_setup_that_was_interrupted_is_finished() -> None:
    fake = FakeGuerdon()
    plan = scenario(purchase_count=PURCHASES, twin_seed=1)
    client = fake.async_client()
    await client.create_entrance(entrance_id="checkout", request_id="someone-else")
    await client.create_promotion(
        promotion_id=plan.promotion_id,
        entrance_ids=["checkout"],
        budgets={"USD/2": plan.cashback_budget_cents, "COIN": UNLIMITED},
        request_id="killed-after-this",
    )
    assert not await ensure_promotion(client, plan)
    assert await ensure_promotion(client, plan)


async def test_what_has_no_answer_is_delivered_again_and_granted_once() -> None:
    fake = FakeGuerdon()
    purchases = in_date_order(read_purchases())[:PURCHASES]
    plan = scenario(purchase_count=PURCHASES, twin_seed=1)
    client = fake.async_client()
    await ensure_promotion(client, plan)
    delivery = Delivery(client, plan, serving=_serving())
    fake.fail_next(grpc.StatusCode.DEADLINE_EXCEEDED, applied=True, attempts=7)
    await delivery.in_order(plan.visits(purchases))
    books = await read_books(client, plan, expect(purchases).coins_by_customer)
    assert delivery.answers.lost_count == 7
    assert [row for row in compare_with_answers(delivery.answers, books) if not row.ok] == []


async def test_a_ledger_that_lost_a_grant_is_found(run: Run) -> None:
    coupons = run.books.stocks[PrizeName.COUPON]
    lost = replace(coupons, issued_units=coupons.issued_units - 1, remaining_units=1)
    books = replace(run.books, stocks={**run.books.stocks, PrizeName.COUPON: lost})
    assert replace(run, books=books).wrong() == {
        "coupons issued",
        "coupons left",
        "grants in the ledger, as many as answered",
    }


async def test_money_that_went_missing_is_found(run: Run) -> None:
    cash = run.books.budgets[CASH]
    books = replace(run.books, budgets={**run.books.budgets, CASH: replace(cash, spent_units=cash.spent_units - 1)})
    assert replace(run, books=books).wrong() == {"cashback spent + left", "cashback of the granted orders"}


async def test_over_issue_is_found(run: Run) -> None:
    coupons = run.books.stocks[PrizeName.COUPON]
    over = replace(coupons, issued_units=coupons.issued_units + 1)
    books = replace(run.books, stocks={**run.books.stocks, PrizeName.COUPON: over})
    assert "over-issued units of stock and budget" in replace(run, books=books).wrong()


async def test_a_wallet_that_was_paid_for_another_customer_is_found(run: Run) -> None:
    one, other = list(run.books.users)[:2]
    users = {**run.books.users, one: run.books.users[other], other: run.books.users[one]}
    names = replace(run, books=replace(run.books, users=users)).wrong()
    assert names & {"wallets with a coin for each CD", "wallets with their cashback"}


async def test_a_balance_that_moved_is_found(run: Run) -> None:
    customer, accounts = next(iter(run.books.users.items()))
    key, balance = next(iter(accounts.items()))
    moved = {**accounts, key: replace(balance, balance_units=balance.balance_units + 1)}
    after = replace(run.books, users={**run.books.users, customer: moved})
    names = {row.name for row in compare_again(run.answers, run.answers, run.books, after) if not row.ok}
    assert any(name.startswith("balances that moved") for name in names)


async def test_two_grants_of_one_request_contradict_each_other(run: Run) -> None:
    answer = next(each for each in run.answers.by_request.values() if each.granted)
    asked = await run.client.list_issuances(user_id=answer.ask.user_id)
    issuance = next(each for each in asked.items if each.request_id == answer.ask.request_id)
    answers = Answers()
    answers.record(answer.ask, Granted(issuance, replayed=False))
    answers.record(answer.ask, Granted(issuance, replayed=True))
    assert answers.contradictions == []
    answers.record(answer.ask, Granted(issuance, replayed=False))
    assert len(answers.contradictions) == 1
    answers.record(answer.ask, Granted(replace(issuance, issuance_id="another"), replayed=True))
    assert len(answers.contradictions) == 2


async def test_refused_in_passing_is_asked_again_only_for_what_is_left(run: Run) -> None:
    assert refused_for_lack(run.answers, run.plan, run.books, run.expectation) == []
    coupons = replace(run.books.stocks[PrizeName.COUPON], remaining_units=1)
    books = replace(run.books, stocks={**run.books.stocks, PrizeName.COUPON: coupons})
    able = refused_for_lack(run.answers, run.plan, books, run.expectation)
    assert able
    assert {each.reason for each in able} == {RejectionReason.SOLD_OUT}


async def test_a_changed_mind_is_kept(run: Run) -> None:
    answer = next(each for each in run.answers.by_request.values() if each.granted)
    answers = Answers(by_request={answer.ask.request_id: answer})
    answers.record(answer.ask, Rejected(RejectionReason.SOLD_OUT, "", "", "", ""))
    assert len(answers.changes_of_mind) == 1
    assert answer.granted


@pytest.mark.parametrize(("percent", "value"), [(50, 2.0), (99, 4.0), (1, 1.0)])
def test_percentile_is_the_nearest_rank(percent: int, value: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], percent) == value
    assert percentile([], percent) == 0.0


def test_dollars() -> None:
    assert dollars(1_141_981) == "$11,419.81"
    assert dollars(5) == "$0.05"
