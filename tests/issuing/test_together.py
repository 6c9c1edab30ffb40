"""All or nothing, when more than one thing is wrong at once."""

from __future__ import annotations

from itertools import permutations

from tests.issuing.desk import Desk, ask, item, kinds


async def test_together_several_bad_items_of_different_kinds_keep_the_good_ones_from_it(desk: Desk) -> None:
    """What can't be understood, what the rules refuse, what the gate refuses, and what was granted before."""
    await desk.opens()
    await desk.coupon(stock=5)
    await desk.coupon("none", stock=0)
    await desk.grant(ask("old"))
    bad = {
        item(user_id="two words").SerializeToString(): "INVALID_FIELD",
        item(prize_id="nowhere").SerializeToString(): "PRIZE_NOT_FOUND",
        item(prize_id="none").SerializeToString(): "SOLD_OUT",
        item("old", user_id="bob").SerializeToString(): "REQUEST_ID_REUSED",
    }
    for first, second in permutations(bad, 2):
        items = [type(item()).FromString(first), item(), type(item()).FromString(second), item()]
        found = kinds(await desk.batch(items, together=True))
        assert found[1] == found[3] == "BATCH_NOT_GRANTED", (bad[first], bad[second], found)
        assert {found[0], found[2]} <= {bad[first], bad[second], "BATCH_NOT_GRANTED"}
        assert {found[0], found[2]} != {"BATCH_NOT_GRANTED"}, "one of them says why"
        assert (await desk.stock()).issued_units == 1
