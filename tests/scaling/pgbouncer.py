"""pgbouncer as a local process, before the tests' PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from guerdon_server.platform.engines import process as processes
from tests.cluster.proxy import HOST
from tests.cluster.waiting import until

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
IGNORED = "search_path, jit, idle_in_transaction_session_timeout, statement_timeout, lock_timeout"
CONNECT_QUERY = " ".join(
    f"SET {name} = '{value}';"
    for name, value in {
        "search_path": "guerdon",
        "jit": "off",
        "idle_in_transaction_session_timeout": "60s",
        "lock_timeout": "8s",
    }.items()
)


class PgBouncer:
    """Hands `sessions` of the database `dsn` round, transaction by transaction. `async with` it; `dsn` leads to it."""

    def __init__(
        self, folder: Path, dsn: str, *, sessions: int = 3, connect_query: str = CONNECT_QUERY, **settings: str
    ) -> None:
        assert PROGRAM is not None
        self._program = PROGRAM
        self._folder = folder
        self._target = urlsplit(dsn)
        self._port = processes.free_port()
        self._settings: Mapping[str, str] = {
            "listen_addr": HOST,
            "listen_port": str(self._port),
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": "transaction",
            "default_pool_size": str(sessions),
            "ignore_startup_parameters": IGNORED,
            **settings,
        }
        self._connect_query = connect_query
        self._child: subprocess.Popen[bytes] | None = None
        self._log_path = folder / "pgbouncer.log"

    @property
    def dsn(self) -> str:
        """Of the database, through it."""
        return self._target._replace(netloc=f"anybody@{HOST}:{self._port}").geturl()

    async def __aenter__(self) -> Self:
        config = self._folder / "pgbouncer.ini"
        config.write_text(self._config(), encoding="utf-8")
        command = [self._program, str(config)]
        if os.geteuid() == 0:  # it refuses to be root
            command[1:1] = ["-u", "nobody"]
        config.chmod(0o600)
        self._child = processes.spawn(command, log_path=self._log_path, death_signal=signal.SIGTERM, cwd=self._folder)
        await until(self._answers, "pgbouncer to answer", log_path=self._log_path, asking_fails=(OSError,))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._child is not None
        ladder = [(signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)]
        await processes.end_process("pgbouncer", processes.signal_child(self._child), ladder)

    async def _answers(self) -> bool:
        _, writer = await asyncio.open_connection(HOST, self._port)
        writer.close()
        return True

    def _config(self) -> str:
        target = self._target
        name = target.path.removeprefix("/")
        query = self._connect_query.replace("'", "''")
        return (
            f"[databases]\n{name} = host={target.hostname} port={target.port} dbname={name} user={target.username}"
            f" password={target.password} connect_query='{query}'\n"
            "[pgbouncer]\n" + "".join(f"{key} = {value}\n" for key, value in self._settings.items())
        )
