"""ServiceError on the wire: a status with google.rpc details."""

from __future__ import annotations

import asyncio
from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from guerdon_server.platform.errors import Code, ServiceError
from guerdon_server.platform.postgres import is_unavailable

DOMAIN: Final = "guerdon.dev"
STATUS_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
# Details travel in a trailer; the default limit of HTTP/2 header lists is 8 KB, and text is not all there is.
_MESSAGE_CHARACTERS_MAX: Final = 1000
_METADATA_CHARACTERS_MAX: Final = 256


def to_status(error: ServiceError) -> status_pb2.Status:
    """google.rpc.Status with ErrorInfo{reason, domain, metadata}, and BadRequest and RetryInfo where they apply."""
    status = status_pb2.Status(code=error.code.value, message=error.message[:_MESSAGE_CHARACTERS_MAX])
    metadata = {key: value[:_METADATA_CHARACTERS_MAX] for key, value in error.metadata.items()}
    details: list[message.Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    ]
    if error.violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
            for v in error.violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if error.retry_after_ms is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(error.retry_after_ms)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def to_trailers(error: ServiceError) -> tuple[int, str, list[tuple[str, str | bytes]]]:
    """What ends a call with it: code, message, trailers."""
    status = to_status(error)
    return status.code, status.message, [("grpc-status-details-bin", status.SerializeToString())]


def internal() -> ServiceError:
    """INTERNAL / INTERNAL: a defect of ours; what happened is in the log, not on the wire."""
    message = "an internal error; the outcome is unknown: repeat with the same request id, and report it if it stays"
    return ServiceError(Code.INTERNAL, "INTERNAL", message)


def unavailable(error: BaseException) -> ServiceError | None:
    """UNAVAILABLE / LEDGER_UNAVAILABLE for the failures of a connection to PostgreSQL; None: it is something else."""
    if not is_unavailable(error) and not isinstance(error, OSError | asyncio.TimeoutError):
        return None
    message = "PostgreSQL does not answer; retry with the same request id"
    return ServiceError(Code.UNAVAILABLE, "LEDGER_UNAVAILABLE", message, retry_after_ms=500)
