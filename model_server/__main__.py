"""
The command line: `python -m model_server plan` and `python -m model_server serve`.

The composition root: settings are read and objects are built here, and nowhere else.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from model_server.checkpoint import read_checkpoint
from model_server.control import Access, ControlServer, control_app
from model_server.devices import Device, find_device, import_nvml, oom_kills
from model_server.engines.base import Serving
from model_server.engines.simulator import SimulatorEngine
from model_server.engines.tgi import TgiEngine
from model_server.engines.vllm import VllmEngine, missing_build_tools
from model_server.errors import DoesNotFit, ModelServerError
from model_server.hang_detector import Patience
from model_server.lifecycle import Policy, Status
from model_server.memory_monitor import MemoryMonitor
from model_server.memory_watch import MemoryWatch
from model_server.metrics_page import Figures, metrics_page
from model_server.planner import Goals, Plan, make_plan
from model_server.probe import EngineProbe, listen, require_free_port
from model_server.process import EngineProcess
from model_server.remedies import Adjustments, Remedies
from model_server.settings import Settings, is_loopback, load_settings
from model_server.supervisor import Supervisor

_log = logging.getLogger("model_server")

LOOK_S, LOOKS_A_HANG = 1.0, 12.0
"""Seconds between two looks at a ready engine; fewer where a hang is to be found soon."""

MEMORY_BACK_S, MEMORY_LOOK_S = 10.0, 0.25
MEMORY_BACK_SHARE = 0.98
"""Others take and give a little all the time."""

_DRAIN_MARGIN_S = 5
"""Part of the time for stopping that running requests do not get: vLLM's own way down takes 1-3 s."""


PlannedEngine = VllmEngine | TgiEngine | SimulatorEngine


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0, or that of the error that ended the program (`errors`)."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # one line a probe otherwise
    try:
        settings = load_settings(os.environ)
        if arguments.command == "plan":
            device = _device(settings)
            starts = _Starts(settings, device, eager=_wants_eager(settings, device))
            _show(starts.engine, as_json=arguments.json)
        else:
            _serve(settings)
    except ModelServerError as exc:
        sys.stderr.write(f"model_server: {exc.message}\n")
        return exc.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model_server", description="Settings come from MODEL_SERVER_* variables."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    plan = commands.add_parser("plan", help="print the memory plan and the flags; start nothing")
    plan.add_argument("--json", action="store_true", help="for machines")
    commands.add_parser("serve", help="plan, start the engine, keep it up")
    return parser


def _device(settings: Settings) -> Device:
    return find_device(settings.device, environ=os.environ, nvml=import_nvml())


def _wants_eager(settings: Settings, device: Device) -> bool:
    if settings.enforce_eager == "auto":
        return device.kind == "cpu"
    return settings.enforce_eager == "true"


def _engine(
    settings: Settings, device: Device, *, eager: bool, adjustments: Adjustments
) -> PlannedEngine:
    """The engine for the plan that holds, or the error that says why none does."""
    goals = Goals(
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        memory_limit_bytes=settings.memory_limit_bytes,
        kv_cache_bytes=settings.kv_cache_bytes,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        reserve_bytes=settings.reserve_bytes,
        embedder_bytes=settings.embedder_bytes,
        index_bytes=settings.index_bytes,
        enforce_eager=eager,
    )
    shape = read_checkpoint(settings.model)
    plan = make_plan(device=device, shape=shape, goals=adjustments.applied_to(goals))
    serving = Serving(
        model=settings.model.resolve(),
        name=settings.name,
        host=settings.host,
        port=settings.engine_port,
        drain_s=max(1, int(settings.stop_timeout_s) - _DRAIN_MARGIN_S),
    )
    extra_args = settings.extra_engine_args
    if settings.engine == "simulator":
        return SimulatorEngine(plan=plan, serving=serving, extra_args=extra_args)
    if settings.engine == "tgi":
        return TgiEngine(
            launcher=settings.tgi_launcher, plan=plan, serving=serving, extra_args=extra_args
        )
    return VllmEngine(
        python=settings.engine_python, plan=plan, serving=serving, extra_args=extra_args
    )


def _show(engine: PlannedEngine, *, as_json: bool) -> None:
    """Print the plan to standard output."""
    if as_json:
        sys.stdout.write(json.dumps(_plan_json(engine), indent=2) + "\n")
        return
    console = Console(highlight=False)
    console.print(_table(engine.plan))
    for name, value in engine.variables.items():
        console.print(f"{name}={value}", soft_wrap=True)
    console.print(" ".join(engine.argv), soft_wrap=True)


def _table(plan: Plan) -> Table:
    table = Table(title="Memory plan", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in plan.lines:
        table.add_row(row.what, row.value, row.note)
    return table


def _plan_json(engine: PlannedEngine) -> dict[str, Any]:
    return {**engine.plan.as_json(), "argv": engine.argv, "environment": engine.variables}


def _serve(settings: Settings) -> None:
    """Plan, start the engine and keep it up, until SIGTERM or SIGINT."""
    device = _device(settings)
    eager = _wants_eager(settings, device)
    missing = missing_build_tools(settings.engine_python) if settings.engine == "vllm" else None
    if missing and device.kind == "cpu" and not eager:
        eager = True
        _log.warning("the engine runs uncompiled: to compile, it lacks %s", missing)
    starts = _Starts(settings, device, eager=eager)
    engine = starts.engine
    if not engine.plan.shape.has_chat_template:
        _log.warning(
            "%s has no chat template: chat requests will be refused; choose an instruct model, or "
            "add one with MODEL_SERVER_ENGINE_ARGS='--chat-template FILE'",
            settings.model,
        )
    Console(stderr=True, highlight=False).print(_table(engine.plan))
    _log.info("engine: %s", " ".join(engine.argv))
    asyncio.run(_supervise(settings, starts))


class _Starts:
    """
    The engine, planned anew for each start: what is free may have changed, and what was learnt.

    Attributes:
        engine: As it was started last, or will be first.
        remedies: What earlier lives have taught.
    """

    def __init__(self, settings: Settings, device: Device, *, eager: bool) -> None:
        self._settings = settings
        self._eager = eager
        self._launched = False
        self.remedies = Remedies(
            path=settings.log_dir / "adjustments.json",
            subject=f"{settings.model.resolve()} on {device.name}",
            oom_kills=oom_kills,
        )
        self.engine = self._planned(device)

    async def launch(self, on_line: Callable[[str], None]) -> EngineProcess:
        """
        Start it.

        Raises:
            DoesNotFit: If the memory is not there any more.
            EngineEnvironmentError: If no process can be started.
        """
        if self._launched:
            device = await self._device_given_back()
            self.engine = await asyncio.to_thread(self._planned, device)
        self._launched = True
        return await EngineProcess.launch(
            argv=self.engine.argv,
            environment=self.engine.environment(_without_settings(os.environ)),
            log=self._settings.log_dir / "engine.log",
            on_line=on_line,
        )

    def _planned(self, device: Device) -> PlannedEngine:
        known = self.remedies.adjustments

        def planned(adjustments: Adjustments) -> PlannedEngine:
            return _engine(self._settings, device, eager=self._eager, adjustments=adjustments)

        try:
            return planned(known)
        except DoesNotFit as exc:
            if not known.extra_bytes:
                raise
            # What was served before goes on being served: the monitor tells when memory runs short.
            _log.warning("planned without what was seen beyond the plan: %s", exc.message)
            return planned(replace(known, extra_bytes=0))

    async def _device_given_back(self) -> Device:
        """The device, with what the former engine held: a driver takes some time to give it back."""
        plan = self.engine.plan
        wanted = min(plan.total_bytes + plan.sums.reserve, plan.device.free_bytes)
        give_up_s = time.monotonic() + MEMORY_BACK_S
        while True:
            device = await asyncio.to_thread(_device, self._settings)
            if device.free_bytes >= MEMORY_BACK_SHARE * wanted:
                break
            if time.monotonic() > give_up_s:
                _log.warning("not all memory is back %g s after the engine's end", MEMORY_BACK_S)
                break
            await asyncio.sleep(MEMORY_LOOK_S)
        return device


async def _supervise(settings: Settings, starts: _Starts) -> None:
    listener = listen(
        settings.control_host, settings.control_port, variable="MODEL_SERVER_CONTROL_PORT"
    )
    url = f"http://{settings.host}:{settings.engine_port}"
    with listener:
        async with EngineProbe(url) as probe:
            watch = MemoryWatch(
                device=lambda: starts.engine.plan.device, environ=os.environ, nvml=import_nvml()
            )
            supervisor = _supervisor(settings, starts, watch, probe=probe, url=url)
            monitor = _monitor(supervisor, starts, watch)
            app = control_app(
                keeper=supervisor,
                plan=lambda: _plan_json(starts.engine),
                metrics=lambda: metrics_page(_figures(supervisor.status(), starts, monitor)),
                pressure=lambda: monitor.pressure,
                access=Access(key=settings.control_key, local=is_loopback(settings.control_host)),
            )
            with _signals(supervisor.request_stop):
                await _run_all(supervisor, ControlServer(app, listener=listener), monitor)


async def _run_all(supervisor: Supervisor, control: ControlServer, monitor: MemoryMonitor) -> None:
    """Run the supervisor, with the control API up from before its start until after its end."""
    watching = asyncio.create_task(monitor.run())
    serving = asyncio.create_task(control.run_until_stopped())
    serving.add_done_callback(lambda _: supervisor.request_stop())
    try:
        await supervisor.run()
    finally:
        control.stop()
        await serving
        watching.cancel()


def _monitor(supervisor: Supervisor, starts: _Starts, watch: MemoryWatch) -> MemoryMonitor:
    return MemoryMonitor(
        watch=watch,
        engine_pid=lambda: supervisor.status().pid,
        planned_bytes=lambda: starts.engine.plan.total_bytes,
        reserve_bytes=lambda: starts.engine.plan.sums.reserve,
        on_held=lambda held, planned: starts.remedies.learn(held_bytes=held, planned_bytes=planned),
    )


def _figures(status: Status, starts: _Starts, monitor: MemoryMonitor) -> Figures:
    """What the metrics page shows."""
    plan, unload = starts.engine.plan, status.last_unload
    return Figures(
        started_at_s=psutil.Process().create_time(),
        state=status.state,
        state_s=status.since_s,
        starts=status.starts,
        restarts=status.restarts,
        hangs=status.hangs,
        wakes=status.wakes,
        unloads=status.unloads,
        last_start_s=status.start_s,
        last_unload_freed_bytes=unload.freed_bytes if unload else None,
        kv_tokens_planned=status.kv_tokens_planned,
        kv_tokens_reported=status.kv_tokens_reported,
        planned_parts_bytes={
            "weights": plan.sums.weights,
            "kv_cache": plan.kv_cache_bytes,
            "activations": plan.sums.activations,
            "runtime": plan.sums.runtime,
        },
        planned_reserve_bytes=plan.sums.reserve,
        planned_budget_bytes=plan.sums.budget,
        pressure=monitor.pressure if monitor.reading else None,
        memory=monitor.reading,
    )


def _supervisor(
    settings: Settings, starts: _Starts, memory: MemoryWatch, *, probe: EngineProbe, url: str
) -> Supervisor:
    _log.info("the engine's log: %s", settings.log_dir / "engine.log")
    return Supervisor(
        engine=starts.engine,
        launch=starts.launch,
        probe=probe,
        remedies=starts.remedies,
        memory=memory,
        require_port=lambda: require_free_port(
            settings.host, settings.engine_port, variable="MODEL_SERVER_ENGINE_PORT"
        ),
        policy=Policy(
            start_s=settings.start_timeout_s,
            stop_s=settings.stop_timeout_s,
            hang=Patience(
                hang_s=settings.hang_timeout_s,
                look_s=min(LOOK_S, settings.hang_timeout_s / LOOKS_A_HANG),
            ),
            idle_unload_s=settings.idle_unload_s,
        ),
        model=settings.name,
        engine_url=url,
        planned_kv_tokens=lambda: starts.engine.plan.kv_tokens,
    )


def _without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The engine has no use for our own settings."""
    return {n: v for n, v in environ.items() if not n.startswith("MODEL_SERVER_")}


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` on SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


if __name__ == "__main__":
    sys.exit(main())
