"""What the fake remembers: resources as messages, pools of stock and budget, and a double-entry ledger."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from guerdon.fake._refusal import not_found, precondition, reused
from guerdon.fake._validation import Fields
from guerdon.model import AccountKey, TransferKind
from guerdon.v1 import entrance_pb2, prize_pb2, promotion_pb2

T = TypeVar("T")


@dataclass(slots=True)
class Pool:
    """Stock of a prize or budget in an asset; a capacity of None is unlimited."""

    capacity: int | None
    used: int = 0

    @property
    def remaining(self) -> int:
        return 0 if self.capacity is None else self.capacity - self.used

    def can_give(self, units: int) -> bool:
        return self.capacity is None or self.remaining >= units


@dataclass(frozen=True, slots=True)
class Booking:
    """One side of a transfer: positive where the account was credited."""

    transfer_id: str
    kind: TransferKind
    amount_units: int
    balance_units: int
    counterpart: AccountKey
    issuance_id: str
    booked_at: datetime


@dataclass(slots=True)
class Account:
    debits: int = 0
    credits: int = 0
    bookings: list[Booking] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Grant:
    """An issuance and what its value came from: the attribute's name and value, where it is a rate."""

    issuance: prize_pb2.Issuance
    basis: tuple[str, int] | None


class Store:
    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self.principal = ""
        self.promotions: dict[str, promotion_pb2.Promotion] = {}
        self.entrances: dict[str, entrance_pb2.Entrance] = {}
        self.prizes: dict[str, prize_pb2.Prize] = {}
        self.stocks: dict[str, Pool] = {}
        self.budgets: dict[tuple[str, str], Pool] = {}
        self.granted_counts: dict[tuple[str, str], int] = {}
        self.grants: dict[tuple[str, str], Grant] = {}
        self.issuances: dict[str, prize_pb2.Issuance] = {}
        self.cancelled: set[tuple[str, str]] = set()
        self.accounts: dict[AccountKey, Account] = {}
        self._transfer_count = 0
        self._mutations: dict[tuple[str, str], Message] = {}

    def now(self) -> datetime:
        return self._clock().astimezone(UTC)

    def stamp(self) -> Timestamp:
        stamp = Timestamp()
        stamp.FromDatetime(self.now())
        return stamp

    def promotion(self, promotion_id: str) -> promotion_pb2.Promotion:
        return _found(self.promotions, promotion_id, "PROMOTION")

    def entrance(self, entrance_id: str) -> entrance_pb2.Entrance:
        return _found(self.entrances, entrance_id, "ENTRANCE")

    def prize(self, prize_id: str) -> prize_pb2.Prize:
        return _found(self.prizes, prize_id, "PRIZE")

    def replayed(self, request: Any) -> bool:
        """Whether this mutation was applied before; raises REQUEST_ID_REUSED where it was another one."""
        before = self._mutations.get((request.DESCRIPTOR.name, request.request_id))
        if before is None:
            return False
        difference = _difference(before, request)
        if difference:
            raise reused(request.request_id, difference)
        return True

    def applied(self, request: Any) -> None:
        self._mutations[request.DESCRIPTOR.name, request.request_id] = request

    def transfer(
        self, kind: TransferKind, *, debit: AccountKey, credit: AccountKey, units: int, issuance_id: str = ""
    ) -> None:
        """Books an amount on both sides; of a negative one the sides are exchanged."""
        if units < 0:
            debit, credit, units = credit, debit, -units
        if units == 0:
            return
        self._transfer_count += 1
        for key, other, amount in ((debit, credit, -units), (credit, debit, units)):
            account = self.accounts.setdefault(key, Account())
            account.debits += max(-amount, 0)
            account.credits += max(amount, 0)
            account.bookings.append(
                Booking(
                    f"t-{self._transfer_count:09}",
                    kind,
                    amount,
                    account.credits - account.debits,
                    other,
                    issuance_id,
                    self.now(),
                )
            )


def touch(store: Store, message: Any) -> None:
    """A new version: its etag and its time."""
    message.etag = f"v{int(message.etag[1:] or 0) + 1}"
    message.updated_at.CopyFrom(store.stamp())
    if not message.HasField("created_at"):
        message.created_at.CopyFrom(message.updated_at)


def check_etag(given: str, current: str) -> None:
    if given and given != current:
        raise precondition("ETAG_MISMATCH", "the resource has changed since this etag was read")


def page(items: Sequence[T], size: int, token: str, *, default: int = 100) -> tuple[Sequence[T], str]:
    """A page of a list, and the token of the next; the fake's tokens are offsets."""
    fields = Fields()
    fields.check(not token or token.isdecimal(), "page_token", "is not one that was given out")
    fields.raise_if_any()
    start = int(token or 0)
    end = start + (size or default)
    return items[start:end], str(end) if end < len(items) else ""


def sorted_by_id(items: dict[str, T]) -> list[T]:
    return [items[key] for key in sorted(items)]


def _found(items: dict[str, T], name: str, what: str) -> T:
    if name not in items:
        raise not_found(what, name)
    return items[name]


def _difference(one: Message, other: Message) -> str:
    """The path of the first field in which two messages of one type differ; empty where they are equal."""
    for descriptor in one.DESCRIPTOR.fields:
        left, right = getattr(one, descriptor.name), getattr(other, descriptor.name)
        if left == right and _present(one, descriptor) == _present(other, descriptor):
            continue
        inner = ""
        if descriptor.message_type is not None and not isinstance(left, Iterable):
            inner = _difference(left, right)
        return f"{descriptor.name}.{inner}" if inner else str(descriptor.name)
    return ""


def _present(message: Message, descriptor: Any) -> bool:
    return bool(message.HasField(descriptor.name)) if descriptor.has_presence else True
