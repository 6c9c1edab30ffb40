"""Settings: the order of the sources, every kind of refusal, all at once, and no secret shown."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Literal

import pytest

from guerdon_server.platform.config import Conflict, Loaded, Problem, SettingsError, load, setting, to_toml_template


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    batch_items_max: int = setting(default=100, doc="Items in one batch.", minimum=1, maximum=1000)
    batch_items_min: int = setting(default=1, doc="Items awaited for.", minimum=1)
    fill_ratio: float = setting(default=0.5, doc="How full.", minimum=0.0, maximum=1.0)
    listen_host: str = setting(default="127.0.0.1", doc="Address.")
    trace: bool = setting(default=False, doc="Trace calls.")
    data_dir: Path = setting(default=Path("data"), doc="Where the data lies.")
    log_format: Literal["auto", "json"] = setting(default="auto", doc="Shape of the log.")
    level: str = setting(default="INFO", doc="Least level.", choices=("INFO", "DEBUG"))
    hosts: tuple[str, ...] = setting(default=("a", "b"), doc="Hosts.")
    idle_seconds: int | None = setting(default=None, doc="Idle time.", minimum=5)
    tone: Literal["low", "high"] | None = setting(default=None, doc="Tone.")
    dsn: str = setting(default="postgres://app:s3cr@t/x@db:5432/app", doc="Database.", secret=True)
    api_key: str = setting(default="opaque-key-1", doc="Key.", secret=True)

    def validate(self) -> Iterator[Conflict]:
        if self.batch_items_min > self.batch_items_max:
            fields = ("batch_items_min", "batch_items_max")
            yield Conflict(fields, "at most batch_items_max", "Lower batch_items_min.")


@dataclass(frozen=True, slots=True)
class Needy:
    dsn: str = setting(doc="Database.", secret=True)


def read(
    env: Mapping[str, str] | None = None, toml_path: Path | None = None, overrides: Mapping[str, object] | None = None
) -> Loaded[Sample]:
    return load(Sample, env=env or {}, toml_path=toml_path, overrides=overrides)


def problems(
    env: Mapping[str, str] | None = None, toml_path: Path | None = None, overrides: Mapping[str, object] | None = None
) -> tuple[Problem, ...]:
    with pytest.raises(SettingsError) as caught:
        read(env, toml_path, overrides)
    return caught.value.problems


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "settings.toml"


def test_the_higher_source_wins_and_is_named(toml: Path) -> None:
    toml.write_text('batch_items_max = 10\nfill_ratio = 1\nlisten_host = "file"\n')
    env = {"GUERDON_BATCH_ITEMS_MAX": "20", "GUERDON_LISTEN_HOST": "env", "PATH": "/bin"}
    loaded = read(env, toml, {"batch_items_max": 30, "trace": None})
    settings = loaded.settings
    assert (settings.batch_items_max, settings.listen_host, settings.fill_ratio, settings.trace) == (
        30,
        "env",
        1.0,
        False,
    )
    sources = [loaded.sources[name] for name in ("batch_items_max", "listen_host", "fill_ratio", "trace")]
    assert sources == ["flag", "env:GUERDON_LISTEN_HOST", f"file:{toml}", "default"]
    with pytest.raises(FrozenInstanceError):
        settings.trace = True  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("batch_items_max", "7", 7),
        ("fill_ratio", "0.25", 0.25),
        ("trace", "Yes", True),
        ("trace", "0", False),
        ("data_dir", "/srv/with space", Path("/srv/with space")),
        ("log_format", "json", "json"),
        ("hosts", "x, y,", ("x", "y")),
        ("hosts", "", ()),
        ("idle_seconds", "", None),
        ("idle_seconds", "9", 9),
        ("tone", "high", "high"),
        ("listen_host", "", ""),
    ],
)
def test_the_environment_and_flags_give_every_type_as_text(name: str, text: str, value: object) -> None:
    assert getattr(read({f"GUERDON_{name.upper()}": text}).settings, name) == value
    assert getattr(read(overrides={name: text}).settings, name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("batch_items_max", "many"),
        ("batch_items_max", "1.5"),
        ("batch_items_max", "0"),
        ("batch_items_max", "1001"),
        ("batch_items_max", ""),
        ("fill_ratio", "nan"),
        ("fill_ratio", "1.01"),
        ("trace", "maybe"),
        ("data_dir", ""),
        ("log_format", "xml"),
        ("level", "info"),
        ("idle_seconds", "4"),
        ("tone", "medium"),
    ],
)
def test_a_wrong_value_is_refused_with_field_source_value_limits_and_mend(name: str, text: str) -> None:
    (problem,) = problems({f"GUERDON_{name.upper()}": text})
    assert (problem.field, problem.source, problem.given) == (name, f"env:GUERDON_{name.upper()}", repr(text))
    assert problem.allowed
    assert f"GUERDON_{name.upper()}" in problem.mend
    for part in (problem.field, problem.source, problem.given, problem.allowed, problem.mend):
        assert part in str(problem)


@pytest.mark.parametrize(
    "line",
    [
        "batch_items_max = '7'",
        "batch_items_max = true",
        "batch_items_max = 7.0",
        "trace = 1",
        "trace = 'true'",
        "fill_ratio = inf",
        "listen_host = 1",
        "hosts = 'x'",
        "hosts = [1]",
        "idle_seconds = 2020-01-01",
        "[batch_items_max]\nx = 1",
    ],
)
def test_the_file_is_typed_and_nothing_is_guessed(toml: Path, line: str) -> None:
    toml.write_text(line)
    (problem,) = problems(toml_path=toml)
    assert problem.source == f"file:{toml}"


def test_limits_are_said_in_words() -> None:
    env = {"GUERDON_BATCH_ITEMS_MAX": "0", "GUERDON_IDLE_SECONDS": "1", "GUERDON_LOG_FORMAT": "x"}
    assert [problem.allowed for problem in problems(env)] == [
        "an integer from 1 to 1000",
        "an integer from 5, or empty for none",
        "one of auto, json",
    ]


def test_unknown_names_are_refused_with_the_nearest_valid_one(toml: Path) -> None:
    toml.write_text("batch_item_max = 1\n")
    found = problems({"GUERDON_LISTEN_HOTS": "top-secret", "GUERDON_QQ": ""}, toml, {"traec": True})
    assert [(problem.field, problem.mend) for problem in found] == [
        ("batch_item_max", "Did you mean batch_items_max?"),
        ("GUERDON_LISTEN_HOTS", "Did you mean GUERDON_LISTEN_HOST?"),
        ("GUERDON_QQ", "Remove it."),
        ("traec", "Did you mean trace?"),
    ]
    assert "top-secret" not in "".join(map(str, found))


def test_reserved_variables_are_no_settings() -> None:
    loaded = load(Sample, env={"GUERDON_SERVER": "x"}, reserved=frozenset({"GUERDON_SERVER"}))
    assert loaded.settings == read().settings


def test_all_problems_come_at_once_and_none_follows_from_another(toml: Path) -> None:
    toml.write_text("fill_ratio = 7\nnonsense = 1\n")
    found = problems({"GUERDON_TRACE": "?", "GUERDON_BATCH_ITEMS_MAX": "0"}, toml, {"batch_items_min": 500})
    assert {problem.field for problem in found} == {"fill_ratio", "nonsense", "trace", "batch_items_max"}


def test_fields_that_do_not_fit_together_are_refused() -> None:
    (problem,) = problems({"GUERDON_BATCH_ITEMS_MIN": "50"}, overrides={"batch_items_max": 40})
    assert problem.field == "batch_items_min, batch_items_max"
    assert problem.source == "env:GUERDON_BATCH_ITEMS_MIN, flag"
    assert problem.given == "batch_items_min='50', batch_items_max='40'"


def test_a_setting_without_default_must_be_given() -> None:
    with pytest.raises(SettingsError, match="GUERDON_DSN") as caught:
        load(Needy, env={})
    assert caught.value.problems[0].given == "nothing"
    assert load(Needy, env={"GUERDON_DSN": "x"}).settings.dsn == "x"


@pytest.mark.parametrize("content", [b"= broken", b"\xff\xfe", None])
def test_an_unreadable_file_is_a_problem_of_its_own(toml: Path, content: bytes | None) -> None:
    if content is not None:
        toml.write_bytes(content)
    (problem,) = problems(toml_path=toml)
    assert problem.source == f"file:{toml}"


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgres://app:pa:s@s/w@db:5432/app?x=1", "postgres://app:********@db:5432/app?x=1"),
        ("redis://:pass@127.0.0.1:6379/0", "redis://:********@127.0.0.1:6379/0"),
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("postgres://app@h1:5432,h2:5432/app", "postgres://app@h1:5432,h2:5432/app"),
        ("postgres://db/app?user=a&password=pass&x=1", "postgres://db/app?user=a&password=********&x=1"),
        ("host=db password='p a\\'ss' user=app", "host=db password=******** user=app"),
        ("host=db PASSWORD = pass user=app", "host=db PASSWORD = ******** user=app"),
        ("postgres://app:pass", "********"),
        ("postgres://app:5ecret/db", "********"),
        ("postgres:/app:pass@db", "********"),
        ("just-a-key==", "********"),
        ("", ""),
    ],
)
def test_secrets_are_masked_and_of_addresses_only_the_password(dsn: str, shown: str) -> None:
    rows = {row.name: row for row in read({"GUERDON_DSN": dsn}).rows()}
    assert rows["dsn"].value == shown
    assert rows["dsn"].source == "env:GUERDON_DSN"
    assert rows["api_key"].value == "********"


def test_a_refused_secret_is_masked_too() -> None:
    @dataclass(frozen=True, slots=True)
    class Keyed:
        key: str = setting(default="abc", doc="Key.", secret=True, choices=("abc",))

    with pytest.raises(SettingsError) as caught:
        load(Keyed, env={"GUERDON_KEY": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_the_texts_for_the_log_to_redact() -> None:
    loaded = read({"GUERDON_DSN": "postgres://app:p%40ss@db/app"})
    assert set(loaded.secrets()) == {"p%40ss", "p@ss", "opaque-key-1"}


def test_rows_follow_the_declaration() -> None:
    rows = read({"GUERDON_HOSTS": "x,y"}).rows()
    assert [row.name for row in rows][:2] == ["batch_items_max", "batch_items_min"]
    assert {row.name: row.value for row in rows}["hosts"] == "x, y"
    assert rows[0].doc == "Items in one batch."


def test_the_template_is_valid_and_when_uncommented_means_the_defaults(toml: Path) -> None:
    template = to_toml_template(Sample)
    assert tomllib.loads(template) == {}
    names = {row.name for row in read().rows()}
    lines = [line.removeprefix("# ") for line in template.splitlines()]
    toml.write_text("\n".join(line for line in lines if line.partition(" =")[0] in names))
    loaded = read(toml_path=toml)
    assert loaded.settings == Sample()
    assert set(loaded.sources.values()) == {f"file:{toml}"}
    assert "GUERDON_BATCH_ITEMS_MAX" in template
    assert "required" in to_toml_template(Needy)


def test_a_default_outside_its_own_limits_is_refused() -> None:
    @dataclass(frozen=True, slots=True)
    class Wrong:
        size: int = setting(default=0, doc="Size.", minimum=1)

    with pytest.raises(SettingsError, match="default"):
        load(Wrong, env={})
