"""Workers (server processes), leases of background jobs, principals: who acts."""

from __future__ import annotations

import os
import socket

from guerdon_server.core.ledger.postgres.confirmation import confirmed
from guerdon_server.platform.postgres import Pool


class Workers:
    """Registers this process and tells which others are dead. Instants are the database's clock (never the offset)."""

    def __init__(self, pool: Pool, *, lease_seconds: float) -> None:
        self._pool = pool
        self._lease_seconds = lease_seconds

    async def register(self) -> int:
        """A new incarnation for this process. Raises OutcomeUnknown if the standby does not have it.

        One that a promoted standby had never heard of would be given to another process, too, and the admissions of
        both would be taken for those of one.
        """
        async with self._pool.acquire() as session:
            with confirmed(session):
                incarnation: int = await session.fetchval(
                    "INSERT INTO guerdon.worker (host, pid, started_at, seen_at)"
                    " VALUES ($1, $2, clock_timestamp(), clock_timestamp()) RETURNING incarnation",
                    socket.gethostname(),
                    os.getpid(),
                )
        return incarnation

    async def beat(self, incarnation: int) -> None:
        """Say that this process lives; do it a few times within `lease_seconds`."""
        await self._pool.execute(
            "UPDATE guerdon.worker SET seen_at = clock_timestamp() WHERE incarnation = $1", incarnation
        )

    async def stop(self, incarnation: int) -> None:
        """Say that a process is gone, this one or one that was seen to end; its lease is not waited for.

        It will admit nothing more, and its jobs are free at once. What it had admitted is fenced by the next sweep: its
        commits may still be under way in PostgreSQL.
        """
        await self._pool.execute(
            "WITH freed AS (DELETE FROM guerdon.lease WHERE worker = $1)"
            " UPDATE guerdon.worker SET stopped_at = clock_timestamp() WHERE incarnation = $1",
            incarnation,
        )

    async def living(self) -> set[int]:
        """Incarnations that were seen within the lease."""
        rows = await self._pool.fetch(
            "SELECT incarnation FROM guerdon.worker"
            " WHERE stopped_at IS NULL AND seen_at > clock_timestamp() - $1 * interval '1 second'",
            self._lease_seconds,
        )
        return {row[0] for row in rows}

    async def lead(self, job: str, incarnation: int) -> bool:
        """Take or keep the lease of a job; True while this process is the one to do it."""
        holder = await self._pool.fetchval(
            "INSERT INTO guerdon.lease AS l (job, worker, expires_at)"
            " VALUES ($1, $2, clock_timestamp() + $3 * interval '1 second')"
            " ON CONFLICT (job) DO UPDATE SET worker = excluded.worker, expires_at = excluded.expires_at"
            " WHERE l.worker = excluded.worker OR l.expires_at < clock_timestamp() RETURNING worker",
            job,
            incarnation,
            self._lease_seconds,
        )
        return bool(holder == incarnation)

    async def running_promotions(self) -> list[int]:
        """Sids of promotions whose gate may hold open admissions: opened once, and not over for long."""
        rows = await self._pool.fetch(
            "SELECT sid FROM guerdon.promotion WHERE gate_epoch <> 0 AND (state BETWEEN 2 AND 4"
            " OR updated_at > guerdon.now() - interval '1 hour') ORDER BY sid"
        )
        return [row[0] for row in rows]

    async def principal(self, name: str) -> int:
        """The surrogate of a principal, made when it is new."""
        await self._pool.execute("INSERT INTO guerdon.principal (principal) VALUES ($1) ON CONFLICT DO NOTHING", name)
        sid: int = await self._pool.fetchval("SELECT sid FROM guerdon.principal WHERE principal = $1", name)
        return sid
