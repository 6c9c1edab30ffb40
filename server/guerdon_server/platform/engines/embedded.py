"""Both engines on one data folder."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from guerdon_server.platform.engines.errors import EngineError
from guerdon_server.platform.engines.folder import FolderLock, load_record, load_secrets, make_folder
from guerdon_server.platform.engines.postgres import PostgresEngine, postgres_dsn
from guerdon_server.platform.engines.process import Progress
from guerdon_server.platform.engines.valkey import ValkeyEngine, redis_url


class Engines:
    """PostgreSQL and Valkey as children of this process: `async with Engines(folder) as engines`.

    The folder holds `postgres/`, `valkey/`, `logs/`, `secrets.json` (0600) and `guerdon.lock` (pid and command of
    the holder). It survives a SIGKILL of everything. See `Engine` for the thread that has to start it.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        durable: bool = True,
        debug_command: bool = False,
        append_only: bool = False,
        postgres_settings: Mapping[str, str] | None = None,
        valkey_settings: Mapping[str, str] | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        """`durable` False and `debug_command` are for tests. Creates the folder; raises DataFolderError."""
        self.data_dir = make_folder(data_dir)
        self._lock = FolderLock(self.data_dir / "guerdon.lock")
        self._options = (durable, debug_command, append_only, postgres_settings, valkey_settings, on_progress)
        self._postgres: PostgresEngine | None = None
        self._valkey: ValkeyEngine | None = None

    @property
    def postgres(self) -> PostgresEngine:
        if self._postgres is None:
            raise RuntimeError("the engines are not started")
        return self._postgres

    @property
    def valkey(self) -> ValkeyEngine:
        if self._valkey is None:
            raise RuntimeError("the engines are not started")
        return self._valkey

    @property
    def postgres_dsn(self) -> str:
        """With the password; database `guerdon`."""
        return self.postgres.dsn

    @property
    def redis_url(self) -> str:
        """With the password; database 0."""
        return self.valkey.url

    @property
    def pids(self) -> Mapping[str, int]:
        return {engine.name: engine.pid for engine in (self.postgres, self.valkey)}

    @property
    def versions(self) -> Mapping[str, str]:
        return {engine.name: engine.version for engine in (self.postgres, self.valkey)}

    async def start(self) -> None:
        """Raises DataFolderInUseError if another process holds the folder, and what `Engine.start` raises."""
        self._lock.acquire()
        try:
            # Only now: the passwords are made by whoever holds the folder.
            durable, debug_command, append_only, postgres_settings, valkey_settings, on_progress = self._options
            self._postgres = PostgresEngine(
                self.data_dir, durable=durable, settings=postgres_settings, on_progress=on_progress
            )
            self._valkey = ValkeyEngine(
                self.data_dir,
                append_only=append_only,
                debug_command=debug_command,
                settings=valkey_settings,
                on_progress=on_progress,
            )
            results = await asyncio.gather(self.postgres.start(), self.valkey.start(), return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop both, Valkey first and PostgreSQL even if that fails. Raises EngineStopError."""
        try:
            if self._valkey is not None:
                await self._valkey.stop()
        finally:
            if self._postgres is not None:
                await self._postgres.stop()
            self._lock.release()

    async def wait_for_exit(self) -> tuple[str, int]:
        """Returns (name, exit status) when an engine ends without being asked; cancel it before `stop`."""
        while True:
            for engine in (self.postgres, self.valkey):
                status = engine.exit_status
                if status is not None:
                    return engine.name, status
            await asyncio.sleep(0.2)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


@dataclass(frozen=True, slots=True)
class RunningEngines:
    """Where the engines of a folder that another process holds can be reached; with passwords."""

    postgres_dsn: str
    redis_url: str


def find_running(data_dir: Path) -> RunningEngines | None:
    """The engines that run on that folder now, started by whichever process; None if they don't."""
    folder = data_dir.expanduser().absolute()
    records = [load_record(folder / f"{name}.json") for name in (PostgresEngine.name, ValkeyEngine.name)]
    postgres, valkey = (record if record is not None and record.process() else None for record in records)
    if postgres is None or valkey is None:
        return None
    try:
        secrets = load_secrets(folder)
    except EngineError:
        return None
    return RunningEngines(
        postgres_dsn=postgres_dsn(secrets.postgres_password, postgres.port),
        redis_url=redis_url(secrets.redis_password, valkey.port),
    )
