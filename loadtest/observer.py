"""Looks at the service once a second, and writes down what it says of itself."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import gevent
import psutil
import requests

from loadtest.logbook import Sample
from loadtest.stack import series

EVERY_S = 1.0
KV_USAGE = "vllm:kv_cache_usage_perc"


class Observer:
    """
    Samples of one orchestrator, for as long as nobody stops it.

    Args:
        url: Of the orchestrator.
        pid: Its process; None if it runs elsewhere, or is not known.
        began_s: When the run began, on the monotonic clock.
        counted: Gives how many people there are and how many acts are open.
        told: Called with each sample.
    """

    def __init__(
        self,
        url: str,
        *,
        pid: int | None,
        began_s: float,
        counted: Callable[[], tuple[int, int]],
        told: Callable[[Sample], None],
    ) -> None:
        self._url = url
        self._process = None if pid is None else psutil.Process(pid)
        self._began_s = began_s
        self._counted = counted
        self._told = told
        self._http = requests.Session()
        self._http.trust_env = False

    def watch(self) -> None:
        """Sample after sample, until the greenlet is killed."""
        while True:
            self._told(self._sample())
            gevent.sleep(EVERY_S)

    def _sample(self) -> Sample:
        people, open_acts = self._counted()
        sample = Sample(time.monotonic() - self._began_s, people, open_acts)
        with contextlib.suppress(requests.RequestException, ValueError):
            status = self._http.get(f"{self._url}/status", timeout=EVERY_S * 5).json()
            gate = status["gate"]
            sample.running, sample.queued = gate["running"], gate["queued"]
            sample.reserved_tokens = gate["reserved_tokens"]
            sample.rss_bytes = status["memory"]["rss_bytes"]
            sample.tasks = status["process"]["tasks"]
            sample.kv_usage = self._kv_usage(status)
        if self._process is not None:
            with contextlib.suppress(psutil.Error):
                sample.threads = self._process.num_threads()
                sample.open_files = self._process.num_fds()
        return sample

    def _kv_usage(self, status: dict[str, Any]) -> float | None:
        with contextlib.suppress(requests.RequestException):
            page = self._http.get(f"{status['engine']['url']}/metrics", timeout=EVERY_S)
            return series(page.text, KV_USAGE)
        return None
