"""A server of the command's own making, and the command itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from click.testing import CliRunner

from guerdon import AsyncClient, Client
from guerdon.fake import FakeGuerdon
from guerdon_server.cli.root import guerdon
from guerdon_server.platform import postgres
from guerdon_server.platform.engines import Engines, ValkeyEngine

COMMAND = (sys.executable, "-m", "guerdon_server")


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def documents(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Cli:
    """`cli("prize", "list", code=0)` runs the command; any other exit status fails the test."""

    env: dict[str, str]
    obj: Any = None
    ids: Iterator[int] = field(default_factory=lambda: iter(range(10**9)))

    def __call__(self, *args: object, code: int = 0) -> Done:
        done = CliRunner().invoke(guerdon, [str(arg) for arg in args], env=self.env, obj=self.obj)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, f"{args}: {done.exit_code}\n{done.stdout}\n{done.stderr}"
        return Done(done.exit_code, done.stdout, done.stderr)

    def json(self, *args: object, code: int = 0) -> Any:
        return self(*args, "--json", code=code).document


def clean_env(**more: str) -> dict[str, str]:
    """This process's environment without what would steer the command."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("GUERDON_")}, **more}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def connections(engines: Engines, migrated_template: str, short_tmp: Path) -> AsyncIterator[dict[str, str]]:
    """The environment of a server: a migrated database and a Valkey that no other test flushes."""
    connection = await postgres.connect(engines.postgres_dsn)
    await connection.execute(f"CREATE DATABASE cli TEMPLATE {migrated_template} STRATEGY wal_log")
    await connection.close()
    folder = short_tmp / "cli-valkey"
    folder.mkdir()
    (folder / "logs").mkdir()
    valkey = ValkeyEngine(folder)
    await valkey.start()
    try:
        yield {
            "GUERDON_POSTGRES_DSN": engines.postgres.dsn_for("cli"),
            "GUERDON_REDIS_URL": valkey.url,
            "GUERDON_TEST_MODE": "true",  # the engine of the tests runs without fsync, which a real server refuses
        }
    finally:
        await valkey.stop()


@pytest.fixture(scope="session")
def server(connections: dict[str, str]) -> Iterator[str]:
    """The address of a `guerdon serve`, which ends with status 0 on SIGTERM."""
    with started("serve", "--grpc-port", "0", "--metrics-port", "0", env=connections) as (process, ready):
        yield ready["grpc"]
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


class started:
    """A serving command, once it says that it is ready: `with started("up", …) as (process, ready)`."""

    def __init__(self, *args: object, env: dict[str, str]) -> None:
        self._args = [*COMMAND, *map(str, args), "--json"]
        self._env = clean_env(**env)

    def __enter__(self) -> tuple[subprocess.Popen[str], dict[str, str]]:
        self._process = subprocess.Popen(  # noqa: S603
            self._args, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        events = []
        for line in self._process.stdout:
            events.append(event := json.loads(line))
            if event.get("event") == "ready":
                return self._process, event
        assert self._process.stderr is not None
        raise AssertionError(f"it ended with {self._process.wait()}: {events} {self._process.stderr.read()}")

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


@pytest.fixture
def cli(server: str, tmp_path: Path) -> Cli:
    """The command, against the real server."""
    return Cli({"GUERDON_TARGET": server, "XDG_DATA_HOME": str(tmp_path)})


@pytest.fixture
def alone(tmp_path: Path) -> Cli:
    """The command where no server is."""
    return Cli({"GUERDON_TARGET": "", "XDG_DATA_HOME": str(tmp_path)})


@dataclass
class FakeDoor:
    """Opens clients of an in-memory Guerdon, whose answers can be lost on demand."""

    fake: FakeGuerdon = field(default_factory=FakeGuerdon)

    def client(self, target: str, *, timeout: float, principal: str, credentials: object) -> Client:
        return self.fake.client(principal=principal)

    def async_client(
        self, target: str, *, timeout: float, principal: str, channels: int, credentials: object
    ) -> AsyncClient:
        return self.fake.async_client(principal=principal)


@pytest.fixture
def fake() -> FakeDoor:
    return FakeDoor()


@pytest.fixture
def faked(fake: FakeDoor, tmp_path: Path) -> Cli:
    """The command, against the fake."""
    return Cli({"XDG_DATA_HOME": str(tmp_path)}, obj=fake)


@pytest.fixture
def lay_out() -> Callable[[Cli, str], None]:
    """Creates entrance E, promotion P-NAME with budgets, prizes NAME-coupon (stock 5, one a user) and NAME-cashback,
    and schedules it."""

    def lay_out(cli: Cli, name: str) -> None:
        for command in steps(name):
            cli(*command)

    return lay_out


def steps(name: str) -> Sequence[Sequence[str]]:
    coupon = ("--kind", "coupon", "--stock", "5", "--limit-per-user", "1", "--valid-days", "30")
    cashback = ("--kind", "cashback", "--asset", "USD/2", "--rate", "order_cents:5%", "--cap", "5.00")
    budgets = ("--budget", "USD/2=10.00", "--budget", "COIN=unlimited")
    return (
        ("entrance", "create", f"{name}-door"),
        ("promotion", "create", name, "--entrance", f"{name}-door", *budgets),
        ("prize", "create", f"{name}-coupon", "--promotion", name, *coupon),
        ("prize", "create", f"{name}-cashback", "--promotion", name, *cashback),
        ("promotion", "transition", name, "scheduled"),
    )
