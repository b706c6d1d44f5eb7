"""How the kernel is told to watch over connections to an engine."""

import socket

KEEPALIVE_PROBE_S = 5
"""Seconds of silence before TCP asks whether the engine's machine still lives, and between asks."""
KEEPALIVE_PROBES = 3
"""Unanswered ones that end a connection."""


def watched() -> list[tuple[int, int, int]]:
    """So that a peer which vanished without a word is noticed, also while nothing is sent."""
    wanted = {
        "TCP_NODELAY": 1,
        "TCP_KEEPIDLE": KEEPALIVE_PROBE_S,
        "TCP_KEEPINTVL": KEEPALIVE_PROBE_S,
        "TCP_KEEPCNT": KEEPALIVE_PROBES,
        "TCP_USER_TIMEOUT": 1000 * KEEPALIVE_PROBE_S * (KEEPALIVE_PROBES + 1),
    }
    return [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        *(
            (socket.IPPROTO_TCP, int(getattr(socket, name)), value)
            for name, value in wanted.items()
            if hasattr(socket, name)  # Linux has them all
        ),
    ]
