"""The suites, one module each: a class of users and what has to come out right. Its first line is its title."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtest.generator.user import GuerdonUser

_FOLDER = Path(__file__).parent


def titles() -> dict[str, str]:
    """By name. Nothing is imported: that would bring gevent into this process."""
    modules = sorted(path for path in _FOLDER.glob("*.py") if not path.stem.startswith("_"))
    return {path.stem: _title(path) for path in modules}


def _title(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem
    return text.splitlines()[0]


def workload(name: str) -> type[GuerdonUser]:
    """The class of a suite; only inside Locust's processes."""
    from loadtest.generator.user import GuerdonUser  # noqa: PLC0415  it patches the standard library

    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, GuerdonUser) and each.__module__ == module.__name__
    ]
    (only,) = found
    return only
