"""
Takes each of the ten safeguards out, and shows that a test notices.

`python -m tests.safeguards` runs each named test as it is, then with its safeguard taken out
(`tests/without.py`). The exit code is 0 if all of them pass the first time, and each fails the
second time for the reason that is written here.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.without import VARIABLE

ROOT = Path(__file__).parent.parent
PARALLEL = 2
_REDDENED = re.compile(r"^E +(.*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Safeguard:
    """
    One safeguard, and the test that fails without it.

    Attributes:
        name: As in docs/operations.md, and in `tests/without.py`.
        test: pytest's id.
        reason: What the failure must say.
    """

    name: str
    test: str
    reason: str


ENGINE = "tests/integration/test_faults_engine.py"
REFUSALS = "tests/integration/test_faults_refusals.py"
CLIENT = "tests/integration/test_faults_client.py"
METRICS = "tests/integration/test_faults_metrics.py"
EMBEDDER = "tests/unit/orchestrator/retrieval/test_embedder_memory.py"

SAFEGUARDS = (
    Safeguard(
        "GPU memory watching",
        f"{METRICS}::test_the_cache_bounds_what_is_let_in",
        "more of the engine's cache was given out than it has",
    ),
    Safeguard(
        "request queue",
        "tests/integration/test_ask.py::test_more_than_the_gate_holds_are_told",
        "the queue has no end",
    ),
    Safeguard(
        "concurrency limit",
        f"{METRICS}::test_a_frozen_page_does_not_open_the_gate",
        "more were with the engine than the limit",
    ),
    Safeguard(
        "timeouts",
        f"{ENGINE}::TestRow11Silence::test_the_deadline_fires_first",
        "httpx2.ReadTimeout",
    ),
    Safeguard(
        "graceful degradation",
        f"{ENGINE}::TestRow10Refused::test_an_engine_that_is_gone_is_told_at_once",
        "no lesser answer instead of an error",
    ),
    Safeguard(
        "model unloading",
        f"{EMBEDDER}::test_memory_goes_back_when_nothing_is_asked",
        "what is idle keeps what it took",
    ),
    Safeguard(
        "memory cleanup",
        f"{CLIENT}::TestRow20Disconnect::test_in_the_middle_of_the_answer[sse]",
        "'reserved_tokens': [1-9]",
    ),
    Safeguard(
        "error recovery",
        f"{ENGINE}::TestRow10Refused::test_a_blip_is_not_seen",
        "what would have gone well at once was not tried again",
    ),
    Safeguard(
        "health checks",
        f"{ENGINE}::TestRow10Refused::test_readiness_follows",
        "an engine that is gone is called ready",
    ),
    Safeguard(
        "circuit breakers",
        f"{REFUSALS}::TestRow18Storms::test_a_failed_try_opens_it_for_longer",
        "an engine that always fails is asked again and again",
    ),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run of pytest went: its exit code, and what its failures said."""

    code: int
    said: str
    took_s: float

    def is_red_because(self, reason: str) -> bool:
        """Whether a test failed, and for this reason."""
        return self.code == 1 and any(re.search(reason, e) for e in _REDDENED.findall(self.said))


def run(tests: Sequence[str], *, without: str | None = None) -> Outcome:
    """These tests, with one safeguard taken out if it is named."""
    plugin = ["-p", "tests.without"] if without else []
    began_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", *plugin, *tests],
        cwd=ROOT,
        env={**os.environ, **({VARIABLE: without} if without else {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, time.monotonic() - began_s)


def main() -> int:
    """The exit code, after the table."""
    began_s = time.monotonic()
    with ThreadPoolExecutor(PARALLEL) as pool:
        untouched = pool.submit(run, [s.test for s in SAFEGUARDS])
        taken_out = list(pool.map(lambda s: run([s.test], without=s.name), SAFEGUARDS))
    noticed = [o.is_red_because(s.reason) for s, o in zip(SAFEGUARDS, taken_out, strict=True)]
    print(f"{'safeguard':22} {'without it':12} {'s':>4}  test")
    for safeguard, outcome, red in zip(SAFEGUARDS, taken_out, noticed, strict=True):
        verdict = "red" if red else "NOT NOTICED"
        name = safeguard.test.rpartition("/")[2]
        print(f"{safeguard.name:22} {verdict:12} {outcome.took_s:4.0f}  {name}")
        if not red:
            print(outcome.said)
    whole = untouched.result()
    green = whole.code == 0
    print(f"{'all of them':22} {'green' if green else whole.said}")
    print(f"{sum(noticed)} of {len(SAFEGUARDS)} in {time.monotonic() - began_s:.0f} s")
    return 0 if green and all(noticed) else 1


if __name__ == "__main__":
    sys.exit(main())
