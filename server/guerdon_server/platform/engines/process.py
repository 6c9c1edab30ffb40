"""Starting and ending one child process, without blocking the event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from guerdon_server.platform.engines.errors import EngineStopError

POLL_SECONDS = 0.01
LOG_BYTES_MAX = 16 * 1024 * 1024
_LOG_TAIL_BYTES = 4096
_PORTS = range(20000, 32000)  # below the ports that outgoing connections take, so that a restart finds its own free
_PORT_TRIES_MAX = 200

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RunAs:
    """The user that a child becomes; `capability` (a Linux number) is kept, None keeps nothing."""

    uid: int
    gid: int
    name: str
    capability: int | None = None


def spawn(
    command: Sequence[str | Path],
    *,
    log_path: Path,
    death_signal: signal.Signals,
    cwd: Path,
    run_as: RunAs | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child that gets `death_signal` when the calling thread ends (Linux).

    So call it from a thread that lives as long as the child, normally the event loop's. It is in a session of its
    own: Ctrl-C in a terminal reaches only us, and we stop it in the right order.
    """
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(  # noqa: S603  our own program
            [*launcher(run_as, os.getpid(), death_signal), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=cwd,
            env=_environment(),
            start_new_session=True,
        )
    finally:
        os.close(log)


def can_enter(run_as: RunAs, paths: Sequence[Path]) -> bool:
    """Whether that user may enter (folders) or read (files) all paths."""
    command = [*launcher(run_as, None, None), "?", *paths]
    done = subprocess.run(command, env=_environment(), cwd="/", check=False, capture_output=True)  # noqa: S603
    return done.returncode == 0


def launcher(run_as: RunAs | None, parent: int | None, death_signal: signal.Signals | None) -> list[str | Path]:
    user = ["-", "-", "-"]
    if run_as is not None:
        user = [str(run_as.uid), str(run_as.gid), "-" if run_as.capability is None else str(run_as.capability)]
    ties = ["-" if parent is None else str(parent), "-" if death_signal is None else str(int(death_signal))]
    return [sys.executable, "-I", "-S", Path(__file__).with_name("child.py"), *ties, *user]


def _environment() -> Mapping[str, str]:
    # Little is passed on: PG* variables would change initdb, and our own may hold secrets.
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def signal_child(child: subprocess.Popen[bytes]) -> tuple[Callable[[int], None], Callable[[], bool]]:
    """How to signal and to see the end of our own child."""
    return child.send_signal, lambda: child.poll() is not None


def signal_orphan(process: psutil.Process) -> tuple[Callable[[int], None], Callable[[], bool]]:
    """How to signal and to see the end of a process whose parent was killed; psutil guards against a reused pid."""

    def ended() -> bool:
        try:
            return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def send(number: int) -> None:
        if not ended():
            process.send_signal(number)

    return send, ended


async def end_process(
    name: str,
    target: tuple[Callable[[int], None], Callable[[], bool]],
    ladder: Sequence[tuple[signal.Signals, float]],
) -> None:
    """Send each signal in turn and give it its seconds; returns as soon as the process is gone."""
    send, ended = target
    for number, seconds in ladder:
        send(number)
        send(signal.SIGCONT)  # one that is frozen would never see the first
        if await wait_until(ended, seconds):
            return
    raise EngineStopError(f"{name} is still there after SIGKILL. Look for a hanging disk, then try again.")


async def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll until the condition holds; False when the time is over first."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listens on at this moment."""
    for _ in range(_PORT_TRIES_MAX):
        port = _PORTS[int.from_bytes(os.urandom(4), "big") % len(_PORTS)]
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def log_tail(path: Path, *, since: int = 0) -> str:
    """The last few kilobytes of a log, nothing from before the offset."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(since, size - _LOG_TAIL_BYTES))
        return file.read().decode(errors="replace").strip()


def begin_log(path: Path) -> int:
    """Put an overlong log aside (one old one is kept); its size, where the new run begins."""
    size = path.stat().st_size if path.exists() else 0
    if size > LOG_BYTES_MAX:
        path.replace(path.with_name(path.name + ".1"))
        return 0
    return size
