"""The committed list of the points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

_LIST = Path(__file__).with_name("points.txt")


def listed() -> Mapping[str, Sequence[str]]:
    """Names of I/Os by the section of points.txt: start, path, background, stop."""
    sections: dict[str, list[str]] = {}
    names: list[str] = []
    for line in _LIST.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            names = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            names.append(line)
    return sections


def points(*sections: str) -> list[str]:
    """Before and after each."""
    names = chain.from_iterable(listed()[section] for section in sections)
    return [f"{name}.{place}" for name in names for place in ("before", "after")]
