"""The server's doors as a stranger finds them: generated stubs, no client library in between."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2, status_pb2

from guerdon.v1 import account_pb2_grpc, entrance_pb2_grpc, prize_pb2_grpc, promotion_pb2_grpc
from guerdon.v1 import entrance_pb2 as entrance
from guerdon.v1 import prize_pb2 as prize
from guerdon.v1 import promotion_pb2 as promotion
from guerdon.v1 import types_pb2 as types

WAIT_SECONDS_MAX = 30.0
_numbers = itertools.count(1)


def fresh(prefix: str = "id") -> str:
    """An id that was never used."""
    return f"{prefix}-{next(_numbers)}"


async def eventually(condition: Callable[[], bool | Awaitable[bool]], *, poll_seconds: float = 0.02) -> None:
    """Returns when the condition holds; TimeoutError if it never does."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while True:
            holds = condition()
            if await holds if inspect.isawaitable(holds) else holds:
                return
            await asyncio.sleep(poll_seconds)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as it came over the wire. `fields`: description by field."""

    code: str
    message: str
    reason: str = ""
    domain: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    retry_after_ms: int | None = None

    @classmethod
    def of(cls, status: status_pb2.Status) -> Refusal:
        """From a google.rpc.Status, in a trailer or in a batch."""
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        retrying = False
        for detail in status.details:
            retrying = detail.Unpack(retry) or retrying
            _ = detail.Unpack(info) or detail.Unpack(bad)
        return cls(
            grpc_code(status.code),
            status.message,
            info.reason,
            info.domain,
            dict(info.metadata),
            {violation.field: violation.description for violation in bad.field_violations},
            retry.retry_delay.ToMilliseconds() if retrying else None,
        )

    @classmethod
    def caught(cls, error: grpc.aio.AioRpcError) -> Refusal:
        """From the error of a call."""
        trailer = dict(tuple(error.trailing_metadata() or ()))
        packed = trailer.get("grpc-status-details-bin")
        if packed is None:
            return cls(error.code().name, error.details() or "")
        assert isinstance(packed, bytes)
        refusal = cls.of(status_pb2.Status.FromString(packed))
        assert refusal.code == error.code().name
        return refusal


def grpc_code(number: int) -> str:
    """The name of a canonical code."""
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)


async def refusal(call: Awaitable[Any]) -> Refusal:
    """The error that a call ends with; an answer is a failure of the test."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return Refusal.caught(error)
    raise AssertionError(f"answered: {answer}")


async def outcome(call: Awaitable[Any]) -> Any:
    """The answer, or the Refusal."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return Refusal.caught(error)


class Desk:
    """One channel to one server, and shorthands with raw messages. Ids of catalogue calls are made here."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.promotions = promotion_pb2_grpc.PromotionServiceStub(channel)
        self.entrances = entrance_pb2_grpc.EntranceServiceStub(channel)
        self.prizes = prize_pb2_grpc.PrizeServiceStub(channel)
        self.accounts = account_pb2_grpc.AccountServiceStub(channel)

    # --- catalogue ------------------------------------------------------------------------------------------------

    async def opens(
        self,
        promotion_id: str = "spring",
        *,
        entrances: Sequence[str] = ("checkout",),
        budgets: Mapping[str, int | None] | None = None,
        active: bool = True,
    ) -> None:
        """A promotion with its entrances; budgets in units by asset, None for unlimited."""
        for entrance_id in entrances:
            request = entrance.CreateEntranceRequest(
                entrance=entrance.Entrance(entrance_id=entrance_id), request_id=f"entrance-{entrance_id}"
            )
            await self.entrances.CreateEntrance(request)
        await self.promotions.CreatePromotion(
            promotion.CreatePromotionRequest(
                promotion=promotion.Promotion(
                    promotion_id=promotion_id,
                    entrance_ids=entrances,
                    budgets=[_budget(asset, units) for asset, units in (budgets or {}).items()],
                ),
                request_id=fresh("create"),
            )
        )
        if active:
            await self.goes("SCHEDULED", promotion_id)

    async def goes(self, state: str, promotion_id: str = "spring") -> promotion.Promotion:
        """A transition."""
        request = promotion.TransitionPromotionRequest(
            promotion_id=promotion_id,
            target_state=promotion.PromotionState.Value(f"PROMOTION_STATE_{state}"),
            request_id=fresh("transition"),
        )
        return await self.promotions.TransitionPromotion(request)

    async def updates_promotion(self, paths: Sequence[str], promotion_id: str = "spring", **fields: Any) -> None:
        """Sets the named fields."""
        await self.promotions.UpdatePromotion(
            promotion.UpdatePromotionRequest(
                promotion=promotion.Promotion(promotion_id=promotion_id, **fields),
                update_mask=FieldMask(paths=paths),
                request_id=fresh("update"),
            )
        )

    async def coupon(
        self,
        prize_id: str = "welcome",
        *,
        promotion_id: str = "spring",
        stock: int | None = None,
        limit: int = 0,
        days: int = 0,
    ) -> None:
        """A coupon without a value; stock None for unlimited."""
        await self.offers(
            prize_id,
            promotion_id=promotion_id,
            kind=prize.PRIZE_KIND_COUPON,
            stock=_stock(stock),
            limit_per_user=limit,
            validity=prize.Validity(days=days) if days else None,
        )

    async def cashback(
        self, prize_id: str = "cashback", *, promotion_id: str = "spring", asset: str = "USD/2", **rate: Any
    ) -> None:
        """5 % of order_cents unless the rate says otherwise."""
        rule = prize.ValueRate(
            **{"attribute": "order_cents", "basis_points": 500, "rounding": prize.ROUNDING_HALF_UP, **rate}
        )
        await self.offers(
            prize_id,
            promotion_id=promotion_id,
            kind=prize.PRIZE_KIND_CASHBACK,
            stock=_stock(None),
            value=prize.PrizeValue(asset=asset, rate=rule),
        )

    async def offers(self, prize_id: str, *, promotion_id: str = "spring", **fields: Any) -> None:
        """Any prize."""
        made = prize.Prize(prize_id=prize_id, promotion_id=promotion_id, **fields)
        await self.prizes.CreatePrize(prize.CreatePrizeRequest(prize=made, request_id=fresh("create")))

    async def updates_prize(self, paths: Sequence[str], prize_id: str, **fields: Any) -> None:
        """Sets the named fields."""
        await self.prizes.UpdatePrize(
            prize.UpdatePrizeRequest(
                prize=prize.Prize(prize_id=prize_id, **fields),
                update_mask=FieldMask(paths=paths),
                request_id=fresh("update"),
            )
        )

    async def adjusts_stock(self, delta: int, prize_id: str = "welcome") -> prize.PrizeStock:
        """Top-up or recall."""
        request = prize.AdjustPrizeStockRequest(prize_id=prize_id, delta_units=delta, request_id=fresh("adjust"))
        return (await self.prizes.AdjustPrizeStock(request)).stock

    async def stock(self, prize_id: str = "welcome") -> prize.PrizeStock:
        """As the ledger has it."""
        return await self.prizes.GetPrizeStock(prize.GetPrizeStockRequest(prize_id=prize_id))

    # --- issuing --------------------------------------------------------------------------------------------------

    async def issue(
        self, request: prize.IssuePrizeRequest, *, timeout: float | None = 20.0, principal: str = ""
    ) -> prize.IssuePrizeResponse:
        """Raises AioRpcError."""
        metadata = (("guerdon-principal", principal),) if principal else ()
        return await self.prizes.IssuePrize(request, timeout=timeout, metadata=metadata)

    async def grant(self, request: prize.IssuePrizeRequest, *, replayed: bool = False) -> prize.Issuance:
        """It must be granted."""
        response = await self.issue(request)
        assert response.WhichOneof("outcome") == "granted", response
        assert response.replayed is replayed
        return response.granted

    async def rejection(self, request: prize.IssuePrizeRequest) -> prize.Rejection:
        """It must be rejected."""
        response = await self.issue(request)
        assert response.WhichOneof("outcome") == "rejected", response
        return response.rejected

    async def batch(
        self,
        items: Sequence[prize.BatchItem],
        *,
        together: bool = False,
        promotion_id: str = "spring",
        entrance_id: str = "checkout",
        timeout: float | None = 20.0,
    ) -> Sequence[prize.BatchItemResult]:
        """Raises AioRpcError."""
        request = prize.BatchIssuePrizesRequest(
            promotion_id=promotion_id,
            entrance_id=entrance_id,
            items=items,
            mode=prize.BATCH_MODE_ALL_OR_NOTHING if together else prize.BATCH_MODE_PER_ITEM,
        )
        return (await self.prizes.BatchIssuePrizes(request, timeout=timeout)).results

    async def became(
        self, request_id: str, *, promotion_id: str = "spring", cancel: bool = False
    ) -> prize.GetIssuanceResponse:
        """GetIssuance by request key."""
        key = prize.RequestKey(promotion_id=promotion_id, request_id=request_id)
        return await self.prizes.GetIssuance(prize.GetIssuanceRequest(request=key, cancel_if_absent=cancel))


def ask(
    request_id: str = "",
    *,
    user_id: str = "ann",
    prize_id: str = "welcome",
    promotion_id: str = "spring",
    entrance_id: str = "checkout",
    reference: str = "",
    **integers: int,
) -> prize.IssuePrizeRequest:
    """A request for one prize; keyword arguments are integer attributes."""
    return prize.IssuePrizeRequest(
        promotion_id=promotion_id,
        entrance_id=entrance_id,
        prize_id=prize_id,
        user_id=user_id,
        request_id=request_id or fresh(),
        reference=reference,
        attributes=attributes(**integers),
    )


def item(
    request_id: str = "", *, user_id: str = "ann", prize_id: str = "welcome", reference: str = "", **integers: int
) -> prize.BatchItem:
    """The same for a batch."""
    return prize.BatchItem(
        prize_id=prize_id,
        user_id=user_id,
        request_id=request_id or fresh(),
        reference=reference,
        attributes=attributes(**integers),
    )


def attributes(**integers: int) -> dict[str, types.AttributeValue]:
    """Integer attributes."""
    return {name: types.AttributeValue(integer=value) for name, value in integers.items()}


def reason(rejected: prize.Rejection) -> str:
    """Its name without the prefix."""
    return prize.RejectionReason.Name(rejected.reason).removeprefix("REJECTION_REASON_")


def kinds(results: Sequence[prize.BatchItemResult]) -> list[str]:
    """Of each item: granted, replayed, pending, or the reason or error that it was refused with."""
    found = []
    for result in results:
        which = result.WhichOneof("outcome")
        if which == "granted":
            found.append("replayed" if result.replayed else "granted")
        elif which == "rejected":
            found.append(reason(result.rejected))
        elif which == "error":
            found.append(Refusal.of(result.error).reason)
        else:
            found.append(str(which))
    return found


@asynccontextmanager
async def opened(target: str) -> AsyncIterator[Desk]:
    """A desk on a channel of its own."""
    # Without the local pool two channels to the same address share one connection.
    async with grpc.aio.insecure_channel(target, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        yield Desk(channel)


def _stock(units: int | None) -> prize.Stock:
    return prize.Stock(unlimited=True) if units is None else prize.Stock(units=units)


def _budget(asset: str, units: int | None) -> promotion.Budget:
    if units is None:
        return promotion.Budget(asset=asset, unlimited=True)
    return promotion.Budget(asset=asset, units=units)
