"""Balances, statements and the trial balance of the fake's ledger."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf.message import Message

from guerdon import _codec as codec
from guerdon import _rpcs as rpcs
from guerdon.fake import _validation as validation
from guerdon.fake._store import Account, Booking, Store, page
from guerdon.fake._validation import Fields
from guerdon.model import AccountKey, AccountKind
from guerdon.v1 import account_pb2

_OF_PRIZES: Final = frozenset({AccountKind.STOCK_SOURCE, AccountKind.STOCK, AccountKind.HOLDING})


def _get_balance(store: Store, request: account_pb2.GetBalanceRequest) -> Message:
    key = _checked_key(request.account)
    if key.promotion_id:
        store.promotion(key.promotion_id)
    if key.prize_id:
        store.prize(key.prize_id)
    return _shown(key, store.accounts.get(key, Account()))


def _checked_key(message: account_pb2.AccountKey) -> AccountKey:
    fields = Fields()
    validation.account(fields, message)
    fields.raise_if_any()
    return codec.account_key_of(message)


def _shown(key: AccountKey, account: Account) -> account_pb2.Balance:
    return account_pb2.Balance(
        account=codec.account_key(key),
        balance_units=account.credits - account.debits,
        debits_units=account.debits,
        credits_units=account.credits,
    )


def _list_balances(store: Store, request: account_pb2.ListBalancesRequest) -> Message:
    owner = request.WhichOneof("owner")
    fields = Fields()
    validation.page_size(fields, request.page_size)
    fields.check(owner is not None, "owner", "must be user_id or promotion_id")
    if owner is not None:
        fields.id(getattr(request, owner), owner)
    fields.raise_if_any()
    if owner == "promotion_id":
        store.promotion(request.promotion_id)
    mine = [key for key in store.accounts if _belongs(store, key, request)]
    mine.sort(key=lambda key: (key.kind, key.prize_id, key.asset))
    keys, token = page(mine, request.page_size, request.page_token)
    balances = [_shown(key, store.accounts[key]) for key in keys]
    return account_pb2.ListBalancesResponse(balances=balances, next_page_token=token)


def _belongs(store: Store, key: AccountKey, request: account_pb2.ListBalancesRequest) -> bool:
    if request.WhichOneof("owner") == "user_id":
        return key.user_id == request.user_id
    if key.user_id:
        return False
    promotion_id = store.prizes[key.prize_id].promotion_id if key.prize_id else key.promotion_id
    return promotion_id == request.promotion_id


def _list_entries(store: Store, request: account_pb2.ListEntriesRequest) -> Message:
    fields = Fields()
    validation.page_size(fields, request.page_size)
    fields.raise_if_any()
    account = store.accounts.get(_checked_key(request.account), Account())
    bookings, token = page(account.bookings[::-1], request.page_size, request.page_token)
    return account_pb2.ListEntriesResponse(entries=[_entry(each) for each in bookings], next_page_token=token)


def _entry(booking: Booking) -> account_pb2.Entry:
    entry = account_pb2.Entry(
        transfer_id=booking.transfer_id,
        kind=codec.TRANSFER_KIND.number(booking.kind),
        amount_units=booking.amount_units,
        balance_units=booking.balance_units,
        counterpart=codec.account_key(booking.counterpart),
        issuance_id=booking.issuance_id,
    )
    entry.booked_at.FromDatetime(booking.booked_at)
    return entry


def _get_trial_balance(store: Store, _request: account_pb2.GetTrialBalanceRequest) -> Message:
    sums: dict[tuple[str, AccountKind], list[int]] = {}
    for key, account in store.accounts.items():
        asset = "prize" if key.kind in _OF_PRIZES else key.asset
        line = sums.setdefault((asset, key.kind), [0, 0, 0])
        for i, more in enumerate((1, account.debits, account.credits)):
            line[i] += more
    lines = [
        account_pb2.TrialBalanceLine(
            asset=asset,
            kind=codec.ACCOUNT_KIND.number(kind),
            account_count=count,
            debits_units=str(debits),
            credits_units=str(credited),
        )
        for (asset, kind), (count, debits, credited) in sorted(sums.items())
    ]
    assets = {asset for asset, _ in sums}
    balanced = all(_balances(sums, asset) for asset in assets)
    return account_pb2.GetTrialBalanceResponse(lines=lines, balanced=balanced)


def _balances(sums: Mapping[tuple[str, AccountKind], list[int]], asset: str) -> bool:
    lines = [line for (each, _), line in sums.items() if each == asset]
    return sum(line[1] for line in lines) == sum(line[2] for line in lines)


HANDLERS: Final[Mapping[str, Callable[[Store, Any], Message]]] = {
    rpcs.GET_BALANCE.path: _get_balance,
    rpcs.LIST_BALANCES.path: _list_balances,
    rpcs.LIST_ENTRIES.path: _list_entries,
    rpcs.GET_TRIAL_BALANCE.path: _get_trial_balance,
}
