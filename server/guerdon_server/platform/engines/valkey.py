"""Valkey as our child."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from guerdon_server.platform.engines import binaries
from guerdon_server.platform.engines import process as processes
from guerdon_server.platform.engines.binaries import Binary
from guerdon_server.platform.engines.engine import Engine
from guerdon_server.platform.engines.folder import ProcessRecord, write_private
from guerdon_server.platform.engines.process import Progress

_PROBE_SECONDS_MAX = 1.0  # it is asked again; a stranger on the port never answers


class ValkeyEngine(Engine):
    """Valkey on 127.0.0.1 with a password, in `data_dir/valkey`.

    Nothing is written to disk unless `append_only`: PostgreSQL is the authority and what is here gets rebuilt.
    """

    name: ClassVar[str] = "valkey"
    _death_signal: ClassVar[signal.Signals] = signal.SIGTERM
    _stop_ladder: ClassVar[Sequence[tuple[signal.Signals, float]]] = ((signal.SIGTERM, 20.0), (signal.SIGKILL, 20.0))

    def __init__(
        self,
        data_dir: Path,
        *,
        append_only: bool = False,
        debug_command: bool = False,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        """`debug_command` allows DEBUG, for tests. `settings` are lines of valkey.conf; they win over ours."""
        super().__init__(data_dir, port=port, on_progress=on_progress)
        self._folder = self.data_dir / "valkey"
        self._config = self._folder / "valkey.conf"
        self._settings = {
            "appendonly": "yes" if append_only else "no",
            "enable-debug-command": "local" if debug_command else "no",
            **(settings or {}),
        }
        self._binary: Binary | None = None

    @property
    def version(self) -> str:
        return self._program.version

    @property
    def url(self) -> str:
        """With the password. Raises RuntimeError before the first start."""
        return redis_url(self._secrets.redis_password, self.port)

    @property
    def _program(self) -> Binary:
        if self._binary is None:
            self._binary = binaries.find_valkey()
        return self._binary

    async def _prepare(self) -> None:
        await asyncio.to_thread(lambda: self._program)
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        settings = {
            "port": str(port),
            "bind": "127.0.0.1",
            "requirepass": self._secrets.redis_password,
            "daemonize": "no",
            "logfile": '""',  # to the file that we opened
            "dir": "./",  # where it is started: no path is in here, so none needs quoting
            "save": '""',
            "maxmemory-policy": "noeviction",
            "set-proc-title": "no",  # the path of this file stays among the arguments: how we know it again
            **self._settings,
        }
        # In a file and not among the arguments, which everybody on the machine can read.
        write_private(self._config, "".join(f"{key} {value}\n" for key, value in settings.items()))
        return processes.spawn(
            [self._program.path, self._config],
            log_path=self.log_path,
            death_signal=self._death_signal,
            cwd=self._folder,
        )

    async def _is_ready(self) -> bool:
        """Answers only when it has loaded its data, and only ours knows the password."""
        try:
            async with asyncio.timeout(_PROBE_SECONDS_MAX):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    writer.write(f"AUTH {self._secrets.redis_password}\r\nPING\r\n".encode())
                    return [await reader.readline(), await reader.readline()] == [b"+OK\r\n", b"+PONG\r\n"]
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False

    def _record(self, pid: int, started: float, port: int) -> ProcessRecord:
        return ProcessRecord(pid=pid, started=started, port=port, mark=str(self._config))


def redis_url(password: str, port: int, database: int = 0) -> str:
    return f"redis://:{password}@127.0.0.1:{port}/{database}"
