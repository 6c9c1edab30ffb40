"""The ledger beside the file, and the second delivery beside the first. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from guerdon import AccountKey, AccountKind, Balance, Capacity
from guerdon_server.demo.answers import Answer, Answers
from guerdon_server.demo.books import Books
from guerdon_server.demo.expectation import Expectation
from guerdon_server.demo.scenario import CASH, COIN, PrizeName, Scenario


@dataclass(frozen=True, slots=True)
class Row:
    """One check, for people and machines: what was found, what it had to be."""

    name: str
    found: str
    expected: str
    ok: bool


def compare_with_file(expectation: Expectation, scenario: Scenario, answers: Answers, books: Books) -> Sequence[Row]:
    """Every total of the ledger with the same total of the file."""
    return (
        *_coupons(expectation, scenario, answers, books),
        *_coins(expectation, books),
        *_cashback(expectation, scenario, answers, books),
    )


def compare_with_answers(answers: Answers, books: Books) -> Sequence[Row]:
    """The promises that need no file: nothing over-issued, every grant in the ledger, the books balanced."""
    issued = sum(stock.issued_units for stock in books.stocks.values())
    return (
        _equal("grants in the ledger, as many as answered", issued, answers.granted.total()),
        _equal("over-issued units of stock and budget", _over_issued(books), 0),
        _equal("answers that contradict another", len(answers.contradictions), 0),
        *_balanced(books),
    )


def compare_again(first: Answers, again: Answers, before: Books, after: Books) -> Sequence[Row]:
    """Everything delivered once more: grants are the same grants, rejections are rejected, nothing moves."""
    pairs = [(answer, again.by_request[request]) for request, answer in first.by_request.items()]
    grants = [(old, new) for old, new in pairs if old.granted]
    rejections = [(old, new) for old, new in pairs if not old.granted]
    return (
        _equal("grants that were replays of themselves", _replays(grants), len(grants)),
        _equal("rejections rejected again", sum(not new.granted for _, new in rejections), len(rejections)),
        _equal(f"balances that moved, of {before.account_count:,}", _moved(before, after), 0),
        Row(
            "trial balance",
            "unchanged" if _same_trial(before, after) else "changed",
            "unchanged",
            _same_trial(before, after),
        ),
    )


def refused_for_lack(answers: Answers, scenario: Scenario, books: Books, expectation: Expectation) -> Sequence[Answer]:
    """Rejections for want of stock or budget that what is left now would allow, in the order of the file.

    There are some when a server died while it held stock or budget for requests that it did not get to grant: whoever
    was refused in that moment may ask again.
    """
    coupons_left = books.stocks[PrizeName.COUPON].remaining_units
    cents_left = books.budgets[CASH].remaining_units
    refused = (answer for answer in answers.by_request.values() if not answer.granted)
    able = [
        answer
        for answer in refused
        if (answer.reason == "SOLD_OUT" and coupons_left > 0)
        or (answer.reason == "BUDGET_EXHAUSTED" and expectation.cashback_by_line[answer.ask.line] <= cents_left)
    ]
    return sorted(able, key=lambda answer: answer.ask.line)


def _coupons(expectation: Expectation, scenario: Scenario, answers: Answers, books: Books) -> Iterable[Row]:
    stock = books.stocks[PrizeName.COUPON]
    expected = expectation.coupons(scenario.coupon_stock)
    held = [
        _units(user, AccountKind.HOLDING, prize_id=scenario.prize_id(PrizeName.COUPON)) for user in books.users.values()
    ]
    yield _equal("coupons issued", stock.issued_units, expected)
    yield _equal("coupons left", stock.remaining_units, scenario.coupon_stock - expected)
    yield _equal("customers with a coupon", sum(units > 0 for units in held), expected)
    yield _equal("most coupons of one customer", max(held, default=0), min(1, expected))
    yield _equal("coupon requests refused", _rejected(answers, PrizeName.COUPON), expectation.purchase_count - expected)


def _coins(expectation: Expectation, books: Books) -> Iterable[Row]:
    wallets = {customer: _units(user, AccountKind.WALLET, asset=COIN) for customer, user in books.users.items()}
    right = sum(wallets[customer] == coins for customer, coins in expectation.coins_by_customer.items())
    yield _equal("coins issued", books.budgets[COIN].spent_units, expectation.coins)
    yield _equal("purchases that earned coins", books.stocks[PrizeName.COINS].issued_units, expectation.purchase_count)
    yield _equal("wallets with a coin for each CD", right, expectation.customer_count)


def _cashback(expectation: Expectation, scenario: Scenario, answers: Answers, books: Books) -> Iterable[Row]:
    budget, by_line = books.budgets[CASH], expectation.cashback_by_line
    asked = [answer for answer in answers.by_request.values() if answer.ask.prize is PrizeName.CASHBACK]
    granted = [answer for answer in asked if answer.granted]
    refused = [
        by_line[answer.ask.line] for answer in asked if answer.reason == "BUDGET_EXHAUSTED" and not answer.granted
    ]
    spent, left = budget.spent_units, budget.remaining_units
    yield Row(
        "cashback spent + left",
        f"{dollars(spent)} + {dollars(left)}",
        dollars(scenario.cashback_budget_cents),
        spent + left == scenario.cashback_budget_cents and budget.capacity == spent + left,
    )
    if refused:
        yield Row("left < smallest refused", dollars(left), f"< {dollars(min(refused))}", left < min(refused))
    else:
        yield _money("cashback, nothing refused for lack of budget", spent, expectation.cashback_cents)
    yield _money("cashback of the granted orders", spent, sum(by_line[answer.ask.line] for answer in granted))
    exact = sum(answer.units == by_line[answer.ask.line] for answer in granted)
    yield _equal("grants of exactly 5 %, half up, at most $5.00", exact, len(granted))
    yield _equal("wallets with their cashback", _right_wallets(granted, by_line, books), expectation.customer_count)
    zero = {answer.ask.line for answer in asked if answer.reason == "VALUE_ZERO" and not answer.granted}
    due = {line for line, cents in by_line.items() if cents == 0}
    yield Row("orders worth no cashback refused as such", f"{len(zero):,}", f"{len(due):,}", zero == due)


def _right_wallets(granted: Iterable[Answer], by_line: Mapping[int, int], books: Books) -> int:
    earned = dict.fromkeys(books.users, 0)
    for answer in granted:
        earned[answer.ask.customer] += by_line[answer.ask.line]
    return sum(
        _units(books.users[customer], AccountKind.WALLET, asset=CASH) == cents for customer, cents in earned.items()
    )


def _balanced(books: Books) -> Iterable[Row]:
    assets = {line.asset for line in books.trial_balance.lines}
    balanced = [asset for asset in assets if _sides(asset, books)[0] == _sides(asset, books)[1]]
    yield _equal("assets whose debits equal their credits", len(balanced), len(assets))


def _sides(asset: str, books: Books) -> tuple[int, int]:
    lines = [line for line in books.trial_balance.lines if line.asset == asset]
    return sum(line.debits_units for line in lines), sum(line.credits_units for line in lines)


def _over_issued(books: Books) -> int:
    pairs: list[tuple[int, Capacity]] = [(stock.issued_units, stock.capacity) for stock in books.stocks.values()]
    pairs += [(budget.spent_units, budget.capacity) for budget in books.budgets.values()]
    return sum(max(0, used - capacity) for used, capacity in pairs if isinstance(capacity, int))


def _units(accounts: Mapping[AccountKey, Balance], kind: AccountKind, *, prize_id: str = "", asset: str = "") -> int:
    return sum(
        balance.balance_units
        for key, balance in accounts.items()
        if key.kind is kind and (not prize_id or key.prize_id == prize_id) and (not asset or key.asset == asset)
    )


def _rejected(answers: Answers, prize: PrizeName) -> int:
    return sum(not answer.granted for answer in answers.by_request.values() if answer.ask.prize is prize)


def _replays(pairs: Iterable[tuple[Answer, Answer]]) -> int:
    return sum(
        (new.issuance_id, new.units, new.first_seen) == (old.issuance_id, old.units, False) for old, new in pairs
    )


def _moved(before: Books, after: Books) -> int:
    def flat(books: Books) -> dict[tuple[str, AccountKey], Balance]:
        owners = {"": books.promotion, **books.users}
        return {(owner, key): balance for owner, accounts in owners.items() for key, balance in accounts.items()}

    old, new = flat(before), flat(after)
    return sum(old.get(key) != new.get(key) for key in old.keys() | new.keys())


def _same_trial(before: Books, after: Books) -> bool:
    return (before.trial_balance, before.stocks, before.budgets) == (after.trial_balance, after.stocks, after.budgets)


def _equal(name: str, found: int, expected: int) -> Row:
    return Row(name, f"{found:,}", f"{expected:,}", found == expected)


def _money(name: str, found: int, expected: int) -> Row:
    return Row(name, dollars(found), dollars(expected), found == expected)


def dollars(cents: int) -> str:
    """ "$1,234.05"."""
    return f"${cents // 100:,}.{cents % 100:02}"
