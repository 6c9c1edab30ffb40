"""SIGHUP: all workers are replaced under load, and no call fails."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

from guerdon_server.settings import Settings
from tests.issuing.desk import Desk, Refusal, ask, opened, outcome
from tests.issuing.proof import at_rest, proven
from tests.workers.fleet import channel, fleet

_GRANTED = ("guerdon_outcomes_total", frozenset({("outcome", "granted")}))


class Callers:
    """Plain callers: some keep their connection, some make a new one for each call. `failed`: what no one may see."""

    def __init__(self, target: str) -> None:
        self.granted = 0
        self.failed: list[Refusal] = []
        self.going = True
        self._target = target

    async def keeps(self, desk: Desk) -> None:
        while self.going:
            self._count(await outcome(desk.issue(ask())))

    async def comes_and_goes(self) -> None:
        while self.going:
            async with channel(self._target) as own:
                self._count(await outcome(Desk(own).issue(ask())))

    def _count(self, answer: object) -> None:
        if isinstance(answer, Refusal):
            self.failed.append(answer)
        else:
            assert answer.HasField("granted"), answer  # type: ignore[attr-defined]
            self.granted += 1


async def test_no_call_fails_while_all_workers_are_replaced(settings: Settings) -> None:
    async with AsyncExitStack() as stack:
        some = await stack.enter_async_context(fleet(settings, 2, GUERDON_CONNECTION_AGE_SECONDS_MAX="2"))
        desks = [Desk(await stack.enter_async_context(channel(some.grpc))) for _ in range(12)]
        await desks[0].opens()
        await desks[0].coupon(stock=1_000_000)
        callers = Callers(some.grpc)
        calling = [
            *(asyncio.create_task(callers.keeps(desk)) for desk in desks),
            *(asyncio.create_task(callers.comes_and_goes()) for _ in range(6)),
        ]
        before = set(some.workers())
        some.signal(signal.SIGHUP)
        await some.heard("all workers were replaced")
        callers.going = False
        await asyncio.gather(*calling)

        assert callers.failed == []
        assert callers.granted > 0
        assert not before & set(some.workers())
        assert len(some.workers()) == 2
        replaced = some.events("a worker was replaced")
        assert [(event["slot"], event["end"]) for event in replaced] == [(0, "exit status 0"), (1, "exit status 0")]
        assert some.events("a worker ended") == []
        # Those that ended are still counted, each call once.
        merged = await asyncio.to_thread(some.scraped)
        assert merged[_GRANTED] == callers.granted
        assert merged["guerdon_worker_ends_total", frozenset({("how", "replaced")})] == 2
        await at_rest(settings)
    await proven(settings)


async def test_settings_that_do_not_start_leave_the_old_workers_and_are_told(
    settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "guerdon.toml"
    file.write_text('log_level = "info"\n')
    more = {"GUERDON_CONFIG": str(file), "GUERDON_CONNECTION_AGE_SECONDS_MAX": "2"}
    async with fleet(settings, 2, **more) as some, opened(some.grpc) as desk:
        await desk.opens()
        await desk.coupon()
        before = some.workers()
        file.write_text('log_level = "loud"\n')
        some.signal(signal.SIGHUP)
        (told,) = await some.heard("the new worker does not start")
        assert some.workers() == before
        assert "log_level" in str(told["end"])
        await desk.grant(ask())

        file.write_text('log_level = "debug"\n')
        some.signal(signal.SIGHUP)
        await some.heard("all workers were replaced")
        assert not set(before) & set(some.workers())
        await desk.grant(ask())
