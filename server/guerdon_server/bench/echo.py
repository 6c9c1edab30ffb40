"""A bare unary gRPC echo: the floor that every real RPC of the server is compared with.

`python -m guerdon_server.bench.echo --response-bytes 150` prints one JSON line with the address when it accepts calls,
and stops on SIGTERM or SIGINT. No protobuf, no interceptor, no logging, one process, one event loop, and the answer is
always the same: what is left is the transport's own cost per RPC.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal

import grpc
import grpc.aio
import uvloop

SERVICE = "guerdon.bench.Echo"
METHOD = f"/{SERVICE}/Echo"
_DRAIN_SECONDS = 1.0


async def serve(*, host: str, port: int, response_bytes: int, transport: str = "grpcio") -> None:
    """Serve until SIGTERM or SIGINT. Raises RuntimeError if the port can't be bound."""
    response = b"\x0a" + b"x" * (response_bytes - 1)

    async def echo(_request: bytes, _context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return response

    server = _server(transport)
    # No serializers: bytes in, bytes out.
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Echo": handler}),))
    if transport == "native":  # which serves only these itself
        server.add_registered_method_handlers(SERVICE, {"Echo": handler})
    bound = server.add_insecure_port(f"{host}:{port}")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await server.start()
    print(json.dumps({"event": "ready", "grpc": f"{host}:{bound}"}), flush=True)
    await stop.wait()
    await server.stop(_DRAIN_SECONDS)


def _server(transport: str) -> grpc.aio.Server:
    if transport == "native":
        # Not `from pygrpc_native import aio`, which recurses for ever in 0.5.0.
        import pygrpc_native.aio  # noqa: PLC0415  optional

        return pygrpc_native.aio.server()
    return grpc.aio.server(options=[("grpc.so_reuseport", 0)])


def main() -> None:
    parser = argparse.ArgumentParser(description="Bare gRPC echo server, the reference for CPU per RPC.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port, told on the first line")
    parser.add_argument("--response-bytes", type=int, default=150, help="size of every answer, at least 1")
    parser.add_argument("--transport", choices=("grpcio", "native"), default="grpcio")
    args = parser.parse_args()
    uvloop.run(serve(host=args.host, port=args.port, response_bytes=args.response_bytes, transport=args.transport))


if __name__ == "__main__":
    main()
