"""The methods of the wire, one by one."""

from typing import Any, Final

from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from guerdon._flow import Request, Response, Rpc
from guerdon.v1 import account_pb2, entrance_pb2, prize_pb2, promotion_pb2


def _rpc(method: str, request: type[Request], response: type[Response], *, mutation: bool) -> Rpc[Request, Response]:
    return Rpc(f"/guerdon.v1.{method}", request, response, mutation)


CREATE_PROMOTION: Final = _rpc(
    "PromotionService/CreatePromotion", promotion_pb2.CreatePromotionRequest, promotion_pb2.Promotion, mutation=True
)
GET_PROMOTION: Final = _rpc(
    "PromotionService/GetPromotion", promotion_pb2.GetPromotionRequest, promotion_pb2.Promotion, mutation=False
)
UPDATE_PROMOTION: Final = _rpc(
    "PromotionService/UpdatePromotion", promotion_pb2.UpdatePromotionRequest, promotion_pb2.Promotion, mutation=True
)
LIST_PROMOTIONS: Final = _rpc(
    "PromotionService/ListPromotions",
    promotion_pb2.ListPromotionsRequest,
    promotion_pb2.ListPromotionsResponse,
    mutation=False,
)
TRANSITION_PROMOTION: Final = _rpc(
    "PromotionService/TransitionPromotion",
    promotion_pb2.TransitionPromotionRequest,
    promotion_pb2.Promotion,
    mutation=True,
)
ADJUST_PROMOTION_BUDGET: Final = _rpc(
    "PromotionService/AdjustPromotionBudget",
    promotion_pb2.AdjustPromotionBudgetRequest,
    promotion_pb2.AdjustPromotionBudgetResponse,
    mutation=True,
)
CREATE_ENTRANCE: Final = _rpc(
    "EntranceService/CreateEntrance", entrance_pb2.CreateEntranceRequest, entrance_pb2.Entrance, mutation=True
)
GET_ENTRANCE: Final = _rpc(
    "EntranceService/GetEntrance", entrance_pb2.GetEntranceRequest, entrance_pb2.Entrance, mutation=False
)
UPDATE_ENTRANCE: Final = _rpc(
    "EntranceService/UpdateEntrance", entrance_pb2.UpdateEntranceRequest, entrance_pb2.Entrance, mutation=True
)
LIST_ENTRANCES: Final = _rpc(
    "EntranceService/ListEntrances",
    entrance_pb2.ListEntrancesRequest,
    entrance_pb2.ListEntrancesResponse,
    mutation=False,
)
LIST_ENTRANCE_PROMOTIONS: Final = _rpc(
    "EntranceService/ListEntrancePromotions",
    entrance_pb2.ListEntrancePromotionsRequest,
    entrance_pb2.ListEntrancePromotionsResponse,
    mutation=False,
)
CREATE_PRIZE: Final = _rpc("PrizeService/CreatePrize", prize_pb2.CreatePrizeRequest, prize_pb2.Prize, mutation=True)
GET_PRIZE: Final = _rpc("PrizeService/GetPrize", prize_pb2.GetPrizeRequest, prize_pb2.Prize, mutation=False)
UPDATE_PRIZE: Final = _rpc("PrizeService/UpdatePrize", prize_pb2.UpdatePrizeRequest, prize_pb2.Prize, mutation=True)
LIST_PRIZES: Final = _rpc(
    "PrizeService/ListPrizes", prize_pb2.ListPrizesRequest, prize_pb2.ListPrizesResponse, mutation=False
)
ADJUST_PRIZE_STOCK: Final = _rpc(
    "PrizeService/AdjustPrizeStock",
    prize_pb2.AdjustPrizeStockRequest,
    prize_pb2.AdjustPrizeStockResponse,
    mutation=True,
)
GET_PRIZE_STOCK: Final = _rpc(
    "PrizeService/GetPrizeStock", prize_pb2.GetPrizeStockRequest, prize_pb2.PrizeStock, mutation=False
)
ISSUE_PRIZE: Final = _rpc(
    "PrizeService/IssuePrize", prize_pb2.IssuePrizeRequest, prize_pb2.IssuePrizeResponse, mutation=True
)
BATCH_ISSUE_PRIZES: Final = _rpc(
    "PrizeService/BatchIssuePrizes",
    prize_pb2.BatchIssuePrizesRequest,
    prize_pb2.BatchIssuePrizesResponse,
    mutation=True,
)
# A cancellation may be done without an answer, but asking again is the answer: so it is retried and reported as a read.
GET_ISSUANCE: Final = _rpc(
    "PrizeService/GetIssuance", prize_pb2.GetIssuanceRequest, prize_pb2.GetIssuanceResponse, mutation=False
)
LIST_ISSUANCES: Final = _rpc(
    "PrizeService/ListIssuances", prize_pb2.ListIssuancesRequest, prize_pb2.ListIssuancesResponse, mutation=False
)
GET_BALANCE: Final = _rpc(
    "AccountService/GetBalance", account_pb2.GetBalanceRequest, account_pb2.Balance, mutation=False
)
LIST_BALANCES: Final = _rpc(
    "AccountService/ListBalances", account_pb2.ListBalancesRequest, account_pb2.ListBalancesResponse, mutation=False
)
LIST_ENTRIES: Final = _rpc(
    "AccountService/ListEntries", account_pb2.ListEntriesRequest, account_pb2.ListEntriesResponse, mutation=False
)
GET_TRIAL_BALANCE: Final = _rpc(
    "AccountService/GetTrialBalance",
    account_pb2.GetTrialBalanceRequest,
    account_pb2.GetTrialBalanceResponse,
    mutation=False,
)
# The health messages have one field each, number 1, a string and an enum: on the wire that is what these wrappers are,
# which spares users a dependency on the package of the health service.
CHECK_HEALTH: Final = Rpc("/grpc.health.v1.Health/Check", StringValue, Int32Value, mutation=False)

RPCS: Final[tuple[Rpc[Any, Any], ...]] = tuple(value for value in list(globals().values()) if isinstance(value, Rpc))
