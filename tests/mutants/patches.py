"""The deliberate defects: one patch each, headed by what it is, what it would cost, and the tests that must see it.

A header is plain text up to the diff: the defect, a paragraph that begins with "Cost:", and a line "Killed-by: TEST"
for each test that must fail. TEST is a pytest id; without brackets any of its parameters will do.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
_NAME = re.compile(r"\d{2,3}-[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One defect. `name`: of its file, without `.patch`; `patch`: all of it; `killers`: the tests that must fail."""

    name: str
    patch: str
    killers: Sequence[str]

    @property
    def header(self) -> str:
        """What stands above the diff."""
        return self.patch.partition("\n--- a/")[0]

    @property
    def defect(self) -> str:
        """What is wrong with it, in one line."""
        return " ".join(self.header.split("\n\n")[0].split())


def mutants() -> list[Mutant]:
    """All of them, by number."""
    return [_read(path) for path in sorted(FOLDER.glob("*.patch"), key=_number)]


def _number(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _read(path: Path) -> Mutant:
    patch = path.read_text(encoding="utf-8")
    return Mutant(path.stem, patch, re.findall(r"^Killed-by: (\S.*)$", patch, re.MULTILINE))


def problems(found: Sequence[Mutant], root: Path = ROOT) -> list[str]:
    """What keeps them from being tried on the tree as it is: patches that don't apply, tests that there are not."""
    numbers = [mutant.name.partition("-")[0] for mutant in found]
    told = [f"{number} is used twice: renumber one" for number in sorted({n for n in numbers if numbers.count(n) > 1})]
    for mutant in found:
        told += [f"{mutant.name}: {why}" for why in _problems(mutant, root)]
    return told


def _problems(mutant: Mutant, root: Path) -> list[str]:
    told = []
    if not _NAME.fullmatch(mutant.name):
        told.append("is not named NN-words.patch")
    if "\nCost: " not in mutant.header:
        told.append("does not say what it would cost")
    if not mutant.killers:
        told.append("names no test that kills it")
    told += [f"there is no test {test}" for test in mutant.killers if not _exists(root, test)]
    applied = apply(mutant, root, "--check")
    if applied.returncode:
        told.append(f"does not apply: make it anew ({applied.stderr.strip()})")
    return told


def apply(mutant: Mutant, tree: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """`git apply` in a tree: the root of a checkout, or a folder that is in none."""
    return subprocess.run(  # noqa: S603  git, and our own patch
        ["git", "apply", *options, "-"],  # noqa: S607
        cwd=tree,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)},
        input=mutant.patch,
        check=False,
        capture_output=True,
        text=True,
    )


def _exists(root: Path, test: str) -> bool:
    file, _, function = test.partition("::")
    return (root / file).is_file() and function.partition("[")[0] in _functions(root / file)


@cache
def _functions(file: Path) -> frozenset[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
