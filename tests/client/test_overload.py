"""Clients of an overloaded server: what they repeat is bounded, and what they are told is true."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from contextlib import AsyncExitStack

from guerdon import AsyncClient, Granted, ResourceExhausted, RetryPolicy
from guerdon_server import bootstrap
from guerdon_server.settings import Settings
from tests.issuing.desk import opened
from tests.issuing.proof import at_rest, proven
from tests.transports import on_both_transports
from tests.transports.test_calls import figure

pytestmark = on_both_transports

_CLIENTS = 6
_AT_ONCE = 16  # of each client: many times the 4 calls that this server takes
_CALLS = 80
_POLICY = RetryPolicy(max_attempts=5, base_delay_seconds=0.005, max_tokens=10.0, token_ratio=0.1)


async def test_at_overload_clients_send_little_more_than_their_first_attempts(settings: Settings) -> None:
    small = dataclasses.replace(settings, requests_in_flight_max=4, calls_per_connection_max=1000)
    found: Counter[str] = Counter()
    refusals: list[ResourceExhausted] = []
    async with bootstrap.running(small) as endpoints:
        async with opened(endpoints.grpc) as desk:
            await desk.opens()
            await desk.coupon()

        async def calls(client: AsyncClient, name: str, numbers: range) -> None:
            for number in numbers:
                try:
                    outcome = await client.issue_prize(
                        promotion_id="spring",
                        entrance_id="checkout",
                        prize_id="welcome",
                        user_id=name,
                        request_id=f"{name}-{number}",
                    )
                except ResourceExhausted as error:
                    refusals.append(error)
                else:
                    assert isinstance(outcome, Granted)
                    found["replayed" if outcome.replayed else "granted"] += 1

        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(AsyncClient(endpoints.grpc, retry=_POLICY, timeout=60.0))
                for _ in range(_CLIENTS)
            ]
            share = _CALLS // _AT_ONCE
            async with asyncio.TaskGroup() as group:
                for c, client in enumerate(clients):
                    for task in range(_AT_ONCE):
                        group.create_task(calls(client, f"c{c}", range(share * task, share * (task + 1))))

        sent = await figure(endpoints, "grpc_server_started", grpc_method="IssuePrize")
        shed = await figure(endpoints, "guerdon_calls_shed", priority="issuing")
        assert found.total() + len(refusals) == _CLIENTS * _CALLS
        assert any(error.throttled for error in refusals)
        for error in refusals:
            assert (error.reason, error.outcome_unknown) == ("OVERLOADED", False)
            assert error.retry_after_seconds
        assert shed == sent - found["granted"]
        repeated = sent - _CLIENTS * _CALLS
        assert 0 < repeated <= _CLIENTS * _POLICY.max_tokens / 2 + _POLICY.token_ratio * found["granted"]

        async with opened(endpoints.grpc) as desk:
            assert (await desk.stock()).issued_units == found["granted"]
        await at_rest(settings)
    await proven(settings)
