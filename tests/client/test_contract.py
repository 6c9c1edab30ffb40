"""The clients cover the wire, and cover it alike."""

import inspect
import re
from enum import StrEnum

import pytest

import guerdon
from guerdon import AsyncClient, Client
from guerdon.fake import FakeAsyncClient, FakeClient
from guerdon.v1 import account_pb2, entrance_pb2, prize_pb2, promotion_pb2

METHODS = {
    re.sub(r"(?<!^)([A-Z])", r"_\1", method.name).lower()
    for module in (promotion_pb2, entrance_pb2, prize_pb2, account_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


@pytest.mark.parametrize("client", [Client, AsyncClient, FakeClient, FakeAsyncClient])
def test_every_method_of_the_wire_is_a_method_of_the_client(client: type) -> None:
    public = {name for name, _ in inspect.getmembers(client, callable) if not name.startswith("_")}
    assert public == METHODS | {"check_health", "with_options", "close"}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_both_clients_take_the_same_documented_keywords(name: str) -> None:
    one, other = inspect.signature(getattr(Client, name)), inspect.signature(getattr(AsyncClient, name))
    assert one == other
    assert "Generator" not in str(one), "the steps of a call are no caller's business"
    _client, *arguments = one.parameters.values()
    assert {each.kind for each in arguments} <= {inspect.Parameter.KEYWORD_ONLY}
    assert inspect.getdoc(getattr(Client, name))


@pytest.mark.parametrize("name", sorted(each for each in METHODS if not each.startswith(("get_", "list_"))))
def test_no_mutation_invents_a_request_id(name: str) -> None:
    parameters = inspect.signature(getattr(Client, name)).parameters
    if name != "batch_issue_prizes":  # its items have them
        assert parameters["request_id"].default is inspect.Parameter.empty
    assert inspect.signature(guerdon.BatchItem).parameters["request_id"].default is inspect.Parameter.empty


@pytest.mark.parametrize(
    ("enum", "wire"),
    [
        (guerdon.PromotionState, promotion_pb2.DESCRIPTOR.enum_types_by_name["PromotionState"]),
        (guerdon.PrizeKind, prize_pb2.DESCRIPTOR.enum_types_by_name["PrizeKind"]),
        (guerdon.Rounding, prize_pb2.DESCRIPTOR.enum_types_by_name["Rounding"]),
        (guerdon.RejectionReason, prize_pb2.DESCRIPTOR.enum_types_by_name["RejectionReason"]),
        (guerdon.AccountKind, account_pb2.DESCRIPTOR.enum_types_by_name["AccountKind"]),
        (guerdon.TransferKind, account_pb2.DESCRIPTOR.enum_types_by_name["TransferKind"]),
    ],
)
def test_enums_name_all_that_the_wire_names(enum: type[StrEnum], wire: object) -> None:
    names = [value.name for value in wire.values]  # type: ignore[attr-defined]
    prefix = names[0].removesuffix("UNSPECIFIED")
    assert [prefix + member.value for member in enum] == names


def test_what_is_public_is_exported() -> None:
    assert len(set(guerdon.__all__)) == len(guerdon.__all__)
    for name in guerdon.__all__:
        assert getattr(guerdon, name) is not None
