"""One PostgreSQL of a pair: durable, with its data on a disk of its own, made anew or as a copy of the other."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg

from guerdon_server.platform import postgres
from guerdon_server.platform.engines import EngineStartError, PostgresEngine
from guerdon_server.platform.engines import process as processes
from guerdon_server.platform.engines.folder import make_folder, write_private
from guerdon_server.platform.engines.postgres import DATABASE, postgres_dsn
from guerdon_server.platform.postgres import Connection
from tests.cluster.disk import Disk
from tests.cluster.waiting import POLL_SECONDS, bounded, let_go, stop_still, until

STANDBY = "standby"
_SETTINGS: Mapping[str, str] = {
    "max_connections": "300",  # connections whose callers were cut off stay for a while
    "shared_buffers": "64MB",
    "min_wal_size": "80MB",
    "max_wal_size": "256MB",
    "wal_keep_size": "256MB",  # a standby that was away for a while catches up
    "checkpoint_timeout": "60s",
    "deadlock_timeout": "100ms",
    "dynamic_shared_memory_type": "mmap",  # files beside the data: what a killed one leaves goes with it
    "wal_retrieve_retry_interval": "100ms",
    "wal_receiver_status_interval": "1s",
}
AWAY = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What a session ends with when its server does."""
_CONNECT_SECONDS_MAX = 10.0
_IPC_RMID = 0
_BACKUP_SECONDS_MAX = 60.0
_SESSION_LIMITS = "SET synchronous_commit = local; SET lock_timeout = '10s'; SET statement_timeout = '30s'"


class PostgresNode(PostgresEngine):
    """A server program with its folder; `address`, password and data survive its restarts."""

    def __init__(
        self,
        data_dir: Path,
        *,
        disk_bytes: int,
        settings: Mapping[str, str] | None = None,
        password_of: PostgresNode | None = None,
    ) -> None:
        if password_of is not None:
            shutil.copy(password_of.data_dir / "secrets.json", make_folder(data_dir) / "secrets.json")
        super().__init__(data_dir, settings={**_SETTINGS, **(settings or {})})
        self.disk = Disk(self.data_dir / "disk", size_bytes=disk_bytes)
        self._cluster = self.disk.path / "postgres"
        self._copy_of: PostgresNode | None = None

    def __str__(self) -> str:
        return self.data_dir.name

    @property
    def is_running(self) -> bool:
        return self._child is not None and self.exit_status is None

    def dsn_at(self, port: int) -> str:
        """Its password, another port."""
        return postgres_dsn(self._secrets.postgres_password, port, DATABASE)

    @asynccontextmanager
    async def connection(self, database: str = DATABASE) -> AsyncIterator[Connection]:
        """A session whose own commits wait for no standby, and that waits for nothing without a limit.

        While the server recovers, or has no connection left, it is asked again for a while. Raises AWAY.
        """
        connection = await self._connect(database)
        try:
            await connection.execute(_SESSION_LIMITS)
            yield connection
        finally:
            connection.terminate()

    async def _connect(self, database: str) -> Connection:
        deadline = asyncio.get_running_loop().time() + _CONNECT_SECONDS_MAX
        while True:
            try:
                return await postgres.connect(self.dsn_for(database), application_name="cluster")
            except AWAY:
                if not self.is_running or asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(POLL_SECONDS)

    async def begin(self) -> None:
        """Start it, whatever state it is in; it takes connections when this returns."""
        await self.kill()  # it may have ended by itself
        await self.disk.mount()
        await bounded(self.start(), f"{self} to start", log_path=self.log_path)

    async def begin_as_copy(self, primary: PostgresNode) -> None:
        """Start it as the standby of `primary`, made by a base backup: whatever it had is gone."""
        await self.kill()
        self._forget_shared_memory()
        await self.disk.free()
        await asyncio.to_thread(shutil.rmtree, self._cluster, ignore_errors=True)
        self._copy_of = primary
        await self.begin()

    async def end(self) -> None:
        try:
            await self.thaw()
            await self.stop()
            self._forget_shared_memory()
        finally:
            await self.disk.unmount()

    async def freeze(self) -> None:
        """SIGSTOP to all its processes."""
        await stop_still(self._all_pids, str(self))

    async def thaw(self) -> None:
        await let_go(self._all_pids, str(self))

    async def promote(self) -> None:
        """From a standby to a primary; writable when this returns. Its commits wait for nobody."""
        await self.set_standby_names("")
        async with self.connection() as connection:
            # Not waiting inside of it: its own snapshot could be what the replay waits for.
            await connection.execute("SELECT pg_promote(wait => false)")
        await self.until_writable()

    async def until_writable(self) -> None:
        """Started again if it gave up."""

        async def writable() -> bool:
            if not self.is_running:
                await self.begin()
            async with self.connection() as connection:
                return not await connection.fetchval("SELECT pg_is_in_recovery()")

        await until(writable, f"{self} to be writable", log_path=self.log_path, seconds_max=60.0, asking_fails=AWAY)

    async def set_standby_names(self, names: str) -> None:
        """Whom commits wait for; in force at the latest when the next checkpoint is."""
        async with self.connection() as connection:
            await connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
            await connection.execute("SELECT pg_reload_conf()")

    def _all_pids(self) -> list[int]:
        return [self.pid, *self._parts()] if self.is_running else []

    def _forget_shared_memory(self) -> None:
        """What a killed one leaves in the kernel until the next start on its data, which will never be."""
        with suppress(FileNotFoundError, ValueError, IndexError):
            _, segment = (self._cluster / "postmaster.pid").read_text().splitlines()[6].split()
            ctypes.CDLL(None).shmctl(int(segment), _IPC_RMID, None)

    # --- of PostgresEngine ----------------------------------------------------------------------------------------

    async def _initialize(self) -> None:
        # In place, and not renamed as a server's own: the folder is on another file system, and nobody needs it again.
        self._cluster.mkdir(mode=0o700)
        password = self.data_dir / ".postgres-password"
        write_private(password, self._secrets.postgres_password)
        if self._run_as is not None:
            os.chown(self._cluster, self._run_as.uid, self._run_as.gid)
            os.chown(password, self._run_as.uid, self._run_as.gid)
        try:
            if self._copy_of is None:
                await self._run_initdb(self._cluster, password)
            else:
                await self._run_base_backup(self._copy_of)
        finally:
            password.unlink(missing_ok=True)

    async def _run_base_backup(self, primary: PostgresNode) -> None:
        since = processes.begin_log(self.log_path)
        source = f"{primary.dsn_for('postgres')}&application_name={STANDBY}"
        child = processes.spawn(
            [
                self._program.path.with_name("pg_basebackup"),
                *("-d", source, "-D", self._cluster, "--write-recovery-conf"),
                *("--checkpoint=fast", "--wal-method=stream", "--no-manifest", "--no-sync"),
            ],
            log_path=self.log_path,
            death_signal=signal.SIGKILL,
            cwd=Path("/"),
            run_as=self._run_as,
        )
        try:
            await processes.wait_until(lambda: child.poll() is not None, _BACKUP_SECONDS_MAX)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        if child.returncode != 0:
            shutil.rmtree(self._cluster)
            raise EngineStartError(
                "pg_basebackup",
                f"it ended with status {child.returncode}",
                log_path=self.log_path,
                log_tail=processes.log_tail(self.log_path, since=since),
            )

    async def _is_ready(self) -> bool:
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() in ("ready", "standby")
