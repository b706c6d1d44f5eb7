"""
Load on a service that runs already, with locust.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8080        # locust's own page, port 8089
    locust -f loadtest/locustfile.py --host … --headless --users 20 --run-time 5m --shape burst

`make loadtest` starts a service, calls this and makes the report. The exit code is 1 if an objective is
missed.
"""

import random
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import ClassVar

import gevent
import requests
from locust import LoadTestShape, User, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

from loadtest import logbook, objectives, workload
from loadtest.arrivals import Mix
from loadtest.client_rules import ClientRules
from loadtest.logbook import BAD, Entry, Logbook
from loadtest.observer import Observer
from loadtest.people import People
from loadtest.programs import commit, machine
from loadtest.shapes import SHAPES, Phase, people, phase_at
from tests.pdfs import HANDBOOK_QUESTIONS

BROKEN = 2
"""Exit code of a run that could not be judged."""
AFTER_S = 5.0
"""How long the service is looked at when nobody asks any more."""


class Told(Exception):
    """Locust counts as failed what carries an exception: this is the way something ended."""


class Crew:
    """
    One run: what is done, by whom, and the logbook.

    Args:
        environment: Locust's.
    """

    def __init__(self, environment: Environment) -> None:
        options = environment.parsed_options or Namespace()
        self._environment = environment
        self._options = options
        # Before anything is sent: a name that is none should not cost a whole run.
        self._limits = objectives.limits(options.objective or [])
        objectives.verdicts(Logbook(), self._limits)
        self.seconds = float(options.run_time or 600)
        self.phases = SHAPES[options.shape]
        self.began_s = time.monotonic()
        self.book = Logbook(about=_about(environment, self.seconds))
        questions = (
            workload.read_questions(Path(options.questions))
            if options.questions
            else [workload.Question("handbook.pdf", one.question) for one in HANDBOOK_QUESTIONS]
        )
        habits = workload.Habits(
            mix=Mix(mean_tokens=options.answer_tokens, cap_tokens=4 * options.answer_tokens),
            think_s=options.think_s,
        )
        self.workload = workload.Workload(questions, habits, seed=options.seed)
        self._trace = (
            workload.replay(workload.read_rows(Path(options.trace)), questions, speed=options.speed)
            if options.trace
            else []
        )
        self._rules = ClientRules()
        url = str(environment.host).rstrip("/")
        self.people = People(
            url,
            model=_model(url),
            rules=self._rules,
            pdfs=tuple(p.read_bytes() for p in sorted(Path(options.pdfs).glob("*.pdf")))
            if options.pdfs
            else (),
            told=self._told,
        )
        observer = Observer(
            url,
            pid=int(options.pid) if options.pid else None,
            began_s=self.began_s,
            counted=self._counted,
            told=self.book.samples.append,
        )
        self._watching = gevent.spawn(observer.watch)
        self._playing = gevent.spawn(self._play)
        self._begun = -1

    @property
    def replays(self) -> bool:
        """Whether a trace says who asks, and when."""
        return bool(self._trace)

    @property
    def now_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began_s

    def phase(self) -> Phase | None:
        """The phase that it is; None when the run is over. A new one begins with its volley."""
        found = phase_at(self.phases, self.now_s, seconds=self.seconds)
        if found is None:
            return None
        number, phase = found
        if number > self._begun:
            self._begun = number
            for n in range(phase.volley):
                self.send(workload.long_question(), due_s=time.monotonic(), key=f"attacker-{n}")
        return phase

    def send(self, act: workload.Act, *, due_s: float, key: str) -> None:
        """Begin an act."""
        at_s = due_s - self.began_s
        found = phase_at(self.phases, at_s, seconds=self.seconds)
        kind = "attack" if key.startswith("attacker-") else act.kind
        entry = Entry(at_s, kind, found[1].name if found else "end")
        self.book.entries.append(entry)
        self.people.send(act, entry, due_s=due_s, key=key)

    def _play(self) -> None:
        """The trace, as far as the run is long."""
        for arrival in self._trace:
            if arrival.at_s >= self.seconds:
                return
            due_s = self.began_s + arrival.at_s
            gevent.sleep(max(due_s - time.monotonic(), 0))
            self.send(arrival.act, due_s=due_s, key=arrival.person)

    def finish(self) -> list[objectives.Verdict]:
        """Wait for what is open, write the logbook, and judge."""
        rules = self._rules
        self._playing.kill()
        tries = rules.max_retries + 1
        self.people.drain(tries * (rules.patience_s + rules.grace_s) + 2 * 60)
        gevent.sleep(AFTER_S)
        self._watching.kill()
        ready = [e.document for e in self.book.entries if e.document]
        self.book.lost_documents = self.people.still_there(ready)
        logbook.write(self.book, Path(self._options.logbook))
        return objectives.verdicts(self.book, self._limits)

    def _counted(self) -> tuple[int, int]:
        runner = self._environment.runner
        return (runner.user_count if runner else 0), self.people.open

    def _told(self, entry: Entry) -> None:
        """To locust's own tables and plots: the act, and the time to its first token."""
        code = entry.tries[-1].code if entry.tries else ""
        lesser = entry.outcome in BAD or entry.outcome == "told"
        fire = self._environment.events.request.fire
        fire(
            request_type=entry.kind,
            name=entry.phase,
            response_time=entry.total_s * 1000,
            response_length=entry.completion_tokens,
            exception=Told(f"{entry.outcome} {code}".strip()) if lesser else None,
            context={},
        )
        for name, value_s in (("first token", entry.first_token_s), ("gap", entry.gap_max_s)):
            if value_s is not None:
                fire(
                    request_type=name,
                    name=entry.phase,
                    response_time=value_s * 1000,
                    response_length=0,
                    exception=None,
                    context={},
                )


class Runs:
    """The run that goes on; locust's page can start one after the other."""

    crew: Crew | None = None


class Person(User):
    """
    Somebody who does something now and then, whether or not the last answer has come.

    All together are a Poisson process, as long as nobody waits: the load is what was asked for, not what
    a slow service lets through.
    """

    wait_time = constant(0)
    number: ClassVar[int] = 0

    def on_start(self) -> None:
        """Everybody has a key, and random numbers of their own."""
        Person.number += 1
        self._key = f"person-{Person.number}"
        seed = self.environment.parsed_options.seed
        self._rng = random.Random(f"{seed}/{self._key}")  # noqa: S311 - reproducible, no secret
        self._before = ""
        self._due_s = time.monotonic()

    @task
    def live(self) -> None:
        """Wait until the next act is due, and begin it."""
        crew = Runs.crew
        if crew is None or crew.replays:
            gevent.sleep(1)
            return
        self._due_s += crew.workload.pause_s(self._rng)
        gevent.sleep(max(self._due_s - time.monotonic(), 0))
        act = crew.workload.act(self._rng, self._before)
        self._before = act.question or self._before
        crew.send(act, due_s=self._due_s, key=self._key)


class Shape(LoadTestShape):
    """As many people as the phase wants."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """(people, people a second) of this moment; None when the run is over."""
        if Runs.crew is None or self.runner is None:
            return 1, 1
        phase = Runs.crew.phase()
        if phase is None:
            return None
        options = self.runner.environment.parsed_options or Namespace(num_users=1)
        wanted = 1 if Runs.crew.replays else people(phase, options.num_users or 1)
        return wanted, wanted


@events.init_command_line_parser.add_listener
def _options(parser: LocustArgumentParser) -> None:
    add = parser.add_argument
    add("--shape", choices=sorted(SHAPES), default="constant", help="how many people, and when")
    add("--think-s", type=float, default=30.0, help="mean seconds between two acts of a person")
    add("--answer-tokens", type=int, default=48, help="mean of the longest answers, in tokens")
    add("--seed", type=int, default=20260701, help="the same seed, the same acts")
    add("--questions", default="", help="file with pdf and question in each line")
    add("--trace", default="", help="file of arrivals to replay, in the place of people")
    add("--speed", type=float, default=1.0, help="how much faster the trace is played than it was")
    add("--pdfs", default="", help="folder of PDFs to upload, beside those made here")
    add("--logbook", default="reports/loadtest/logbook.jsonl", help="where it is written down")
    add("--objective", action="append", help="NAME=VALUE: another limit of an objective")
    add("--pid", default="", help="process of the orchestrator, if it runs here")


@events.test_start.add_listener
def _start(environment: Environment, **_: object) -> None:
    environment.process_exit_code = BROKEN
    Runs.crew = Crew(environment)


@events.test_stop.add_listener
def _stop(environment: Environment, **_: object) -> None:
    crew, Runs.crew = Runs.crew, None
    if crew is None:
        return
    found = crew.finish()
    for verdict in found:
        if not verdict.held:
            sys.stderr.write(f"MISSED: {verdict.objective.what}: {verdict.value:g}\n")
    environment.process_exit_code = 0 if all(verdict.held for verdict in found) else 1


def _model(url: str) -> str:
    """What the service calls its model, for OpenAI's wire."""
    models = requests.get(f"{url}/v1/models", timeout=10).json()["data"]
    return str(models[0]["id"])


def _about(environment: Environment, seconds: float) -> dict[str, object]:
    options = environment.parsed_options or Namespace()
    return {
        "commit": commit(),
        "machine": machine(),
        "target": environment.host,
        "shape": options.shape,
        "users": options.num_users,
        "think_s": options.think_s,
        "answer_tokens": options.answer_tokens,
        "seed": options.seed,
        "seconds": seconds,
        "trace": Path(options.trace).name if options.trace else "",
        "speed": options.speed,
    }
