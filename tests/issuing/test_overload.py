"""More than it can do is refused before any work, with a time to come back; nothing is half done."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter

import pytest

from guerdon_server import bootstrap
from guerdon_server.settings import Settings
from tests.issuing.desk import Refusal, ask, item, kinds, opened, outcome
from tests.issuing.proof import at_rest, proven


async def test_calls_beyond_those_in_flight_are_refused_and_the_others_served(settings: Settings) -> None:
    tiny = dataclasses.replace(settings, requests_in_flight_max=4)
    async with bootstrap.running(tiny) as endpoints, opened(endpoints.grpc) as desk:
        await desk.opens()
        await desk.coupon()
        answers = await asyncio.gather(*(outcome(desk.issue(ask())) for _ in range(300)))

        refused = [answer for answer in answers if isinstance(answer, Refusal)]
        granted = [answer for answer in answers if not isinstance(answer, Refusal)]
        assert refused
        assert granted
        for refusal in refused:
            assert (refusal.code, refusal.reason, refusal.domain) == ("RESOURCE_EXHAUSTED", "OVERLOADED", "guerdon.dev")
            assert refusal.retry_after_ms
        assert all(answer.HasField("granted") for answer in granted)
        assert (await desk.stock()).issued_units == len(granted)
        await at_rest(settings)
    await proven(settings)


@pytest.mark.parametrize("together", [False, True], ids=["each for itself", "together"])
async def test_items_beyond_the_queues_are_refused_and_given_back(settings: Settings, together: bool) -> None:
    tiny = dataclasses.replace(
        settings,
        admit_queue_items_max=1000,
        commit_queue_items_max=1000,
        admit_batches_in_flight_max=1,
        commit_batches_in_flight_max=1,
    )
    async with bootstrap.running(tiny) as endpoints, opened(endpoints.grpc) as desk:
        await desk.opens()
        await desk.coupon(stock=1_000_000)
        await desk.grant(ask())
        batches = [[item(user_id=f"u-{n % 50}") for n in range(700)] for _ in range(12)]

        answers = await asyncio.gather(*(outcome(desk.batch(items, together=together)) for items in batches))

        found: Counter[str] = Counter()
        for answer in answers:
            assert not isinstance(answer, Refusal), answer
            seen = kinds(answer)
            found.update(seen)
            assert len(set(seen)) == 1, Counter(seen)
            for result in answer:
                if result.HasField("error"):
                    refusal = Refusal.of(result.error)
                    assert (refusal.code, refusal.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
                    assert refusal.retry_after_ms
        assert found.keys() == {"granted", "OVERLOADED"}, found
        assert (await desk.stock()).issued_units == 1 + found["granted"]
        await at_rest(settings)

        for items in batches:
            assert set(kinds(await desk.batch(items, together=together))) <= {"granted", "replayed"}
        assert (await desk.stock()).issued_units == 1 + 700 * 12
    await proven(settings)
