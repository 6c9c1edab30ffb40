"""The oracle: every call of every caller and what was answered, judged as it arrives. Knows nothing of the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from guerdon.v1 import prize_pb2 as prize

Key: TypeAlias = tuple[str, str]
"""(promotion id, request id)."""
Content: TypeAlias = tuple[str, str, int]
"""(prize id, user id, order_cents): what identifies a request under its key."""


@dataclass(slots=True)
class Call:
    """One attempt of one caller at one request, or one read. Times in monotonic seconds.

    outcome: granted, replayed, rejected, pending, absent, cancelled, ok (reads, operators' calls), or the reason of an
    error. An error leaves the outcome open unless `refused`: then the server said that nothing happened.
    """

    kind: str
    promotion_id: str
    server: int
    invoked: float
    returned: float = 0.0
    prize_id: str = ""
    user_id: str = ""
    asset: str = ""
    request_id: str = ""
    basis: int = 0
    amount: int = 0
    outcome: str = ""
    reason: str = ""
    issuance: prize.Issuance | None = None
    observed: dict[str, int] = field(default_factory=dict)
    together: str = ""
    """The all-or-nothing batch that it was part of."""

    @property
    def key(self) -> Key:
        return self.promotion_id, self.request_id

    @property
    def content(self) -> Content:
        return self.prize_id, self.user_id, self.basis


@dataclass(slots=True)
class Grant:
    """What was acknowledged for a key: by which call first, and how often as new."""

    issuance: prize.Issuance
    packed: bytes
    acknowledged: float
    fresh: int = 0


class Journal:
    """`record` each call once, when it is answered. `contradictions`: answers that break a promise by themselves."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.granted: dict[Key, Grant] = {}
        self.cancelled: dict[Key, float] = {}
        self.asked: dict[Key, set[Content]] = {}
        self.open: dict[Key, Content] = {}
        """Keys whose last answer left the outcome open, with the content that was asked last."""
        self.counts: Counter[str] = Counter()
        self.contradictions: list[str] = []
        self.unconfirmed: list[tuple[float, float]] = []
        """When a primary could be read that showed what its standby did not have, and that was lost with it."""
        self.fresh_until: dict[int, float] = {}
        """Of each server: the latest invocation that it has answered with a new grant."""

    def asks(self, call: Call) -> None:
        """Before the call is sent: from now on it may be granted."""
        self.asked.setdefault(call.key, set()).add(call.content)
        self.open.setdefault(call.key, call.content)

    def record(self, call: Call) -> None:
        """After it was answered, or given up."""
        self.calls.append(call)
        self.counts[call.outcome if call.outcome in _PLAIN else f"error {call.outcome}"] += 1
        if call.outcome in {"granted", "replayed"}:
            self._granted(call)
        elif call.outcome in {"rejected", "absent", "cancelled", "REQUEST_ID_REUSED"}:
            self._denied(call)
        if call.kind in {"issue", "get", "cancel"}:
            if call.outcome in _FINAL:
                self.open.pop(call.key, None)
            else:
                self.open[call.key] = call.content if call.kind == "issue" else self.open.get(call.key, call.content)

    def for_promotion(self, promotion_id: str) -> Iterator[Call]:
        """Its calls, as they were answered."""
        return (call for call in self.calls if call.promotion_id == promotion_id)

    def _granted(self, call: Call) -> None:
        assert call.issuance is not None
        packed = call.issuance.SerializeToString(deterministic=True)
        known = self.granted.get(call.key)
        if known is None:
            known = self.granted[call.key] = Grant(call.issuance, packed, call.returned)
        elif known.packed != packed:
            self._contradiction(f"two grants for {call.key}: {known.issuance} and {call.issuance}")
        if call.outcome == "granted":
            known.fresh += 1
            self.fresh_until[call.server] = max(self.fresh_until.get(call.server, 0.0), call.invoked)
            if known.fresh > 1:
                self._contradiction(f"{call.key} was granted as new {known.fresh} times")
        if call.key in self.cancelled:
            self._contradiction(f"{call.key} was granted after it was ruled out for ever")
        if call.kind == "issue":
            content = call.issuance.prize_id, call.issuance.user_id
            if content != (call.prize_id, call.user_id) or call.issuance.request_id != call.request_id:
                self._contradiction(f"{call.key}: asked {call.content}, answered {call.issuance}")

    def _denied(self, call: Call) -> None:
        known = self.granted.get(call.key)
        acknowledged_before = known is not None and known.acknowledged < call.invoked
        if call.outcome == "REQUEST_ID_REUSED":
            if len(self.asked.get(call.key, ())) < 2:
                self._contradiction(f"{call.key} was refused as reused, and had one content only")
        elif acknowledged_before and known is not None:
            same = call.kind != "issue" or (call.prize_id, call.user_id) == (
                known.issuance.prize_id,
                known.issuance.user_id,
            )
            if same:
                self._contradiction(f"{call.key} had its grant and was answered {call.outcome} {call.reason}")
        if call.outcome == "cancelled" or (call.outcome == "rejected" and call.reason == "CANCELLED"):
            self.cancelled.setdefault(call.key, call.returned)

    def _contradiction(self, text: str) -> None:
        if len(self.contradictions) < _CONTRADICTIONS_KEPT:
            self.contradictions.append(" ".join(text.split()))


_PLAIN = frozenset({"granted", "replayed", "rejected", "pending", "absent", "cancelled", "ok"})
_FINAL = frozenset({"granted", "replayed", "rejected", "cancelled", "REQUEST_ID_REUSED"})
_CONTRADICTIONS_KEPT = 100
