"""SQL statements from the `.sql` file beside a store, and the session that they run on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Session: TypeAlias = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
    """A connection, of a pool or of its own. Who opened the transaction on it commits it."""
else:
    Session = asyncpg.Connection

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load(package: str, file_name: str = "statements.sql") -> Mapping[str, str]:
    """The statements of a file of `package` by name; each begins with a line `-- name: …`.

    Raises ValueError for a name used twice: the second would silently replace the first.
    """
    _, *parts = _NAME.split((files(package) / file_name).read_text(encoding="utf-8"))
    names, texts = parts[::2], parts[1::2]
    if len(set(names)) != len(names):
        raise ValueError(f"{package}/{file_name} uses a name twice")
    return MappingProxyType({name: text.strip() for name, text in zip(names, texts, strict=True)})
