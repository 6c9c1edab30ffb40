"""What the ledger can be asked: balances, statements, the trial balance, and the issuances that it holds. Pure."""

from __future__ import annotations

import datetime as dt
import enum
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from guerdon_server.core.ledger.model import Issuance


class AccountKind(enum.IntEnum):
    """What an account is for. Mirrors AccountKind of the wire and guerdon.account.kind."""

    STOCK_SOURCE = 1
    STOCK = 2
    HOLDING = 3
    BUDGET_SOURCE = 4
    BUDGET = 5
    WALLET = 6
    LIABILITY = 7


OF_USER = (AccountKind.WALLET, AccountKind.HOLDING)
"""The kinds of account that a user owns, in the order in which they are listed."""

OF_PROMOTION = (
    AccountKind.STOCK,
    AccountKind.STOCK_SOURCE,
    AccountKind.BUDGET,
    AccountKind.BUDGET_SOURCE,
    AccountKind.LIABILITY,
)
"""The kinds of account that a promotion owns, in the order in which they are listed."""

UNITS_OF_PRIZES = "prize"
"""Stands for the asset where units of prizes are counted; no asset has this name."""


class TransferKind(enum.IntEnum):
    """Why something was moved. Mirrors TransferKind of the wire and guerdon.transfer.kind."""

    STOCK_INITIAL = 1
    STOCK_TOP_UP = 2
    STOCK_RECALL = 3
    BUDGET_INITIAL = 4
    BUDGET_TOP_UP = 5
    BUDGET_RECALL = 6
    ISSUE_UNIT = 7
    ISSUE_VALUE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountKey:
    """Names an account by what it is for; the fields that its kind does not need are empty.

    A wallet has user and asset; a holding user and prize; stock and its source the prize; a budget, its source and a
    liability promotion and asset.
    """

    kind: AccountKind
    user_id: str = ""
    promotion_id: str = ""
    prize_id: str = ""
    asset: str = ""


@dataclass(frozen=True, slots=True)
class Balance:
    """The counters of one account, in units of its asset or of its prize."""

    account: AccountKey
    debits: int
    credits: int

    @property
    def balance(self) -> int:
        return self.credits - self.debits


@dataclass(frozen=True, slots=True)
class Entry:
    """One transfer as one of its two accounts sees it. `amount` is negative where debited; `balance` is the account's
    after this entry."""

    transfer_id: int
    kind: TransferKind
    amount: int
    balance: int
    counterpart: AccountKey
    issuance_id: int | None
    booked_at: dt.datetime


class EntryCursor(NamedTuple):
    """Where a statement goes on: the entries before this transfer; `balance` is what they came to.

    Entries of one account are booked in the order of their ids (drawn under its lock), so what is booked while
    somebody reads page after page has higher ids and moves no balance of the pages to come.
    """

    transfer_id: int
    balance: int


class BalanceCursor(NamedTuple):
    """Where a list of balances goes on: after the account of this kind and item."""

    kind: int
    item: int


@dataclass(frozen=True, slots=True)
class TrialBalanceLine:
    """Sums over all accounts of one kind and asset ("prize" for units of prizes); they may pass the range of int64."""

    asset: str
    kind: AccountKind
    account_count: int
    debits: int
    credits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuanceFilter:
    """Which issuances to list: exactly one is set."""

    user_id: str = ""
    promotion_id: str = ""
    reference: str = ""


class Statement(Protocol):
    """The reads of the ledger. Each call is a bounded number of statements, whatever the size of its page. All raise
    LedgerAway."""

    async def balance(self, key: AccountKey) -> Balance:
        """Zeros for an account, a user or an asset never seen. NOT_FOUND / PROMOTION_NOT_FOUND, PRIZE_NOT_FOUND."""

    async def balances_of_user(
        self, user_id: str, limit: int, after: BalanceCursor | None
    ) -> tuple[list[Balance], BalanceCursor | None]:
        """The user's accounts and where the next page begins (None: this was the last). Empty for an unknown user."""

    async def balances_of_promotion(
        self, promotion_id: str, limit: int, after: BalanceCursor | None
    ) -> tuple[list[Balance], BalanceCursor | None]:
        """The promotion's accounts, likewise. NOT_FOUND / PROMOTION_NOT_FOUND."""

    async def entries(
        self, key: AccountKey, limit: int, before: EntryCursor | None
    ) -> tuple[list[Entry], EntryCursor | None]:
        """The statement of one account, the newest first, and where it goes on. Errors as `balance`."""

    async def trial_balance(self) -> list[TrialBalanceLine]:
        """The sums of all accounts by kind and asset, in one snapshot."""

    async def issuance(self, issuance_id: int) -> Issuance | None:
        """The grant of this id, or None."""

    async def issuances(
        self, which: IssuanceFilter, limit: int, before: int | None
    ) -> tuple[list[Issuance], int | None]:
        """Grants by falling id, below `before`, and where the list goes on. What is granted meanwhile comes before
        the first page, or, if its commit was overtaken, nowhere. NOT_FOUND / PROMOTION_NOT_FOUND."""


def is_balanced(lines: Sequence[TrialBalanceLine]) -> bool:
    """Whether debits equal credits for every asset."""
    difference: defaultdict[str, int] = defaultdict(int)
    for line in lines:
        difference[line.asset] += line.debits - line.credits
    return not any(difference.values())


def running(amounts_newest_first: Sequence[int], balance: int) -> list[int]:
    """The balance after each entry, where `balance` is that after the first (newest) of them."""
    after = []
    for amount in amounts_newest_first:
        after.append(balance)
        balance -= amount
    return after
