"""A bare unary gRPC echo: the floor that every real RPC of the server is compared with.

Run it with `python echo_server.py --port 0`. It prints one line, `PORT <port>`, when it accepts calls, and stops on
SIGTERM or SIGINT. The request's bytes are the response's bytes: no protobuf, no interceptor, no logging, one process,
one event loop, so that what is left is the transport's own cost per RPC.
"""

from __future__ import annotations

import argparse
import asyncio
import signal

import grpc
import grpc.aio
import uvloop

SERVICE = "guerdon.loadtest.Echo"
METHOD = f"/{SERVICE}/Echo"
DRAIN_SECONDS = 1.0


async def _echo(request: bytes, _context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    return request


async def serve(*, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT. Raises RuntimeError if the port cannot be bound."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    # No serializers: bytes in, bytes out.
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Echo": handler}),))
    bound = server.add_insecure_port(f"{host}:{port}")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await server.start()
    print(f"PORT {bound}", flush=True)
    await stop.wait()
    await server.stop(DRAIN_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description="Bare gRPC echo server, the reference for CPU per RPC.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port, printed on the first line")
    parser.add_argument("--asyncio", action="store_true", help="the standard event loop in place of uvloop")
    args = parser.parse_args()
    run = asyncio.run if args.asyncio else uvloop.run
    run(serve(host=args.host, port=args.port))


if __name__ == "__main__":
    main()
