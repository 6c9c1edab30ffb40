"""Whether the engines answer, as this process sees it: asked all along, also while no caller asks for anything."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterator, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from guerdon_server.platform import redis
from guerdon_server.platform.telemetry import TallyHistogramFamily

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Pulses(Collector):
    """When each engine last answered this process; from its start on, where one never did.

    Exports NAMESPACE_engine_silent_seconds, which grows while an engine does not answer, and NAMESPACE_engine_answer_
    seconds, how long answers took; both by engine.
    """

    def __init__(self, engines: Sequence[str], *, registry: CollectorRegistry, namespace: str) -> None:
        self._name = f"{namespace}_engine_silent_seconds"
        seconds = TallyHistogramFamily(
            f"{namespace}_engine_answer_seconds",
            "How long an engine took to answer a small question that is asked all along.",
            ("engine",),
            registry=registry,
        )
        self._seconds = {engine: seconds.child(engine) for engine in engines}
        self._answered = dict.fromkeys(engines, time.monotonic())
        registry.register(self)

    async def of(self, engine: str, question: Awaitable[T]) -> T:
        """The answer, noted as a sign of life; an exception passes, and is none."""
        asked = time.monotonic()
        answer = await question
        self._answered[engine] = now = time.monotonic()
        self._seconds[engine].observe(now - asked)
        return answer

    def collect(self) -> Iterator[Metric]:
        metric = GaugeMetricFamily(self._name, "Time since an engine last answered this process.", labels=["engine"])
        now = time.monotonic()
        for engine, answered in self._answered.items():
            metric.add_metric([engine], max(0.0, now - answered))
        yield metric


class RedisPulse(Collector):
    """Asks Redis, of a cluster one of its nodes, how full it is.

    Exports NAMESPACE_redis_memory_bytes and _max_bytes (0: no limit), once answered.
    """

    ENGINE = "redis"

    def __init__(
        self,
        client: redis.AnyClient,
        pulses: Pulses,
        *,
        registry: CollectorRegistry,
        namespace: str,
        interval_seconds: float,
    ) -> None:
        self._client = client
        self._pulses = pulses
        self._namespace = namespace
        self._interval_seconds = interval_seconds
        self._memory: redis.Memory | None = None
        registry.register(self)

    async def run(self) -> None:
        """Ask for ever; the caller owns the task. Silence is logged once."""
        silent = False
        while True:
            try:
                self._memory = await self._pulses.of(self.ENGINE, redis.memory(self._client))
                silent = False
            except Exception as error:
                if not silent:
                    _log.warning("Redis does not answer", extra={"why": str(error)})
                silent = True
            await asyncio.sleep(self._interval_seconds)

    def collect(self) -> Iterator[Metric]:
        memory = self._memory
        if memory is None:
            return
        name = f"{self._namespace}_redis_memory"
        yield GaugeMetricFamily(f"{name}_bytes", "Memory that Redis uses for data.", value=memory.used_bytes)
        yield GaugeMetricFamily(f"{name}_max_bytes", "Its maxmemory; 0: no limit.", value=memory.max_bytes)
