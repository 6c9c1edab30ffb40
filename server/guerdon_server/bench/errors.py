"""What stops a bench; a missed target is a verdict instead."""


class BenchError(Exception):
    """The bench can't go on, or what it measured is not what it thinks; the message says why."""
