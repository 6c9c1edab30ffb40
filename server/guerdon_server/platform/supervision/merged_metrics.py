"""One view over the metrics of several processes, each of which serves its own: scraped and merged at the scrape.

Counters and histograms are added up, over the processes that have ended as well: a sum that shrinks with each restart
would be taken for a reset, and counted anew. Gauges are of a process and carry its name in the label `worker`; what
they add up to, and whether they should, the query decides. Nothing of it costs a worker's requests anything.
"""

from __future__ import annotations

import http.client
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_log = logging.getLogger(__name__)
_ADDED_UP = frozenset({"counter", "histogram", "summary"})
_SECONDS_MAX = 5.0
_SCRAPES_AT_ONCE = 8

_Sample = tuple[str, tuple[tuple[str, str], ...]]
"""Name and labels."""


@dataclass(slots=True)
class _Family:
    doc: str
    kind: str
    samples: dict[_Sample, float] = field(default_factory=dict)


_Families = dict[str, _Family]


@dataclass(slots=True)
class _Source:
    label: str
    address: str
    sums: _Families = field(default_factory=dict)


class MergedMetrics(Collector):
    """Sources come and go from the event loop's thread; scrapes come from others."""

    def __init__(self) -> None:
        self._sources: dict[int, _Source] = {}
        self._past: _Families = {}
        self._scraping = threading.Lock()
        self._changing = threading.Lock()

    def add(self, key: int, *, label: str, address: str) -> None:
        """From now on the process at HOST:PORT is part of the view. `key`: its own, never used again."""
        with self._changing:
            self._sources[key] = _Source(label, address)

    def relabel(self, key: int, label: str) -> None:
        """Its gauges bear another name."""
        with self._changing:
            if key in self._sources:
                self._sources[key].label = label

    def remove(self, key: int) -> None:
        """The process has ended, or will be asked no more. What it had counted when it was last scraped stays."""
        with self._changing:
            gone = self._sources.pop(key, None)
            if gone is not None:
                _add(self._past, gone.sums)

    def refresh(self, key: int) -> None:
        """Scrape one now, before it ends; waits for it."""
        with self._scraping:
            self._scrape([key])

    def describe(self) -> list[Metric]:
        """Empty: what there is, the workers know."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All figures of this moment; of a process that does not answer, its last sums and no gauges."""
        with self._scraping:
            gauges = self._scrape(list(self._sources))
        answered = GaugeMetricFamily("guerdon_worker_scraped", "1 where a worker's metrics came.", labels=["worker"])
        families: _Families = {}
        with self._changing:
            _add(families, self._past)
            for source in self._sources.values():
                _add(families, source.sums)
            for key, source in self._sources.items():
                answered.add_metric([source.label], key in gauges)
                _add(families, _labelled(gauges.get(key, {}), source.label))
        yield answered
        for name, family in families.items():
            metric = Metric(name, family.doc, family.kind)
            for (sample, labels), value in family.samples.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric

    def _scrape(self, keys: Iterable[int]) -> Mapping[int, _Families]:
        """Brings the sums up to date; the gauges, of those that answered."""
        with self._changing:
            addresses = {key: self._sources[key].address for key in keys if key in self._sources}
        gauges: dict[int, _Families] = {}
        if not addresses:
            return gauges
        with ThreadPoolExecutor(min(_SCRAPES_AT_ONCE, len(addresses))) as pool:
            texts = dict(zip(addresses, pool.map(_fetched, addresses.values()), strict=True))
        for key, text in texts.items():
            if text is None:
                continue
            sums, gauges[key] = _parsed(text)
            with self._changing:
                if key in self._sources:
                    self._sources[key].sums = sums
        return gauges


def _fetched(address: str) -> str | None:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=_SECONDS_MAX)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        text = response.read().decode()
        return text if response.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException) as error:
        _log.warning("a worker's metrics could not be read", extra={"at": address, "why": str(error)})
        return None
    finally:
        connection.close()


def _parsed(text: str) -> tuple[_Families, _Families]:
    """What is added up, and the rest."""
    sums: _Families = {}
    rest: _Families = {}
    for metric in text_string_to_metric_families(text):
        if metric.name.endswith("_created"):  # when a counter of one process began; no sum has such a moment
            continue
        family = _Family(metric.documentation, metric.type)
        for sample in metric.samples:
            family.samples[sample.name, tuple(sample.labels.items())] = sample.value
        (sums if metric.type in _ADDED_UP else rest)[metric.name] = family
    return sums, rest


def _labelled(families: _Families, worker: str) -> _Families:
    return {
        name: _Family(
            family.doc,
            family.kind,
            {(sample, (*labels, ("worker", worker))): value for (sample, labels), value in family.samples.items()},
        )
        for name, family in families.items()
    }


def _add(total: _Families, more: _Families) -> None:
    for name, family in more.items():
        samples = total.setdefault(name, _Family(family.doc, family.kind)).samples
        for sample, value in family.samples.items():
            samples[sample] = samples.get(sample, 0.0) + value
