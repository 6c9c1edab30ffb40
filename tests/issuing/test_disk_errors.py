"""A disk that is full or broken, errors inside PostgreSQL: nothing is granted, nobody is blamed, it goes on after."""

from __future__ import annotations

import asyncio

import pytest

from guerdon_server.platform import postgres
from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, Refusal, ask, item, outcome
from tests.issuing.proof import at_rest, proven


@pytest.mark.parametrize("sqlstate", ["53100", "58030", "XX000"], ids=["disk full", "I/O error", "internal error"])
async def test_what_postgresql_can_not_do_now_is_no_fault_of_an_item(
    desk: Desk, settings: Settings, pool: postgres.Pool, sqlstate: str
) -> None:
    """Taken for a poison item, it would be looked for by halves, and one caller be told INTERNAL."""
    await desk.opens()
    await desk.coupon()
    await desk.grant(ask())
    asked = [ask() for _ in range(30)]
    await pool.execute(
        "CREATE FUNCTION guerdon_test_fails() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" RAISE EXCEPTION 'the disk is not what it was' USING ERRCODE = '{sqlstate}'; END $$"
    )
    await pool.execute(
        "CREATE TRIGGER fails BEFORE INSERT ON guerdon.batch FOR EACH ROW EXECUTE FUNCTION guerdon_test_fails()"
    )
    answers = await asyncio.gather(*(outcome(desk.issue(one)) for one in asked))
    for answer in answers:
        assert isinstance(answer, Refusal)
        assert (answer.code, answer.reason) == ("UNAVAILABLE", "LEDGER_UNAVAILABLE")
        assert answer.retry_after_ms
    for result in await desk.batch([item() for _ in range(50)]):
        assert Refusal.of(result.error).reason == "LEDGER_UNAVAILABLE"
    if sqlstate != "XX000":  # which outside of commits is a defect, ours or PostgreSQL's, and is logged as one
        created = await outcome(desk.coupon("another", stock=5))
        assert isinstance(created, Refusal)
        assert (created.code, created.reason) == ("UNAVAILABLE", "LEDGER_UNAVAILABLE")

    await pool.execute("DROP TRIGGER fails ON guerdon.batch")
    for one in asked:
        await desk.grant(one)
    assert (await desk.stock()).issued_units == 31
    await at_rest(settings)
    await proven(settings)
