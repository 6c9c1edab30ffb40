"""Which threads may take a core from which."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def threads_that_wait() -> Iterator[None]:
    """Threads that are begun by this one inside the block take the core from no one when they are woken.

    They run when a core is free, or at the next tick of the scheduler's clock, and so find several things to do. That
    is SCHED_BATCH, which threads inherit; where there is none, or it is forbidden, nothing changes.
    """
    if not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:
        _log.info("threads keep the usual scheduling policy", extra={"reason": str(error)})
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
