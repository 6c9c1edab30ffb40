"""What the client takes and returns: frozen dataclasses and string enums.

Amounts are integers in minor units of their asset ("USD/2": 500 units are $5.00; "COIN": whole coins). Instants are
aware datetimes, in UTC where they come from the server.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, StrEnum
from typing import Final, Generic, TypeAlias, TypeVar

from guerdon.errors import GuerdonError

T = TypeVar("T")

AttributeInput: TypeAlias = bool | int | str | datetime | Sequence[str]
"""A fact about a request; a sequence is a list of texts, and datetimes must be aware."""


class Unlimited(StrEnum):
    """The type of `UNLIMITED`; an amount that nobody counts has to be asked for by name, never by leaving it out."""

    UNLIMITED = "UNLIMITED"


UNLIMITED: Final = Unlimited.UNLIMITED
Capacity: TypeAlias = int | Unlimited


class Keep(Enum):
    """The type of `KEEP`, the default of every field of an update: leave it as it is."""

    KEEP = "KEEP"


KEEP: Final = Keep.KEEP


# Enum values are the wire's names without their prefix; what a newer server adds reads as UNSPECIFIED.


class PromotionState(StrEnum):
    UNSPECIFIED = "UNSPECIFIED"
    DRAFT = "DRAFT"
    SCHEDULED = "SCHEDULED"
    ACTIVE = "ACTIVE"
    PAUSED = "PAUSED"
    ENDED = "ENDED"
    ARCHIVED = "ARCHIVED"


class PrizeKind(StrEnum):
    UNSPECIFIED = "UNSPECIFIED"
    COUPON = "COUPON"
    COIN = "COIN"
    CASHBACK = "CASHBACK"
    GOODS = "GOODS"


class Rounding(StrEnum):
    UNSPECIFIED = "UNSPECIFIED"
    HALF_UP = "HALF_UP"
    HALF_EVEN = "HALF_EVEN"
    DOWN = "DOWN"
    UP = "UP"


class RejectionReason(StrEnum):
    UNSPECIFIED = "UNSPECIFIED"
    SOLD_OUT = "SOLD_OUT"
    BUDGET_EXHAUSTED = "BUDGET_EXHAUSTED"
    LIMIT_REACHED = "LIMIT_REACHED"
    VALUE_ZERO = "VALUE_ZERO"
    ATTRIBUTE_MISSING = "ATTRIBUTE_MISSING"
    PROMOTION_NOT_STARTED = "PROMOTION_NOT_STARTED"
    PROMOTION_PAUSED = "PROMOTION_PAUSED"
    PROMOTION_ENDED = "PROMOTION_ENDED"
    BATCH_NOT_GRANTED = "BATCH_NOT_GRANTED"
    CANCELLED = "CANCELLED"
    VALIDITY_PASSED = "VALIDITY_PASSED"
    ACCOUNT_LIMIT = "ACCOUNT_LIMIT"


class BatchMode(StrEnum):
    PER_ITEM = "PER_ITEM"
    ALL_OR_NOTHING = "ALL_OR_NOTHING"


class AccountKind(StrEnum):
    UNSPECIFIED = "UNSPECIFIED"
    STOCK_SOURCE = "STOCK_SOURCE"
    STOCK = "STOCK"
    HOLDING = "HOLDING"
    BUDGET_SOURCE = "BUDGET_SOURCE"
    BUDGET = "BUDGET"
    WALLET = "WALLET"
    LIABILITY = "LIABILITY"


class TransferKind(StrEnum):
    UNSPECIFIED = "UNSPECIFIED"
    STOCK_INITIAL = "STOCK_INITIAL"
    STOCK_TOP_UP = "STOCK_TOP_UP"
    STOCK_RECALL = "STOCK_RECALL"
    BUDGET_INITIAL = "BUDGET_INITIAL"
    BUDGET_TOP_UP = "BUDGET_TOP_UP"
    BUDGET_RECALL = "BUDGET_RECALL"
    ISSUE_UNIT = "ISSUE_UNIT"
    ISSUE_VALUE = "ISSUE_VALUE"


class HealthStatus(StrEnum):
    UNKNOWN = "UNKNOWN"
    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"
    SERVICE_UNKNOWN = "SERVICE_UNKNOWN"


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list; `next_page_token` is empty on the last."""

    items: tuple[T, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Money:
    asset: str
    units: int


# Promotions and entrances


@dataclass(frozen=True, slots=True)
class Budget:
    """What a promotion may spend in one asset: capacity = spent + remaining (remaining is 0 where unlimited)."""

    asset: str
    capacity: Capacity
    spent_units: int
    remaining_units: int


@dataclass(frozen=True, slots=True)
class BudgetAdjustment:
    """The budget as it is now; `replayed` if this request id had been applied before."""

    budget: Budget
    replayed: bool


@dataclass(frozen=True, slots=True)
class Promotion:
    promotion_id: str
    display_name: str
    state: PromotionState
    starts_at: datetime | None
    ends_at: datetime | None
    entrance_ids: tuple[str, ...]
    budgets: tuple[Budget, ...]
    etag: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Entrance:
    entrance_id: str
    display_name: str
    etag: str
    created_at: datetime
    updated_at: datetime


# Prizes


@dataclass(frozen=True, slots=True)
class FixedValue:
    """The same value for every grant."""

    asset: str
    units: int


@dataclass(frozen=True, slots=True)
class RateValue:
    """round(attribute x basis_points / 10000), raised to the floor, cut at the cap.

    `attribute` names an integer attribute of the request.
    """

    asset: str
    attribute: str
    basis_points: int
    floor_units: int | None = None
    cap_units: int | None = None
    rounding: Rounding = Rounding.HALF_UP


PrizeValue: TypeAlias = FixedValue | RateValue


@dataclass(frozen=True, slots=True)
class ValidUntil:
    """All grants expire at the same instant."""

    at: datetime


@dataclass(frozen=True, slots=True)
class ValidDays:
    """A grant expires so many times 24 hours after it was made."""

    days: int


Validity: TypeAlias = ValidUntil | ValidDays


@dataclass(frozen=True, slots=True)
class Prize:
    """What is given. `stock` is the capacity it was created with; `get_prize_stock` tells what is left."""

    prize_id: str
    promotion_id: str
    display_name: str
    kind: PrizeKind
    value: PrizeValue | None
    stock: Capacity
    limit_per_user: int
    validity: Validity | None
    etag: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class PrizeStock:
    """capacity = issued + remaining (remaining is 0 where unlimited)."""

    prize_id: str
    capacity: Capacity
    issued_units: int
    remaining_units: int


@dataclass(frozen=True, slots=True)
class StockAdjustment:
    """The stock as it is now; `replayed` if this request id had been applied before."""

    stock: PrizeStock
    replayed: bool


@dataclass(frozen=True, slots=True)
class EntrancePrize:
    """A prize as one user sees it; `unavailable_reason` is None where it is available."""

    prize: Prize
    available: bool
    unavailable_reason: RejectionReason | None
    user_granted_count: int


@dataclass(frozen=True, slots=True)
class EntrancePromotion:
    promotion: Promotion
    prizes: tuple[EntrancePrize, ...]


# Issuing


@dataclass(frozen=True, slots=True)
class Issuance:
    """One granted reward; `value` is None where the prize has none, `expires_at` where it never expires."""

    issuance_id: str
    promotion_id: str
    entrance_id: str
    prize_id: str
    user_id: str
    request_id: str
    reference: str
    principal: str
    kind: PrizeKind
    value: Money | None
    issued_at: datetime
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Granted:
    """Durable and final. `replayed`: the grant was made by an earlier attempt, maybe one that this call retried."""

    issuance: Issuance
    replayed: bool


@dataclass(frozen=True, slots=True)
class Rejected:
    """Refused at this moment; asked again it is decided anew.

    `rule` says which rule said no ("prizes/welcome/limit_per_user"), with the value it saw and the one it asks for.
    """

    reason: RejectionReason
    rule: str
    observed: str
    threshold: str
    message: str


@dataclass(frozen=True, slots=True)
class PendingOutcome:
    """An earlier attempt was still in flight when the deadline came: ask again later, with the same request id."""

    retry_after_ms: int


@dataclass(frozen=True, slots=True)
class ItemError:
    """What `issue_prize` would have raised for this item of a batch."""

    error: GuerdonError


@dataclass(frozen=True, slots=True)
class Absent:
    """Nothing was granted under this key; `cancelled`: and nothing ever will be. Otherwise: not yet."""

    cancelled: bool


IssueOutcome: TypeAlias = Granted | Rejected | PendingOutcome
ItemOutcome: TypeAlias = Granted | Rejected | PendingOutcome | ItemError
IssuanceState: TypeAlias = Issuance | PendingOutcome | Absent


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One reward of a batch; the request id is chosen by the caller, one for each reward that is due."""

    prize_id: str
    user_id: str
    request_id: str
    reference: str = ""
    attributes: Mapping[str, AttributeInput] = field(default_factory=dict)


# Accounts


@dataclass(frozen=True, slots=True)
class AccountKey:
    """Names an account by what it is for: a wallet by user and asset, stock by prize, a holding by user and prize,
    a budget or liability by promotion and asset."""

    kind: AccountKind
    user_id: str = ""
    promotion_id: str = ""
    prize_id: str = ""
    asset: str = ""


@dataclass(frozen=True, slots=True)
class Balance:
    """balance = credits - debits."""

    account: AccountKey
    balance_units: int
    debits_units: int
    credits_units: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a statement: the amount (negative: debited) and the balance after it.

    `issuance_id` is empty where the transfer is not of an issuance.
    """

    transfer_id: str
    kind: TransferKind
    amount_units: int
    balance_units: int
    counterpart: AccountKey
    issuance_id: str
    booked_at: datetime


@dataclass(frozen=True, slots=True)
class TrialBalanceLine:
    asset: str
    kind: AccountKind
    account_count: int
    debits_units: int
    credits_units: int


@dataclass(frozen=True, slots=True)
class TrialBalance:
    """`balanced`: debits equal credits for every asset."""

    lines: tuple[TrialBalanceLine, ...]
    balanced: bool
