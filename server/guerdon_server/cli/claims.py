"""A file of rewards that are due, as CSV: read line by line, every mistake told with its line and field. Pure but
for reading the file."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from guerdon import AttributeInput, BatchItem
from guerdon_server.cli.attributes import parse_value, split_name

_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_ATTRIBUTE_PREFIX: Final = "attr."
_REQUIRED: Final = ("promotion_id", "entrance_id", "prize_id", "user_id", "request_id")
COLUMNS: Final = (*_REQUIRED, "reference")
ATTRIBUTES_MAX: Final = 50


class ClaimsFileError(ValueError):
    """The file as a whole can't be used: no header, an unknown or missing column."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One line: one reward that is due. `line` counts from 1, the header included."""

    line: int
    promotion_id: str
    entrance_id: str
    item: BatchItem

    @property
    def key(self) -> tuple[str, str]:
        return self.promotion_id, self.item.request_id

    @property
    def bytes_estimated(self) -> int:
        """About how much room it takes in a message."""
        item = self.item
        named = sum(len(name) + 4 * len(str(value)) + 16 for name, value in item.attributes.items())
        return 64 + len(item.prize_id) + len(item.user_id) + len(item.request_id) + len(item.reference) + named


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that can't be sent: its fields and what is wrong with each."""

    line: int
    problems: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Attribute:
    column: int
    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class _Header:
    """Where each field is; `attributes` are the columns `attr.NAME` and `attr.NAME:type`."""

    width: int
    columns: Mapping[str, int]
    attributes: Sequence[_Attribute]


def read_claims(path: Path, *, defaults: Mapping[str, str], delimiter: str = ",") -> Iterator[Claim | BadLine]:
    """All lines in order; blank ones are skipped. UTF-8, with or without a byte order mark; any line ends; quotes.

    `defaults` stand for missing columns and empty cells (promotion_id, entrance_id, prize_id). A request id that
    occurs twice in one promotion is a mistake of its second line. Raises ClaimsFileError and OSError.
    """
    # Bytes that are no UTF-8 become lone surrogates, so that only their own line is refused.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True, delimiter=delimiter)
        header = _read_header(reader, defaults, delimiter)
        seen: dict[tuple[str, str], int] = {}
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadLine(line, (("line", f"is not well-formed CSV: {error}"),))
                continue
            if not any(cell.strip() for cell in cells):
                continue
            claim = _claim(line, cells, header, defaults)
            if isinstance(claim, Claim):
                first = seen.setdefault(claim.key, line)
                if first != line:
                    claim = BadLine(line, (("request_id", f"{claim.item.request_id!r} occurs in line {first} too"),))
            yield claim


def _read_header(reader: Iterator[list[str]], defaults: Mapping[str, str], delimiter: str) -> _Header:
    try:
        names = [cell.strip() for cell in next(reader)]
    except StopIteration:
        raise ClaimsFileError("The file is empty; its first line names the columns.") from None
    except csv.Error as error:
        raise ClaimsFileError(f"The first line is not well-formed CSV: {error}.") from None
    if any(_undecodable(name) or "\0" in name for name in names):
        raise ClaimsFileError("The file is not UTF-8 text. Save it as CSV UTF-8.")
    if len(names) == 1 and ";" in names[0] and delimiter == ",":
        raise ClaimsFileError("The columns are separated by semicolons: add --delimiter ';'.")
    problems = [f"the column {name!r} is there twice" for name in sorted({n for n in names if names.count(n) > 1})]
    columns: dict[str, int] = {}
    attributes: list[_Attribute] = []
    for i, name in enumerate(names):
        if name.startswith(_ATTRIBUTE_PREFIX):
            try:
                attributes.append(_Attribute(i, *split_name(name.removeprefix(_ATTRIBUTE_PREFIX))))
            except ValueError as error:
                problems.append(f"column {name!r}: {error}")
        elif name in COLUMNS:
            columns[name] = i
        else:
            problems.append(_unknown_column(name))
    missing = [name for name in _REQUIRED if name not in columns and not defaults.get(name)]
    problems += [f"the column {name!r} is missing{_default_hint(name)}" for name in missing]
    if len(attributes) > ATTRIBUTES_MAX:
        problems.append(f"there are {len(attributes)} attributes, the most is {ATTRIBUTES_MAX}")
    if problems:
        raise ClaimsFileError(f"The first line can't be used: {'; '.join(problems)}.")
    return _Header(len(names), columns, attributes)


def _unknown_column(name: str) -> str:
    near = difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown column {name!r}{hint}; there are {', '.join(COLUMNS)} and attr.NAME"


def _default_hint(name: str) -> str:
    option = name.removesuffix("_id")
    return f" (or give --{option})" if option in ("promotion", "entrance", "prize") else ""


def _claim(line: int, cells: list[str], header: _Header, defaults: Mapping[str, str]) -> Claim | BadLine:
    if len(cells) != header.width:
        return BadLine(line, (("line", f"has {len(cells)} fields, the first line names {header.width}"),))
    problems = [("line", "is not UTF-8")] if any(_undecodable(cell) for cell in cells) else []
    ids: dict[str, str] = {}
    for name in COLUMNS:
        cell = cells[header.columns[name]].strip() if name in header.columns else ""
        ids[name] = cell or defaults.get(name, "")
        problems += _id_problems(name, ids[name])
    attributes: dict[str, AttributeInput] = {}
    for attribute in header.attributes:
        try:
            if cells[attribute.column] != "":
                attributes[attribute.name] = parse_value(cells[attribute.column], attribute.kind)
        except ValueError as error:
            problems.append((f"attr.{attribute.name}", str(error)))
    if problems:
        return BadLine(line, tuple(problems))
    item = BatchItem(ids["prize_id"], ids["user_id"], ids["request_id"], ids["reference"], attributes)
    return Claim(line, ids["promotion_id"], ids["entrance_id"], item)


def _id_problems(name: str, value: str) -> list[tuple[str, str]]:
    if not value:
        return [] if name == "reference" else [(name, "is empty")]
    if _ID.fullmatch(value):
        return []
    shown = value if len(value) <= 40 else f"{value[:40]}…"
    shown = shown.encode("ascii", "backslashreplace").decode()
    return [(name, f"{shown!r} is no id: 1 to 128 characters of A-Z a-z 0-9 . _ : -")]


def _undecodable(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)
