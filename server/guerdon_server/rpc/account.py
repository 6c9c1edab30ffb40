"""AccountService: balances, statements and the trial balance, as the ledger has them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from guerdon.v1 import account_pb2
from guerdon_server.core.ledger.statement import (
    OF_PROMOTION,
    OF_USER,
    AccountKey,
    AccountKind,
    Balance,
    BalanceCursor,
    Entry,
    EntryCursor,
    Statement,
    TrialBalanceLine,
    is_balanced,
)
from guerdon_server.platform.errors import Violation
from guerdon_server.rpc.issuance_read import set_timestamp
from guerdon_server.rpc.paging import decode_numbers, encode_token
from guerdon_server.rpc.validation import check_asset, check_enum, check_id, check_page_size, refuse

_FIELDS: Final[Mapping[AccountKind, tuple[str, ...]]] = {
    AccountKind.STOCK_SOURCE: ("prize_id",),
    AccountKind.STOCK: ("prize_id",),
    AccountKind.HOLDING: ("user_id", "prize_id"),
    AccountKind.BUDGET_SOURCE: ("promotion_id", "asset"),
    AccountKind.BUDGET: ("promotion_id", "asset"),
    AccountKind.WALLET: ("user_id", "asset"),
    AccountKind.LIABILITY: ("promotion_id", "asset"),
}


class AccountServicer:
    """Methods of AccountService: request and principal to response; refusals are ServiceError."""

    def __init__(self, statement: Statement) -> None:
        self._statement = statement

    async def GetBalance(self, request: account_pb2.GetBalanceRequest, principal: str) -> account_pb2.Balance:
        """The balance of one account; zeros for one never used."""
        violations: list[Violation] = []
        key = _key_of(request.account, violations)
        refuse(violations)
        return _balance(await self._statement.balance(key))

    async def ListBalances(
        self, request: account_pb2.ListBalancesRequest, principal: str
    ) -> account_pb2.ListBalancesResponse:
        """All accounts of a user or of a promotion."""
        violations: list[Violation] = []
        owner = request.WhichOneof("owner")
        if owner is None:
            violations.append(Violation("owner", "must be user_id or promotion_id"))
        else:
            check_id(violations, owner, getattr(request, owner))
        size = check_page_size(violations, request.page_size)
        scope = ["balances", str(owner), request.user_id or request.promotion_id]
        kinds = OF_USER if owner == "user_id" else OF_PROMOTION
        position = decode_numbers(violations, request.page_token, scope, 2)
        if position and position[0] not in kinds:
            violations.append(Violation("page_token", "is not the next_page_token of the same list"))
        refuse(violations)
        after = BalanceCursor(*position) if position else None
        if owner == "user_id":
            balances, following = await self._statement.balances_of_user(request.user_id, size, after)
        else:
            balances, following = await self._statement.balances_of_promotion(request.promotion_id, size, after)
        return account_pb2.ListBalancesResponse(
            balances=[_balance(balance) for balance in balances],
            next_page_token="" if following is None else encode_token(scope, following),
        )

    async def ListEntries(
        self, request: account_pb2.ListEntriesRequest, principal: str
    ) -> account_pb2.ListEntriesResponse:
        """The statement of one account, the newest entry first."""
        violations: list[Violation] = []
        key = _key_of(request.account, violations)
        size = check_page_size(violations, request.page_size)
        account = request.account
        scope = [
            "entries", str(account.kind), account.user_id, account.promotion_id, account.prize_id, account.asset,
        ]  # fmt: skip
        position = decode_numbers(violations, request.page_token, scope, 2)
        refuse(violations)
        entries, following = await self._statement.entries(key, size, EntryCursor(*position) if position else None)
        return account_pb2.ListEntriesResponse(
            entries=[_entry(entry) for entry in entries],
            next_page_token="" if following is None else encode_token(scope, following),
        )

    async def GetTrialBalance(
        self, request: account_pb2.GetTrialBalanceRequest, principal: str
    ) -> account_pb2.GetTrialBalanceResponse:
        """The sums of all debits and credits by asset and kind of account."""
        lines = await self._statement.trial_balance()
        return account_pb2.GetTrialBalanceResponse(lines=[_line(line) for line in lines], balanced=is_balanced(lines))


def _key_of(message: account_pb2.AccountKey, violations: list[Violation]) -> AccountKey:
    before = len(violations)
    kind = check_enum(violations, "account.kind", message.kind, AccountKind)
    if len(violations) == before:
        _check_names(message, _FIELDS[kind], violations)
    return AccountKey(
        kind=kind,
        user_id=message.user_id,
        promotion_id=message.promotion_id,
        prize_id=message.prize_id,
        asset=message.asset,
    )


def _check_names(message: account_pb2.AccountKey, needed: Collection[str], violations: list[Violation]) -> None:
    for name in ("user_id", "promotion_id", "prize_id", "asset"):
        field, value = f"account.{name}", getattr(message, name)
        if name not in needed:
            if value:
                violations.append(
                    Violation(field, f"does not belong to this kind of account; it has {' and '.join(needed)}")
                )
        elif name == "asset":
            check_asset(violations, field, value)
        else:
            check_id(violations, field, value)


def _key(key: AccountKey) -> account_pb2.AccountKey:
    return account_pb2.AccountKey(
        kind=int(key.kind),  # type: ignore[arg-type]  # the numbers are the wire's
        user_id=key.user_id,
        promotion_id=key.promotion_id,
        prize_id=key.prize_id,
        asset=key.asset,
    )


def _balance(balance: Balance) -> account_pb2.Balance:
    return account_pb2.Balance(
        account=_key(balance.account),
        balance_units=balance.balance,
        debits_units=balance.debits,
        credits_units=balance.credits,
    )


def _entry(entry: Entry) -> account_pb2.Entry:
    message = account_pb2.Entry(
        transfer_id=str(entry.transfer_id),
        kind=int(entry.kind),  # type: ignore[arg-type]  # the numbers are the wire's
        amount_units=entry.amount,
        balance_units=entry.balance,
        counterpart=_key(entry.counterpart),
        issuance_id="" if entry.issuance_id is None else str(entry.issuance_id),
    )
    set_timestamp(message.booked_at, entry.booked_at)
    return message


def _line(line: TrialBalanceLine) -> account_pb2.TrialBalanceLine:
    return account_pb2.TrialBalanceLine(
        asset=line.asset,
        kind=int(line.kind),  # type: ignore[arg-type]  # the numbers are the wire's
        account_count=line.account_count,
        debits_units=str(line.debits),
        credits_units=str(line.credits),
    )
