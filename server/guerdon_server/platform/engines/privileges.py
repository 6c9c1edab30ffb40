"""As root, PostgreSQL has to run as another user, who must get through to program and data.

Permissions of folders that we did not make are never touched. Where the other user cannot reach the program, it is
copied into a folder of ours; where he cannot even reach the data folder (somewhere below /root, or in a private
temporary folder), PostgreSQL keeps the one capability to pass through folders.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from dataclasses import replace
from pathlib import Path

from guerdon_server.platform.engines.binaries import Binary
from guerdon_server.platform.engines.errors import DataFolderError
from guerdon_server.platform.engines.process import RunAs, can_enter

_ORDINARY_USERS = ("postgres", "nobody")
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2
_ROOT_COPIES = Path("/var/lib/guerdon")


def arrange(binary: Binary, data_dir: Path, cluster: Path) -> tuple[Binary, RunAs | None]:
    """The program to run and the user to run it as (None: the present one).

    `cluster` is PostgreSQL's own folder below `data_dir`; it may not exist yet. Blocks for a file copy at most.
    Raises DataFolderError.
    """
    if os.geteuid() != 0:
        return binary, None
    user = _user_for(cluster)
    needed = [binary.path, binary.path.with_name("initdb")]
    copies = data_dir
    if not can_enter(user, [data_dir]):
        user = _with_passage(user, data_dir)
        copies = _ROOT_COPIES
    # Without the capability even if it is kept: postgres looks itself up by access(2), which leaves it out.
    if not can_enter(replace(user, capability=None), needed):
        binary = _copied(binary, copies / "engines")
    return binary, user


def _user_for(cluster: Path) -> RunAs:
    owner = cluster.stat().st_uid if cluster.exists() else 0
    if owner != 0:
        entry = pwd.getpwuid(owner)
        return RunAs(entry.pw_uid, entry.pw_gid, entry.pw_name)
    for name in _ORDINARY_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return RunAs(entry.pw_uid, entry.pw_gid, entry.pw_name)
    raise DataFolderError("PostgreSQL refuses to run as root, and this system has neither a user postgres nor nobody.")


def _with_passage(user: RunAs, data_dir: Path) -> RunAs:
    for capability in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE):
        candidate = replace(user, capability=capability)
        if can_enter(candidate, [data_dir]):
            return candidate
    raise DataFolderError(
        f"PostgreSQL refuses to run as root, and the user {user.name} may not pass through the folders above"
        f" {data_dir}. Choose a folder that others may enter, for example /var/lib/guerdon/data, or do not run as root."
    )


def _copied(binary: Binary, folder: Path) -> Binary:
    if binary.root is None:
        raise DataFolderError(f"{binary.path} may not be run by an ordinary user. Mend its permissions.")
    name = f"postgresql-{binary.version}"
    target = folder / name
    inside = binary.path.relative_to(binary.root)
    if not target.exists():
        for made in (folder.parent, folder):
            if not made.exists():
                made.mkdir()
                made.chmod(0o711)
        scratch = folder / f".{name}.{os.getpid()}"
        shutil.rmtree(scratch, ignore_errors=True)
        for part in (inside.parts[0], f"{inside.parts[0]}.libs"):  # the second holds libraries found by $ORIGIN
            if (binary.root / part).exists():
                shutil.copytree(
                    binary.root / part, scratch / part, ignore=shutil.ignore_patterns("*.a", "*.py*", "include")
                )
        _open_to_all(scratch)
        try:
            scratch.rename(target)
        except OSError:  # another start was faster
            shutil.rmtree(scratch)
    return replace(binary, path=target / inside, root=None)


def _open_to_all(tree: Path) -> None:
    for folder, _, files in os.walk(tree):
        os.chmod(folder, 0o755)  # noqa: S103  our own copy
        for file in files:
            path = Path(folder, file)
            executable = path.stat().st_mode & stat.S_IXUSR
            path.chmod(0o755 if executable else 0o644)
