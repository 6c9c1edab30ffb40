"""What is asked of the server: messages with marked runs (generator.py) that make each request a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from guerdon.v1 import prize_pb2, types_pb2

SERVICE: Final = "/guerdon.v1.PrizeService"
ENTRANCE: Final = "checkout"
PROMOTION: Final = "bench"
CASH: Final = "USD/2"
COIN: Final = "COIN"
BATCH_ITEMS: Final = 100

# Ids of the lengths that are met in the field; '@' runs are unique, '#' runs random digits.
_USER: Final = "user-" + "@" * 12
_RETURNING_USER: Final = "user-#####"
_REQUEST: Final = "order-" + "@" * 16
_REFERENCE: Final = "task-" + "#" * 8

# What orders of the demo look like: cents and CDs.
_ORDERS: Final = ((2933, 2), (1250, 1), (4977, 3), (799, 1), (12388, 8), (1495, 1), (3340, 2), (2157, 1))


class Prize(IntEnum):
    """The prizes of the bench's promotion; the id is the name in lower case."""

    COUPON = 1
    CASHBACK = 2
    COINS = 3
    SOLD_OUT = 4

    @property
    def id(self) -> str:
        return f"bench-{self.name.lower()}"


def spread_prize_id(number: int) -> str:
    """Of the coupons that load is spread over."""
    return f"bench-spread-{number:02}"


class Outcome(IntEnum):
    """Number of the first field of an answer: which member of its oneof it has. A batch's answer has its results."""

    GRANTED = 1
    REJECTED = 2


@dataclass(frozen=True, slots=True)
class Target:
    """What the project promises of a workload; None: nothing of that kind.

    echo_ratio_max: server CPU of a call ÷ that of an echo. durable_per_second_min: grants, with everything on 2 cores.
    postgres_core_share_max: CPU of PostgreSQL ÷ time, so that 1 is a whole core. p99_ms_max: on a schedule at 60 % of
    the capacity. goodput_share_min: answered in time at 3 x the capacity ÷ the capacity.
    """

    echo_ratio_max: float | None = None
    durable_per_second_min: float | None = None
    postgres_core_share_max: float | None = None
    p99_ms_max: float | None = None
    goodput_share_min: float | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of call. `messages` are sent in turn.

    repeats: after so many calls the same requests come again, all of them granted before the first round; 0: never.
    open_loop: whether it is also offered on a schedule.
    """

    name: str
    title: str
    method: str
    messages: Sequence[bytes]
    items_per_call: int = 1
    outcome: Outcome = Outcome.GRANTED
    durable: bool = True
    repeats: int = 0
    connections: int = 8
    streams: int = 16
    open_loop: bool = False
    target: Target = Target()
    native_target: Target | None = None

    def target_on(self, transport: str) -> Target:
        """`native_target` where there is one, on the native transport."""
        return self.native_target if transport == "native" and self.native_target else self.target


def _attributes(prize: Prize, order: tuple[int, int]) -> Mapping[str, types_pb2.AttributeValue]:
    cents, cds = order
    if prize is Prize.CASHBACK:
        return {"order_cents": types_pb2.AttributeValue(integer=cents)}
    if prize is Prize.COINS:
        return {"cds": types_pb2.AttributeValue(integer=cds)}
    return {}


def _user(prize: Prize) -> str:
    # A coupon is given once to a user; wallets are those of 100,000 returning ones.
    return _USER if prize in (Prize.COUPON, Prize.SOLD_OUT) else _RETURNING_USER


def issue(prize: Prize, order: tuple[int, int] = _ORDERS[0]) -> bytes:
    """An IssuePrizeRequest."""
    return prize_pb2.IssuePrizeRequest(
        promotion_id=PROMOTION,
        entrance_id=ENTRANCE,
        prize_id=prize.id,
        user_id=_user(prize),
        request_id=_REQUEST,
        reference=_REFERENCE,
        attributes=_attributes(prize, order),
    ).SerializeToString()


def batch(prizes: Sequence[Prize], items: int = BATCH_ITEMS, *, prize_ids: Sequence[str] | None = None) -> bytes:
    """A BatchIssuePrizesRequest of so many items, the prizes in turn; `prize_ids`: others like them instead."""
    request = prize_pb2.BatchIssuePrizesRequest(
        promotion_id=PROMOTION, entrance_id=ENTRANCE, mode=prize_pb2.BATCH_MODE_PER_ITEM
    )
    for index in range(items):
        prize = prizes[index % len(prizes)]
        order = _ORDERS[index // len(prizes) % len(_ORDERS)]
        request.items.add(
            prize_id=prize.id if prize_ids is None else prize_ids[index % len(prize_ids)],
            user_id=_user(prize),
            request_id=_REQUEST,
            reference=_REFERENCE,
            attributes=_attributes(prize, order),
        )
    return request.SerializeToString()


_MIX: Final = (Prize.COUPON, Prize.CASHBACK, Prize.COINS)
_UNARY: Final = f"{SERVICE}/IssuePrize"
_BATCH: Final = f"{SERVICE}/BatchIssuePrizes"

_ISSUE: Final = Workload(
    "issue",
    "coupon, unary",
    _UNARY,
    (issue(Prize.COUPON),),
    open_loop=True,
    target=Target(echo_ratio_max=1.8, p99_ms_max=15, goodput_share_min=0.9),
    native_target=Target(p99_ms_max=15, goodput_share_min=0.9),
)
WORKLOADS: Final[Sequence[Workload]] = (
    _ISSUE,
    replace(
        _ISSUE,
        name="crowd",
        title="coupon, 256 at once",
        streams=32,
        open_loop=False,
        target=Target(),
        native_target=Target(durable_per_second_min=10_000),
    ),
    Workload(
        "sold_out",
        "sold out, unary",
        _UNARY,
        (issue(Prize.SOLD_OUT),),
        outcome=Outcome.REJECTED,
        durable=False,
        target=Target(echo_ratio_max=1.35, postgres_core_share_max=0.03),
        native_target=Target(echo_ratio_max=1.8, postgres_core_share_max=0.03),
    ),
    Workload(
        "replay",
        "granted before, unary",
        _UNARY,
        (issue(Prize.COUPON),),
        durable=False,
        repeats=5000,
    ),
    Workload(
        "mix",
        "demo's mix, unary",
        _UNARY,
        tuple(issue(prize, order) for order in _ORDERS[:4] for prize in _MIX),
    ),
    Workload(
        "batch",
        f"coupons, batches of {BATCH_ITEMS}",
        _BATCH,
        (batch((Prize.COUPON,)),),
        items_per_call=BATCH_ITEMS,
        connections=4,
        streams=5,
        open_loop=True,
        target=Target(durable_per_second_min=20_000, goodput_share_min=0.9),
    ),
    Workload(
        "batch_mix",
        f"demo's mix, batches of {BATCH_ITEMS}",
        _BATCH,
        (batch(_MIX),),
        items_per_call=BATCH_ITEMS,
        connections=4,
        streams=5,
        target=Target(durable_per_second_min=13_000),
    ),
)
ECHO_CONNECTIONS: Final = 8
ECHO_STREAMS: Final = 16

# For several servers, each with so many calls in flight that commits are several calls, and four servers refuse none.
HOT: Final = replace(
    next(workload for workload in WORKLOADS if workload.name == "batch"),
    name="hot",
    title="one prize",
    connections=2,
    streams=4,
)
ALONE: Final = replace(HOT, name="alone", title="one call", connections=1, streams=1)
SPREAD_PRIZES: Final = 100
_SPREAD_IDS: Final = tuple(map(spread_prize_id, range(SPREAD_PRIZES)))
SPREAD_CALLS: Final = replace(
    HOT,
    name="spread_calls",
    title=f"{SPREAD_PRIZES} prizes by call",
    messages=tuple(batch((Prize.COUPON,), prize_ids=(prize_id,)) for prize_id in _SPREAD_IDS),
)
SPREAD_ITEMS: Final = replace(
    HOT,
    name="spread_items",
    title=f"{SPREAD_PRIZES} prizes by item",
    messages=(batch((Prize.COUPON,), prize_ids=_SPREAD_IDS),),
)
SOAK: Final = next(workload for workload in WORKLOADS if workload.name == "batch_mix")
