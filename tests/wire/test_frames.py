"""What is no call at all: too large, too late, garbled, another protocol. Refused, and the server serves on."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from guerdon.v1 import prize_pb2 as prize
from tests.issuing.desk import Refusal, ask, item, opened, outcome, refusal
from tests.transports import frames
from tests.wire.conftest import House

messages: Any = reflection_pb2  # its types are not told
SERVICES = {f"guerdon.v1.{name}Service" for name in ("Promotion", "Entrance", "Prize", "Account")}


def raw(house: House, method: str = frames.ISSUE) -> Any:
    """A call that sends bytes as they are."""
    return house.desk.channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)


async def still_serves(house: House) -> None:
    """A new connection gets an answer."""
    async with opened(house.target) as desk:
        assert (await desk.stock()).issued_units == 1


@pytest.mark.parametrize(
    "message",
    [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xc3\x28", b"\x0c", bytes(100), random.Random(1).randbytes(500)],
    ids=["cut short", "length beyond the end", "no UTF-8", "end of no group", "zeros", "random"],
)
async def test_bytes_that_are_no_message_are_an_invalid_argument(house: House, message: bytes) -> None:
    before = await house.everything()

    refused = await refusal(raw(house)(message))

    assert (refused.code, refused.domain) == ("INVALID_ARGUMENT", "guerdon.dev"), refused
    assert refused.reason
    assert await house.everything() == before


async def test_a_message_over_the_limit_is_refused(house: House) -> None:
    before = await house.everything()
    over = ask("r-new", reference="x" * (house.settings.message_bytes_max + 1))

    refused = await refusal(house.desk.prizes.IssuePrize(over))

    assert (refused.code, refused.domain) == ("RESOURCE_EXHAUSTED", "guerdon.dev"), refused
    assert refused.reason == "MESSAGE_TOO_LARGE"
    assert await house.everything() == before


async def test_a_message_that_unpacks_to_more_than_the_limit_is_refused(house: House) -> None:
    before = await house.everything()
    over = ask("r-new", reference="x" * (64 << 20))

    refused = await refusal(house.desk.prizes.IssuePrize(over, compression=grpc.Compression.Gzip))

    assert refused.code == "RESOURCE_EXHAUSTED", refused
    assert await house.everything() == before


async def test_fields_from_the_future_are_ignored(house: House) -> None:
    unknown = b"\xba\x3e\x03abc" + b"\xc0\x3e\x01"  # fields 999 (text) and 1000 (number)
    known = ask("r-given").SerializeToString()

    response = prize.IssuePrizeResponse.FromString(await raw(house)(known + unknown))

    assert response.replayed


async def test_a_deadline_that_has_passed_does_nothing(house: House) -> None:
    before = await house.everything()

    refused = await refusal(house.desk.issue(ask("r-new"), timeout=-1))

    assert refused.code == "DEADLINE_EXCEEDED"
    assert await house.everything() == before


def _by_hand(house: House, timeout: bytes, request_ids: list[str]) -> bytes:
    """Calls as HTTP/2 frames: with a client its own deadline would pass before the server's answer."""
    calls = (
        frames.call(house.target, 2 * number + 1, ask(request_id).SerializeToString(), [(b"grpc-timeout", timeout)])
        for number, request_id in enumerate(request_ids)
    )
    return frames.PREFACE + frames.settings() + b"".join(calls)


async def test_a_deadline_that_can_not_be_met_is_refused_before_any_work(house: House) -> None:
    before = await house.everything()
    assert b"r-given" in await spoken(house, _by_hand(house, b"10S", ["r-given"]))

    answer = await spoken(house, _by_hand(house, b"1n", [f"late-{number}" for number in range(20)]))

    assert b"late-" not in answer
    assert await house.everything() == before


async def test_unknown_methods_and_services_are_unimplemented(house: House) -> None:
    for method in ("/guerdon.v1.PrizeService/StealPrize", "/guerdon.v2.PrizeService/IssuePrize", "/", "/x"):
        assert (await refusal(raw(house, method)(b""))).code == "UNIMPLEMENTED"


async def spoken(house: House, message: bytes) -> bytes:
    """What comes back before the server closes, or within a moment."""
    host, port = house.target.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(message)
    heard = b""
    try:
        async with asyncio.timeout(0.5):
            while more := await reader.read(65_536):
                heard += more
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return heard


@pytest.mark.parametrize(
    "message",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /guerdon.v1.PrizeService/IssuePrize HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
        random.Random(2).randbytes(4096),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + random.Random(3).randbytes(4096),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff\xff\xff\x00\x00" + bytes(64),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"",
    ],
    ids=["GET", "POST", "noise", "noise after the preface", "huge frame", "TLS", "silence"],
)
async def test_other_protocols_on_the_port_change_nothing(house: House, message: bytes) -> None:
    before = await house.everything()

    answer = await spoken(house, message)

    assert b"200" not in answer[:20]
    await still_serves(house)
    assert await house.everything() == before


def _reflection(house: House) -> Any:
    channel: Any = house.desk.channel
    return reflection_pb2_grpc.ServerReflectionStub(channel)


async def test_reflection_lists_every_service(house: House) -> None:
    stub = _reflection(house)
    request = messages.ServerReflectionRequest(list_services="")

    listed = [answer async for answer in stub.ServerReflectionInfo(iter([request]))]

    names = {service.name for service in listed[0].list_services_response.service}
    assert names >= SERVICES | {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_reflection_describes_every_service(house: House) -> None:
    stub = _reflection(house)
    for name in SERVICES:
        request = messages.ServerReflectionRequest(file_containing_symbol=name)
        (answer,) = [answer async for answer in stub.ServerReflectionInfo(iter([request]))]
        assert answer.WhichOneof("message_response") == "file_descriptor_response"


async def test_health_answers_for_the_server_and_for_every_service(house: House) -> None:
    stub: Any = health_pb2_grpc.HealthStub(house.desk.channel)
    for name in ("", *SERVICES):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING

    assert (await refusal(stub.Check(health_pb2.HealthCheckRequest(service="none")))).code == "NOT_FOUND"


@pytest.mark.parametrize("mode", [prize.BATCH_MODE_PER_ITEM, prize.BATCH_MODE_ALL_OR_NOTHING])
async def test_items_that_are_all_bad_are_answered_one_by_one(house: House, mode: prize.BatchMode.ValueType) -> None:
    before = await house.everything()
    items = [item("r-1", prize_id="a b"), item("r-2", user_id=""), item("r\x00"), prize.BatchItem()]
    request = prize.BatchIssuePrizesRequest(promotion_id="spring", entrance_id="checkout", items=items, mode=mode)

    response = await outcome(house.desk.prizes.BatchIssuePrizes(request))

    fields = [_fields(result) for result in response.results]
    assert fields == [
        ["items[0].prize_id"],
        ["items[1].user_id"],
        ["items[2].request_id"],
        ["items[3].prize_id", "items[3].user_id", "items[3].request_id"],
    ]
    assert await house.everything() == before


def _fields(result: prize.BatchItemResult) -> list[str]:
    return list(Refusal.of(result.error).fields)
