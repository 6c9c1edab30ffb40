"""A TCP port that several processes listen on (SO_REUSEPORT, Linux): holding it, and leaving it without losing anybody.

The kernel gives each new connection to one of the listening sockets, by a hash of both addresses, when the first
packet (SYN) arrives. A socket that is closed resets the connections that it was given and that its process has not
accepted yet. So a process that leaves first lets no SYN through to its own socket (the caller's kernel repeats it after
a second), takes what is on its way, and only then closes.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack

_SO_ATTACH_FILTER = 26  # Linux; the socket module doesn't name it
_TCP_INFO_UNACKED = 24  # offset in struct tcp_info; of a listening socket: connections that wait to be accepted
_SETTLE_SECONDS = 0.5  # a handshake that has begun ends within a round trip
_POLL_SECONDS = 0.25
# Classic BPF over the TCP header: drop what has SYN and not ACK in its flags (byte 13), let the rest pass.
_NO_SYN = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # A = flags
        (0x54, 0, 0, 0x12),  # A &= SYN | ACK
        (0x15, 0, 1, 0x02),  # if A == SYN go on, else skip one
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFFFFFF),  # pass
    )
)


def reserve(host: str, port: int) -> socket.socket:
    """Hold a port for processes that will listen on it with SO_REUSEPORT; 0 takes a free one. Close it at the end.

    Raises OSError if something listens there already, other processes with SO_REUSEPORT included.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family) as probe:  # the one below would gladly share the port with strangers
        _bind(probe, address, f"{host}:{port}")
    held = socket.socket(family)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    _bind(held, address, f"{host}:{port}")
    return held


def _bind(held: socket.socket, address: object, name: str) -> None:
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind(address)  # type: ignore[arg-type]
    except OSError as error:
        held.close()
        raise OSError(f"{name} can't be bound ({error.strerror}): is something else listening there?") from error


async def stop_accepting(port: int) -> None:
    """This process gets no new connection on the port; none that it was given already is lost. Others go on."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(one.dup()) for one in _sockets(port) if _listens(one)]
        program = ctypes.create_string_buffer(_NO_SYN)
        for listener in listeners:
            fprog = struct.pack("HP", len(_NO_SYN) // 8, ctypes.addressof(program))
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
        await asyncio.sleep(_SETTLE_SECONDS)
        await _until(lambda: not any(map(_waiting, listeners)))
        for listener in listeners:
            listener.shutdown(socket.SHUT_RDWR)


async def connections_gone(port: int) -> None:
    """Returns when this process has no connection on the port any more."""
    await _until(lambda: not connections(port))


async def _until(condition: Callable[[], bool]) -> None:
    # In a thread: there may be thousands of connections.
    while True:
        if await asyncio.to_thread(condition):
            return
        await asyncio.sleep(_POLL_SECONDS)


def connections(port: int) -> int:
    """How many connections on the port this process has."""
    return sum(map(_is_connected, _sockets(port)))


def _sockets(port: int) -> Iterator[socket.socket]:
    """All TCP sockets of this process on the port, whoever made them: duplicates, each closed before the next one."""
    seen = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            status = os.fstat(int(name))
            # The number that listed the folder is free again, and may be a duplicate of ours by now.
            if not stat.S_ISSOCK(status.st_mode) or status.st_ino in seen:
                continue
            seen.add(status.st_ino)
            one = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # closed meanwhile
            continue
        with one:
            if (
                one.family in (socket.AF_INET, socket.AF_INET6)
                and one.type == socket.SOCK_STREAM
                and _port(one) == port
            ):
                yield one


def _port(one: socket.socket) -> int:
    return int(one.getsockname()[1])


def _listens(one: socket.socket) -> bool:
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _is_connected(one: socket.socket) -> bool:
    try:
        one.getpeername()
    except OSError:
        return False
    return True


def _waiting(listener: socket.socket) -> int:
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_UNACKED + 4)
    return int(struct.unpack_from("I", info, _TCP_INFO_UNACKED)[0])
