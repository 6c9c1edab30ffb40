"""Proves the invariants on PostgreSQL: all of the books in one snapshot, so that a live system can be proved too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.resources import files
from typing import Final

from guerdon_server.core.ledger.invariants import (
    BOOKS,
    VIOLATIONS_SHOWN_MAX,
    Check,
    GateComparison,
    GateState,
    GateView,
    Invariant,
    LedgerResource,
    LedgerSide,
    compare_gate,
)
from guerdon_server.core.ledger.postgres.statements import Session
from guerdon_server.platform.postgres import Pool

_QUERIES = files(__package__) / "queries"

# Every file gives a row for each thing compared, with the violation or null. Materialised because it is read thrice;
# the nulls are a few bytes each and go to disk when they are many, so neither side's memory grows with the books.
_COUNTED: Final = """
WITH unit AS MATERIALIZED ({sql})
SELECT (SELECT count(*) FROM unit) AS compared, (SELECT count(violation) FROM unit) AS violation_count,
    ARRAY(SELECT violation FROM unit WHERE violation IS NOT NULL ORDER BY violation LIMIT $1) AS violations
"""

# Whole tables are compared: index lookups row by row would be slow where statistics are missing, and what an index
# says is no proof of what the table holds.
_SETTINGS: Final = (
    "work_mem = '64MB'",
    "jit = off",
    "statement_timeout = 0",
    "enable_nestloop = off",
    "enable_indexscan = off",
    "enable_indexonlyscan = off",
    "enable_bitmapscan = off",
)

_GATE_PAUSE_SECONDS: Final = 0.05
_GATE_MOVING_TRIES_MAX: Final = 5


async def verify(pool: Pool, *, on_check: Callable[[Check], None] | None = None) -> list[Check]:
    """Check every invariant of the books, in the order of `BOOKS`, in one read-only snapshot; changes nothing and
    locks nobody out. `on_check` is called as each is done. Raises asyncpg's errors if the database can't be read."""
    checks = []
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        for setting in _SETTINGS:
            await connection.execute(f"SET LOCAL {setting}")
        for invariant in BOOKS:
            check = await _check(connection, invariant)
            checks.append(check)
            if on_check is not None:
                on_check(check)
    return checks


async def _check(connection: Session, invariant: Invariant) -> Check:
    sql = (_QUERIES / "invariants" / f"{invariant.name}.sql").read_text(encoding="utf-8")
    row = await connection.fetchrow(_COUNTED.replace("{sql}", sql), VIOLATIONS_SHOWN_MAX)
    assert row is not None
    return Check(
        name=invariant.name,
        promise=invariant.promise,
        compared=row["compared"],
        what=invariant.what,
        violation_count=row["violation_count"],
        violations=tuple(row["violations"]),
    )


# --- the gate -------------------------------------------------------------------------------------------------------


async def verify_gate(pool: Pool, gate: GateView, *, patience_seconds: float = 5.0) -> Check:
    """Compare the gate of every promotion that has been opened with the ledger.

    On a live system a difference can be on its way out (a top-up reaches the gate with the next reconciliation, an
    epoch is being loaded): it is a violation if it is still there after `patience_seconds`. A gate that never holds
    still is compared within what is in flight; `what` says how many those were.
    """
    promotions = await pool.fetch(
        "SELECT sid, guerdon.gate_buckets(gate_run_id) AS buckets FROM guerdon.promotion WHERE gate_epoch <> 0"
        " ORDER BY sid"
    )
    compared = closed = moving = 0
    violations: list[str] = []
    for row in promotions:
        result = await _compare_patiently(pool, gate, row["sid"], row["buckets"], patience_seconds)
        if result is None:
            closed += 1
            continue
        compared += result.compared
        moving += not result.still
        violations.extend(result.violations)
    return Check(
        name="gate_equals_ledger",
        promise="The gate lets in what the ledger has left: same epoch, same capacity, used = issued + in flight.",
        compared=compared,
        what=f"epochs and limits at the gate of {len(promotions)} promotions ({closed} of them not loaded, so closed;"
        f" {moving} moving, compared within what is in flight)",
        violation_count=len(violations),
        violations=tuple(violations[:VIOLATIONS_SHOWN_MAX]),
    )


async def _compare_patiently(
    pool: Pool, gate: GateView, promotion: int, buckets: int, seconds: float
) -> GateComparison | None:
    """None: closed."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    moving = 0
    while True:
        result = await _compare_once(pool, gate, promotion, buckets)
        if result is None or (result.still and not result.violations) or loop.time() >= deadline:
            return result
        if not result.violations:
            moving += 1
            if moving >= _GATE_MOVING_TRIES_MAX:
                return result
        await asyncio.sleep(_GATE_PAUSE_SECONDS)


async def _compare_once(pool: Pool, gate: GateView, promotion: int, buckets: int) -> GateComparison | None:
    before = await gate.state(promotion, buckets)
    if before is None:
        return None
    ledger = await _ledger_side(pool, promotion, before)
    after = await gate.state(promotion, buckets)
    # Another run id than the one loaded on: nobody uses this gate, the next connection opens a new epoch.
    if after is None or after.run_id != ledger.run_id:
        return None
    return compare_gate(before, ledger, after)


async def _ledger_side(pool: Pool, promotion: int, gate: GateState) -> LedgerSide:
    numbers = list(gate.open_admissions)
    requests = [admission.request_id for admission in gate.open_admissions.values()]
    async with pool.acquire() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        row = await connection.fetchrow(
            "SELECT promotion_id, gate_epoch, gate_run_id FROM guerdon.promotion WHERE sid = $1", promotion
        )
        resources = await connection.fetch(_query("gate_resources"), promotion)
        granted = await connection.fetch(_query("gate_granted"), promotion, requests, numbers)
    assert row is not None
    return LedgerSide(
        promotion_id=row["promotion_id"],
        epoch=row["gate_epoch"],
        run_id=row["gate_run_id"],
        resources={r["id"]: LedgerResource(capacity=r["capacity"], issued=r["issued"]) for r in resources},
        granted=frozenset(r["admission"] for r in granted),
    )


def _query(name: str) -> str:
    return (_QUERIES / f"{name}.sql").read_text(encoding="utf-8")
