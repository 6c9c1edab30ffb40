"""What stops a load test; a missed target is a verdict instead."""


class LoadTestError(Exception):
    """The run can't go on, or can't be judged; the message says why and what to do."""
