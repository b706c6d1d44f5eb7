"""
The command line: `python -m model_server.simulator --port 8000 --profile h100-8b`.

Flags are named as vLLM's, and default to what vLLM would choose for the profile.
"""

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from model_server.simulator.app import TRANSPORT, App
from model_server.simulator.engine import Engine, EngineConfig
from model_server.simulator.faults import Faults
from model_server.simulator.latency import PROFILES, Profile

_BACKLOG = 2048
_KEEP_ALIVE_S = 5
"""As VLLM_HTTP_TIMEOUT_KEEP_ALIVE, so that clients that reuse older connections are found out."""
_LINGER_ZERO = struct.pack("ii", 1, 0)


class TransportProtocol(HttpToolsProtocol):
    """uvicorn's HTTP, with the connection in the scope."""

    def on_message_begin(self) -> None:
        """Add the transport to the scope of each request."""
        super().on_message_begin()
        self.scope["extensions"] = {TRANSPORT: self.transport}  # type: ignore[dict-item]


class Server(uvicorn.Server):
    """Says where it listens once it does, and is told by the program when to end."""

    def stop(self) -> None:
        """Make `serve` return."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would end the program by them once more, after it is done."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and print the address."""
        await super().startup(sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            sys.stdout.write(f"listening on http://{host}:{port}\n")
            sys.stdout.flush()


def reset(transport: Any) -> None:
    """End a connection with RST: what was sent but not read yet is lost to the other side."""
    raw = transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    transport.abort()


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code, after SIGTERM or SIGINT."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        profile = _profile(arguments)
        config = _config(arguments, profile)
    except ValueError as exc:
        parser.error(str(exc))
    # It calls a response that was cut on purpose an error.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    faults = Faults(seed=config.seed, clock=time.monotonic)
    engine = Engine(config=config, profile=profile, faults=faults, clock=time.monotonic)
    server = Server(
        uvicorn.Config(
            App(engine=engine, faults=faults, reset=reset),
            http=TransportProtocol,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=arguments.shutdown_timeout,
        )
    )
    with (
        socket.create_server((arguments.host, arguments.port), backlog=_BACKLOG) as listener,
        asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner,
    ):
        runner.run(_serve(server, engine, listener))
    return 0


async def _serve(server: Server, engine: Engine, listener: socket.socket) -> None:
    stepping = asyncio.create_task(engine.run())
    # Without steps there is nothing to serve: a defect of the engine ends the program.
    stepping.add_done_callback(lambda _: server.stop())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.stop)
    await server.serve(sockets=[listener])
    if stepping.done():
        stepping.result()
    stepping.cancel()


def _profile(arguments: argparse.Namespace) -> Profile:
    profile, mean = PROFILES[arguments.profile], arguments.answer_tokens
    if mean is None:
        return profile
    if mean <= 0:
        raise ValueError(f"--answer-tokens must be above 0, got {mean:g}")
    return replace(profile, answer_tokens=mean)


def _config(arguments: argparse.Namespace, profile: Profile) -> EngineConfig:
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    defaults: dict[str, Any] = {
        "model": profile.name,
        "kv_cache_tokens": profile.kv_cache_tokens,
        "block_size": profile.block_size,
        "max_num_seqs": profile.max_num_seqs,
        "max_num_batched_tokens": profile.max_num_batched_tokens,
        "max_model_len": profile.max_model_len,
    }
    for name in ("port", "host", "profile", "shutdown_timeout", "answer_tokens"):
        given.pop(name, None)
    return EngineConfig(**(defaults | given))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model_server.simulator", description="vLLM's wire without a model."
    )
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="smollm2-cpu")
    parser.add_argument("--model", help="the name under which it is served")
    for flag in (
        "--kv-cache-tokens",
        "--block-size",
        "--max-num-seqs",
        "--max-num-batched-tokens",
        "--max-model-len",
        "--max-num-queued-reqs",
        "--max-num-queued-tokens",
        "--stream-interval",
        "--seed",
    ):
        parser.add_argument(flag, type=int)
    parser.add_argument(
        "--shutdown-timeout", type=int, default=1, help="seconds for running requests to end"
    )
    parser.add_argument("--time-scale", type=float, help="multiplies every duration")
    parser.add_argument(
        "--answer-tokens", type=float, help="mean length of an answer; the profile's by default"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
