"""Every invariant holds on clean books, and each planted violation is found, by the checks that it concerns alone."""

# ruff: noqa: S608  the SQL is made of constants
from __future__ import annotations

import asyncio
import dataclasses

import pytest

from guerdon_server.core.ledger.invariants import BOOKS, VIOLATIONS_SHOWN_MAX, Check
from guerdon_server.core.ledger.postgres.invariants import verify
from tests.ledger_reads.books import Books

# How the plants name accounts.
ACCOUNT = "SELECT a.id FROM guerdon.account a"
WALLET = (
    "(SELECT a.id FROM guerdon.account a JOIN guerdon.subject s ON s.sid = a.owner JOIN guerdon.asset x"
    " ON x.sid = a.item WHERE a.kind = 6 AND s.user_id = '{user}' AND x.asset = '{asset}')"
)
HOLDING = (
    "(SELECT a.id FROM guerdon.account a JOIN guerdon.subject s ON s.sid = a.owner JOIN guerdon.prize z"
    " ON z.sid = a.item WHERE a.kind = 3 AND s.user_id = '{user}' AND z.prize_id = '{prize}')"
)
ISSUANCE = "(SELECT issuance_id FROM guerdon.request WHERE request_id = '{request}')"


def wallet(user: str, asset: str) -> str:
    return WALLET.format(user=user, asset=asset)


def holding(user: str, prize: str) -> str:
    return HOLDING.format(user=user, prize=prize)


def issuance(request: str) -> str:
    return ISSUANCE.format(request=request)


@dataclasses.dataclass(frozen=True)
class Plant:
    """SQL that breaks the books, the checks that must find it, and words of the report."""

    name: str
    sql: str
    found_by: frozenset[str]
    says: str

    def __str__(self) -> str:
        return self.name


def plant(name: str, sql: str, found_by: str, says: str) -> Plant:
    return Plant(name, sql, frozenset(found_by.split()), says)


NEXT_BATCH = "INSERT INTO guerdon.batch (kind, booked_at, issuance_count, transfer_count) VALUES (2, now(), 0, 1);"
LAST_BATCH = "(SELECT max(id) FROM guerdon.batch)"
STOCK = "(SELECT stock_account FROM guerdon.prize WHERE prize_id = '{prize}')"
SOURCE = "(SELECT stock_source_account FROM guerdon.prize WHERE prize_id = '{prize}')"

PLANTS = [
    plant(
        "a unit appears in a wallet",
        f"UPDATE guerdon.account SET credits = credits + 1 WHERE id = {wallet('ada', 'COIN')}",
        "debits_equal_credits counters_equal_transfers",
        "asset COIN: debits 10, credits 11",
    ),
    plant(
        "a unit vanishes from the counters of a holding",
        f"UPDATE guerdon.account SET credits = credits - 1 WHERE id = {holding('ada', 'goods')}",
        "debits_equal_credits counters_equal_transfers holdings_equal_grants",
        "prize goods: debits 23, credits 22",
    ),
    plant(
        "value changes hands without a transfer",
        f"UPDATE guerdon.account SET credits = credits + 1 WHERE id = {wallet('ada', 'COIN')};"
        f"UPDATE guerdon.account SET credits = credits - 1 WHERE id = {wallet('bob', 'COIN')}",
        "counters_equal_transfers",
        "credits 8, of its transfers 7",
    ),
    plant(
        "a transfer of nothing",
        "ALTER TABLE guerdon.transfer DROP CONSTRAINT transfer_amount_check;"
        f"{NEXT_BATCH} INSERT INTO guerdon.transfer (batch, kind, debit, credit, amount)"
        f" VALUES ({LAST_BATCH}, 2, {SOURCE}, {STOCK}, 0)".replace("{prize}", "goods"),
        "transfers_are_sound",
        "amount 0, expected above 0",
    ),
    plant(
        "a transfer to an account that does not exist",
        f"{NEXT_BATCH} INSERT INTO guerdon.transfer (batch, kind, debit, credit, amount)"
        f" VALUES ({LAST_BATCH}, 2, {SOURCE}, 987654, 3);"
        f"UPDATE guerdon.account SET debits = debits + 3 WHERE id = {SOURCE}".replace("{prize}", "goods"),
        "transfers_are_sound counters_equal_transfers debits_equal_credits stock_equation",
        "account 987654 does not exist",
    ),
    plant(
        "a transfer between accounts that its kind is not about",
        "UPDATE guerdon.transfer SET kind = 5 WHERE kind = 2",
        "transfers_are_sound stock_equation",
        "of kind 5: from an account of kind 1 to one of kind 2",
    ),
    plant(
        "stock of one prize becomes that of another",
        f"UPDATE guerdon.transfer SET credit = {STOCK} WHERE kind = 2;".replace("{prize}", "cashback")
        + f"UPDATE guerdon.account SET credits = credits + 5 WHERE id = {STOCK};".replace("{prize}", "cashback")
        + f"UPDATE guerdon.account SET credits = credits - 5 WHERE id = {STOCK}".replace("{prize}", "coupon"),
        "transfers_are_sound stock_equation debits_equal_credits",
        "prize cashback: initial + top-ups - recalls = 105, its source gave 100; remaining 103 + issued 2 = 105",
    ),
    plant(
        "a grant is lost",
        "DELETE FROM guerdon.request WHERE request_id = 'g1'",
        "stock_equation grants_have_their_transfers holdings_equal_grants batches_are_complete",
        "prize goods: initial + top-ups - recalls = 20, its source gave 20; remaining 17 + issued 2 = 19",
    ),
    plant(
        "a grant has no transfers",
        "INSERT INTO guerdon.request SELECT promotion, 'extra', 1, admission, nextval('guerdon.issuance_id'), batch,"
        " subject, prize, entrance, basis, value, reference, principal, issued_at, expires_at"
        " FROM guerdon.request WHERE request_id = 'g1'",
        "stock_equation grants_have_their_transfers holdings_equal_grants batches_are_complete limits_per_user",
        "no transfers, expected 1",
    ),
    plant(
        "a grant is worth more than was moved",
        "UPDATE guerdon.request SET value = value + 1 WHERE request_id = 'b1'",
        "budget_equation grants_have_their_transfers",
        "promotion spring, asset USD/2: initial + top-ups - recalls = 10000, its source gave 10000;"
        " remaining 8400 + granted 1601 = 10001; transferred 1600",
    ),
    plant(
        "a grant without a value from a prize that has one",
        "UPDATE guerdon.request SET value = NULL WHERE request_id = 'k1'",
        "budget_equation grants_have_their_transfers",
        "value none, but the asset of prize coins is",
    ),
    plant(
        "the value went to another user's wallet",
        f"UPDATE guerdon.transfer SET credit = {wallet('bob', 'COIN')}"
        f" WHERE kind = 8 AND issuance = {issuance('k1')};"
        f"UPDATE guerdon.account SET credits = credits - 7 WHERE id = {wallet('ada', 'COIN')};"
        f"UPDATE guerdon.account SET credits = credits + 7 WHERE id = {wallet('bob', 'COIN')}",
        "grants_have_their_transfers",
        "value transfers 1 x 7 from account",
    ),
    plant(
        "the unit went to another user",
        f"UPDATE guerdon.transfer SET credit = {holding('bob', 'goods')}"
        f" WHERE kind = 7 AND issuance = {issuance('g1')};"
        f"UPDATE guerdon.account SET credits = credits - 1 WHERE id = {holding('ada', 'goods')};"
        f"UPDATE guerdon.account SET credits = credits + 1 WHERE id = {holding('bob', 'goods')}",
        "grants_have_their_transfers holdings_equal_grants",
        "granted 2, holding 1",
    ),
    plant(
        "a transfer of an issuance that is no grant",
        f"{NEXT_BATCH} INSERT INTO guerdon.transfer (batch, kind, debit, credit, amount, issuance)"
        f" VALUES ({LAST_BATCH}, 8, (SELECT budget_account FROM guerdon.prize WHERE prize_id = 'coins'),"
        f" {wallet('ada', 'COIN')}, 1, 4711);"
        f"UPDATE guerdon.account SET credits = credits + 1 WHERE id = {wallet('ada', 'COIN')};"
        "UPDATE guerdon.account SET debits = debits + 1"
        " WHERE id = (SELECT budget_account FROM guerdon.prize WHERE prize_id = 'coins')",
        "grants_have_their_transfers budget_equation",
        "issuance 4711 is no grant, but has 0 unit transfers and 1 value transfers",
    ),
    plant(
        "a transfer of an issuance that does not say of which",
        f"UPDATE guerdon.transfer SET issuance = NULL WHERE kind = 8 AND issuance = {issuance('k1')}",
        "grants_have_their_transfers",
        "issuance (none) is no grant, but has 0 unit transfers and 1 value transfers",
    ),
    plant(
        "a top-up that claims to be of an issuance",
        f"UPDATE guerdon.transfer SET issuance = {issuance('k1')} WHERE kind = 2",
        "grants_have_their_transfers",
        "1 transfers of another kind than of an issuance, expected 0",
    ),
    plant(
        "a transfer in another batch than its grant",
        f"UPDATE guerdon.transfer SET batch = batch + 1 WHERE kind = 8 AND issuance = {issuance('k1')}",
        "grants_have_their_transfers batches_are_complete",
        "expected 1 x 7 from",
    ),
    plant(
        "below the floor, with a recall of more than there was",
        "ALTER TABLE guerdon.account DROP CONSTRAINT account_floor;"
        f"{NEXT_BATCH} INSERT INTO guerdon.transfer (batch, kind, debit, credit, amount)"
        f" VALUES ({LAST_BATCH}, 3, {STOCK}, {SOURCE}, 18);"
        f"UPDATE guerdon.account SET debits = debits + 18 WHERE id = {STOCK};"
        f"UPDATE guerdon.account SET credits = credits + 18 WHERE id = {SOURCE}".replace("{prize}", "goods"),
        "floors",
        "balance -1, floor 0",
    ),
    plant(
        "a request with two outcomes",
        "ALTER TABLE guerdon.request DROP CONSTRAINT request_pkey;"
        "INSERT INTO guerdon.request (promotion, request_id, outcome, admission)"
        " SELECT promotion, request_id, 3, 0 FROM guerdon.request WHERE request_id = 'c1'",
        "one_outcome_for_each_request",
        "request c1: 2 rows, expected 1",
    ),
    plant(
        "two grants with one issuance id",
        "DROP INDEX guerdon.request_issuance;"
        f"UPDATE guerdon.request SET issuance_id = {issuance('g1')} WHERE request_id = 'g2'",
        "issuance_ids_are_unique grants_have_their_transfers",
        "2 grants, expected 1; first request g1",
    ),
    plant(
        "a grant without a user",
        "UPDATE guerdon.request SET subject = NULL WHERE request_id = 'g1'",
        "grants_are_whole grants_have_their_transfers holdings_equal_grants",
        "user (none) does not exist",
    ),
    plant(
        "a grant without a prize",
        "UPDATE guerdon.request SET prize = NULL WHERE request_id = 'g1'",
        "grants_are_whole grants_have_their_transfers holdings_equal_grants stock_equation",
        "prize (none) does not exist",
    ),
    plant(
        "a grant at an entrance that does not exist",
        "UPDATE guerdon.request SET entrance = 99 WHERE request_id = 'g1'",
        "grants_are_whole",
        "entrance 99 does not exist",
    ),
    plant(
        "a grant that nobody asked for",
        "UPDATE guerdon.request SET principal = NULL WHERE request_id = 'g1'",
        "grants_are_whole",
        "principal (none) does not exist",
    ),
    plant(
        "a prize of another promotion",
        "UPDATE guerdon.request SET promotion = (SELECT sid FROM guerdon.promotion WHERE promotion_id = 'spring')"
        " WHERE request_id = 'g1'",
        "grants_are_whole",
        "prize goods is of promotion",
    ),
    plant(
        "issued at another time than booked",
        "UPDATE guerdon.request SET issued_at = issued_at - interval '1 microsecond' WHERE request_id = 'g1'",
        "grants_are_whole",
        "its batch",
    ),
    plant(
        "expired from the start",
        "UPDATE guerdon.request SET expires_at = issued_at WHERE request_id = 'g1'",
        "grants_are_whole",
        "expires at",
    ),
    plant(
        "more than the limit",
        "UPDATE guerdon.prize SET limit_per_user = 1, limit_per_user_highest = 1 WHERE prize_id = 'goods'",
        "limits_per_user",
        "granted 2, limit at most 1",
    ),
    plant(
        "a batch that counts a grant too many",
        "UPDATE guerdon.batch SET issuance_count = issuance_count + 1 WHERE issuance_count = 3",
        "batches_are_complete",
        "grants 3, says 4; transfers 6, says 6",
    ),
    plant(
        "a batch is lost",
        "DELETE FROM guerdon.batch WHERE issuance_count = 3",
        "batches_are_complete grants_are_whole",
        "does not exist, but has 3 grants and 6 transfers",
    ),
    plant(
        "a prize that draws on another promotion's budget",
        "UPDATE guerdon.prize SET budget_account ="
        " (SELECT budget_account FROM guerdon.prize WHERE prize_id = 'cashback') WHERE prize_id = 'unused'",
        "prizes_have_their_accounts",
        "prize unused: budget account",
    ),
]


async def test_clean_books_hold_and_say_what_was_compared(books: Books) -> None:
    checks = {check.name: check for check in await verify(books.pool)}
    assert list(checks) == [invariant.name for invariant in BOOKS]
    assert _violations(checks.values()) == []
    compared = {name: check.compared for name, check in checks.items()}
    assert compared == {
        "debits_equal_credits": 7,  # 5 prizes, 2 assets
        "counters_equal_transfers": 5 * 2 + 3 * 2 + 2 + 9 + 4,
        "transfers_are_sound": 8 + 10 + 7,  # capacities; units; values
        "stock_equation": 5,
        "budget_equation": 3,
        "floors": 4 + 2 + 9 + 4 + 2,
        "grants_have_their_transfers": 10,
        "one_outcome_for_each_request": 12,
        "issuance_ids_are_unique": 10,
        "grants_are_whole": 10,
        "holdings_equal_grants": 9,
        "limits_per_user": 2,
        "batches_are_complete": 8 + 6,
        "prizes_have_their_accounts": 5,
    }


@pytest.mark.parametrize("planted", PLANTS, ids=str)
async def test_a_planted_violation_is_found_by_the_checks_it_concerns_and_by_no_other(
    books: Books, planted: Plant
) -> None:
    await books.pool.execute(planted.sql)
    checks = await verify(books.pool)
    assert {check.name for check in checks if not check.ok} == planted.found_by, _violations(checks)
    assert planted.says in "\n".join(_violations(checks))


def test_every_invariant_has_a_plant() -> None:
    assert {name for planted in PLANTS for name in planted.found_by} == {invariant.name for invariant in BOOKS}


async def test_many_violations_are_counted_and_the_first_are_shown(books: Books) -> None:
    await books.grant_all([("coins", f"user-{n}", f"many-{n}", 1, "") for n in range(50)])
    await books.pool.execute("UPDATE guerdon.request SET principal = 77 WHERE request_id LIKE 'many-%'")
    (check,) = [check for check in await verify(books.pool) if not check.ok]
    assert check.violation_count == 50
    assert len(check.violations) == VIOLATIONS_SHOWN_MAX
    assert check.compared == 60


async def test_books_are_proved_while_they_are_written(books: Books) -> None:
    """One snapshot for all checks: a commit between two of them must not look like a violation."""
    done = asyncio.Event()

    async def write(worker: int) -> None:
        number = 0
        while not done.is_set():
            number += 1
            await books.grant_all([("coins", f"user-{n}", f"w{worker}-{number}-{n}", 1, "") for n in range(20)])

    writers = [asyncio.create_task(write(worker)) for worker in range(2)]
    seen: list[int] = []
    try:
        while len(set(seen)) < 3 and not any(writer.done() for writer in writers):
            checks = await verify(books.pool)
            assert _violations(checks) == []
            seen.append(next(check.compared for check in checks if check.name == "grants_are_whole"))
    finally:
        done.set()
        await asyncio.gather(*writers)
    assert len(set(seen)) == 3


def _violations(checks: object) -> list[str]:
    assert hasattr(checks, "__iter__")
    found: list[str] = []
    for check in checks:
        assert isinstance(check, Check)
        found += [f"{check.name}: {violation}" for violation in check.violations]
    return found
