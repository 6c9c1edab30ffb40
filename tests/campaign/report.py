"""The table of faults and the table of promises, on the terminal and as JSON."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.campaign.faults import FAULTS
from tests.campaign.promises import PROMISES
from tests.campaign.rounds import Played


@dataclass(slots=True)
class Report:
    """Everything that was played."""

    seed: int
    minutes: float
    scale: float
    servers: int
    commit: str
    """Of the checkout when it began."""
    played: list[Played] = field(default_factory=list)
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)
    """Of the campaign itself."""

    @property
    def broken(self) -> list[tuple[int, str, str]]:
        """(round, promise, what was seen)."""
        return [(p.round.number, promise, text) for p in self.played for promise, text in p.findings.broken]

    @property
    def held(self) -> bool:
        """Whether everything that was looked at held, and the campaign itself worked."""
        return not self.broken and not self.errors and bool(self.played)

    def document(self) -> dict[str, Any]:
        """For machines."""
        faults = {}
        for name, rounds in self._by_fault().items():
            recovery = [p.recovery_seconds[name] for p in rounds if name in p.recovery_seconds]
            faults[name] = {
                "how": next(fault.how for fault in FAULTS if fault.name == name),
                "times": len(rounds),
                "held": not any(p.findings.broken for p in rounds),
                "recovery_seconds": [round(seconds, 2) for seconds in recovery],
                "notes": [note for p in rounds for note in p.notes.get(name, ())],
            }
        return {
            "seed": self.seed,
            "minutes": self.minutes,
            "scale": self.scale,
            "servers": self.servers,
            "commit": self.commit,
            "seconds": round(self.seconds, 1),
            "rounds": len(self.played),
            "calls": sum(p.calls for p in self.played),
            "answers": dict(sum((Counter(p.counts) for p in self.played), Counter())),
            "unknown_outcomes_resolved": sum(p.unknown for p in self.played),
            "at_rest_seconds_max": round(max((p.at_rest_seconds for p in self.played), default=0), 2),
            "faults": faults,
            "promises": {
                promise: {
                    "compared": sum(p.findings.checked.get(promise, 0) for p in self.played),
                    "broken": [(number, text) for number, known, text in self.broken if known == promise],
                }
                for promise in PROMISES
            },
            "errors": self.errors,
            "held": self.held,
        }

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(self.document(), indent=1) + "\n")

    def show(self, console: Console) -> None:
        """For people."""
        table = Table("fault", "how", "times", "recovery (median, most)", "held", title="Faults", title_justify="left")
        for name, found in sorted(self.document()["faults"].items()):
            recovery = found["recovery_seconds"]
            times = f"{statistics.median(recovery):.1f} s, {max(recovery):.1f} s" if recovery else "-"
            skipped = any(note.startswith("NOT DONE") for note in found["notes"])
            held = "[yellow]not done[/]" if skipped else "[green]✓[/]" if found["held"] else "[red]✗[/]"
            table.add_row(name, found["how"], str(found["times"]), times, held)
        console.print(table)
        document = self.document()
        table = Table("promise", "compared", "broken", title="Promises", title_justify="left")
        for promise, kept in document["promises"].items():
            broken = len(kept["broken"])
            table.add_row(promise, f"{kept['compared']:,}", f"[red]{broken}[/]" if broken else "[green]0[/]")
        console.print(table)
        for number, promise, text in self.broken:
            console.print(f"[red]round {number}: {promise}[/]: {text}", markup=True, highlight=False)
        for note in (note for found in document["faults"].values() for note in found["notes"] if "NOT DONE" in note):
            console.print(note, highlight=False)
        for number in dict.fromkeys(number for number, _, _ in self.broken):
            again = f"scripts/campaign --seed {self.seed} --servers {self.servers} --scale {self.scale:g}"
            console.print(f"the same faults again: {again} --first {number} --rounds 1", highlight=False)
        for error in self.errors:
            console.print(f"[red]the campaign itself failed: {error}[/]")
        console.print(
            f"seed {self.seed}: {document['rounds']} rounds, {document['calls']:,} calls,"
            f" {document['unknown_outcomes_resolved']:,} outcomes resolved at the end of rounds,"
            f" {self.seconds:.0f} s: {'every promise held' if self.held else 'BROKEN'}"
        )

    def _by_fault(self) -> dict[str, list[Played]]:
        found: dict[str, list[Played]] = defaultdict(list)
        for played in self.played:
            for strike in played.round.strikes:
                found[strike.fault.name].append(played)
        return found


def checkout() -> str:
    """Its commit, with -dirty where it was changed since."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return done.stdout.strip() or "unknown"
