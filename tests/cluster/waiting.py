"""Waiting for a state: bounded, and with words for what did not come."""

from __future__ import annotations


class NotInForce(AssertionError):
    """A fault, or its end, did not take effect in time; the message says what was waited for, and ends with a log."""


class NotPossible(AssertionError):
    """This fault can't be had now, or would break what no system can promise; the message says why."""
