"""What is acknowledged has reached the synchronous standby: it outlives the primary, whatever was cut off before.

Each test fails where an answer is given on the word of the primary alone.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.cluster.cluster import Cluster
from tests.cluster.waiting import NotInForce
from tests.issuing.desk import Desk, Refusal, ask, eventually, fresh, opened, outcome
from tests.issuing.proof import at_rest, proven

_ANSWER_SECONDS = 4.0
_OPEN = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED"}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared() -> AsyncIterator[Cluster]:
    """One server on a primary whose commits wait for the standby."""
    with tempfile.TemporaryDirectory(prefix="guerdon-standby-") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            folder.chmod(0o711)  # noqa: ASYNC240  PostgreSQL runs as another user then
        async with Cluster(folder, servers=1, replica=False, settings={"read_seconds_max": 2}) as cluster:
            yield cluster


@pytest_asyncio.fixture(loop_scope="session")
async def cluster(shared: Cluster) -> AsyncIterator[Cluster]:
    """Whole before and after each test; the books are proven."""
    await shared.postgres.set_synchronous(True)
    yield shared
    await shared.mend()
    await shared.postgres.set_synchronous(True)
    await at_rest(shared.settings)
    await proven(shared.settings)


@pytest_asyncio.fixture(loop_scope="session")
async def desk(cluster: Cluster) -> AsyncIterator[Desk]:
    async with opened(cluster.servers[0].target) as desk:
        yield desk


async def _opens(desk: Desk) -> str:
    """A promotion of its own with a coupon, and one grant, so that everything is warm."""
    promotion_id = fresh("standby")
    await desk.opens(promotion_id)
    await desk.coupon(f"{promotion_id}-coupon", promotion_id=promotion_id, stock=50)
    await desk.grant(ask(promotion_id=promotion_id, prize_id=f"{promotion_id}-coupon"))
    return promotion_id


async def _cut_while_waiting(cluster: Cluster, call: Awaitable[Any]) -> Any:
    """What a call is answered whose commit was cut while it waited for a standby that is gone."""
    task = asyncio.create_task(outcome(call))
    cut = 0

    async def waits() -> bool:
        nonlocal cut
        cut += await cluster.postgres.cut_waiting_commits()
        return cut > 0 or task.done()

    await eventually(waits)
    while not task.done():
        await cluster.postgres.cut_waiting_commits()  # repetitions inside the server wait, too
        await asyncio.wait({task}, timeout=0.2)
    assert cut > 0, task.result()
    return task.result()


async def _lost(cluster: Cluster, call: Callable[[], Awaitable[Any]]) -> list[Any]:
    """The standby goes, the call's commit is cut, the primary crashes and shows it, the call is repeated; then the
    standby takes over, which never heard of it. Returns the answers until then."""
    await cluster.postgres.lose_standby()
    answers = [await _cut_while_waiting(cluster, call())]
    await cluster.postgres.restart()
    for _ in range(3):
        answers.append(await outcome(call()))
        await asyncio.sleep(0.1)
    await cluster.postgres.fail_over()
    return answers


def _acknowledged(answers: list[Any]) -> list[Any]:
    return [a for a in answers if not (isinstance(a, Refusal) and a.code in _OPEN)]


async def test_a_grant_that_no_standby_has_is_not_acknowledged_and_not_replayed(cluster: Cluster, desk: Desk) -> None:
    promotion_id = await _opens(desk)
    request = ask(promotion_id=promotion_id, prize_id=f"{promotion_id}-coupon")

    answers = await _lost(cluster, lambda: desk.issue(request, timeout=_ANSWER_SECONDS))

    assert not _acknowledged(answers)
    await _eventually_granted(desk, request, replayed=False)


async def test_get_issuance_does_not_answer_a_grant_that_no_standby_has(cluster: Cluster, desk: Desk) -> None:
    promotion_id = await _opens(desk)
    request = ask(promotion_id=promotion_id, prize_id=f"{promotion_id}-coupon")
    await cluster.postgres.lose_standby()
    await _cut_while_waiting(cluster, desk.issue(request, timeout=_ANSWER_SECONDS))
    await cluster.postgres.restart()

    answers = []
    for _ in range(3):
        answer = await outcome(desk.became(request.request_id, promotion_id=promotion_id))
        answers.append(answer if isinstance(answer, Refusal) else answer.WhichOneof("state"))

    assert "granted" not in answers, answers
    await cluster.postgres.fail_over()
    await _eventually_granted(desk, request, replayed=False)


async def test_a_tombstone_that_no_standby_has_is_not_acknowledged(cluster: Cluster, desk: Desk) -> None:
    promotion_id = await _opens(desk)
    request = ask(promotion_id=promotion_id, prize_id=f"{promotion_id}-coupon")

    answers = await _lost(cluster, lambda: desk.became(request.request_id, promotion_id=promotion_id, cancel=True))

    assert not _acknowledged(answers)
    await _eventually_granted(desk, request, replayed=False)


async def test_a_pause_that_no_standby_has_is_not_acknowledged(cluster: Cluster, desk: Desk) -> None:
    promotion_id = await _opens(desk)

    answers = await _lost(cluster, lambda: desk.goes("PAUSED", promotion_id))

    assert not _acknowledged(answers)
    await _eventually_granted(desk, ask(promotion_id=promotion_id, prize_id=f"{promotion_id}-coupon"), replayed=False)


async def test_a_server_that_no_standby_knows_does_not_serve(cluster: Cluster, desk: Desk) -> None:
    """Its number would be another server's, too, after the fail-over, and so would its admissions."""
    promotion_id = await _opens(desk)
    slot = cluster.servers[0]
    await slot.kill()
    await cluster.postgres.lose_standby()
    starting = asyncio.create_task(slot.start())

    async def refused() -> bool:
        await cluster.postgres.cut_waiting_commits()
        return starting.done()

    await eventually(refused)
    with pytest.raises(NotInForce, match=r"could not be registered: the standby did not confirm .* Start it again"):
        starting.result()
    await cluster.postgres.return_standby()
    await slot.start()
    await _eventually_granted(desk, ask(promotion_id=promotion_id, prize_id=f"{promotion_id}-coupon"), replayed=False)


async def test_what_was_acknowledged_is_on_the_standby_that_takes_over(cluster: Cluster, desk: Desk) -> None:
    promotion_id = await _opens(desk)
    requests = [ask(promotion_id=promotion_id, prize_id=f"{promotion_id}-coupon") for _ in range(20)]
    granted = [await desk.grant(request) for request in requests]
    await desk.goes("PAUSED", promotion_id)

    await cluster.postgres.fail_over()

    for request, issuance in zip(requests, granted, strict=True):
        assert await _eventually_granted(desk, request, replayed=True) == issuance
    rejected = await desk.rejection(ask(promotion_id=promotion_id, prize_id=f"{promotion_id}-coupon"))
    assert "paused" in rejected.message.lower()


async def _eventually_granted(desk: Desk, request: Any, *, replayed: bool) -> Any:
    """The grant, as soon as the new primary serves."""
    found: list[Any] = []

    async def granted() -> bool:
        answer = await outcome(desk.issue(request, timeout=_ANSWER_SECONDS))
        if isinstance(answer, Refusal):
            assert answer.code in _OPEN, answer
            return False
        if not answer.HasField("granted"):
            assert answer.HasField("pending"), answer
            return False
        found.append(answer)
        return True

    await eventually(granted, poll_seconds=0.1)
    # Our own repetitions may have been granted while their answer was lost.
    assert found[0].replayed is replayed or not replayed
    return found[0].granted
