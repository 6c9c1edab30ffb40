"""Errors as a server sends them: a status with ErrorInfo and field violations in its trailing metadata."""

from collections.abc import Mapping, Sequence
from typing import Final

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped, unused-ignore]

DOMAIN: Final = "guerdon.dev"


class Refused(grpc.aio.AioRpcError):
    """What a channel would raise, with the status that it carries."""

    def __init__(self, status: status_pb2.Status, code: grpc.StatusCode) -> None:
        details = (("grpc-status-details-bin", status.SerializeToString()),)
        super().__init__(code, grpc.aio.Metadata(), grpc.aio.Metadata(*details), status.message)
        self.status = status


def refusal(
    code: grpc.StatusCode,
    reason: str,
    message: str,
    *,
    metadata: Mapping[str, str] | None = None,
    violations: Sequence[tuple[str, str]] = (),
) -> Refused:
    details: list[Message] = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata or {}))
    if violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=field, description=text) for field, text in violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return Refused(status_pb2.Status(code=code.value[0], message=message, details=packed), code)


def not_found(what: str, name: str) -> Refused:
    return refusal(grpc.StatusCode.NOT_FOUND, f"{what}_NOT_FOUND", f"there is no {what.lower()} {name!r}")


def exists(what: str, name: str) -> Refused:
    return refusal(grpc.StatusCode.ALREADY_EXISTS, f"{what}_EXISTS", f"the {what.lower()} {name!r} exists")


def precondition(reason: str, message: str, **metadata: str) -> Refused:
    return refusal(grpc.StatusCode.FAILED_PRECONDITION, reason, message, metadata=metadata)


def reused(request_id: str, field: str) -> Refused:
    return refusal(
        grpc.StatusCode.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
        f"the request id {request_id!r} was used before with another {field}",
        metadata={"field": field},
    )
