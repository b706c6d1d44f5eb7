"""
Fits a profile's constants to a running vLLM: `python -m model_server.simulator.calibrate --url URL`.

Prompts are random words, so that no prefix is found in the cache. Step times are the median gap
between chunks while all streams decode; prefill is the slope of the time to the first token.
"""

import argparse
import concurrent.futures
import http.client
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

_CONCURRENCIES = (1, 4, 16, 32)
_PREFILL_WORDS = (100, 300, 500, 700)
_CONTEXT_WORDS = (20, 300)
_DECODE_TOKENS = 96
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Stream:
    """
    One streamed answer, as its client saw it.

    Attributes:
        sent_s: When the request went out.
        chunks_s: When each chunk with text came.
    """

    sent_s: float
    chunks_s: tuple[float, ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """The median step while `decoding` streams were out, each with about `context_tokens`."""

    decoding: int
    context_tokens: int
    step_s: float


class Caller:
    """Asks one engine for streams."""

    def __init__(self, url: str, *, seed: int) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._random = random.Random(seed)  # noqa: S311 - words, not secrets
        self._model = str(self._get("/v1/models")["data"][0]["id"])

    def prompt(self, words: int) -> str:
        """Words that the prefix cache has not seen."""
        letters = "bcdfghjklmnprstvwxz"
        return " ".join(
            self._random.choice(letters) + self._random.choice("aeiou") for _ in range(words)
        )

    def stream(self, prompt: str, max_tokens: int) -> Stream:
        """One answer of exactly `max_tokens`."""
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        sent_s = time.perf_counter()
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
        )
        chunks_s: list[float] = []
        prompt_tokens = 0
        response = connection.getresponse()
        for line in response:
            if line.startswith(b'data: {"id"'):
                event = json.loads(line[6:])
                if event.get("usage"):
                    prompt_tokens = event["usage"]["prompt_tokens"]
                elif event["choices"] and "role" not in event["choices"][0]["delta"]:
                    chunks_s.append(time.perf_counter())
        connection.close()
        return Stream(sent_s, tuple(chunks_s), prompt_tokens)

    def streams(self, prompts: Sequence[str], max_tokens: int) -> list[Stream]:
        """All at once."""
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda prompt: self.stream(prompt, max_tokens), prompts))

    def _get(self, path: str) -> dict[str, list[dict[str, str]]]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        connection.request("GET", path)
        answer: dict[str, list[dict[str, str]]] = json.load(connection.getresponse())
        connection.close()
        return answer


def decode_step(caller: Caller, *, decoding: int, words: int) -> DecodeStep:
    """The median step while that many streams decode together."""
    streams = caller.streams([caller.prompt(words) for _ in range(decoding)], _DECODE_TOKENS)
    first_s = max(s.chunks_s[0] for s in streams)
    last_s = min(s.chunks_s[-1] for s in streams)
    gaps_s = [
        later - earlier
        for s in streams
        for earlier, later in zip(s.chunks_s, s.chunks_s[1:], strict=False)
        if earlier >= first_s and later <= last_s
    ]
    context = statistics.fmean(s.prompt_tokens for s in streams) + _DECODE_TOKENS / 2
    return DecodeStep(decoding, round(context), statistics.median(gaps_s))


def prefill_token_s(caller: Caller, *, repeats: int) -> float:
    """Seconds a prompt token: the slope of the first token's time over the prompt's length."""
    tokens, seconds = [], []
    for words in _PREFILL_WORDS * repeats:
        stream = caller.stream(caller.prompt(words), 1)
        tokens.append(stream.prompt_tokens)
        seconds.append(stream.chunks_s[0] - stream.sent_s)
        sys.stdout.write(f"prefill {tokens[-1]:5d} tokens: {seconds[-1] * 1e3:7.1f} ms\n")
    slope, _ = np.polyfit(tokens, seconds, 1)
    return float(slope)


def fit(steps: Sequence[DecodeStep]) -> tuple[float, float, float]:
    """(base_s, decoding_s, resident_token_s), by least squares of the relative error, none negative."""
    rows = np.array([[1.0, s.decoding, s.decoding * s.context_tokens] for s in steps])
    times = np.array([s.step_s for s in steps])
    weights = 1.0 / times
    kept = [0, 1, 2]
    found = np.zeros(3)
    while kept:
        part, *_ = np.linalg.lstsq(rows[:, kept] * weights[:, None], times * weights, rcond=None)
        if (part >= 0).all():
            found[kept] = part
            break
        kept.pop(int(np.argmin(part)))
    return float(found[0]), float(found[1]), float(found[2])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the measurements and the fitted constants."""
    parser = argparse.ArgumentParser(prog="python -m model_server.simulator.calibrate")
    parser.add_argument("--url", required=True, help="where vLLM listens")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(argv)
    caller = Caller(arguments.url, seed=arguments.seed)
    caller.stream(caller.prompt(50), 8)  # the first request warms the engine up
    token_s = prefill_token_s(caller, repeats=arguments.repeats)
    steps = []
    for words in _CONTEXT_WORDS:
        for decoding in _CONCURRENCIES:
            step = decode_step(caller, decoding=decoding, words=words)
            sys.stdout.write(
                f"decode {step.decoding:3d} streams of {step.context_tokens:5d} tokens: "
                f"{step.step_s * 1e3:7.1f} ms a step, {decoding / step.step_s:6.0f} tok/s\n"
            )
            steps.append(step)
    base_s, decoding_s, resident_token_s = fit(steps)
    sys.stdout.write(
        f"base_s={base_s:.4g} prefill_token_s={token_s:.4g} ({1 / token_s:.0f} tok/s) "
        f"decoding_s={decoding_s:.4g} resident_token_s={resident_token_s:.4g}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
