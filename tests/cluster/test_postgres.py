"""What is done to PostgreSQL is done when the call returns, and mended when its counterpart does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from guerdon_server import bootstrap
from guerdon_server.platform import postgres
from tests.cluster.postgres import PostgresPair
from tests.cluster.proxy import Proxy
from tests.cluster.waiting import NotPossible, until

_BATCH = "INSERT INTO guerdon.batch (kind, booked_at, issuance_count, transfer_count) VALUES (1, now(), 1, 1)"
_GRANT = (
    "INSERT INTO guerdon.request (promotion, request_id, outcome, admission, issuance_id)"
    " VALUES (1, $1, $2::smallint, 1, CASE WHEN $2 = 1 THEN nextval('guerdon.issuance_id') END)"
)
_NOT_CONFIRMED = "01000"
_STILL_WAITING_SECONDS = 0.2


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared(folder: Path) -> AsyncIterator[PostgresPair]:
    async with PostgresPair(folder, disk_bytes=768 << 20) as pair:
        versioned, repeatable = bootstrap.migration_sources()
        await postgres.migrate(pair.dsn, versioned=versioned, repeatable=repeatable)
        async with pair.connection() as connection:
            await connection.execute("CREATE TABLE public.note (text text PRIMARY KEY)")
        yield pair


@pytest_asyncio.fixture
async def pair(shared: PostgresPair) -> AsyncIterator[PostgresPair]:
    yield shared
    shared.followers.clear()
    if not shared.synchronous:
        await shared.restart()
        await shared.rebuild_standby()


class Client:
    """A session as a server has it: its commits wait for the standby."""

    def __init__(self, connection: postgres.Connection) -> None:
        self.connection = connection
        self.warnings: list[str] = []
        connection.add_log_listener(lambda _, message: self.warnings.append(message.sqlstate or ""))

    async def note(self, text: str) -> None:
        await self.connection.execute("INSERT INTO public.note VALUES ($1)", text)


@pytest_asyncio.fixture
async def client(pair: PostgresPair) -> AsyncIterator[Client]:
    connection = await postgres.connect(pair.dsn)
    yield Client(connection)
    connection.terminate()


async def noted(pair: PostgresPair) -> set[str]:
    async with pair.connection() as connection:
        return {row["text"] for row in await connection.fetch("SELECT text FROM public.note")}


async def waits(pair: PostgresPair) -> bool:
    """Whether a commit waits for the standby."""
    async with pair.connection() as connection:
        return bool(await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"))


async def waiting_note(pair: PostgresPair, client: Client, text: str) -> asyncio.Task[None]:
    note = asyncio.create_task(client.note(text))
    await until(lambda: waits(pair), "the commit to wait")
    return note


async def test_what_was_acknowledged_survives_a_kill(pair: PostgresPair, client: Client) -> None:
    await client.note("killed")
    address = pair.address
    await pair.kill()
    with pytest.raises(OSError, match="onnect"):
        await postgres.connect(pair.dsn)
    await pair.restart()
    assert "killed" in await noted(pair)
    assert pair.address == address


async def test_frozen_it_does_not_answer_and_thawed_it_goes_on(pair: PostgresPair, client: Client) -> None:
    await pair.freeze()
    note = asyncio.create_task(client.note("frozen"))
    done, _ = await asyncio.wait({note}, timeout=_STILL_WAITING_SECONDS)
    assert not done
    await pair.thaw()
    await note
    assert "frozen" in await noted(pair)


async def test_a_commit_whose_caller_was_cut_off_in_the_middle_happens_later(pair: PostgresPair) -> None:
    async with Proxy(*pair.address) as proxy:
        caller = Client(await postgres.connect(pair.dsn_through(proxy)))
        await pair.lose_standby()
        note = await waiting_note(pair, caller, "cut off")
        assert proxy.orphan() == 1
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await note
        assert "cut off" not in await noted(pair)
        await pair.return_standby()

        async def happened() -> bool:
            return "cut off" in await noted(pair)

        await until(happened, "the commit that nobody listens to")


@pytest.mark.parametrize("frozen", [False, True])
async def test_commits_wait_for_a_lost_standby_until_it_returns(
    pair: PostgresPair, client: Client, frozen: bool
) -> None:
    await pair.lose_standby(frozen=frozen)
    note = await waiting_note(pair, client, f"waited-{frozen}")
    assert f"waited-{frozen}" not in await noted(pair)
    await pair.return_standby()
    await note
    assert client.warnings == []


async def test_a_cut_wait_warns_and_answers_and_a_fail_over_loses_it(pair: PostgresPair, client: Client) -> None:
    await client.note("confirmed")
    await pair.lose_standby()
    note = await waiting_note(pair, client, "unconfirmed")
    assert await pair.cut_waiting_commits() == 1
    await note
    assert client.warnings == [_NOT_CONFIRMED]
    assert {"confirmed", "unconfirmed"} <= await noted(pair)
    async with Proxy(*pair.address) as proxy:
        pair.followers.append(proxy)
        await pair.fail_over()
        assert proxy.target == pair.address
        connection = await postgres.connect(pair.dsn_through(proxy))
        texts = {row["text"] for row in await connection.fetch("SELECT text FROM public.note")}
        await connection.close()
    assert "confirmed" in texts
    assert "unconfirmed" not in texts
    await pair.rebuild_standby()


async def test_a_terminated_wait_ends_the_session_without_an_answer(pair: PostgresPair, client: Client) -> None:
    await pair.lose_standby()
    note = await waiting_note(pair, client, "terminated")
    assert await pair.cut_waiting_commits(terminate=True) == 1
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await note
    assert "terminated" in await noted(pair)
    await pair.return_standby()


async def test_a_fail_over_keeps_what_was_acknowledged_and_the_old_one_becomes_the_standby(
    pair: PostgresPair, client: Client
) -> None:
    await client.note("acknowledged")
    old = pair.address
    await pair.fail_over()
    assert pair.address != old
    assert "acknowledged" in await noted(pair)
    alone = Client(await postgres.connect(pair.dsn))
    await alone.note("alone")  # waits for nobody
    assert not pair.synchronous
    with pytest.raises(NotPossible, match="acknowledged"):
        await pair.fail_over()
    await pair.rebuild_standby()
    await alone.note("in step again")
    await pair.fail_over()
    assert pair.address == old
    assert {"alone", "in step again"} <= await noted(pair)
    alone.connection.terminate()
    await pair.rebuild_standby()


async def test_in_a_split_the_old_primary_commits_nothing_any_more(pair: PostgresPair) -> None:
    async with Proxy(*pair.address) as left, Proxy(*pair.address) as right:
        pair.followers.extend((left, right))
        await pair.fail_over(keep_old_for=[left])
        old = Client(await postgres.connect(pair.dsn_through(left)))
        new = Client(await postgres.connect(pair.dsn_through(right)))
        stuck = asyncio.create_task(old.note("split"))
        await new.note("split")
        done, _ = await asyncio.wait({stuck}, timeout=_STILL_WAITING_SECONDS)
        assert not done
        await pair.rebuild_standby()
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await stuck
        assert left.target == right.target == pair.address
        old.connection.terminate()
        new.connection.terminate()


async def test_it_can_be_told_not_to_wait(pair: PostgresPair, client: Client) -> None:
    await pair.set_synchronous(False)
    await pair.lose_standby()
    await client.note("nobody waited for")
    await pair.return_standby()
    await pair.set_synchronous(True)
    await pair.fail_over()
    assert "nobody waited for" in await noted(pair)
    await pair.rebuild_standby()


async def test_a_full_disk_gives_errors_and_then_it_goes_on(pair: PostgresPair) -> None:
    if not pair.disk_full_possible:
        pytest.skip(pair.disk_full_reason)
    await pair.fill_disk()
    bulk = "INSERT INTO public.note SELECT repeat('x', 2000) || n FROM generate_series(1, 20000) n"
    connection = await postgres.connect(pair.dsn)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)) as refused:
        await connection.execute(bulk)
    assert isinstance(refused.value, asyncpg.DiskFullError) or connection.is_closed(), refused.value
    connection.terminate()
    await pair.free_disk()
    await pair.return_standby()
    connection = await postgres.connect(pair.dsn)
    await connection.execute(bulk)
    await connection.execute("DELETE FROM public.note WHERE length(text) > 100")
    await connection.close()


@pytest.mark.parametrize("at_commit", [False, True])
async def test_commits_raise_what_is_wanted(pair: PostgresPair, client: Client, at_commit: bool) -> None:
    await pair.raise_in_commits("40P01", 1.0, at_commit=at_commit)
    transaction = client.connection.transaction()
    await transaction.start()
    if at_commit:
        await client.connection.execute(_BATCH)
        with pytest.raises(asyncpg.DeadlockDetectedError):
            await transaction.commit()
    else:
        with pytest.raises(asyncpg.DeadlockDetectedError):
            await client.connection.execute(_BATCH)
        await transaction.rollback()
    await pair.raise_in_commits("40001", 0.5)
    outcomes = []
    for _ in range(40):
        try:
            outcomes.append(await client.connection.execute(_BATCH))
        except asyncpg.SerializationError as error:
            outcomes.append(error.sqlstate)
    assert set(outcomes) == {"40001", "INSERT 0 1"}
    await pair.stop_raising()
    await client.connection.execute(_BATCH)


async def test_a_poisoned_request_cannot_be_granted_and_can_be_fenced(pair: PostgresPair, client: Client) -> None:
    await pair.poison("bad-")
    with pytest.raises(asyncpg.DataError) as refused:
        await client.connection.execute(_GRANT, "bad-1", 1)
    assert refused.value.sqlstate == "22000"
    await client.connection.execute(_GRANT, "bad-1", 2)
    await client.connection.execute(_GRANT, "good-1", 1)
    await pair.stop_poison()
    await client.connection.execute(_GRANT, "bad-2", 1)


@pytest_asyncio.fixture
async def accounts(pair: PostgresPair) -> AsyncIterator[list[int]]:
    """Three stock accounts."""
    async with pair.connection() as connection:
        rows = await connection.fetch(
            "INSERT INTO guerdon.account (kind, owner, item) SELECT 2, 1, n FROM generate_series(1, 3) n RETURNING id"
        )
        yield [row["id"] for row in rows]
    async with pair.connection() as connection:
        await connection.execute("DELETE FROM guerdon.account")


async def test_held_account_locks_are_let_go_of(pair: PostgresPair, client: Client, accounts: list[int]) -> None:
    lock = "SELECT FROM guerdon.account WHERE id = ANY ($1) FOR NO KEY UPDATE NOWAIT"
    await pair.hold_account_locks(60)
    with pytest.raises(asyncpg.LockNotAvailableError):
        await client.connection.execute(lock, accounts)
    await pair.release_account_locks()

    async def free() -> bool:
        try:
            await client.connection.execute(lock, accounts)
        except asyncpg.LockNotAvailableError:
            return False
        return True

    await until(free, "the locks to be free")
    await pair.hold_account_locks(0.05)
    await until(free, "the locks to be free by themselves")


async def test_who_locks_in_ascending_order_is_the_victim(
    pair: PostgresPair, client: Client, accounts: list[int]
) -> None:
    await pair.start_deadlocks()

    async def is_victim() -> bool:
        try:
            async with client.connection.transaction():
                for account in accounts:
                    await client.connection.execute(
                        "UPDATE guerdon.account SET credits = credits + 1 WHERE id = $1", account
                    )
        except asyncpg.DeadlockDetectedError:
            return True
        return False

    await until(is_victim, "a real deadlock")
    assert await pair.stop_deadlocks() >= 1
