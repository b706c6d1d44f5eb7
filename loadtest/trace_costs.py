"""
What a trace of every question costs: the orchestrator's processor time for each `/ask`, off and on.

    make trace-costs [REPEATS=3]

Starts the simulator (H100-like) with two orchestrators in turn, one that sends its traces to a collector
of this command and one that does not, asks both by the same eight clients, and takes off what each uses
when idle. Sending is part of it: the exporter's thread is in the orchestrator's process.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from loadtest.arrivals import Mix
from loadtest.bench import Bench
from loadtest.client_rules import ClientRules
from loadtest.programs import commit, end_in_order, free_port, machine
from loadtest.stack import H100_LIKE, stack

CLIENTS = 8
SECONDS = 15.0
IDLE_S = 5.0


class _Collector(BaseHTTPRequestHandler):
    """Takes what is sent, and keeps nothing."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def _collect(port: int) -> None:
    ThreadingHTTPServer(("127.0.0.1", port), _Collector).serve_forever()


@contextmanager
def _collector() -> Iterator[str]:
    """Where it listens; in a process of its own, so that its time is not counted."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(target=_collect, args=(port,))
    process.start()
    try:
        yield f"http://127.0.0.1:{port}/v1/traces"
    finally:
        process.terminate()
        process.join()


def ask_ms(settings: dict[str, str], seed: int) -> float:
    """Milliseconds of the orchestrator's own processor time for each answered question."""
    with (
        tempfile.TemporaryDirectory() as folder,
        stack(
            "simulator", Path(folder), simulator_options=H100_LIKE, settings=list(settings.items())
        ) as running,
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as generator,
    ):
        bench = Bench(
            stack=running,
            generator=generator,
            rules=ClientRules(),
            mix=Mix(),
            seconds=SECONDS,
            seed=seed,
            on_result=lambda _: None,
        )
        process = running.orchestrator
        before_s = process.own_cpu_s()
        time.sleep(IDLE_S)
        idle_share = (process.own_cpu_s() - before_s) / IDLE_S
        bench.small(clients=CLIENTS, seconds=2.0)  # the first ones find everything cold
        before_s, began_s = process.own_cpu_s(), time.monotonic()
        sent = bench.small(clients=CLIENTS, seconds=SECONDS)
        used_s = process.own_cpu_s() - before_s - idle_share * (time.monotonic() - began_s)
        return used_s / sum(record.whole for record in sent.records) * 1000


def main() -> None:
    """Measure in turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    end_in_order()
    with _collector() as url:
        ways = {"off": {}, "on": {"TRACES_URL": url}}
        found: dict[str, list[float]] = {name: [] for name in ways}
        for seed in range(repeats):
            # There and back: a machine that gets slower is slower for both.
            for name in list(ways) if seed % 2 else reversed(list(ways)):
                found[name].append(ask_ms(ways[name], seed))
    print(f"\n{machine()}, commit {commit()}, {CLIENTS} clients, {repeats} repeats\n")
    print("| traces | processor time an ask, ms: median (least, most) |\n|---|---|")
    for name, each_ms in found.items():
        median = statistics.median(each_ms)
        print(f"| {name} | {median:.2f} ({min(each_ms):.2f}, {max(each_ms):.2f}) |")
    more = statistics.median(on - off for on, off in zip(found["on"], found["off"], strict=True))
    print(f"\none trace an ask costs {more:.2f} ms")


if __name__ == "__main__":
    main()
