"""The list of points is complete: no I/O of the path is without one, and each has a name of its own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import guerdon_server
from guerdon_server import bootstrap
from guerdon_server.platform.failpoints import Failpoints
from guerdon_server.platform.postgres_failpoints import name_of
from guerdon_server.settings import Settings
from tests.failpoints.everything import Round
from tests.failpoints.points import listed, points
from tests.issuing.desk import eventually, opened
from tests.issuing.proof import at_rest

_SOURCE = Path(guerdon_server.__file__).parent
# platform has the drivers' points; the others are programs of their own and no servers.
_FREE = {"platform", "cli", "bench", "demo"}
_WITHIN_THE_PROCESS = {Path("rpc/grpcio_core.py")}  # a pair of sockets between two threads
_SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")
_NAMED = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_NOT_OF_THE_PATH = {
    "pg_logical_emit_message",  # only where a standby confirms: tests/standby
    "select.clock.offset_us",  # a start that is not in test mode
    # What `guerdon verify` and the invariant watch read.
    *("select", "select.promotion.promotion_id.gate_epoch.by.sid"),
    # Pages and statements, for people.
    *("select.subject.sid.by.user_id", "select.subject.prize_id.stock_remaining.among.promotion"),
    *("select.entrance.sid.entrance_id.after.entrance_id", "select.entrance.sid.by.entrance_id"),
    *("select.prize.prize_id.after.prize_id", "select.promotion.prize_id.by.promotion_id"),
    "select.promotion.sid.after.promotion_id",
}


async def test_every_io_of_the_path_is_in_the_list(books: Settings) -> None:
    seen = Failpoints()
    async with (
        bootstrap.running(books, failpoints=seen) as one,
        bootstrap.running(books) as two,
        opened(one.grpc) as first,
        opened(two.grpc) as second,
    ):
        round_of_all = Round(books, first, second)
        await round_of_all.run()
        await round_of_all.holds(first, second)
        await eventually(lambda: set(points("background")) <= seen.seen.keys())
        await at_rest(books)

    known = set(points(*listed()))
    new = sorted(seen.seen.keys() - known)
    assert not new, (
        f"new I/O: {new}. Put its name into a section of tests/failpoints/points.txt, so that the matrix breaks the"
        " server there; a section says when it is done (start, path, background, stop)."
    )
    gone = sorted(known - seen.seen.keys())
    assert not gone, f"not done any more: {gone}. Remove it from points.txt, or let everything.py do it again."
    names = list(chain.from_iterable(listed().values()))
    assert len(names) == len(set(names))
    shared = {point: sorted(does) for point, does in seen.seen.items() if len(does) > 1 and "postgres" in point}
    assert not shared, (
        f"different statements with one name: let name_of in postgres_failpoints.py tell them apart {shared}"
    )


def test_every_statement_of_the_source_is_in_the_list() -> None:
    # The round above shows the points that it passes; this one, that no statement was left out of it.
    known = {name.removeprefix("postgres.") for name in chain.from_iterable(listed().values())} | _NOT_OF_THE_PATH
    for path, sql in _statements():
        assert name_of(sql) in known, (
            f"{path}: {name_of(sql)} is not in tests/failpoints/points.txt. Let everything.py do it, and put its name"
            " into a section there; if it is no part of issuing a reward, into _NOT_OF_THE_PATH here."
        )


def _statements() -> Iterator[tuple[Path, str]]:
    for path in [*(_SOURCE / "core").rglob("*.py"), _SOURCE / "bootstrap.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and _SQL.match(node.value):
                yield path, node.value
    for path in (_SOURCE / "core").rglob("statements.sql"):
        for sql in _NAMED.split(path.read_text(encoding="utf-8"))[2::2]:
            yield path, sql


def test_io_goes_through_the_drivers_with_points() -> None:
    for path in _SOURCE.rglob("*.py"):
        if path.relative_to(_SOURCE).parts[0] in _FREE or path.relative_to(_SOURCE) in _WITHIN_THE_PROCESS:
            continue
        for line, what in _ways_around(ast.parse(path.read_text(encoding="utf-8"))):
            raise AssertionError(
                f"{path}:{line} uses {what}: I/O there would have no failpoint. Connect in bootstrap.py through"
                " platform.postgres.create_pool or platform.redis.connect, and hand the pool or client in."
            )


def _ways_around(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Imports and calls that open connections past `create_pool` and `redis.connect` with failpoints."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] in {"redis", "socket", "urllib", "http"} and name.name != "socket":
                    yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "redis":
            if {name.name for name in node.names} - {"exceptions"} and node.module != "redis.exceptions":
                yield node.lineno, node.module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used = f"{node.value.id}.{node.attr}"
            if used in {
                *("asyncpg.connect", "asyncpg.create_pool", "asyncpg.Connection.connect", "postgres.connect"),
                *("asyncio.open_connection", "asyncio.open_unix_connection", "socket.socket", "aioredis.from_url"),
            }:
                yield node.lineno, used
