"""The scripts' codes are the model's, and every script says what it takes, answers and writes."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from guerdon_server.core.stock.model import AdmitCode, SettleCode, Status

_LUA = files("guerdon_server.core.stock.redis").joinpath("lua")
_COMMANDS = sorted(
    entry.name for entry in _LUA.iterdir() if entry.name.endswith(".lua") and entry.name != "prelude.lua"
)


def _text(name: str) -> str:
    return _LUA.joinpath(name).read_text(encoding="utf-8")


def test_the_statuses_are_the_same() -> None:
    (table,) = re.findall(r"^local STATUS = \{(.*)\}$", _text("prelude.lua"), re.MULTILINE)
    assert {name: int(code) for name, code in re.findall(r"(\w+) = '(\d)'", table)} == dict(Status.__members__)


def test_the_answers_to_an_item_are_the_same() -> None:
    names, codes = re.search(r"^local (ADMITTED, .*) = ('1'.*)$", _text("admit.lua"), re.MULTILINE).groups()  # type: ignore[union-attr]
    assert dict(zip(names.split(", "), map(int, re.findall(r"\d", codes)), strict=True)) == dict(AdmitCode.__members__)
    documented = re.findall(r"^--\s+(\d)\S*\s+([A-Z_]+)\b", _text("admit.lua"), re.MULTILINE)
    assert {name: int(code) for code, name in documented} == dict(AdmitCode.__members__)


def test_the_settlements_are_the_same() -> None:
    documented = re.findall(r"^--\s+(\w)<ADMISSION_ID>\S*\s+([A-Z_]+)\b", _text("settle.lua"), re.MULTILINE)
    assert {name: code for code, name in documented} == {code.name: code.value for code in SettleCode}


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_has_a_header(name: str) -> None:
    text = _text(name)
    assert re.match(r"#!lua( flags=[a-z-]+)?\n-- ", text), "a shebang: its flags are what refuses a script as a whole"
    for part in ("KEYS", "ARGV", "Returns", "Writes"):
        assert re.search(rf"^-- {part}\b", text, re.MULTILINE), part


@pytest.mark.parametrize("name", _COMMANDS)
def test_numbers_are_never_written_by_tostring(name: str) -> None:
    assert "tostring" not in _text(name), "it makes 1e+14 of 10^14: use integer()"
