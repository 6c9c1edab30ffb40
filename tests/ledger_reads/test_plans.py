"""The reads cost a page, however much there is to read: each table that grows is entered by an index, in its order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
import pytest_asyncio

from tests.ledger_reads.books import Books

QUERIES = files("guerdon_server.core.ledger.postgres") / "queries"
ROWS_MAX = 2**63 - 1
PAGE = 20
GROWING = {"account", "request", "transfer", "subject"}  # and batch, of which there are a dozen here


@pytest_asyncio.fixture(loop_scope="session")
async def many(books: Books) -> Books:
    """3,000 more grants of 600 users, with statistics."""
    for start in range(0, 3_000, 1_000):
        await books.grant_all(
            [("coins", f"user-{n % 600}", f"many-{n}", 1, f"order-{n}") for n in range(start, start + 1_000)]
        )
    await books.pool.execute("VACUUM ANALYZE")
    return books


async def plan(books: Books, query: str, *arguments: object) -> list[dict[str, Any]]:
    """All nodes of the plan that prepared statements end up with, after it was run."""
    async with books.pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        (found,) = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", *arguments))
    return list(_nodes(found["Plan"]))


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def assert_reads_a_page(nodes: list[dict[str, Any]]) -> None:
    for node in nodes:
        assert not (node["Node Type"] == "Seq Scan" and node["Relation Name"] in GROWING), node
        if "Relation Name" in node:
            rows = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            assert rows <= 2 * (PAGE + 1), node


async def test_a_statement_reads_both_indexes_backwards(many: Books) -> None:
    sql = (QUERIES / "entries.sql").read_text()
    hot = many.prizes["coins"].stock
    for before in (ROWS_MAX, 1_500):
        nodes = await plan(many, sql, hot, before, PAGE)
        assert_reads_a_page(nodes)
        assert {"transfer_debit", "transfer_credit"} <= {node.get("Index Name") for node in nodes}


@pytest.mark.parametrize("column", ["subject", "promotion", "reference"])
@pytest.mark.parametrize("few", [True, False])
async def test_a_list_of_issuances_reads_its_index(many: Books, column: str, few: bool) -> None:
    """Also where there are few among many: no plan may look for them in the index of all issuances."""
    sql = (QUERIES / "issuances.sql").read_text().replace("{column}", column)
    values = {
        "subject": await many.user("eve" if few else "user-7"),
        "promotion": many.promotions["autumn" if few else "spring"],
        "reference": "order-1" if few else "order-77",
    }
    nodes = await plan(many, sql, values[column], 2_000, PAGE)
    assert_reads_a_page(nodes)
    assert f"request_{column}" in {node.get("Index Name") for node in nodes}


async def test_an_issuance_is_read_by_its_id(many: Books) -> None:
    nodes = await plan(many, (QUERIES / "issuance.sql").read_text(), 7)
    assert_reads_a_page(nodes)
    assert "request_issuance" in {node.get("Index Name") for node in nodes}


async def test_balances_read_the_key_of_accounts(many: Books) -> None:
    sql = (QUERIES / "balances_of_owner.sql").read_text()
    assert_reads_a_page(await plan(many, sql, [6, 3], await many.user("user-7"), 1, 0, PAGE))
    by_key = (QUERIES / "account_by_key.sql").read_text()
    assert_reads_a_page(await plan(many, by_key, 6, "user-7", "", "", "COIN"))
