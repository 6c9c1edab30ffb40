"""The model itself: it stands alone, and it rounds as the words say."""

from __future__ import annotations

import ast
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from tests.model import model
from tests.model.model import Model


def test_the_model_imports_nothing_but_the_language() -> None:
    tree = ast.parse(Path(model.__file__).read_text(encoding="utf-8"))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import could reach anything"
            imported.add(str(node.module).split(".")[0])
    assert imported <= sys.stdlib_module_names
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not calls & {"__import__", "eval", "exec"}


@pytest.mark.parametrize(
    "parts", [0, 1, 4_999, 5_000, 5_001, 9_999, 10_000, 14_999, 15_000, 15_001, 25_000, 10**22 + 5_000]
)
def test_rounding_is_to_the_nearest_unit_that_the_words_name(parts: int) -> None:
    exact = Fraction(parts, 10_000)
    found = {name: Model().rounded(parts, name) for name in ("DOWN", "UP", "HALF_UP", "HALF_EVEN")}

    assert 0 <= exact - found["DOWN"] < 1
    assert 0 <= found["UP"] - exact < 1
    for name in ("HALF_UP", "HALF_EVEN"):
        assert abs(found[name] - exact) <= Fraction(1, 2)
    if (exact * 2).denominator == 1 and exact.denominator == 2:
        assert found["HALF_UP"] == exact + Fraction(1, 2)
        assert found["HALF_EVEN"] % 2 == 0
