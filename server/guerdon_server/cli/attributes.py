"""Facts about a request as text: `order_cents=1999`, and the cells of a file. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from guerdon import AttributeInput
from guerdon_server.cli.instants import parse_instant

_NAME: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
# Written otherwise ("007", "+1") it is rather a code than a number, and as text nothing of it is lost.
_CANONICAL_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,18}")
_INT64: Final = range(-(2**63), 2**63)


def split_name(text: str) -> tuple[str, str]:
    """`order_cents` or `order_cents:int` as (name, kind); the kind is empty where it is not said.

    Raises ValueError for an impossible name. Only the words of `KINDS` are kinds: names may hold colons.
    """
    name, colon, kind = text.rpartition(":")
    if not colon or kind not in KINDS:
        name, kind = text, ""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no attribute name: 1 to 64 characters of A-Z a-z 0-9 . _ : -")
    return name, kind


def parse_value(text: str, kind: str = "") -> AttributeInput:
    """The value as its kind; without one, an integer where it is one, else text. Raises ValueError."""
    if kind:
        return KINDS[kind](text)
    return int(text) if _CANONICAL_INTEGER.fullmatch(text) and int(text) in _INT64 else text


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,19}", text) or int(text) not in _INT64:
        raise ValueError(f"{text!r} is no 64-bit integer")
    return int(text)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _instant(text: str) -> datetime:
    return parse_instant(text)


def _texts(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


KINDS: Final[Mapping[str, Callable[[str], AttributeInput]]] = {
    "int": _integer,
    "text": str,
    "bool": _boolean,
    "time": _instant,
    "list": _texts,
}
