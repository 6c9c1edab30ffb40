"""One frozen settings object from defaults, a TOML file, the environment and the command line.

Declare a frozen, slotted dataclass whose fields are made by `setting(...)`, and call `load`. The order, lowest first:
default, TOML file, environment variable, command line. Every problem of every source is reported at once. Field types:
int, float, str, bool, Path, tuple[str, ...], Literal of strings, and `X | None` of these (empty text means None).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from guerdon_server.platform.masking import mask_secret, secret_parts

T = TypeVar("T")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def setting(
    *,
    doc: str,
    default: Any = dataclasses.MISSING,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """A dataclass field of a settings class; without a default it must be given. Bounds are inclusive."""
    rule = Rule(doc=doc, minimum=minimum, maximum=maximum, choices=choices, secret=secret)
    return dataclasses.field(default=default, metadata={"rule": rule})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What `setting` declared: the text for people and the limits for values."""

    doc: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    secret: bool


@dataclass(frozen=True, slots=True)
class Conflict:
    """What a settings class's `validate()` yields: the fields that do not fit together, what is allowed, the mend."""

    fields: tuple[str, ...]
    allowed: str
    mend: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: which field, from which source, the value given (secrets masked), what is allowed, the mend."""

    field: str
    source: str
    given: str
    allowed: str
    mend: str

    def __str__(self) -> str:
        return f"{self.field} (from {self.source}): given {self.given}; allowed: {self.allowed}. {self.mend}"


class SettingsError(Exception):
    """The settings cannot be used; `problems` holds all that is wrong, never only the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of `config show`: the value is text, secrets masked."""

    name: str
    value: str
    source: str
    doc: str


@dataclass(frozen=True, slots=True)
class Loaded(Generic[T]):
    """The settings and, by field name, where each came from: `default`, `file:PATH`, `env:NAME` or `flag`."""

    settings: T
    sources: Mapping[str, str]

    def rows(self) -> list[Row]:
        """All settings in the order of declaration, secrets masked."""
        specs = _specs(type(self.settings))
        return [Row(s.name, s.shown(getattr(self.settings, s.name)), self.sources[s.name], s.rule.doc) for s in specs]

    def secrets(self) -> tuple[str, ...]:
        """Every secret text in use, for the log to redact: passwords of URLs and DSNs, and other secrets whole."""
        given = [(s, getattr(self.settings, s.name)) for s in _specs(type(self.settings)) if s.rule.secret]
        found = {part for _, value in given for text in _texts(value) for part in secret_parts(text)}
        return tuple(sorted(found, key=len, reverse=True))


def load(
    cls: type[T],
    *,
    env: Mapping[str, str],
    toml_path: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    prefix: str = "GUERDON_",
    reserved: frozenset[str] = frozenset(),
) -> Loaded[T]:
    """Build the settings; raises SettingsError with everything that is wrong.

    overrides: by field name, from the command line; None means "not given", text is parsed like the environment's.
    reserved: names of environment variables that bear the prefix and are no settings.
    """
    specs = {spec.name: spec for spec in _specs(cls)}
    problems: list[Problem] = []
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    layers = _default_layer(specs), _file_layer(toml_path, problems), _env_layer(env, prefix, reserved)
    for given in chain(*layers, _flag_layer(overrides or {})):
        spec = specs.get(given.name)
        if spec is None:
            problems.append(_unknown(given, specs, prefix))
            continue
        sources[given.name] = given.source
        try:
            values[given.name] = spec.convert(given.value, parse=given.parse)
        except ValueError:
            problems.append(spec.problem(given.value, given.source, prefix))
    problems += [spec.problem(None, "nowhere", prefix) for name, spec in specs.items() if name not in sources]
    if values.keys() == specs.keys():
        problems += _conflicts(cls(**values), specs, sources, {problem.field for problem in problems})
    if problems:
        raise SettingsError(problems)
    return Loaded(cls(**values), sources)


def to_toml_template(cls: type[Any], *, prefix: str = "GUERDON_") -> str:
    """A TOML file with every setting commented out at its default, with its meaning, limits and variable."""
    return "\n".join(_template_block(spec, prefix) for spec in _specs(cls))


def _template_block(spec: _Spec, prefix: str) -> str:
    required = spec.default is dataclasses.MISSING
    assignment = f"{spec.name} = {_toml('' if required else spec.default)}{'  # required' if required else ''}"
    limits = f"{spec.allowed}; environment: {prefix}{spec.name.upper()}"
    return f"# {spec.rule.doc}\n# ({limits})\n# {assignment}\n"


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as a source gave it; `parse` says that text stands for other types."""

    name: str
    value: object
    source: str
    parse: bool


@dataclass(frozen=True, slots=True)
class _Spec:
    name: str
    kind: Any  # a type, without its `| None`
    optional: bool
    default: object
    rule: Rule
    choices: tuple[str, ...]

    @property
    def allowed(self) -> str:
        names = {int: "an integer", float: "a number", str: "text", bool: "true or false", Path: "a path"}
        text = f"one of {', '.join(self.choices)}" if self.choices else names.get(self.kind, "a list of texts")
        low, high = self.rule.minimum, self.rule.maximum
        text += f" from {low}" if low is not None else ""
        text += (f" to {high}" if low is not None else f" up to {high}") if high is not None else ""
        return text + (", or empty for none" if self.optional else "")

    def shown(self, value: object) -> str:
        plain = ", ".join(_texts(value)) if isinstance(value, tuple) else "" if value is None else str(value)
        if not self.rule.secret:
            return plain
        return ", ".join(map(mask_secret, _texts(value)))

    def problem(self, value: object, source: str, prefix: str) -> Problem:
        given = "nothing" if value is None else repr(self.shown(value))
        mend = f"Set {self.name} in the settings file or {prefix}{self.name.upper()}: {self.rule.doc}"
        return Problem(self.name, source, given, self.allowed, mend)

    def convert(self, value: object, *, parse: bool) -> object:
        """The value as the field's type; raises ValueError when it is none or out of bounds."""
        if self.optional and value in ("", None):
            return None
        if parse and isinstance(value, str):
            value = _parse(value, self.kind)
        if self.kind is Path and isinstance(value, str) and value:
            value = Path(value).expanduser()
        if self.kind is float and type(value) is int:
            value = float(value)
        if isinstance(value, list):
            value = tuple(value)
        wanted = tuple if typing.get_origin(self.kind) is tuple else self.kind
        if not (isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool)):
            raise ValueError
        if isinstance(value, tuple) and not all(isinstance(item, str) for item in value):
            raise ValueError
        return self._bounded(value)

    def _bounded(self, value: Any) -> object:
        low, high = self.rule.minimum, self.rule.maximum
        items = value if isinstance(value, tuple) else (value,)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError
        if (low is not None and value < low) or (high is not None and value > high):
            raise ValueError
        if self.choices and not set(items) <= set(self.choices):
            raise ValueError
        return value


def _specs(cls: type[Any]) -> Iterator[_Spec]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, rule = hints[field.name], field.metadata["rule"]
        optional = typing.get_origin(kind) in (types.UnionType, typing.Union)
        if optional:
            (kind,) = (part for part in typing.get_args(kind) if part is not type(None))
        choices = rule.choices
        if typing.get_origin(kind) is Literal:
            kind, choices = str, typing.get_args(kind)
        yield _Spec(field.name, kind, optional, field.default, rule, choices)


def _parse(text: str, kind: Any) -> object:
    if kind is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise ValueError
        return text.lower() in _TRUE
    if kind in (int, float):
        return kind(text)
    if typing.get_origin(kind) is tuple:
        return tuple(part for part in (piece.strip() for piece in text.split(",")) if part)
    return text


def _default_layer(specs: Mapping[str, _Spec]) -> list[_Given]:
    declared = [(name, s.default) for name, s in specs.items() if s.default is not dataclasses.MISSING]
    return [_Given(name, default, "default", parse=False) for name, default in declared]


def _file_layer(path: Path | None, problems: list[Problem]) -> list[_Given]:
    if path is None:
        return []
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or type(error).__name__ if isinstance(error, OSError) else str(error)
        problems.append(Problem("settings file", f"file:{path}", text, "a readable TOML file", "Mend or name another."))
        return []
    return [_Given(name, value, f"file:{path}", parse=False) for name, value in table.items()]


def _env_layer(env: Mapping[str, str], prefix: str, reserved: frozenset[str]) -> list[_Given]:
    names = sorted(name for name in env if name.startswith(prefix) and name not in reserved)
    return [_Given(name.removeprefix(prefix).lower(), env[name], f"env:{name}", parse=True) for name in names]


def _flag_layer(overrides: Mapping[str, object]) -> list[_Given]:
    return [_Given(name, value, "flag", parse=True) for name, value in overrides.items() if value is not None]


def _unknown(given: _Given, specs: Mapping[str, _Spec], prefix: str) -> Problem:
    near = difflib.get_close_matches(given.name, specs, n=1, cutoff=0.5)
    spelt = [f"{prefix}{name.upper()}" if given.source.startswith("env:") else name for name in near]
    name = given.source.removeprefix("env:") if given.source.startswith("env:") else given.name
    mend = f"Did you mean {spelt[0]}?" if spelt else "Remove it."
    # The value is not shown: what a misspelt name holds may be a secret.
    return Problem(name, given.source, "a value for an unknown name", "the names that `config show` lists", mend)


def _conflicts(built: object, specs: Mapping[str, _Spec], sources: Mapping[str, str], bad: set[str]) -> list[Problem]:
    """What `validate()` finds, without what follows only from a field that is already refused."""
    check: Callable[[], Iterable[Conflict]] = getattr(built, "validate", tuple)
    found = [conflict for conflict in check() if not bad & set(conflict.fields)]
    problems = []
    for conflict in found:
        given = ", ".join(f"{name}={specs[name].shown(getattr(built, name))!r}" for name in conflict.fields)
        where = ", ".join(sources[name] for name in conflict.fields)
        problems.append(Problem(", ".join(conflict.fields), where, given, conflict.allowed, conflict.mend))
    return problems


def _texts(value: object) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else () if value is None else (str(value),)


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps("" if value is None else str(value), ensure_ascii=False)
