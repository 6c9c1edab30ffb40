"""Reading a catalogue stays cheap when the ledger has grown: no statement scans the accounts."""

from __future__ import annotations

import pytest

from guerdon_server.core.ledger.postgres.statements import load
from tests.catalogue.driver import Catalogue

ACCOUNTS = 50_000
STATEMENTS: list[tuple[str, str, list[object]]] = [
    ("promotion", "fetch", [[1, 2, 3]]),
    ("promotion", "find_budget", [1, "USD"]),
    ("promotion", "count_budgets", [1]),
    ("prize", "fetch", [["c0", "c1"]]),
    ("prize", "find_budget", [1, "USD"]),
    ("prize", "stock", ["c1"]),
    ("prize", "holdings", [[1], "u7"]),
]


@pytest.fixture
async def grown(catalogue: Catalogue) -> Catalogue:
    await catalogue.promotion(budgets={"USD": 5})
    for n in range(3):
        await catalogue.coupon(f"c{n}")
    await catalogue.pool.execute(
        "INSERT INTO guerdon.subject (user_id) SELECT 'u' || n FROM generate_series(1, 1000) n"
    )
    await catalogue.pool.execute(
        "INSERT INTO guerdon.account (kind, owner, item) SELECT 3, n, n % 3 FROM generate_series(1, $1::int) n",
        ACCOUNTS,
    )
    await catalogue.pool.execute("ANALYZE guerdon.account, guerdon.subject")
    return catalogue


async def test_no_statement_scans_the_accounts(grown: Catalogue) -> None:
    for module, name, arguments in STATEMENTS:
        statement = load(f"guerdon_server.core.{module}.postgres")[name]
        rows = await grown.pool.fetch(f"EXPLAIN {statement}", *arguments)
        plan = "\n".join(row[0] for row in rows)
        assert "Seq Scan on account" not in plan, f"{module}: {name}\n{plan}"
