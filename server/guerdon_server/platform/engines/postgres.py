"""PostgreSQL as our child."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import asyncpg
import psutil

from guerdon_server.platform.engines import binaries, privileges
from guerdon_server.platform.engines import process as processes
from guerdon_server.platform.engines.binaries import Binary
from guerdon_server.platform.engines.engine import Engine
from guerdon_server.platform.engines.errors import DataFolderError, EngineStartError
from guerdon_server.platform.engines.folder import ProcessRecord, write_private
from guerdon_server.platform.engines.process import Progress, RunAs

USER = "guerdon"
DATABASE = "guerdon"

_SETTINGS: Mapping[str, str] = {
    "max_connections": "100",
    "shared_buffers": "256MB",
    "effective_cache_size": "1GB",
    "work_mem": "16MB",
    "maintenance_work_mem": "128MB",
    "random_page_cost": "1.1",
    "jit": "off",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_buffers": "16MB",
    "min_wal_size": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "autovacuum": "on",
    "autovacuum_naptime": "20s",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    "password_encryption": "scram-sha-256",
}
_UNSAFE_BUT_FAST: Mapping[str, str] = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "min_wal_size": "80MB",
    "max_wal_size": "512MB",
}


class PostgresEngine(Engine):
    """PostgreSQL on 127.0.0.1, data in `data_dir/postgres`, one superuser `guerdon`, one database `guerdon`.

    It has no Unix socket, so neither the length of the path nor spaces in it matter.
    """

    name: ClassVar[str] = "postgres"
    _death_signal: ClassVar[signal.Signals] = signal.SIGINT
    # Fast shutdown writes a checkpoint; an immediate one is as safe, the next start recovers.
    _stop_ladder: ClassVar[Sequence[tuple[signal.Signals, float]]] = (
        (signal.SIGINT, 60.0),
        (signal.SIGQUIT, 20.0),
        (signal.SIGKILL, 20.0),
    )

    def __init__(
        self,
        data_dir: Path,
        *,
        durable: bool = True,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        """`durable` False gives up every promise for speed, for tests. `settings` are added to ours and win."""
        super().__init__(data_dir, port=port, on_progress=on_progress)
        self._cluster = self.data_dir / "postgres"
        self._settings = {**_SETTINGS, **({} if durable else _UNSAFE_BUT_FAST), **(settings or {})}
        self._durable = durable
        self._binary: Binary | None = None
        self._run_as: RunAs | None = None

    @property
    def version(self) -> str:
        return self._program.version

    @property
    def dsn(self) -> str:
        """With the password. Raises RuntimeError before the first start."""
        return self.dsn_for(DATABASE)

    def dsn_for(self, database: str) -> str:
        """The same server, another database."""
        return postgres_dsn(self._secrets.postgres_password, self.port, database)

    @property
    def _program(self) -> Binary:
        if self._binary is None:
            self._binary = binaries.find_postgres()
        return self._binary

    async def _prepare(self) -> None:
        program = await asyncio.to_thread(lambda: self._program)
        self._binary, self._run_as = await asyncio.to_thread(privileges.arrange, program, self.data_dir, self._cluster)
        if not (self._cluster / "PG_VERSION").exists():
            await self._initialize()
        major = (self._cluster / "PG_VERSION").read_text().strip()
        if major != str(self._program.major):
            raise DataFolderError(
                f"{self._cluster} was written by PostgreSQL {major}, the program here is {self._program.version}."
                f" Install PostgreSQL {major} to go on with it, or dump it there and load it into a new data folder."
            )

    async def _initialize(self) -> None:
        """initdb into a scratch folder, then rename: a start that is killed half-way leaves nothing half-made."""
        self._on_progress("postgres: creating a new database cluster")
        scratch = self.data_dir / "postgres.new"
        password = self.data_dir / ".postgres-password"
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)
        scratch.mkdir(mode=0o700)
        write_private(password, self._secrets.postgres_password)
        if self._run_as is not None:
            os.chown(scratch, self._run_as.uid, self._run_as.gid)
            os.chown(password, self._run_as.uid, self._run_as.gid)
        try:
            await self._run_initdb(scratch, password)
        finally:
            password.unlink(missing_ok=True)
        scratch.rename(self._cluster)
        _sync_folder(self.data_dir)

    async def _run_initdb(self, scratch: Path, password: Path) -> None:
        since = processes.begin_log(self.log_path)
        child = processes.spawn(
            [
                self._program.path.with_name("initdb"),
                *("-D", scratch, "-U", USER, "-A", "scram-sha-256", f"--pwfile={password}"),
                *("--encoding=UTF8", "--no-locale", "--data-checksums", "--no-instructions"),
                *(() if self._durable else ("--no-sync",)),
            ],
            log_path=self.log_path,
            death_signal=signal.SIGKILL,
            cwd=Path("/"),
            run_as=self._run_as,
        )
        try:
            await processes.wait_until(lambda: child.poll() is not None, math.inf)
        finally:
            if child.poll() is None:  # cancelled
                child.kill()
                child.wait()
        if child.returncode != 0:
            raise EngineStartError(
                "initdb",
                f"it ended with status {child.returncode}",
                log_path=self.log_path,
                log_tail=processes.log_tail(self.log_path, since=since),
            )

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        own = {"port": str(port), "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}
        options = [part for key, value in {**self._settings, **own}.items() for part in ("-c", f"{key}={value}")]
        return processes.spawn(
            [self._program.path, "-D", self._cluster, *options],
            log_path=self.log_path,
            death_signal=self._death_signal,
            cwd=Path("/"),
            run_as=self._run_as,
        )

    async def _is_ready(self) -> bool:
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _record(self, pid: int, started: float, port: int) -> ProcessRecord:
        return ProcessRecord(pid=pid, started=started, port=port, mark=str(self._cluster))

    def _worth_another_try(self, tail: str) -> bool:
        # Backends of a killed server notice within moments that it is gone.
        return "pre-existing shared memory block" in tail

    def _parts(self) -> Sequence[int]:
        try:
            return [part.pid for part in psutil.Process(self.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    async def _after_start(self) -> None:
        connection = await asyncpg.connect(self.dsn_for("postgres"))
        try:
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
                await connection.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            await connection.close()


def postgres_dsn(password: str, port: int, database: str = DATABASE) -> str:
    # sslmode: saves a round trip, and a PGSSLMODE in the environment would win otherwise
    return f"postgresql://{USER}:{password}@127.0.0.1:{port}/{database}?sslmode=disable"


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
