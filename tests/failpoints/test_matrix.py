"""Every point of the path x what can happen there: both promises hold, and every unknown outcome can be resolved.

In process several points fire in one round, each once, at different moments; a process dies at one point only.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from guerdon_server import bootstrap
from guerdon_server.platform import postgres
from guerdon_server.platform.failpoints import Failpoints, Rule
from guerdon_server.settings import Settings
from tests.failpoints.everything import CANCELLED, EXPECTED, Round
from tests.failpoints.points import points
from tests.failpoints.victims import Victim, victim
from tests.issuing.desk import Desk, Refusal, eventually, fresh, opened, outcome
from tests.issuing.proof import at_rest, proven

_SERVING = points("background", "path")
_ROUNDS_MAX = 5
_DEADLINE_SECONDS = 0.25
_TURN_SECONDS_MAX = 3.0
_ACTIONS = {"error": ("error", 12), "delay": ("delay:0.4", 8), "cancel": ("cancel", 16)}
"""What happens at a point, and over how many runs its points are spread."""
_KILLED_AT_ONCE = 12


@pytest_asyncio.fixture(scope="module", loop_scope="session", autouse=True)
async def audited(books: Settings) -> AsyncIterator[None]:
    """After all of it the books are proven: every round is in them."""
    yield
    await proven(books)


def _runs() -> list[tuple[str, Sequence[str]]]:
    """Points that follow one another are in different runs: what a fault ends early, another can't be part of."""
    return [(action, _SERVING[run::runs]) for action, runs in _ACTIONS.values() for run in range(runs)]


@pytest.mark.parametrize(("action", "group"), _runs())
async def test_callers_get_one_answer_whatever_happens_there(
    books: Settings, action: str, group: Sequence[str]
) -> None:
    failpoints = Failpoints()
    expected = CANCELLED if action == "cancel" else EXPECTED
    left = list(group)
    for _ in range(_ROUNDS_MAX):  # a call that failed goes on at the other server, a job that was cancelled ends
        async with _pair(books, failpoints) as (first, second):
            one = Round(books, first, second, first_seconds_max=_DEADLINE_SECONDS, expected=expected)
            with failpoints.armed(";".join(f"{point}={action}@1" for point in left)) as rules:
                await one.run()
                left = await _missed(rules)
            await one.holds(first, second)
            await at_rest(books)
        if not left:
            return
    raise AssertionError(f"nobody came past {left}: let everything.py do what is done there")


async def _missed(rules: Sequence[Rule]) -> list[str]:
    """The points that nobody came past, after the background jobs had their turn."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_TURN_SECONDS_MAX):
            await eventually(lambda: all(rule.passes for rule in rules))
    return [rule.point for rule in rules if not rule.passes]


@asynccontextmanager
async def _pair(books: Settings, failpoints: Failpoints) -> AsyncIterator[tuple[Desk, Desk]]:
    """Two servers, the first with failpoints. It sweeps, unless it can't any more."""
    other = dataclasses.replace(books, reconcile_interval_ms=700)
    async with (
        bootstrap.running(books, failpoints=failpoints) as one,
        bootstrap.running(other) as two,
        opened(one.grpc) as first,
        opened(two.grpc) as second,
    ):
        yield first, second


# --- faults that stay -------------------------------------------------------------------------------------------------

_HOT = [
    f"{name}.{place}"
    for name in (
        *("postgres.commit_issuances", "postgres.fence_requests", "postgres.select.request.outcome.admission"),
        *("redis.gate.admit", "redis.gate.settle", "postgres.open_epoch", "redis.gate.load", "postgres.cancel_request"),
    )
    for place in ("before", "after")
]


@pytest.mark.parametrize("point", _HOT)
async def test_what_stays_broken_for_a_while_is_resolved_when_it_is_mended(books: Settings, point: str) -> None:
    """Callers of the broken server give up without an answer; when it is mended, the same ids have one."""
    failpoints = Failpoints()
    async with _pair(books, failpoints) as (first, second):
        one = Round(books, second, first)
        await one.opens()
        if "epoch" not in point and "load" not in point:
            await one.issue(one.ask("before", user_id="bob"), desks=(first, second))
        with failpoints.armed(f"{point}=error;postgres.commit_issuances.after=error@1") as rules:
            requests = [one.ask(f"lost-{n}", user_id=f"lost-{n}", prize_id=one.cash) for n in range(8)]
            answers = await asyncio.gather(
                *(outcome(first.issue(request, timeout=_DEADLINE_SECONDS)) for request in requests),
                outcome(first.became(one.id("ruled-out"), promotion_id=one.name, cancel=True)),
            )

            async def passed() -> bool:
                if not rules[0].passes:  # on a busy machine the first ones may have given up before they came so far
                    await outcome(first.issue(requests[0], timeout=_DEADLINE_SECONDS))
                return bool(rules[0].passes)

            await eventually(passed)
        for request, answer in zip((*requests, None), answers, strict=True):
            if isinstance(answer, Refusal):
                assert answer.code in EXPECTED, answer
            elif request is not None and not answer.HasField("pending"):
                one.answered(request, answer)
        await one.issues()
        for request in requests:
            await one.issue(request, desks=(first, second))
        await one.changes()
        await one.resolves()
        await one.holds(first, second)
        await at_rest(books)


# --- start and stop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["error", "delay:0.4", "cancel"])
async def test_a_start_that_fails_there_can_be_repeated(books: Settings, action: str) -> None:
    for point in points("start"):
        failpoints = Failpoints()
        with failpoints.armed(f"{point}={action}@1"):
            started = asyncio.create_task(_starts_and_stops(books, failpoints))
            await asyncio.wait({started})
        assert failpoints.fired[point], f"{point} was not reached"
        if action == "cancel":
            assert started.cancelled(), point
        elif action == "error":
            # Said, or endured where another attempt is made anyway.
            assert isinstance(started.exception(), OSError | bootstrap.StartRefused | None), started.exception()
        else:
            assert started.exception() is None, point
    await _goes_round(books)


@pytest.mark.parametrize("action", ["error", "delay:0.4", "cancel"])
async def test_a_stop_that_fails_there_has_finished_all_the_same(books: Settings, action: str) -> None:
    for point in points("stop"):
        failpoints = Failpoints()

        async def serve_a_round(failpoints: Failpoints = failpoints, point: str = point) -> None:
            async with bootstrap.running(books, failpoints=failpoints) as endpoints, opened(endpoints.grpc) as desk:
                one = Round(books, desk, desk)
                await one.run()
                await one.holds(desk)
                failpoints.arm(f"{point}={action}@1")

        stopped = asyncio.create_task(serve_a_round())
        await asyncio.wait({stopped})
        assert failpoints.fired[point], f"{point} was not reached"
        assert stopped.cancelled() if action == "cancel" else stopped.exception() is None, (point, stopped)
    await _goes_round(books)


async def _starts_and_stops(books: Settings, failpoints: Failpoints) -> None:
    async with bootstrap.running(books, failpoints=failpoints):
        pass


async def _goes_round(books: Settings) -> None:
    async with bootstrap.running(books) as endpoints, opened(endpoints.grpc) as desk:
        one = Round(books, desk, desk)
        await one.run()
        await one.holds(desk)
        await at_rest(books)


# --- kill -------------------------------------------------------------------------------------------------------------


def _kills() -> list[Sequence[str]]:
    order = points("start", "background", "path")
    return [order[at : at + _KILLED_AT_ONCE] for at in range(0, len(order), _KILLED_AT_ONCE)]


@pytest.mark.parametrize("group", _kills())
async def test_killed_there_it_loses_nothing(books: Settings, short_tmp: Path, group: Sequence[str]) -> None:
    """One server after the other dies, each at its point; the next is its restart. A second one goes on throughout."""
    # Longer than the lease, so that those who will die do what one server does for all, while they live.
    patient = dataclasses.replace(
        books, reconcile_interval_ms=1500, invariants_interval_seconds=86_400, capacity_interval_seconds=3600
    )
    rounds: list[Round] = []
    async with bootstrap.running(patient) as endpoints, opened(endpoints.grpc) as second:
        async with _victims(books, short_tmp, group) as victims:
            for point in group:
                dying = await anext(victims)
                async with opened(dying.grpc or endpoints.grpc) as first:
                    one = Round(books, first, second)
                    rounds.append(one)
                    await one.run(enough=dying.is_dead)
                    await dying.died_at(point)
                    await one.holds(second)
                await _lease_runs_out(books)
        async with bootstrap.running(books) as last, opened(last.grpc) as restarted:
            for one in rounds:
                await one.holds(restarted)
            await at_rest(books)


async def test_killed_while_it_stops_it_loses_nothing(books: Settings, short_tmp: Path) -> None:
    group = points("stop")
    rounds: list[Round] = []
    async with _victims(books, short_tmp, group) as victims:
        for point in group:
            dying = await anext(victims)
            async with opened(dying.grpc) as first:
                one = Round(books, first, first)
                rounds.append(one)
                await one.run()
                dying.stop()
                await dying.died_at(point)
            await _lease_runs_out(books)
    async with bootstrap.running(books) as last, opened(last.grpc) as restarted:
        for one in rounds:
            await one.holds(restarted)
        await at_rest(books)


@asynccontextmanager
async def _victims(books: Settings, folder: Path, group: Sequence[str]) -> AsyncIterator[AsyncIterator[Victim]]:
    """The servers in turn; the next one starts while one dies, since starting takes the most time."""
    async with AsyncExitStack() as stack:

        async def start(point: str) -> Victim:
            settings = dataclasses.replace(books, failpoints=f"{point}=kill@1")
            return await stack.enter_async_context(victim(settings, folder / fresh("stderr")))

        async def in_turn() -> AsyncIterator[Victim]:
            starting = asyncio.create_task(start(group[0]))
            for following in (*group[1:], None):
                ready = await starting
                if following is not None:
                    starting = asyncio.create_task(start(following))
                yield ready

        yield in_turn()


async def _lease_runs_out(books: Settings) -> None:
    """At once: else each would wait a second for the work of the one that died."""
    connection = await postgres.connect(books.postgres_dsn)
    try:
        await connection.execute("DELETE FROM guerdon.lease")
    finally:
        await connection.close()
