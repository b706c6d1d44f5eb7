"""
Starts model_server and the orchestrator, shows how far they are, and keeps both up.

What `make run` does once the environments exist: looks at ports, memory and disk, prepares the
model, starts both programs, prints `ready: http://127.0.0.1:PORT`, restarts what dies, and on
Ctrl-C, SIGTERM or SIGHUP stops everything and ends with exit code 0.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy import preflight
from deploy.child_process import ChildProcess, Program, dying_with, stop_all
from deploy.stack_options import OptionError, StackOptions
from deploy.stack_probe import HttpProbe, Look, StackProbe

ROOT = Path(__file__).resolve().parent.parent
TICK_S = 0.2
LOOK_EVERY_S = 0.5
# The orchestrator drains for 20 s, model_server gives its engine 15 s; then patience ends.
STOP_GRACE_S = 25.0
BACKOFF_MAX_S = 30.0
STEADY_S = 60.0
MAX_FIRST_STARTS = 5
# Exit codes that both programs keep for what will fail again until somebody changes something.
HOPELESS_EXIT_CODES = range(2, 10)


class StartupFailed(Exception):
    """A program cannot be brought up at all; the message carries its last words."""


class StopRequest:
    """Counts how often we were asked to stop: once means stop, twice means at once."""

    def __init__(self) -> None:
        self.count = 0

    def listen(self) -> None:
        """From now on SIGINT, SIGTERM and SIGHUP are requests, and no longer end us."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, _signum: int, _frame: object) -> None:
        self.count += 1


class Console:
    """Lines for people; on a terminal also a last line that changes in place."""

    def __init__(self) -> None:
        self._in_place = sys.stdout.isatty()
        self._shown = ""

    def line(self, text: str) -> None:
        """Writes a line that stays."""
        # The terminal may be gone while the programs are still wanted.
        with contextlib.suppress(OSError):
            print(f"\r\x1b[K{text}" if self._in_place else text, flush=True)

    def progress(self, phase: str, elapsed_s: float) -> None:
        """Shows what is being waited for: in place, or as a line whenever it changes."""
        if self._in_place:
            with contextlib.suppress(OSError):
                print(f"\r\x1b[K  {phase} … {elapsed_s:.0f} s", end="", flush=True)
        elif phase != self._shown:
            self.line(f"  {phase} ({elapsed_s:.0f} s)")
        self._shown = phase


class Backoff:
    """Seconds to wait before each restart: 1, 2, 4 … 30, from 1 again after a steady run."""

    def __init__(self) -> None:
        self._delay_s = 0.0

    def next_s(self, lasted_s: float) -> float:
        """The wait after a process that lasted so long."""
        if lasted_s >= STEADY_S:
            self._delay_s = 0.0
        self._delay_s = min(max(1.0, 2 * self._delay_s), BACKOFF_MAX_S)
        return self._delay_s


class KeptUp:
    """A program, the process that runs it now, and when it is to be started again."""

    def __init__(self, program: Program, clock: Callable[[], float]) -> None:
        self.program = program
        self.child: ChildProcess | None = None
        self.starts = 0
        self._clock = clock
        self._started_at = 0.0
        self._start_at = 0.0
        self._backoff = Backoff()

    def start_if_due(self) -> None:
        """Starts the program if it does not run and its back-off is over."""
        if self.child is None and self._clock() >= self._start_at:
            self.child = ChildProcess(self.program)
            self._started_at = self._clock()
            self.starts += 1

    def schedule_restart(self) -> float:
        """Forgets the process that died; seconds until the next one is started."""
        delay_s = self._backoff.next_s(self._clock() - self._started_at)
        self._start_at = self._clock() + delay_s
        self.child = None
        return delay_s


class Stack:
    """
    Runs programs until it is asked to stop.

    Args:
        programs: What to keep up; tests give programs of their own here.
        probe: Says how far they are.
        greeting: The lines to print when all are ready for the first time.
        stop: Where requests to stop arrive.
        stop_grace_s: How long programs may take to stop by themselves.
    """

    def __init__(
        self,
        *,
        programs: Sequence[Program],
        probe: StackProbe,
        greeting: Sequence[str],
        stop: StopRequest,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
        stop_grace_s: float = STOP_GRACE_S,
    ) -> None:
        self._kept_up = [KeptUp(program, clock) for program in programs]
        self._probe = probe
        self._greeting = greeting
        self._stop = stop
        self._console = console
        self._clock = clock
        self._stop_grace_s = stop_grace_s
        self._was_ready = False
        self._is_ready = False
        self._look_at = 0.0

    def run(self) -> int:
        """Exit code: 0 after a request to stop, 1 if a program could not be brought up."""
        begun = self._clock()
        patient_until = 1  # the first request asks to stop, the next one to be quick about it
        try:
            while not self._stop.count:
                for kept in self._kept_up:
                    self._tend(kept)
                if self._clock() >= self._look_at:
                    self._show(self._probe.look(), self._clock() - begun)
                    self._look_at = self._clock() + LOOK_EVERY_S
                time.sleep(TICK_S)
            self._console.line("stopping (once more to stop at once)")
        except StartupFailed as failure:
            self._console.line(str(failure))
            patient_until = 0
            return 1
        finally:
            self._stop_all(patient_until)
        self._console.line("stopped")
        return 0

    def _tend(self, kept: KeptUp) -> None:
        kept.start_if_due()
        if kept.child is None:
            return
        code = kept.child.exit_code()
        if code is None:
            return
        child = kept.child
        child.kill()  # what it left behind must not hold the port of its successor
        if not self._was_ready:
            self._give_up_if_hopeless(kept, child, code)
        delay_s = kept.schedule_restart()
        self._console.line(
            f"{kept.program.name} {describe_exit(code)}; restarting in {delay_s:.0f} s "
            f"(log: {kept.program.log})"
        )

    def _give_up_if_hopeless(self, kept: KeptUp, child: ChildProcess, code: int) -> None:
        if code not in HOPELESS_EXIT_CODES and kept.starts < MAX_FIRST_STARTS:
            return
        lines = "\n".join(f"    {line}" for line in child.last_lines(8))
        raise StartupFailed(
            f"{kept.program.name} cannot start: it {describe_exit(code)}. Its last lines:\n{lines}\n"
            f"  Everything is stopped. The whole log: {kept.program.log}"
        )

    def _show(self, look: Look, elapsed_s: float) -> None:
        if not self._was_ready and look.ready:
            self._was_ready = True
            for line in self._greeting:
                self._console.line(line)
        elif not self._was_ready:
            self._console.progress(look.phase, elapsed_s)
        elif look.ready != self._is_ready:
            self._console.line("ready again" if look.ready else f"not ready: {look.phase}")
        self._is_ready = look.ready

    def _stop_all(self, patient_until: int) -> None:
        stop_all(
            [kept.child for kept in self._kept_up if kept.child is not None],
            grace_s=self._stop_grace_s,
            hurry=lambda: self._stop.count > patient_until,
        )


def describe_exit(code: int) -> str:
    """How a program ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


def prepare_model(model: str, *, python: Path, stop: StopRequest) -> Path | None:
    """
    The folder of a model after `prepare_model.py` has seen to it; None if we are to stop.

    Raises:
        StartupFailed: If it cannot be made ready; its own message is on the console already.
    """
    command = [str(python), str(ROOT / "deploy" / "prepare_model.py"), *([model] if model else [])]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=dying_with(os.getpid()),  # noqa: PLW1509  # we have one thread
    ) as process:
        while process.poll() is None:
            if stop.count:
                process.terminate()
                return None
            time.sleep(TICK_S)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise StartupFailed(f"no model to serve: {model or 'the bundled one'} is not ready")
    return Path(output.strip().splitlines()[-1])


def check_machine(options: StackOptions) -> None:
    """
    Looks at everything that can be known before the start.

    Raises:
        PreflightError: If something is in the way.
    """
    preflight.check_ports(options.ports())
    if options.starts_engine:
        preflight.check_memory(preflight.available_memory_bytes())
        preflight.check_libraries(options.engine_python.parent.parent)
        notice = preflight.compiler_notice()
        if notice:
            print(f"note: {notice}", flush=True)
    preflight.check_disk(options.data_dir, shutil.disk_usage(options.data_dir).free)


def greeting(options: StackOptions) -> list[str]:
    """What is printed once both programs are ready."""
    url = f"http://127.0.0.1:{options.port}"
    body = '{"question": "your question about it"}'
    upload = f"curl -F file=@your.pdf '{url}/upload?wait=true'"
    ask = f"curl {url}/ask -H 'content-type: application/json' -d '{body}'"
    return [
        f"ready: {url}",
        f"try: {upload} && {ask}",
    ]


def run(environ: Mapping[str, str], stop: StopRequest) -> int:
    """
    The whole of `make run` after set-up; the exit code.

    Raises:
        OptionError: If a variable cannot be used.
        PreflightError: If something is in the way.
        StartupFailed: If there is no model.
    """
    options = StackOptions.from_environ(environ, root=ROOT)
    with preflight.claim_data_dir(options.data_dir):
        check_machine(options)
        model, embedder = None, None
        if options.starts_engine:
            model = prepare_model(options.model, python=options.engine_python, stop=stop)
        if options.embedding_model and not stop.count:
            python = Path(sys.executable)
            embedder = prepare_model(options.embedding_model, python=python, stop=stop)
        if stop.count:
            return 0
        stack = Stack(
            programs=options.programs(model=model, embedder=embedder, environ=environ),
            probe=HttpProbe(
                orchestrator_url=f"http://127.0.0.1:{options.port}",
                control_url=options.control_url,
                engine_url=options.engine_url,
            ),
            greeting=greeting(options),
            stop=stop,
            console=Console(),
        )
        return stack.run()


def main() -> int:
    """Exit code 0 after a request to stop, 1 with the reason otherwise."""
    stop = StopRequest()
    stop.listen()
    try:
        return run(os.environ, stop)
    except (OptionError, preflight.PreflightError, StartupFailed) as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
