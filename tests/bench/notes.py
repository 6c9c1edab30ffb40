"""A listener that remembers."""

from __future__ import annotations

from guerdon_server.bench.open_loop import Offered
from guerdon_server.bench.result import Window
from guerdon_server.bench.soak import Sample


class Notes:
    """What the bench told while it ran."""

    def __init__(self) -> None:
        self.windows: list[tuple[str, int]] = []
        self.shares: list[tuple[str, float]] = []
        self.samples: list[Sample] = []

    def step(self, text: str) -> None:
        assert text

    def window(self, title: str, number: int, window: Window) -> None:
        assert window.calls > 0
        self.windows.append((title, number))

    def offered(self, title: str, number: int, offered: Offered) -> None:
        assert number > 0
        self.shares.append((title, offered.share))

    def sampled(self, sample: Sample) -> None:
        self.samples.append(sample)
