"""An ordinary day for long: nothing may get slower, and no memory be lost.

data: as steady_day.
"""

from __future__ import annotations

from loadtest.suites.steady_day import SteadyDay


class Soak(SteadyDay):
    """The profile's targets p99_growth_max, server_mb_max and server_growth_max look at its length."""
