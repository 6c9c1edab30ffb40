"""PostgreSQL: a durable primary and a synchronous standby, and what happens to them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Self

import asyncpg

from guerdon_server.platform.postgres import Connection
from tests.cluster.postgres_node import AWAY, STANDBY, PostgresNode
from tests.cluster.proxy import HOST, Proxy
from tests.cluster.waiting import STATE_SECONDS_MAX, NotInForce, NotPossible, log_tail, until

_HOT_ACCOUNTS = "SELECT id FROM guerdon.account WHERE kind IN (2, 5, 7) ORDER BY id DESC LIMIT 50"
_NEWEST_HOLDINGS = "SELECT id FROM guerdon.account WHERE kind = 3 ORDER BY id DESC LIMIT 10"
_LOCK_ONE = "SELECT FROM guerdon.account WHERE id = $1 FOR UPDATE"
_IN_STEP = """
SELECT count(*) = 1 FROM pg_stat_replication
WHERE application_name = $1 AND state = 'streaming' AND sync_state = $2 AND flush_lsn >= $3::text::pg_lsn
"""
_WAITING = """
SELECT pid, query_start FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_type = 'client backend'
"""
_RAISE = """
CREATE SCHEMA IF NOT EXISTS faults;
CREATE OR REPLACE FUNCTION faults.raise_some() RETURNS trigger LANGUAGE plpgsql AS $f$
BEGIN
    IF random() < {share} THEN
        RAISE EXCEPTION 'raised on purpose' USING ERRCODE = '{sqlstate}';
    END IF;
    RETURN NULL;
END $f$;
DROP TRIGGER IF EXISTS fault_raise ON guerdon.batch;
CREATE {constraint} TRIGGER fault_raise AFTER INSERT ON guerdon.batch {when}
    FOR EACH ROW WHEN (NEW.kind = 1) EXECUTE FUNCTION faults.raise_some();
"""
_POISON = """
CREATE SCHEMA IF NOT EXISTS faults;
CREATE OR REPLACE FUNCTION faults.poison() RETURNS trigger LANGUAGE plpgsql AS $f$
BEGIN
    RAISE EXCEPTION 'poisoned on purpose' USING ERRCODE = '22000';
END $f$;
DROP TRIGGER IF EXISTS fault_poison ON guerdon.request;
CREATE TRIGGER fault_poison BEFORE INSERT OR UPDATE ON guerdon.request
    FOR EACH ROW WHEN (NEW.outcome = 1 AND starts_with(NEW.request_id, '{prefix}')) EXECUTE FUNCTION faults.poison();
"""
_CATCH_UP_SECONDS_MAX = 15.0
_LOCK_PAUSE_SECONDS = 0.01
_ROUND_PAUSE_SECONDS = 0.05


class PostgresPair:
    """The primary and, if asked for, one standby that confirms every commit. `async with` it.

    `followers`: the proxies that lead to the primary; a fail-over leads them to the new one. All that is done here goes
    straight to the engine, never through a proxy, and waits for no standby.
    """

    def __init__(
        self,
        folder: Path,
        *,
        standby: bool = True,
        disk_bytes: int = 2 << 30,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`disk_bytes`: of the small file system (in memory) for each one's data; 0: on the folder's own disk."""
        self._primary = PostgresNode(folder / "postgres-a", disk_bytes=disk_bytes, settings=settings)
        self._standby: PostgresNode | None = None
        if standby:
            self._standby = PostgresNode(
                folder / "postgres-b", disk_bytes=disk_bytes, settings=settings, password_of=self._primary
            )
        self._stack = AsyncExitStack()
        self._wanted = standby
        self._standby_is_old = False  # it was the primary until the fail-over
        self._synchronous = False
        self._deadlocks: asyncio.Task[None] | None = None
        self._deadlocks_before = 0
        self._holding: asyncio.Task[None] | None = None
        self.followers: list[Proxy] = []

    # --- addresses ------------------------------------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """Of the primary."""
        return HOST, self._primary.port

    @property
    def dsn(self) -> str:
        """Of the primary, directly, with the password."""
        return self._primary.dsn

    def dsn_through(self, proxy: Proxy) -> str:
        """The same with the proxy's address."""
        return self._primary.dsn_at(proxy.port)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A session on the primary whose own commits wait for no standby."""
        async with self._primary.connection() as connection:
            yield connection

    @property
    def synchronous(self) -> bool:
        """Whether commits wait for the standby."""
        return self._synchronous

    @property
    def disk_full_possible(self) -> bool:
        return not self.disk_full_reason

    @property
    def disk_full_reason(self) -> str:
        """Why the disk can't be filled; empty where it can."""
        return self._primary.disk.why_not

    def pids(self) -> dict[str, int]:
        """Of each that runs, by name."""
        return {node.data_dir.name: node.pid for node in self._nodes if node.is_running}

    def logs(self) -> dict[str, str]:
        """The end of each log, by name."""
        return {node.data_dir.name: log_tail(node.log_path) for node in self._nodes}

    @property
    def _nodes(self) -> list[PostgresNode]:
        return [self._primary, *([self._standby] if self._standby is not None else [])]

    # --- life -----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        for node in self._nodes:
            self._stack.push_async_callback(node.end)
        self._stack.push_async_callback(self._end_sessions)
        try:
            await self._primary.begin()
            if self._standby is not None:
                await self.rebuild_standby()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def kill(self) -> None:
        """SIGKILL to the whole primary."""
        await self._primary.kill()

    async def restart(self) -> None:
        """Start the primary (killed first if it runs): recovered and writable when this returns."""
        await self._primary.begin()
        await self._primary.until_writable()

    async def freeze(self) -> None:
        """SIGSTOP to the primary with all its processes."""
        await self._primary.freeze()

    async def thaw(self) -> None:
        """Whichever is frozen goes on (after a split it may be the old primary)."""
        for node in self._nodes:
            await node.thaw()

    async def mend(self) -> None:
        """Everything as after the start, whatever was done."""
        await self.thaw()
        await self.release_account_locks()
        await self.stop_deadlocks()
        await self.free_disk()
        self._lead(self.followers)
        if self._standby is not None:
            await self.return_standby()
        await self.stop_raising()
        await self.stop_poison()

    # --- the standby ----------------------------------------------------------------------------------------------

    async def set_synchronous(self, wanted: bool) -> None:
        """Whether commits wait for the standby. True returns when the standby has everything and commits wait."""
        self._wanted = wanted
        self._synchronous = False
        await self._primary.set_standby_names(STANDBY if wanted else "")
        if wanted:
            await self._in_step("sync")
            async with self.connection() as connection:
                # Whether commits wait is the checkpointer's to tell the others, and this makes it look at its settings.
                await connection.execute("CHECKPOINT")
            await self._in_step("sync")
            self._synchronous = True

    async def _in_step(self, state: str, *, seconds_max: float = STATE_SECONDS_MAX) -> None:
        """Waits until the standby has all that the primary has, and is "sync" or "async"."""
        standby = self._other

        async def in_step() -> bool:
            async with self.connection() as connection:
                now = await connection.fetchval("SELECT pg_current_wal_flush_lsn()::text")
                return bool(await connection.fetchval(_IN_STEP, STANDBY, state, now))

        what = f"{standby} to be in step ({state})"
        await until(in_step, what, log_path=standby.log_path, seconds_max=seconds_max, asking_fails=AWAY)

    async def lose_standby(self, *, frozen: bool = False) -> None:
        """SIGKILL (or SIGSTOP) to the standby: from now on commits wait, those under way too."""
        if frozen:
            await self._other.freeze()
            return
        await self._other.kill()
        await until(self._is_alone, "the primary to miss its standby", log_path=self._primary.log_path)

    async def _is_alone(self) -> bool:
        async with self.connection() as connection:
            return not await connection.fetchval("SELECT count(*) FROM pg_stat_replication")

    async def return_standby(self) -> None:
        """The lost standby comes back and catches up; made anew if it can't. Does nothing where it is in step."""
        standby = self._other
        if self._standby_is_old:
            await self.rebuild_standby()
            return
        await standby.thaw()
        if not standby.is_running:
            await standby.begin()
        try:
            await self._in_step("sync" if self._synchronous else "async", seconds_max=_CATCH_UP_SECONDS_MAX)
        except NotInForce:  # what it lacks is not kept any more
            await self.rebuild_standby()

    async def cut_waiting_commits(self, *, terminate: bool = False) -> int:
        """Break off the waits for the standby: PostgreSQL warns and answers, though the standby has nothing.

        `terminate` ends the sessions instead, without an answer. Returns how many waited.
        """
        end = "pg_terminate_backend" if terminate else "pg_cancel_backend"
        async with self.connection() as connection:
            cut = await connection.fetch(f"SELECT w.*, {end}(w.pid) FROM ({_WAITING}) w")  # noqa: S608  constants
            waited = {(row["pid"], row["query_start"]) for row in cut}

            async def over() -> bool:
                still = await connection.fetch(_WAITING)
                return waited.isdisjoint((row["pid"], row["query_start"]) for row in still)

            await until(over, "commits to stop waiting", log_path=self._primary.log_path)
        return len(waited)

    async def fail_over(self, *, keep_old_for: Collection[Proxy] = ()) -> None:
        """Kill the primary, promote the standby (started, if it was lost), lead all followers there.

        Nothing acknowledged is lost, so it raises NotPossible where commits did not wait for the standby. Afterwards
        the new primary is alone and commits wait for nobody, until `rebuild_standby`. With `keep_old_for` the old
        primary lives on for these proxies: a split, in which its commits wait for ever.
        """
        old, new = self._primary, self._other
        if not self._synchronous:
            raise NotPossible("commits don't wait for the standby: a fail-over would lose what is acknowledged")
        if not keep_old_for:
            await old.kill()
        await new.thaw()
        if not new.is_running:
            await new.begin()
        await new.promote()
        self._synchronous = False
        self._primary, self._standby, self._standby_is_old = new, old, True
        self._lead(proxy for proxy in self.followers if proxy not in keep_old_for)

    async def rebuild_standby(self) -> None:
        """The other one becomes the standby by a base backup; returns when it is in step and commits wait again.

        (They don't after `set_synchronous(False)`.)
        """
        self._lead(self.followers)
        await self._other.begin_as_copy(self._primary)
        self._standby_is_old = False
        await self.set_synchronous(self._wanted)
        if not self._wanted:
            await self._in_step("async")

    @property
    def _other(self) -> PostgresNode:
        if self._standby is None:
            raise NotPossible("this cluster has no standby of PostgreSQL")
        return self._standby

    def _lead(self, proxies: Iterable[Proxy]) -> None:
        for proxy in proxies:
            if proxy.target != self.address:
                proxy.retarget(*self.address)

    # --- the disk -------------------------------------------------------------------------------------------------

    async def fill_disk(self) -> None:
        """No byte is left for the primary. Raises NotPossible with `disk_full_reason`."""
        if not self.disk_full_possible:
            raise NotPossible(self.disk_full_reason)
        await self._primary.disk.fill()

    async def free_disk(self) -> None:
        """There is room again; the primary, restarted if it gave up, is writable. Does nothing if it wasn't full."""
        await self._primary.disk.free()
        await self._primary.until_writable()

    # --- what goes wrong inside -----------------------------------------------------------------------------------

    async def raise_in_commits(self, sqlstate: str, share: float, *, at_commit: bool = False) -> None:
        """A share (0..1) of commits with grants fails with this SQLSTATE; `at_commit`: only in COMMIT itself."""
        assert re.fullmatch(r"[0-9A-Z]{5}", sqlstate), sqlstate
        await self._define(
            _RAISE.format(
                sqlstate=sqlstate,
                share=float(share),
                constraint="CONSTRAINT" if at_commit else "",
                when="DEFERRABLE INITIALLY DEFERRED" if at_commit else "",
            )
        )

    async def stop_raising(self) -> None:
        await self._define("DROP TRIGGER IF EXISTS fault_raise ON guerdon.batch")

    async def poison(self, prefix: str) -> None:
        """Granting a request whose id begins so raises 22000."""
        assert re.fullmatch(r"[A-Za-z0-9._:-]+", prefix), prefix
        await self._define(_POISON.format(prefix=prefix))

    async def stop_poison(self) -> None:
        await self._define("DROP TRIGGER IF EXISTS fault_poison ON guerdon.request")

    async def _define(self, sql: str) -> None:
        """In one transaction; waits, bounded, for commits under way."""
        try:
            async with self.connection() as connection:
                await connection.execute(sql)
        except asyncpg.LockNotAvailableError as error:
            raise NotInForce(f"commits under way did not end, so no trigger could be changed: {error}") from error

    async def start_deadlocks(self) -> None:
        """A session locks accounts in descending order, again and again: commits are the victims (40P01)."""
        await self.stop_deadlocks()
        self._deadlocks_before = self._deadlock_count()
        begun = asyncio.Event()
        self._deadlocks = asyncio.create_task(self._lock_backwards(begun))
        await self._in_force(begun, self._deadlocks, "the session that locks backwards")

    async def stop_deadlocks(self) -> int:
        """How many deadlocks PostgreSQL has told of since the start."""
        if self._deadlocks is None:
            return 0
        await _ended(self._deadlocks)
        self._deadlocks = None
        return max(0, self._deadlock_count() - self._deadlocks_before)

    async def hold_account_locks(self, seconds: float) -> None:
        """Returns when all stock, budget and liability accounts are locked; let go of after `seconds`."""
        await self.release_account_locks()
        held = asyncio.Event()
        self._holding = asyncio.create_task(self._hold(held, seconds))
        await self._in_force(held, self._holding, "the locks of all hot accounts")

    async def release_account_locks(self) -> None:
        """Does nothing where none are held."""
        if self._holding is not None:
            await _ended(self._holding)
            self._holding = None

    async def _lock_backwards(self, begun: asyncio.Event) -> None:
        while True:
            with suppress(*AWAY):  # killed, promoted, cut off: again
                async with self.connection() as connection:
                    # Whoever waits longer than this is the victim, and that shall be the others.
                    await connection.execute("SET deadlock_timeout = '20s'")
                    while True:
                        await self._lock_once_backwards(connection)
                        begun.set()
                        await asyncio.sleep(_ROUND_PAUSE_SECONDS)
            await asyncio.sleep(_ROUND_PAUSE_SECONDS)

    async def _lock_once_backwards(self, connection: Connection) -> None:
        ids = {row["id"] for query in (_HOT_ACCOUNTS, _NEWEST_HOLDINGS) for row in await connection.fetch(query)}
        async with connection.transaction():
            for account in sorted(ids, reverse=True):
                await connection.execute(_LOCK_ONE, account)
                await asyncio.sleep(_LOCK_PAUSE_SECONDS)  # commits come in between

    async def _hold(self, held: asyncio.Event, seconds: float) -> None:
        async with self.connection() as connection, connection.transaction():
            for row in reversed(await connection.fetch(_HOT_ACCOUNTS)):  # in the order of commits
                await connection.execute(_LOCK_ONE, row["id"])
            held.set()
            await asyncio.sleep(seconds)

    async def _in_force(self, event: asyncio.Event, task: asyncio.Task[None], what: str) -> None:
        async def begun() -> bool:
            if task.done():
                await task  # it failed
            return event.is_set()

        await until(begun, what, log_path=self._primary.log_path)

    def _deadlock_count(self) -> int:
        # Not from its statistics: those come late, and a crash forgets them.
        return sum(node.log_path.read_bytes().count(b"deadlock detected") for node in self._nodes)

    async def _end_sessions(self) -> None:
        for task in (self._deadlocks, self._holding):
            if task is not None:
                await _ended(task)


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel it and see it out; a session that the engine took with it is no failure."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and not isinstance(task.exception(), (*AWAY, type(None))):
        await task
