"""What stops the demo; what it finds wrong in the books is a failed check instead."""


class DemoError(Exception):
    """The demo can't go on; the message says why, and where to look."""
