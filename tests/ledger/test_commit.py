"""The commit: the authority over stock, budget, limits, state and request keys."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import re
from importlib.resources import files

import pytest

from guerdon_server.core.ledger.model import CommitCode, CommitItem, RequestState
from guerdon_server.core.ledger.ports import BatchRefused

from .conftest import Books

FAR = dt.datetime(2090, 1, 1, tzinfo=dt.UTC)


async def codes(books: Books, *items: CommitItem) -> list[CommitCode]:
    return [CommitCode(result.code) for result in await books.ledger.commit(items)]


async def test_a_grant_moves_a_unit_and_its_value_and_is_found_by_its_key(books: Books) -> None:
    prize = await books.prize("cash", stock=5, value=40, kind=3, valid_days=2)
    (result,) = await books.ledger.commit([books.item(prize, "ada", "r1", value=40, basis=800)])
    assert result.code == CommitCode.GRANTED
    assert result.issued_at is not None
    assert result.expires_at == result.issued_at + dt.timedelta(days=2)
    user = await books.pool.fetchval("SELECT sid FROM guerdon.subject WHERE user_id = 'ada'")
    assert await books.balance(2, books.promotion, prize) == 4
    assert await books.balance(3, user, prize) == 1
    assert await books.balance(5, books.promotion, books.asset) == 960
    assert await books.balance(6, user, books.asset) == 40
    (known,) = await books.ledger.lookup([(books.promotion, "r1")])
    assert known.state == RequestState.GRANTED
    assert known.basis == 800
    issuance = known.issuance
    assert issuance is not None
    assert (issuance.issuance_id, issuance.user_id, issuance.prize_id) == (result.issuance_id, "ada", "cash")
    assert (issuance.promotion_id, issuance.entrance_id, issuance.principal) == ("spring", "checkout", "tests")
    assert (issuance.asset, issuance.value, issuance.kind) == ("USD/2", 40, 3)
    assert (issuance.issued_at, issuance.expires_at) == (result.issued_at, result.expires_at)


async def test_the_value_of_a_coupon_goes_to_the_liability(books: Books) -> None:
    prize = await books.prize("coupon", stock=5, value=100, kind=1)
    assert await codes(books, books.item(prize, "ada", "r1", value=100)) == [CommitCode.GRANTED]
    assert await books.balance(7, books.promotion, books.asset) == 100


async def test_a_request_key_is_granted_once(books: Books) -> None:
    prize = await books.prize("coupon", stock=5)
    assert await codes(books, books.item(prize, "ada", "r1")) == [CommitCode.GRANTED]
    before = await books.dump()
    assert await codes(books, books.item(prize, "ada", "r1")) == [CommitCode.EXISTS]
    assert await books.dump() == before


async def test_amounts_are_decided_in_order_of_arrival_and_a_smaller_one_still_fits(books: Books) -> None:
    cash = await books.prize("cash", value=1, kind=3)
    values = [600, 500, 300, 200, 100, 1]
    items = [books.item(cash, f"u{i}", f"r{i}", value=value) for i, value in enumerate(values)]
    results = await books.ledger.commit(items)
    granted, refused = CommitCode.GRANTED, CommitCode.BUDGET_EXHAUSTED
    assert [r.code for r in results] == [granted, refused, granted, refused, granted, refused]
    assert [(r.observed, r.threshold) for r in results if r.code == refused] == [(400, 500), (100, 200), (0, 1)]
    assert await books.balance(5, books.promotion, books.asset) == 0


async def test_stock_is_given_out_to_the_last_unit_and_no_further(books: Books) -> None:
    prize = await books.prize("coupon", stock=3)
    results = await books.ledger.commit([books.item(prize, f"u{i}", f"r{i}") for i in range(5)])
    assert [r.code for r in results] == [CommitCode.GRANTED] * 3 + [CommitCode.SOLD_OUT] * 2
    assert (results[4].observed, results[4].threshold) == (0, 1)


async def test_the_limit_counts_earlier_grants_and_those_of_the_same_batch(books: Books) -> None:
    prize = await books.prize("coupon", limit=2)
    assert await codes(books, books.item(prize, "ada", "r0")) == [CommitCode.GRANTED]
    results = await books.ledger.commit([books.item(prize, "ada", f"r{i}") for i in range(1, 4)])
    assert [r.code for r in results] == [CommitCode.GRANTED, CommitCode.LIMIT_REACHED, CommitCode.LIMIT_REACHED]
    assert (results[1].observed, results[1].threshold) == (2, 2)
    assert await codes(books, books.item(prize, "bob", "r9")) == [CommitCode.GRANTED]
    new = await books.ledger.commit([books.item(prize, user, f"new-{i}") for i, user in enumerate(("cyd", "dee") * 3)])
    assert [r.code for r in new] == [CommitCode.GRANTED] * 4 + [CommitCode.LIMIT_REACHED] * 2
    assert {r.observed for r in new[4:]} == {2}


async def test_a_wallet_that_several_items_of_a_batch_need_is_opened_once(books: Books) -> None:
    cash, more = [await books.prize(name, value=1, kind=3) for name in ("cash", "more cash")]
    items = [
        (cash, "ada", 3),
        (more, "ada", 4),
        (cash, "bob", 5),
        (cash, "ada", 900),
        (more, "bob", 6),
        (cash, "cyd", 990),
    ]
    results = await codes(books, *(books.item(p, u, f"r{i}", value=v) for i, (p, u, v) in enumerate(items)))
    granted, broke = CommitCode.GRANTED, CommitCode.BUDGET_EXHAUSTED
    assert results == [granted, granted, granted, granted, granted, broke]
    wallets = await books.pool.fetch(
        "SELECT s.user_id, a.credits - a.debits AS balance FROM guerdon.account a"
        " JOIN guerdon.subject s ON s.sid = a.owner WHERE a.kind = 6"
    )
    assert sorted(tuple(row) for row in wallets) == [("ada", 907), ("bob", 11)]
    assert await books.pool.fetchval("SELECT count(*) FROM guerdon.account WHERE kind = 3") == 4


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("state = 1", CommitCode.NOT_STARTED),
        ("state = 2, starts_at = '2090-01-01'", CommitCode.NOT_STARTED),
        ("state = 2, starts_at = '2020-01-01'", CommitCode.GRANTED),
        ("state = 2", CommitCode.GRANTED),
        ("state = 4", CommitCode.PAUSED),
        ("state = 4, ends_at = '2020-01-01'", CommitCode.ENDED),
        ("state = 5", CommitCode.ENDED),
        ("state = 6", CommitCode.ENDED),
        ("ends_at = '2020-01-01'", CommitCode.ENDED),
        ("version = 7", CommitCode.STALE_VERSION),
        ("gate_epoch = 7", CommitCode.STALE_EPOCH),
    ],
)
async def test_the_promotion_is_judged_as_it_is_at_the_commit(books: Books, change: str, code: CommitCode) -> None:
    prize = await books.prize("coupon", stock=3)
    await books.pool.execute(f"UPDATE guerdon.promotion SET {change}")  # noqa: S608
    before = await books.dump()
    assert await codes(books, books.item(prize, "ada", "r1")) == [code]
    assert (await books.dump() == before) == (code != CommitCode.GRANTED)


async def test_each_item_is_judged_by_its_own_promotion(books: Books) -> None:
    """In whatever order a batch has those of several."""
    spring, active = books.promotion, await books.prize("coupon", stock=9)
    autumn = books.promotion = await books.pool.fetchval(
        "INSERT INTO guerdon.promotion (promotion_id, display_name, state, version, created_at, updated_at)"
        " VALUES ('autumn', '', 4, 2, now(), now()) RETURNING sid"
    )
    paused = await books.prize("pause", stock=9)
    items = []
    for number, (promotion, version, prize) in enumerate(
        [(spring, 1, active), (autumn, 2, paused), (spring, 1, active)] * 2
    ):
        books.promotion = promotion
        items.append(books.item(prize, "ada", f"r{number}", version=version))
    expected = [CommitCode.GRANTED, CommitCode.PAUSED, CommitCode.GRANTED] * 2
    assert await codes(books, *items) == expected


async def test_a_grant_that_would_be_expired_from_the_start_is_refused(books: Books) -> None:
    old = await books.prize("old", valid_until=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    new = await books.prize("new", valid_until=FAR)
    results = await books.ledger.commit([books.item(old, "ada", "r1"), books.item(new, "ada", "r2")])
    assert [r.code for r in results] == [CommitCode.VALIDITY_PASSED, CommitCode.GRANTED]
    assert results[1].expires_at == FAR


async def test_all_or_nothing_grants_all_or_takes_nothing(books: Books) -> None:
    coupon = await books.prize("coupon", stock=3, limit=1)
    cash = await books.prize("cash", value=1, kind=3)
    before = await books.dump()
    group = [books.item(coupon, f"u{i}", f"r{i}", group=1) for i in range(4)]
    results = await books.ledger.commit(group)
    assert [r.code for r in results] == [CommitCode.GROUP_NOT_GRANTED] * 3 + [CommitCode.SOLD_OUT]
    assert await books.dump() == before
    mixed = [
        books.item(coupon, "u0", "r0", group=1),
        books.item(cash, "u0", "r1", value=2000, group=1),
        books.item(coupon, "u0", "r2", group=2),
        books.item(cash, "u0", "r3", value=1000, group=2),
        books.item(coupon, "u1", "r4"),
    ]
    results = await books.ledger.commit(mixed)
    assert [r.code for r in results] == [
        CommitCode.GROUP_NOT_GRANTED,
        CommitCode.BUDGET_EXHAUSTED,
        CommitCode.GRANTED,
        CommitCode.GRANTED,
        CommitCode.GRANTED,
    ]


async def test_a_repeated_group_is_recognised_whole(books: Books) -> None:
    coupon = await books.prize("coupon", stock=2)
    items = [books.item(coupon, f"u{i}", f"r{i}", group=1) for i in range(2)]
    assert await codes(books, *items) == [CommitCode.GRANTED] * 2
    again = [books.item(coupon, f"u{i}", f"r{i}", group=5) for i in range(2)]
    assert await codes(books, *again) == [CommitCode.EXISTS] * 2


async def test_a_fence_refuses_its_admission_and_lets_a_later_one_through(books: Books) -> None:
    prize = await books.prize("coupon", stock=3)
    assert await books.ledger.fence([(books.promotion, "r1", 10)]) == [(RequestState.FENCED, 10)]
    assert await books.ledger.fence([(books.promotion, "r1", 7)]) == [(RequestState.FENCED, 10)]
    (result,) = await books.ledger.commit([books.item(prize, "ada", "r1", admission=10)])
    assert (result.code, result.observed) == (CommitCode.FENCED, 10)
    assert await codes(books, books.item(prize, "ada", "r1", admission=11)) == [CommitCode.GRANTED]
    assert await books.ledger.fence([(books.promotion, "r1", 12), (books.promotion, "r2", 3)]) == [
        (RequestState.GRANTED, 11),
        (RequestState.FENCED, 3),
    ]


async def test_cancel_is_for_ever_and_never_takes_a_grant_away(books: Books) -> None:
    prize = await books.prize("coupon", stock=3)
    assert await books.ledger.cancel(books.promotion, "r1") == RequestState.CANCELLED
    assert await codes(books, books.item(prize, "ada", "r1")) == [CommitCode.CANCELLED]
    assert await codes(books, books.item(prize, "ada", "r2")) == [CommitCode.GRANTED]
    assert await books.ledger.cancel(books.promotion, "r2") == RequestState.GRANTED
    await books.ledger.fence([(books.promotion, "r3", 5)])
    assert await books.ledger.cancel(books.promotion, "r3") == RequestState.CANCELLED


async def test_an_absent_key_is_absent(books: Books) -> None:
    assert [k.state for k in await books.ledger.lookup([(books.promotion, "no"), (99, "no")])] == [
        RequestState.ABSENT
    ] * 2


async def test_a_poison_item_refuses_its_batch_and_changes_nothing(books: Books) -> None:
    prize = await books.prize("coupon", stock=3)
    before = await books.dump()
    poison = books.item(prize, "ada", "r1")._replace(prize=999)
    with pytest.raises(BatchRefused):
        await books.ledger.commit([books.item(prize, "bob", "r0"), poison])
    assert await books.dump() == before


async def test_an_account_never_leaves_the_range_of_the_ledger(books: Books) -> None:
    cash = await books.prize("cash", value=1, kind=3)
    await books.pool.execute("UPDATE guerdon.account SET floor = NULL, debits = $1 WHERE kind = 5", 2**62 - 10)
    assert await codes(books, books.item(cash, "ada", "r1", value=2**53 - 1)) == [CommitCode.ACCOUNT_LIMIT]


async def test_batches_of_many_connections_neither_deadlock_nor_overgrant(books: Books) -> None:
    """Opposite orders of users, prizes and keys in concurrent batches; twins of every request in another batch."""
    prizes = [await books.prize(f"p{i}", stock=40, limit=3) for i in range(3)]
    cash = await books.prize("cash", value=1, kind=3)
    chooser = random.Random(7)
    items = [books.item(chooser.choice(prizes), f"u{chooser.randrange(60)}", f"r{i}") for i in range(300)]
    items += [
        books.item(cash, f"u{chooser.randrange(60)}", f"c{i}", value=chooser.randrange(1, 30)) for i in range(200)
    ]
    twins = [item._replace(admission=item.admission + 10_000) for item in items]
    batches = []
    for source in (items, twins):
        shuffled = chooser.sample(source, len(source))
        batches += [shuffled[i : i + 50] for i in range(0, len(shuffled), 50)]
    answers = await asyncio.gather(*(books.ledger.commit(batch) for batch in batches))
    granted = [
        item
        for batch, results in zip(batches, answers, strict=True)
        for item, r in zip(batch, results, strict=True)
        if r.code == CommitCode.GRANTED
    ]
    assert len({item.request_id for item in granted}) == len(granted)
    for prize in prizes:
        left = await books.balance(2, books.promotion, prize)
        assert left >= 0
        assert 40 - left == sum(1 for item in granted if item.prize == prize)
    spent = sum(item.value or 0 for item in granted)
    assert await books.balance(5, books.promotion, books.asset) == 1000 - spent
    per_user = {(i.user_id, i.prize) for i in granted if i.prize != cash}
    assert all(sum(1 for g in granted if (g.user_id, g.prize) == key) <= 3 for key in per_user)
    assert await books.pool.fetchval("SELECT sum(debits) = sum(credits) FROM guerdon.account")


def test_the_codes_of_sql_and_python_are_the_same() -> None:
    sql = (files("guerdon_server") / "core/ledger/postgres/sql/30_commit_issuances.sql").read_text()
    constants = dict(re.findall(r"^    ([A-Z_]+) CONSTANT smallint := (\d+);", sql, re.MULTILINE))
    constants["EXISTS"] = constants.pop("EXISTS_ALREADY")
    assert {name: int(number) for name, number in constants.items()} == {c.name: c.value for c in CommitCode}
