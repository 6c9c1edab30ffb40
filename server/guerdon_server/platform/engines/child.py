"""Runs in the new process, between fork and exec: dies with its parent, drops privileges, becomes the engine.

A program of its own instead of a `preexec_fn`, which may deadlock in a parent with threads. Standard library only,
and nothing of this package, so that it starts fast: `python -I -S child.py PARENT SIGNAL UID GID CAPABILITY COMMAND…`,
where `-` stands for none. With `?` as the command it exits 0 if the user can enter all the folders, and read all the
files, that follow.

The death signal is bound to the *thread* that forked; it is set after the change of user, which would clear it.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522


def _checked(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _drop_to(libc: ctypes.CDLL, uid: int, gid: int, capability: int | None) -> None:
    if capability is not None:
        _checked(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities")
    os.setgroups([gid])
    os.setgid(gid)
    os.setuid(uid)
    if capability is not None:
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        bit = 1 << capability  # effective, permitted, inheritable; all of ours are below 32
        data = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
        _checked(libc.capset(header, data), "set capabilities")
        _checked(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0), "raise capability")


def _enter(path: str) -> None:
    # Not os.access: the kernel leaves capabilities out of its answer.
    if os.path.isdir(path):
        os.stat(path + "/.")
    else:
        os.close(os.open(path, os.O_RDONLY))


def main(arguments: list[str]) -> None:
    parent, death_signal, uid, gid, capability, *command = arguments
    libc = ctypes.CDLL(None, use_errno=True)
    if uid != "-":
        _drop_to(libc, int(uid), int(gid), None if capability == "-" else int(capability))
    if command[0] == "?":
        for path in command[1:]:
            _enter(path)
        sys.exit(0)
    if sys.platform == "linux" and death_signal != "-":
        _checked(libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0), "death signal")
    if parent != "-" and os.getppid() != int(parent):
        sys.exit("the parent is already gone")
    os.execv(command[0], command)  # noqa: S606  the command is ours; no shell is wanted


if __name__ == "__main__":
    main(sys.argv[1:])
