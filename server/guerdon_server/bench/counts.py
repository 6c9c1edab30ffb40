"""What servers say of themselves in their metrics: the batches they made, and the items that they refused."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from guerdon_server.bench.child import Child
from guerdon_server.platform.supervision.merged_metrics import MergedMetrics

_BATCH = "guerdon_batch_"
_OUTCOMES = "guerdon_outcomes_total"


@dataclass(frozen=True, slots=True)
class Batches:
    """Of one stage (admit, commit, settle), over all servers; `seconds` all of them together."""

    count: float = 0.0
    items: float = 0.0
    seconds: float = 0.0

    def __sub__(self, earlier: Batches) -> Batches:
        return Batches(self.count - earlier.count, self.items - earlier.items, self.seconds - earlier.seconds)

    @property
    def items_mean(self) -> float:
        return self.items / self.count if self.count else 0.0

    @property
    def ms_mean(self) -> float:
        return self.seconds / self.count * 1e3 if self.count else 0.0


@dataclass(frozen=True, slots=True)
class Counts:
    """`batches` by stage. `refused_items`: that were answered with an error inside a batch whose call was OK."""

    batches: Mapping[str, Batches]
    refused_items: int

    def __sub__(self, earlier: Counts) -> Counts:
        batches = {stage: these - earlier.batches[stage] for stage, these in self.batches.items()}
        return Counts(batches, self.refused_items - earlier.refused_items)


NOTHING_COUNTED: Final = Counts({}, 0)


class ServerCounts:
    """Of these servers together, since they started."""

    def __init__(self, servers: Sequence[Child]) -> None:
        self._metrics = MergedMetrics()
        for number, server in enumerate(servers):
            self._metrics.add(number, label=server.name, address=server.metrics)

    async def read(self) -> Counts:
        """As of now."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> Counts:
        found: dict[str, dict[str, float]] = {}
        refused = 0.0
        for sample in (sample for metric in self._metrics.collect() for sample in metric.samples):
            if sample.name.startswith(_BATCH) and sample.name.endswith(("_sum", "_count")):
                found.setdefault(sample.labels["stage"], {})[sample.name.removeprefix(_BATCH)] = sample.value
            elif sample.name == _OUTCOMES and sample.labels["outcome"] == "error":
                refused = sample.value
        batches = {
            stage: Batches(values["items_count"], values["items_sum"], values["seconds_sum"])
            for stage, values in found.items()
        }
        return Counts(batches, round(refused))
