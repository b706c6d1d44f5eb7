"""
Who asks what and when, computed before the first request is sent.

Open loop: arrivals are a Poisson process that never waits for an answer. The same seed gives the same
requests at the same times to every system, so that only the systems differ.
"""

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

Size = Literal["small", "medium", "large"]
Band = Literal["interactive", "normal", "batch"]

SIZES: tuple[Size, ...] = ("small", "medium", "large")
MIN_ANSWER_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Ask:
    """
    One logical request: what a person wants once, however often the client has to try.

    Attributes:
        at_s: When it arrives, in seconds from the start of the run.
        prompt: Which of the prompts, as an index into the pool.
        max_tokens: Longest answer.
        nonce: Makes the prompt one of its kind, so that no engine has it computed already.
        stream: Whether the answer is wanted as it comes.
        tenant: API key.
        band: Priority.
        degrade: Whether a lesser answer will do.
    """

    at_s: float
    prompt: int
    max_tokens: int
    nonce: str
    stream: bool
    tenant: str
    band: Band
    degrade: bool


@dataclass(frozen=True, slots=True)
class Flow:
    """
    Requests that arrive at a constant mean rate, independently of each other.

    Attributes:
        rate_per_s: Mean arrivals a second.
        begin_s: First moment, in seconds from the start of the run.
        end_s: Last moment.
    """

    rate_per_s: float
    end_s: float
    begin_s: float = 0.0
    tenant: str = "load"
    band: Band = "normal"
    degrade: bool = False


@dataclass(frozen=True, slots=True)
class Mix:
    """
    What the requests of a flow are like.

    Attributes:
        shares: Of each prompt size.
        mean_tokens: Mean of `max_tokens`, which is log-normal. People allow more than they get: the
            answers' own lengths are the engine's.
        cap_tokens: Its maximum.
        sigma: Its spread, of the logarithm.
        stream_share: How many want the answer as it comes.
    """

    shares: Mapping[Size, float] = field(
        default_factory=lambda: {"small": 0.4, "medium": 0.4, "large": 0.2}
    )
    mean_tokens: float = 400.0
    cap_tokens: int = 512
    sigma: float = 0.5
    stream_share: float = 0.95

    def max_tokens(self, rng: random.Random) -> int:
        """The longest answer that one request allows."""
        mu = math.log(self.mean_tokens) - self.sigma**2 / 2
        drawn = round(rng.lognormvariate(mu, self.sigma))
        return min(max(drawn, MIN_ANSWER_TOKENS), self.cap_tokens)

    def size(self, rng: random.Random) -> Size:
        """The prompt size of one request."""
        return rng.choices(SIZES, [self.shares[size] for size in SIZES])[0]


def poisson(rate_per_s: float, *, begin_s: float, end_s: float, rng: random.Random) -> list[float]:
    """Arrival times of a Poisson process, in seconds, ascending."""
    times: list[float] = []
    at_s = begin_s
    while rate_per_s > 0:
        at_s += rng.expovariate(rate_per_s)
        if at_s >= end_s:
            break
        times.append(at_s)
    return times


def schedule(
    flows: Sequence[Flow], *, pool: Sequence[Size], mix: Mix, seed: int, salt: str = ""
) -> tuple[Ask, ...]:
    """
    The requests of all flows, in order of arrival.

    Args:
        flows: Each draws from random numbers of its own: another flow beside it changes nothing.
        pool: The size of each prompt that there is.
        mix: What they are like.
        seed: The same seed, the same requests.
        salt: Changes the nonces and nothing else: a run must not find its prompts computed by the
            run before it.
    """
    by_size = {size: [n for n, other in enumerate(pool) if other == size] for size in SIZES}
    asks: list[Ask] = []
    for number, flow in enumerate(flows):
        rng = random.Random(f"{seed}/{number}")  # noqa: S311 - a reproducible load, no secret
        times = poisson(flow.rate_per_s, begin_s=flow.begin_s, end_s=flow.end_s, rng=rng)
        for n, at_s in enumerate(times):
            drawn = _ask(at_s, flow, by_size=by_size, mix=mix, rng=rng)
            digest = hashlib.blake2b(f"{salt}/{seed}/{number}/{n}".encode(), digest_size=8)
            asks.append(replace(drawn, nonce=digest.hexdigest()))
    return tuple(sorted(asks, key=lambda ask: ask.at_s))


def _ask(
    at_s: float,
    flow: Flow,
    *,
    by_size: Mapping[Size, Sequence[int]],
    mix: Mix,
    rng: random.Random,
) -> Ask:
    return Ask(
        at_s=at_s,
        prompt=rng.choice(by_size[mix.size(rng)]),
        max_tokens=mix.max_tokens(rng),
        nonce="",
        stream=rng.random() < mix.stream_share,
        tenant=flow.tenant,
        band=flow.band,
        degrade=flow.degrade,
    )
