"""Prometheus metrics: a registry, an HTTP endpoint on a port of its own, cheap tallies for the hot path.

Use prometheus-client's own types wherever an event is rarer than a request. What happens per request uses the tallies,
plain integers without a lock: measured on CPython 3.11, about 0.06 µs a count and 0.15 µs an observation, against 0.4
and 0.9 µs of a prometheus-client child (1 µs more when its labels are looked up each time); the three RPC metrics
together 0.4 against 2.2 µs. They are written from one thread, the event loop's; a scrape reads them from another and
may miss the increments of that instant.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import socketserver
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_logger = logging.getLogger(__name__)
LATENCY_SECONDS_BUCKETS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025),
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
SIZE_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
OTHER = "other"  # the label value of everything beyond a family's children_max


class Tally:
    """A counter that only grows; `count` may also be read."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def inc(self, amount: int = 1) -> None:
        """Add a non-negative amount."""
        self.count += amount


class TallyHistogram:
    """Counts of observations by bucket, and their sum."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self.counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation; a value equal to a bound belongs to that bound's bucket."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


Child = TypeVar("Child", Tally, TallyHistogram)


class _Family(Collector, Generic[Child]):
    """Children by label values, at most `children_max`; past that all share one child, labelled `other`."""

    def __init__(
        self, name: str, doc: str, labels: Sequence[str], registry: CollectorRegistry, children_max: int
    ) -> None:
        self.name, self.doc, self.labels = name, doc, tuple(labels)
        self._children_max = children_max
        self._children: dict[tuple[str, ...], Child] = {}
        registry.register(self)

    def child(self, *values: str) -> Child:
        """The child of these label values, made at the first use. Keep it: looking it up costs more than counting."""
        found = self._children.get(values)
        if found is not None:
            return found
        assert len(values) == len(self.labels), f"{self.name} has the labels {self.labels}"
        if len(self._children) >= self._children_max:
            values = (OTHER,) * len(values)
        return self._children.setdefault(values, self._new())

    def describe(self) -> list[Metric]:
        return [self._metric(())]

    def collect(self) -> Iterator[Metric]:
        yield self._metric(list(self._children.items()))

    def _new(self) -> Child:
        raise NotImplementedError

    def _metric(self, children: Iterable[tuple[tuple[str, ...], Child]]) -> Metric:
        raise NotImplementedError


class TallyFamily(_Family[Tally]):
    """Counters by label values. The name has no `_total`; the exposition adds it."""

    def __init__(
        self, name: str, doc: str, labels: Sequence[str] = (), *, registry: CollectorRegistry, children_max: int = 200
    ) -> None:
        super().__init__(name, doc, labels, registry, children_max)

    def _new(self) -> Tally:
        return Tally()

    def _metric(self, children: Iterable[tuple[tuple[str, ...], Tally]]) -> Metric:
        metric = CounterMetricFamily(self.name, self.doc, labels=self.labels)
        for values, child in children:
            metric.add_metric(values, child.count)
        return metric


class TallyHistogramFamily(_Family[TallyHistogram]):
    """Histograms by label values; buckets are ascending, inclusive upper bounds in the unit that the name ends with."""

    def __init__(
        self,
        name: str,
        doc: str,
        labels: Sequence[str] = (),
        *,
        registry: CollectorRegistry,
        buckets: Sequence[float] = LATENCY_SECONDS_BUCKETS,
        children_max: int = 100,
    ) -> None:
        assert list(buckets) == sorted(set(buckets)), f"{name}: bucket bounds must ascend"
        self._bounds = tuple(buckets)
        self._bound_texts = [*map(floatToGoString, self._bounds), "+Inf"]
        super().__init__(name, doc, labels, registry, children_max)

    def _new(self) -> TallyHistogram:
        return TallyHistogram(self._bounds)

    def _metric(self, children: Iterable[tuple[tuple[str, ...], TallyHistogram]]) -> Metric:
        metric = HistogramMetricFamily(self.name, self.doc, labels=self.labels)
        for values, child in children:
            metric.add_metric(values, buckets=self._cumulative(child), sum_value=child.total)
        return metric

    def _cumulative(self, child: TallyHistogram) -> list[tuple[str, float]]:
        total, buckets = 0, []
        for text, count in zip(self._bound_texts, child.counts, strict=True):
            total += count
            buckets.append((text, float(total)))
        return buckets


@dataclass(slots=True)
class MethodMetrics:
    """One RPC method's counters; the RPC layer keeps one per handler."""

    _handled_family: TallyFamily
    _labels: tuple[str, str, str]
    _started: Tally
    _seconds: TallyHistogram
    _handled: dict[str, Tally] = field(default_factory=dict)

    def started(self) -> None:
        """Count a call that arrived."""
        self._started.count += 1

    def observe(self, code: str, seconds: float) -> None:
        """Count a call that ended with that status name (`OK`, `NOT_FOUND`, …) after so many seconds."""
        handled = self._handled.get(code)
        if handled is None:
            handled = self._handled[code] = self._handled_family.child(*self._labels, code)
        handled.count += 1
        self._seconds.observe(seconds)


class RpcMetrics:
    """The customary gRPC server metrics: grpc_server_started_total, _handled_total and _handling_seconds.

    methods: `/package.Service/Method` → grpc_type (`unary`, `server_stream`, …), all that are served. Other methods are
    counted together as service and method `unknown`, so that a caller cannot make label values.
    """

    _UNKNOWN = "unknown"
    _CODES = 17
    _CODES_FROM_START = ("OK", "DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNKNOWN")

    def __init__(self, *, registry: CollectorRegistry, methods: Mapping[str, str]) -> None:
        labels, most = ("grpc_type", "grpc_service", "grpc_method"), len(methods) + 1
        started = TallyFamily("grpc_server_started", "RPCs begun.", labels, registry=registry, children_max=most)
        handled = TallyFamily(
            "grpc_server_handled",
            "RPCs ended, by status.",
            (*labels, "grpc_code"),
            registry=registry,
            children_max=most * self._CODES,
        )
        seconds = TallyHistogramFamily(
            "grpc_server_handling_seconds",
            "Time from the start of the handler to its end.",
            labels,
            registry=registry,
            children_max=most,
        )

        def made(kind: str, service: str, method: str) -> MethodMetrics:
            at = (kind, service, method)
            codes = {code: handled.child(*at, code) for code in self._CODES_FROM_START}
            return MethodMetrics(handled, at, started.child(*at), seconds.child(*at), codes)

        # Every method's children exist from the start, those of success and of what an alarm looks at included: a rate
        # over a counter that appears with 1 misses that 1.
        self._methods = {path: made(kind, *path.strip("/").rsplit("/", 1)) for path, kind in methods.items()}
        self._unknown = made("unary", self._UNKNOWN, self._UNKNOWN)

    def method(self, path: str) -> MethodMetrics:
        """The counters of `/package.Service/Method`; those of `unknown` for any other."""
        return self._methods.get(path, self._unknown)

    def started(self, path: str) -> None:
        """Count a call that arrived."""
        self.method(path).started()

    def observe(self, path: str, code: str, seconds: float) -> None:
        """Count a call that ended with that status name after so many seconds."""
        self.method(path).observe(code, seconds)


class _BuildInfo(Collector):
    def __init__(self, namespace: str, labels: Mapping[str, str]) -> None:
        self._namespace, self._labels = namespace, dict(labels)

    def collect(self) -> Iterator[Metric]:
        metric = GaugeMetricFamily(
            f"{self._namespace}_build_info", "Constant 1; what runs is in the labels.", labels=list(self._labels)
        )
        metric.add_metric(list(self._labels.values()), 1)
        yield metric


def new_registry(*, namespace: str, build: Mapping[str, str]) -> CollectorRegistry:
    """A registry with process, GC and interpreter metrics and NAMESPACE_build_info; `build` gives its labels."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(_BuildInfo(namespace, build))
    return registry


class LoopLag:
    """How late the event loop wakes a sleeper: the wait that any ready callback suffers.

    Exports NAMESPACE_event_loop_lag_seconds (histogram) and NAMESPACE_event_loop_lag_latest_seconds (gauge).
    """

    def __init__(self, *, registry: CollectorRegistry, namespace: str, interval_seconds: float = 0.25) -> None:
        self._interval = interval_seconds
        self._latest = 0.0
        name, doc = f"{namespace}_event_loop_lag", "How late the event loop woke a sleeper"
        self._lag = TallyHistogramFamily(f"{name}_seconds", f"{doc}.", registry=registry).child()
        registry.register(_ReadGauge(f"{name}_latest_seconds", f"{doc}, last sample.", lambda: self._latest))

    async def run(self) -> None:
        """Sample until cancelled; the caller owns the task."""
        while True:
            due = time.monotonic() + self._interval  # not loop.time(): uvloop's is cached and in whole milliseconds
            await asyncio.sleep(self._interval)
            self._latest = max(0.0, time.monotonic() - due)
            self._lag.observe(self._latest)


class _ReadGauge(Collector):
    """A gauge whose value is read at the scrape."""

    def __init__(self, name: str, doc: str, read: Callable[[], float]) -> None:
        self._name, self._doc, self._read = name, doc, read

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(self._name, self._doc, value=self._read())


class _Endpoint(ThreadingWSGIServer):
    """A thread per connection, bounded: what is over `connections_max` is closed unanswered."""

    connections_max = 8
    request_queue_size = 16

    def __init__(self, *args: Any) -> None:
        self._free = threading.BoundedSemaphore(self.connections_max)
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def server_bind(self) -> None:
        # Not the base class's: that asks the resolver for our own name, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), port
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that went away is no event."""


class _Handler(WSGIRequestHandler):
    timeout = 5  # seconds a connection may stay silent before its thread is taken back

    def log_message(self, format: str, *args: Any) -> None:
        """One line per scrape helps nobody."""


def _logging_failures(app: WSGIApplication) -> WSGIApplication:
    """The application with a failing collector in our log, where wsgiref would write raw text to stderr."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            return app(environ, start_response)
        except Exception:
            _logger.exception("the metrics could not be collected")
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
            return [b"the metrics could not be collected; see the log\n"]

    return guarded


class MetricsServer:
    """The metrics of a registry over HTTP, from threads of its own: a busy event loop can still be seen.

    Listens from construction on; `port` is the bound one (ask for 0 to get a free one). Raises OSError when the address
    cannot be bound. A context manager; `close` is idempotent.
    """

    def __init__(self, registry: CollectorRegistry, *, host: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        server_class = type("_BoundEndpoint", (_Endpoint,), {"address_family": family})
        self._server: WSGIServer = server_class((host, port), _Handler)
        self._server.set_app(_logging_failures(make_wsgi_app(registry)))
        self.host, self.port = host, self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; waits a tenth of a second at most, and not for a scrape in flight."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
