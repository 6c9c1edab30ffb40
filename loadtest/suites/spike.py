"""Ten times the load of an ordinary day from one second to the next, and back.

data: as steady_day.
"""

from __future__ import annotations

from loadtest.suites.steady_day import SteadyDay


class Spike(SteadyDay):
    """The profile's phases make the spike."""
