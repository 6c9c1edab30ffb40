"""Which failpoints a campaign strikes at."""

from __future__ import annotations

import random

from tests.failpoints.points import points


def random_point(rng: random.Random) -> str:
    """Any of the start, the path of a reward, background jobs and recovery."""
    return rng.choice(points("start", "path", "path", "background"))


def start_point(rng: random.Random) -> str:
    """One that every start of a server passes."""
    return rng.choice(points("start"))
