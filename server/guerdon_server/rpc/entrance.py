"""EntranceService on the wire."""

from __future__ import annotations

from typing import Final

from guerdon.v1 import entrance_pb2, prize_pb2
from guerdon_server.core.entrance.model import Entrance, EntranceUpdate, NewEntrance
from guerdon_server.core.entrance.service import EntranceService
from guerdon_server.core.ledger.postgres.operations import Caller
from guerdon_server.core.prize.model import Offer
from guerdon_server.core.prize.service import PrizeService
from guerdon_server.core.promotion.service import PromotionService
from guerdon_server.platform.errors import Violation
from guerdon_server.rpc.paging import cut, decode_id, encode_token
from guerdon_server.rpc.prize import prize_to_wire
from guerdon_server.rpc.promotion import promotion_to_wire
from guerdon_server.rpc.validation import (
    check_display_name,
    check_etag,
    check_id,
    check_mask,
    check_optional_id,
    check_page_size,
    refuse,
    to_timestamp,
)

_PATHS: Final = ("display_name",)
_LIVE_PAGE_SIZE_MAX: Final = 100
_LIVE_PAGE_SIZE_DEFAULT: Final = 50


class EntranceServicer:
    """Methods of EntranceService: request and principal to response; refusals are ServiceError."""

    def __init__(self, entrances: EntranceService, promotions: PromotionService, prizes: PrizeService) -> None:
        self._entrances = entrances
        self._promotions = promotions
        self._prizes = prizes

    async def CreateEntrance(
        self, request: entrance_pb2.CreateEntranceRequest, principal: str
    ) -> entrance_pb2.Entrance:
        """A new entrance."""
        wire = request.entrance
        violations: list[Violation] = []
        check_id(violations, "request_id", request.request_id)
        check_id(violations, "entrance.entrance_id", wire.entrance_id)
        check_display_name(violations, "entrance.display_name", wire.display_name)
        refuse(violations)
        new = NewEntrance(wire.entrance_id, wire.display_name)
        return _entrance_to_wire(await self._entrances.create(new, Caller(request.request_id, principal)))

    async def GetEntrance(self, request: entrance_pb2.GetEntranceRequest, principal: str) -> entrance_pb2.Entrance:
        """One entrance."""
        violations: list[Violation] = []
        check_id(violations, "entrance_id", request.entrance_id)
        refuse(violations)
        return _entrance_to_wire(await self._entrances.get(request.entrance_id))

    async def UpdateEntrance(
        self, request: entrance_pb2.UpdateEntranceRequest, principal: str
    ) -> entrance_pb2.Entrance:
        """Changes what the mask names."""
        wire = request.entrance
        violations: list[Violation] = []
        check_id(violations, "request_id", request.request_id)
        check_id(violations, "entrance.entrance_id", wire.entrance_id)
        check_etag(violations, "entrance.etag", wire.etag)
        mask = check_mask(violations, request.update_mask, _PATHS)
        check_display_name(violations, "entrance.display_name", wire.display_name)
        refuse(violations)
        update = EntranceUpdate(wire.entrance_id, wire.etag, mask, wire.display_name)
        return _entrance_to_wire(await self._entrances.update(update, Caller(request.request_id, principal)))

    async def ListEntrances(
        self, request: entrance_pb2.ListEntrancesRequest, principal: str
    ) -> entrance_pb2.ListEntrancesResponse:
        """By id."""
        violations: list[Violation] = []
        size = check_page_size(violations, request.page_size)
        scope = ("ListEntrances",)
        after = decode_id(violations, request.page_token, scope)
        refuse(violations)
        page, last = cut(await self._entrances.page(after=after, limit=size + 1), size)
        return entrance_pb2.ListEntrancesResponse(
            entrances=map(_entrance_to_wire, page),
            next_page_token=encode_token(scope, [last.entrance_id]) if last else "",
        )

    async def ListEntrancePromotions(
        self, request: entrance_pb2.ListEntrancePromotionsRequest, principal: str
    ) -> entrance_pb2.ListEntrancePromotionsResponse:
        """What is live here for this user now; five queries, however much there is."""
        violations: list[Violation] = []
        check_id(violations, "entrance_id", request.entrance_id)
        check_optional_id(violations, "user_id", request.user_id)
        size = check_page_size(violations, request.page_size, most=_LIVE_PAGE_SIZE_MAX, default=_LIVE_PAGE_SIZE_DEFAULT)
        scope = ("ListEntrancePromotions", request.entrance_id, request.user_id)
        after = decode_id(violations, request.page_token, scope)
        refuse(violations)
        await self._entrances.get(request.entrance_id)
        live = await self._promotions.live_page(request.entrance_id, after=after, limit=size + 1)
        page, last = cut(live, size)
        offers = await self._prizes.offers([promotion.sid for promotion in page], request.user_id)
        return entrance_pb2.ListEntrancePromotionsResponse(
            promotions=[
                entrance_pb2.EntrancePromotion(
                    promotion=promotion_to_wire(promotion), prizes=map(_offer_to_wire, offers[promotion.sid])
                )
                for promotion in page
            ],
            next_page_token=encode_token(scope, [last.promotion_id]) if last else "",
        )


def _entrance_to_wire(entrance: Entrance) -> entrance_pb2.Entrance:
    return entrance_pb2.Entrance(
        entrance_id=entrance.entrance_id,
        display_name=entrance.display_name,
        etag=entrance.etag,
        created_at=to_timestamp(entrance.created_at),
        updated_at=to_timestamp(entrance.updated_at),
    )


def _offer_to_wire(offer: Offer) -> entrance_pb2.EntrancePrize:
    return entrance_pb2.EntrancePrize(
        prize=prize_to_wire(offer.prize),
        available=offer.unavailable is None,
        unavailable_reason=prize_pb2.RejectionReason.ValueType(offer.unavailable or 0),
        user_granted_count=offer.user_granted,
    )
