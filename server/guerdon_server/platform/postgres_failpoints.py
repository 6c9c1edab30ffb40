"""asyncpg with failpoints: an I/O has a name that is derived from its SQL."""

from __future__ import annotations

import asyncio
import re
from functools import lru_cache
from typing import Any

import asyncpg

from guerdon_server.platform.failpoints import Failpoints

_COMMENT = re.compile(r"^\s*--.*$", re.MULTILINE)
_CALL = re.compile(r"SELECT (?:\* FROM )?(?:guerdon\.|(?=pg_|nextval|to_regclass))(\w+) ?\(")
_CONTROL = re.compile(r"(BEGIN|COMMIT|ROLLBACK|SET LOCAL|SET|SHOW|LISTEN)\b ?(\w*)")
_WRITE = re.compile(r"\b(INSERT INTO|UPDATE|DELETE FROM) guerdon\.(\w+)(?: SET (\w+))?")
_READ = re.compile(r"\b(?:FROM|JOIN|,) (?:ONLY )?guerdon\.(\w+)\b(?! ?\()")
_SELECTED = re.compile(r"SELECT (.*?) FROM ")
_COLUMN = re.compile(r"(?:^|, )(?:[^,()]* AS |\w+\.)?(\w+)(?=,|$)")
_WHERE = re.compile(r".*\bWHERE (.*?)(?: ORDER BY .*| GROUP BY .*| LIMIT .*| FOR .*|\).*|)$")
_COMPARED = re.compile(r"(\w+) (= ANY|=|<>|>|<) (?:\(?\$)")
_COMPARISONS = {"=": "by", "= ANY": "among", ">": "after", "<": "before", "<>": "without"}
_COLUMNS_MAX = 2
_USED = ("fetch", "fetchrow", "fetchval", "execute")
# Nothing in the server uses these. Whoever begins to has to give them points, or would do I/O without.
_UNUSED = (
    *("executemany", "fetchmany", "prepare", "cursor"),
    *("copy_from_table", "copy_from_query", "copy_to_table", "copy_records_to_table"),
)


@lru_cache(maxsize=1000)
def name_of(sql: str) -> str:
    """What a statement does, in a word or a few: the function it calls; else its verb, table and columns.

    Stays the same when it is laid out anew. Two statements of the server should differ by it (tests/failpoints).
    """
    text = " ".join(_COMMENT.sub("", sql).split()).removesuffix(";")
    tables = _READ.findall(text)
    if called := _CALL.match(text):
        return ".".join([called[1], *tables[:1]])
    if control := _CONTROL.match(text):
        verb, of = control[1].split()[0].lower(), control[2].lower()
        if verb == "begin":
            return "begin.read_only" if text.endswith("READ ONLY") else "begin"
        return f"{verb}.{of}" if of else verb
    if written := _WRITE.findall(text):
        verb, *rest = written[-1]  # those before it are of CTEs
        return ".".join(filter(None, (verb.split()[0].lower(), *rest)))
    words = ["select", *tables[:1]]
    if selected := _SELECTED.match(text):
        words += _COLUMN.findall(selected[1])[:_COLUMNS_MAX]
    if where := _WHERE.match(text):
        column, comparison = (_COMPARED.findall(where[1]) or [("", "")])[0]
        words += [_COMPARISONS[comparison], column] if column else []
    return ".".join(words).lower()


def pool_options(
    points: Failpoints, base: type[asyncpg.Connection[asyncpg.Record]], answer_seconds_max: float | None
) -> dict[str, Any]:
    """For `asyncpg.create_pool`: its connections (of class `base`) pass the points, also when they are made and closed.

    A delay is no longer than the pool waits for an answer.
    """
    connection_class = _connection_class(points, base, answer_seconds_max)

    async def connect(*arguments: Any, **options: Any) -> asyncpg.Connection[asyncpg.Record]:
        made: list[asyncpg.Connection[asyncpg.Record]] = []

        async def call() -> asyncpg.Connection[asyncpg.Record]:
            made.append(await asyncpg.connect(*arguments, **options))
            return made[0]

        def broken(point: str) -> Exception:
            return _reset(point, *made)

        try:
            return await points.around(["postgres.connect"], call, what="connect", broken=broken)
        except BaseException:
            for connection in made:
                connection.terminate()
            raise

    return {"connection_class": connection_class, "connect": connect}


def _reset(point: str, *connections: asyncpg.Connection[asyncpg.Record]) -> Exception:
    for connection in connections:
        connection.terminate()
    return ConnectionResetError(f"failpoint {point}")


def _connection_class(
    points: Failpoints, base: type[asyncpg.Connection[asyncpg.Record]], answer_seconds_max: float | None
) -> type[asyncpg.Connection[asyncpg.Record]]:
    class Connection(base):  # type: ignore[valid-type, misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._cut = asyncio.Event()
            self._read_only = False

        def terminate(self) -> None:
            super().terminate()
            self._cut.set()

        async def close(self, *, timeout: float | None = None) -> None:
            async def call() -> None:
                await super(Connection, self).close(timeout=timeout)

            await points.around(["postgres.close"], call, what="close", broken=self._broken)

        def _broken(self, point: str) -> Exception:
            return _reset(point, self)

        async def _statement(self, method: str, query: str, *arguments: Any, **options: Any) -> Any:
            name = name_of(query)
            if name.startswith("begin"):
                self._read_only = name == "begin.read_only"
            elif name in {"commit", "rollback"} and self._read_only:
                name += ".read_only"

            async def call() -> Any:
                return await getattr(super(Connection, self), method)(query, *arguments, **options)

            return await points.around(
                [f"postgres.{name}"],
                call,
                what=query,
                broken=self._broken,
                cut=self._cut,
                patience_seconds=options.get("timeout") or answer_seconds_max,
            )

    for method in _USED:
        setattr(Connection, method, _watched(method))
    for method in _UNUSED:
        setattr(Connection, method, _refused(method))
    return Connection


def _watched(method: str) -> Any:
    async def call(self: Any, query: str, *arguments: Any, **options: Any) -> Any:
        return await self._statement(method, query, *arguments, **options)

    return call


def _refused(method: str) -> Any:
    def call(self: Any, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{method} has no failpoint: give it one in postgres_failpoints.py")

    return call
