"""What the processes of one run have to know of each other: the run writes a plan, the generator a result."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from loadtest.profile import Phase, SuiteProfile, Targets
from loadtest.tally import Tally

VARIABLE: Final = "LOADTEST_PLAN"
"""The environment variable that names the plan's file to Locust's processes."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`run`: a name that no other run has; all ids begin with it.

    `folder`: of this run alone, where its processes leave what they saw; `report`: where people look afterwards.
    `ca`: PEM file of who signed the target's certificate; None: plain text.
    """

    suite: str
    run: str
    target: str
    ca: Path | None
    folder: Path
    report: Path
    processes: int
    channels: int
    profile: SuiteProfile

    def credentials(self) -> grpc.ChannelCredentials | None:
        """For channels to the target; None: plain text."""
        return None if self.ca is None else grpc.ssl_channel_credentials(self.ca.read_bytes())

    @property
    def path(self) -> Path:
        """Of the plan itself."""
        return self.folder / "plan.json"

    def save(self) -> None:
        """Write it into its folder."""
        paths = {name: str(path) for name, path in asdict(self).items() if isinstance(path, Path)}
        write_json(self.path, {**asdict(self), **paths})

    @classmethod
    def load(cls, path: Path) -> Plan:
        """The one that was saved there."""
        document = json.loads(path.read_text(encoding="utf-8"))
        suite = document["profile"]
        suite["phases"] = tuple(Phase(**phase) for phase in suite["phases"])
        suite["targets"] = Targets(**suite["targets"])
        paths = {name: Path(document[name]) for name in ("folder", "report", "ca") if document[name]}
        return cls(**{**document, **paths, "profile": SuiteProfile(**suite)})


@dataclass(frozen=True, slots=True)
class Check:
    """Something that a suite looked at when its run was over."""

    name: str
    found: str
    must_be: str
    ok: bool


@dataclass(frozen=True, slots=True)
class Driven:
    """A phase as it was driven: seconds since 1970."""

    phase: Phase
    begin: float
    end: float


@dataclass(slots=True)
class Drive:
    """What the generator did and saw. `error`: why it could not go on."""

    tally: Tally = field(default_factory=Tally)
    phases: list[Driven] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    error: str = ""

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        write_json(
            path,
            {
                "tally": self.tally.to_json(),
                "phases": [asdict(driven) for driven in self.phases],
                "checks": [asdict(check) for check in self.checks],
                "error": self.error,
            },
        )

    @classmethod
    def load(cls, path: Path) -> Drive:
        """The one that was saved there."""
        document = json.loads(path.read_text(encoding="utf-8"))
        phases = [Driven(Phase(**each["phase"]), each["begin"], each["end"]) for each in document["phases"]]
        checks = [Check(**each) for each in document["checks"]]
        return cls(Tally.from_json(document["tally"]), phases, checks, document["error"])


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Whole or not at all: whoever waits for the file must not read half of it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch.replace(path)
