"""The list of points is complete: no I/O of the path is without one, and each has a name of its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import guerdon_server
from guerdon_server import bootstrap
from guerdon_server.platform.failpoints import Failpoints
from guerdon_server.settings import Settings
from tests.failpoints.everything import Round
from tests.failpoints.points import listed, points
from tests.issuing.desk import eventually, opened
from tests.issuing.proof import at_rest

_SOURCE = Path(guerdon_server.__file__).parent
# platform has the drivers' points; the others are programs of their own and no servers.
_FREE = {"platform", "cli", "bench", "demo"}


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


def test_io_goes_through_the_drivers_with_points() -> None:
    for path in _SOURCE.rglob("*.py"):
        if path.relative_to(_SOURCE).parts[0] in _FREE:
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
