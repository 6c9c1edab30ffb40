"""What a command prints: tables for people, JSON for machines; results on stdout, everything else on stderr."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import IO, Any, Final, TypeVar

import click
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from guerdon_server.cli.instants import format_instant
from guerdon_server.cli.options import is_json

T = TypeVar("T")

_PIPE_WIDTH: Final = 400  # wide enough that nothing is wrapped or cut where a program reads


def console(stream: IO[str]) -> Console:
    """Colours and the terminal's width on a terminal; plain, wide text elsewhere."""
    return Console(
        file=stream, width=None if stream.isatty() else _PIPE_WIDTH, highlight=False, markup=False, emoji=False
    )


def say(text: str, style: str = "") -> None:
    """A line for people, on stderr; in JSON mode too, where only stdout belongs to the machine."""
    console(sys.stderr).print(visible(text), style=style or None, soft_wrap=True)


def draw(out: Console, renderable: RenderableType) -> None:
    """Prints a table; without the blanks at the ends of lines where a program reads."""
    if out.is_terminal:
        out.print(renderable)
        return
    with out.capture() as captured:
        out.print(renderable)
    for line in captured.get().splitlines():
        click.echo(line.rstrip(), file=out.file)


def emit(document: object, render: Callable[[Console], None]) -> None:
    """The result: one JSON document, or what `render` prints."""
    if is_json(click.get_current_context()):
        print_json(document)
    else:
        render(console(sys.stdout))


def emit_list(items: Iterable[T], columns: Mapping[str, Callable[[T], object]], *, empty: str) -> None:
    """A list: a JSON document a line as they come, or one table."""
    if is_json(click.get_current_context()):
        for item in items:
            print_json(item)
        return
    rows = [[cell(item) for cell in columns.values()] for item in items]
    if rows:
        draw(console(sys.stdout), table(list(columns), rows))
    else:
        say(empty)


def emit_fields(document: object, fields: Mapping[str, object]) -> None:
    """One resource: its document, or its fields one below the other."""
    rows = [[name, value] for name, value in fields.items() if value not in (None, "")]
    emit(document, lambda out: draw(out, fields_table(rows)))


def print_json(document: object) -> None:
    click.echo(json.dumps(plain(document), ensure_ascii=False))


def plain(value: object) -> Any:
    """Dataclasses, enums and instants as what JSON has; keys are the names of the wire, amounts are minor units."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return format_instant(value)
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    return value


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Cells are text as it is, never markup; numbers to the right."""
    rows = [list(row) for row in rows]
    drawn = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(row[i] == "" or isinstance(row[i], int) or _is_amount(row[i]) for row in rows)
        drawn.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(_cell(value) for value in row))
    return drawn


def fields_table(rows: Iterable[Sequence[object]]) -> Table:
    drawn = Table(box=None, show_header=False, pad_edge=False)
    drawn.add_column(style="bold", no_wrap=True)
    drawn.add_column(overflow="fold")
    for name, value in rows:
        drawn.add_row(Text(str(name)), _cell(value))
    return drawn


def _cell(value: object) -> Text:
    if isinstance(value, Text):
        return value
    if isinstance(value, list | tuple):
        return Text("\n".join(visible(str(each)) for each in value) or "-")
    return Text(visible("-" if value is None else str(value)))


def visible(text: str) -> str:
    """Control characters shown, so that no text from elsewhere can drive the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _is_amount(value: object) -> bool:
    return isinstance(value, str) and value.replace(".", "", 1).lstrip("+-").isdigit()
