"""PostgreSQL: a durable primary and a synchronous standby, and what happens to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from guerdon_server.platform.postgres import Connection
from tests.cluster.proxy import Proxy


class PostgresPair:
    """The primary and, if asked for, one standby that confirms every commit. `followers` are the proxies that lead to it.

    All that is done here goes straight to the engine, never through a proxy, and waits for no standby.
    """

    followers: list[Proxy]
    disk_full_possible: bool
    disk_full_reason: str
    """Why not, where it is not."""

    def __init__(
        self,
        folder: Path,
        *,
        standby: bool = True,
        disk_bytes: int = 2 << 30,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """`disk_bytes`: of the small file system (in memory) for each one's data; 0: on the folder's own disk."""

    # --- addresses ------------------------------------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """Of the primary."""
        raise NotImplementedError

    @property
    def dsn(self) -> str:
        """Of the primary, directly, with the password."""
        raise NotImplementedError

    def dsn_through(self, proxy: Proxy) -> str:
        """The same with the proxy's address."""
        raise NotImplementedError

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A session on the primary whose own commits wait for no standby."""
        raise NotImplementedError
        yield

    @property
    def synchronous(self) -> bool:
        """Whether commits wait for the standby."""
        raise NotImplementedError

    # --- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Both, the standby in step and commits waiting for it."""
        raise NotImplementedError

    async def stop(self) -> None:
        raise NotImplementedError

    async def kill(self) -> None:
        """SIGKILL to the whole primary."""
        raise NotImplementedError

    async def restart(self) -> None:
        """Start the primary (killed first if it runs): recovered and writable when this returns."""
        raise NotImplementedError

    async def freeze(self) -> None:
        """SIGSTOP to the primary with all its processes."""
        raise NotImplementedError

    async def thaw(self) -> None:
        raise NotImplementedError

    # --- the standby ----------------------------------------------------------------------------------------------

    async def set_synchronous(self, wanted: bool) -> None:
        """Whether commits wait for the standby. True returns when the standby has everything and commits wait."""
        raise NotImplementedError

    async def lose_standby(self, *, frozen: bool = False) -> None:
        """SIGKILL (or SIGSTOP) to the standby: commits wait, those under way too."""
        raise NotImplementedError

    async def return_standby(self) -> None:
        """The lost standby comes back and catches up; made anew if it can't."""
        raise NotImplementedError

    async def cut_waiting_commits(self, *, terminate: bool = False) -> int:
        """Break off the wait for the standby: PostgreSQL warns and answers, though the standby has nothing.

        `terminate` ends the sessions instead, without an answer. Returns how many waited.
        """
        raise NotImplementedError

    async def fail_over(self) -> None:
        """Kill the primary, promote the standby (started, if it was lost), lead all followers there.

        Nothing acknowledged is lost, so it raises NotPossible where commits did not wait for the standby. Afterwards
        the new primary is alone and commits wait for nobody, until `rebuild_standby`.
        """
        raise NotImplementedError

    async def rebuild_standby(self) -> None:
        """The other one becomes the standby by a base backup; returns when it is in step and commits wait again."""
        raise NotImplementedError

    # --- the disk -------------------------------------------------------------------------------------------------

    async def fill_disk(self) -> None:
        """No byte is left for the primary. Raises NotPossible with `disk_full_reason`."""
        raise NotImplementedError

    async def free_disk(self) -> None:
        """There is room again; the primary, restarted if it gave up, is writable."""
        raise NotImplementedError

    # --- what goes wrong inside -----------------------------------------------------------------------------------

    async def raise_in_commits(self, sqlstate: str, share: float, *, at_commit: bool = False) -> None:
        """A share (0..1) of commits with grants fails with this SQLSTATE; `at_commit`: only in COMMIT itself."""
        raise NotImplementedError

    async def stop_raising(self) -> None:
        raise NotImplementedError

    async def poison(self, prefix: str) -> None:
        """Granting a request whose id begins so raises 22000."""
        raise NotImplementedError

    async def stop_poison(self) -> None:
        raise NotImplementedError

    async def start_deadlocks(self) -> None:
        """A session locks the hot accounts in descending order, again and again: commits are the victims (40P01)."""
        raise NotImplementedError

    async def stop_deadlocks(self) -> int:
        """Returns how often the session got all its locks."""
        raise NotImplementedError

    async def hold_account_locks(self, seconds: float) -> None:
        """Returns when all stock and budget accounts are locked; they are let go of after `seconds`, or by the next."""
        raise NotImplementedError

    async def release_account_locks(self) -> None:
        raise NotImplementedError
