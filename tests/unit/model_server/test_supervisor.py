"""The life of an engine: started, ready, ended, started again, given up."""

import asyncio
import itertools
import threading
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_server.errors import CheckpointError, DoesNotFit, EngineDidNotStart, PortInUse
from model_server.hang_detector import Patience, Pulse
from model_server.lifecycle import Event, Policy, State, Unload, transition
from model_server.supervisor import Supervisor


class FakeEngine:
    argv = ("engine",)

    def environment(self, inherited):
        return dict(inherited)

    def phase(self, line):
        return line.removeprefix("phase: ") if line.startswith("phase: ") else None

    def has_drained(self, line):
        return line == "drained"


class FakeRunning:
    """An engine that ends when it is told to, by `exit` or by the supervisor."""

    def __init__(self, pid, *, code=None):
        self.pid = pid
        self.tail = ["first line", "last words"]
        self.left = 0
        self.waits_to_drain = False
        self.terminated = 0
        self._code = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Queue()
        if code is not None:
            self.exit(code)

    def exit(self, code):
        if not self._code.done():
            self._code.set_result(code)

    async def wait(self):
        return await asyncio.shield(self._code)

    async def deaths(self):
        while True:
            yield await self.ended.get()

    async def terminate(self, *, within_s, drained):
        self.terminated += 1
        self.within_s = within_s
        self.drained = drained
        if self.waits_to_drain:
            await drained.wait()
        self.exit(143)
        return self.left


class FakeProbe:
    def __init__(self, *, ready=True, tokens=1000):
        self.ready = ready
        self.tokens = tokens
        self.hung = False
        self.rests = False
        self.silent = False
        self.steps = itertools.count()
        self.canaries = []

    async def is_ready(self):
        return self.ready and not self.silent

    async def is_well(self):
        return None if self.silent else self.ready

    async def kv_cache_tokens(self):
        return self.tokens

    async def pulse(self):
        if self.hung:
            return None
        return Pulse(next(self.steps), busy=not self.rests, finished=7)

    async def canary(self, model):
        self.canaries.append(model)
        await asyncio.Event().wait()


class FakeRemedies:
    """Changes something after the lives that it is told to; remembers what it was shown."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.shown = []
        self.lives = 0

    def life_begins(self):
        self.lives += 1

    def consider(self, tail, *, was_ready):
        self.shown.append((tail, was_ready))
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer


class FakeMemory:
    """An engine of 100 bytes; freeing it takes a look or two."""

    def __init__(self):
        self.free = [0, 40, 97]

    def free_bytes(self):
        return self.free.pop(0) if len(self.free) > 1 else self.free[0]

    def returnable_bytes(self, pid):
        return 100


class Stage:
    """A supervisor over fakes: which engines it started, and what it says of them."""

    def __init__(self, *, policy=None, codes=(), require_port=lambda: None, remedies=None):
        self.remedies = remedies or FakeRemedies()
        self.probe = FakeProbe()
        self.engines = []
        self.hear = lambda _line: None
        self._codes = list(codes)
        self.supervisor = Supervisor(
            engine=FakeEngine(),
            launch=self._launch,
            probe=self.probe,
            remedies=self.remedies,
            memory=FakeMemory(),
            require_port=require_port,
            policy=policy or Policy(poll_s=0.001, first_pause_s=0.001, start_s=5),
            model="m",
            engine_url="http://engine",
            planned_kv_tokens=lambda: 1000,
            jitter=lambda: 1.0,
        )

    async def _launch(self, on_line):
        self.hear = on_line
        code = self._codes.pop(0) if self._codes else None
        if isinstance(code, Exception):
            self.engines.append(None)
            raise code
        self.engines.append(FakeRunning(len(self.engines) + 1, code=code))
        return self.engines[-1]

    async def until(self, condition):
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0)

    async def state(self, state):
        await self.until(lambda: self.supervisor.status().state is state)


def test_the_ordinary_life():
    """An engine is launched, gets ready, is asked to stop, and is gone."""
    state = State.STOPPED
    for event, after in [
        (Event.LAUNCHED, State.STARTING),
        (Event.BECAME_READY, State.READY),
        (Event.STOP_ASKED, State.STOPPING),
        (Event.GONE, State.STOPPED),
    ]:
        state = transition(state, event)
        assert state is after


def test_sleep_comes_from_ready_and_ends_in_a_start():
    """Only a ready engine is put to sleep; from there it starts, or stops for good."""
    assert transition(State.READY, Event.SLEEP_ASKED) is State.SLEEPING
    assert transition(State.SLEEPING, Event.LAUNCHED) is State.STARTING
    assert transition(State.SLEEPING, Event.STOP_ASKED) is State.STOPPING
    for state in set(State) - {State.READY}:
        with pytest.raises(ValueError, match="cannot happen"):
            transition(state, Event.SLEEP_ASKED)


def test_a_failure_is_followed_by_another_start():
    """From either living state a failure leads to FAILED, and from there to STARTING."""
    assert transition(State.STARTING, Event.FAILED) is State.FAILED
    assert transition(State.READY, Event.FAILED) is State.FAILED
    assert transition(State.FAILED, Event.LAUNCHED) is State.STARTING


@given(state=st.sampled_from(State), event=st.sampled_from(Event))
def test_only_a_start_gets_ready_and_only_stopping_ends_stopped(state, event):
    """No event leads to READY but from STARTING, nor out of STOPPING but being gone."""
    with suppress(ValueError):
        after = transition(state, event)
        assert after is not State.READY or state is State.STARTING
        assert state is not State.STOPPING or (event, after) == (Event.GONE, State.STOPPED)


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (State.STOPPED, Event.BECAME_READY),
        (State.READY, Event.LAUNCHED),
        (State.STOPPING, Event.FAILED),
        (State.STOPPED, Event.GONE),
    ],
)
def test_what_cannot_happen_is_an_error(state, event):
    """An event that makes no sense in a state names both."""
    with pytest.raises(ValueError, match=f"{event} cannot happen to an engine that is {state}"):
        transition(state, event)


def test_pauses_double_up_to_the_longest():
    """Back-off goes 1, 2, 4 … 60 s and stays there."""
    pauses = [Policy().pause_s(n) for n in (0, 1, 2, 3, 6, 7, 8, 10_000)]
    assert pauses == [1, 1, 2, 4, 32, 60, 60, 60]


async def test_it_gets_ready_and_stops_when_asked(caplog):
    """Ready once the probe says so, with the reported KV tokens; stopped whole when asked."""
    caplog.set_level("INFO")
    stage = Stage()
    assert stage.supervisor.status().state is State.STOPPED
    run = asyncio.create_task(stage.supervisor.run())
    await stage.until(lambda: stage.supervisor.reported_kv_tokens)
    status = stage.supervisor.status()
    assert (status.state, status.pid, status.restarts) == (State.READY, 1, 0)
    assert (status.kv_tokens_planned, status.kv_tokens_reported) == (1000, 1000)
    assert "(+0.00 %)" in caplog.text
    stage.supervisor.request_stop()
    await run
    assert stage.supervisor.status().state is State.STOPPED
    assert stage.supervisor.status().pid is None
    assert stage.engines[0].terminated == 1


async def test_whoever_waits_for_ready_finds_the_cache_of_this_engine():
    """Its size is known before READY is said, and the last engine's is forgotten at a start."""
    stage = Stage()
    supervisor, seen = stage.supervisor, []

    async def slowly_told():
        seen.append((supervisor.status().state, supervisor.reported_kv_tokens))
        await asyncio.sleep(0.01)
        return 1000

    stage.probe.kv_cache_tokens = slowly_told
    run = asyncio.create_task(supervisor.run())
    for life in (0, 1):
        await stage.until(lambda life=life: len(stage.engines) == life + 1)
        await stage.until(lambda: supervisor.status().state is State.READY)
        assert supervisor.reported_kv_tokens == 1000
        stage.engines[life].exit(1)
        await stage.until(lambda: supervisor.status().state is not State.READY)
    supervisor.request_stop()
    await run
    assert seen[:2] == [(State.STARTING, None)] * 2


@pytest.mark.parametrize(
    ("tokens", "words"), [(900, "(-10.00 %)"), (None, "does not report the size")]
)
async def test_a_plan_that_was_wrong_is_a_warning(caplog, tokens, words):
    """A deviation of the reported KV tokens from the plan, or no report, is a warning."""
    stage = Stage()
    stage.probe.tokens = tokens
    run = asyncio.create_task(stage.supervisor.run())
    await stage.until(lambda: caplog.records)
    stage.supervisor.request_stop()
    await run
    assert caplog.records[0].levelname == "WARNING"
    assert words in caplog.text


@pytest.mark.parametrize("code", [0, 1, 137])
async def test_any_exit_that_nobody_asked_for_is_a_failure_and_is_restarted(code):
    """Exit code 0 counts like any other: the engine is cleaned up and started again."""
    stage = Stage()
    run = asyncio.create_task(stage.supervisor.run())
    await stage.state(State.READY)
    stage.engines[0].exit(code)
    await stage.until(lambda: len(stage.engines) == 2)
    await stage.state(State.READY)
    status = stage.supervisor.status()
    assert status.restarts == 1
    assert status.last_error == f"the engine exited by itself with code {code}"
    assert stage.engines[0].terminated == 1
    stage.supervisor.request_stop()
    await run


async def test_five_failed_starts_in_a_row_are_given_up_with_the_logs_end():
    """The error names the count, the last reason, and the last lines of the engine's log."""
    stage = Stage(codes=[1, 1, 1, 1, 1])
    stage.probe.ready = False
    with pytest.raises(EngineDidNotStart) as caught:
        await stage.supervisor.run()
    assert len(stage.engines) == 5
    message = str(caught.value)
    assert "failed 5 times in a row" in message
    assert "exited by itself with code 1" in message
    assert message.endswith("  | last words")
    assert caught.value.exit_code == 1
    assert stage.supervisor.status().state is State.FAILED


async def test_getting_ready_forgives_earlier_failures():
    """Only failures in a row without getting ready count: four, a good life, four more go on."""
    stage = Stage(codes=[1, 1, 1, 1, None, 1, 1, 1, 1, None])
    run = asyncio.create_task(stage.supervisor.run())
    await stage.until(lambda: len(stage.engines) == 5)
    await stage.state(State.READY)
    stage.engines[4].exit(0)
    await stage.until(lambda: len(stage.engines) == 10)
    await stage.state(State.READY)
    stage.supervisor.request_stop()
    await run


async def test_an_engine_that_never_gets_ready_is_ended_and_counts_as_failed():
    """When the time for starting is up the engine is ended; the error names the setting."""
    policy = Policy(start_s=0.01, poll_s=0.001, first_pause_s=0.001, give_up_after=2)
    stage = Stage(policy=policy)
    stage.probe.ready = False
    with pytest.raises(EngineDidNotStart, match="MODEL_SERVER_START_TIMEOUT_S"):
        await stage.supervisor.run()
    assert [engine.terminated for engine in stage.engines] == [1, 1]


async def test_stopping_while_starting_or_pausing_is_prompt():
    """A stop does not wait for a start, nor for the end of a back-off."""
    starting = Stage()
    starting.probe.ready = False
    run = asyncio.create_task(starting.supervisor.run())
    await starting.state(State.STARTING)
    starting.supervisor.request_stop()
    await run
    assert starting.supervisor.status().state is State.STOPPED
    pausing = Stage(policy=Policy(first_pause_s=60, poll_s=0.001), codes=[1])
    pausing.probe.ready = False
    run = asyncio.create_task(pausing.supervisor.run())
    await pausing.until(lambda: pausing.supervisor.status().phase == "restarting in 60 s")
    pausing.supervisor.request_stop()
    await asyncio.wait_for(run, 5)
    assert len(pausing.engines) == 1


async def test_the_phase_follows_the_log_while_starting():
    """Lines of the log that say what the engine does become the phase, until it is ready."""
    stage = Stage()
    stage.probe.ready = False
    run = asyncio.create_task(stage.supervisor.run())
    await stage.until(lambda: stage.engines)
    stage.hear("phase: loading weights")
    stage.hear("anything else")
    assert stage.supervisor.status().phase == "loading weights"
    stage.probe.ready = True
    await stage.state(State.READY)
    stage.hear("phase: compiling")
    assert stage.supervisor.status().phase == "ready"
    stage.supervisor.request_stop()
    await run


async def test_a_stopping_engine_that_has_drained_is_known():
    """The engine's own word that no request is left reaches whoever waits for it to end."""
    stage = Stage()
    run = asyncio.create_task(stage.supervisor.run())
    await stage.state(State.READY)
    stage.engines[0].waits_to_drain = True
    stage.supervisor.request_stop()
    await stage.until(lambda: stage.engines[0].terminated)
    assert not stage.engines[0].drained.is_set()
    stage.hear("drained")
    await asyncio.wait_for(run, 5)


async def test_an_engine_that_hangs_is_killed_at_once_and_replaced():
    """Found by a question that nobody answers; a polite word would only cost more time."""
    policy = Policy(poll_s=0.001, first_pause_s=0.001, hang=Patience(hang_s=0.06, look_s=0.001))
    stage = Stage(policy=policy)
    run = asyncio.create_task(stage.supervisor.run())
    await stage.state(State.READY)
    await asyncio.sleep(0.1)
    assert len(stage.engines) == 1
    assert not stage.probe.canaries
    stage.probe.hung = True
    await stage.until(lambda: len(stage.engines) == 2)
    stage.probe.hung = False
    assert "the engine hangs" in stage.supervisor.status().last_error
    assert stage.supervisor.status().hangs == 1
    assert stage.probe.canaries == ["m"]
    assert stage.engines[0].within_s == 0
    await stage.state(State.READY)
    stage.supervisor.request_stop()
    await run
    assert stage.engines[1].within_s == policy.stop_s


async def test_an_engine_without_its_core_is_not_waited_for():
    """A process of it ended and it says that it is not well: replaced at once, with a word to callers."""
    stage = Stage()
    run = asyncio.create_task(stage.supervisor.run())
    await stage.state(State.READY)
    stage.probe.ready = False
    stage.engines[0].ended.put_nowait("EngineCore")
    await stage.until(lambda: len(stage.engines) == 2)
    stage.probe.ready = True
    status = stage.supervisor.status()
    assert status.last_error == "a process of the engine ended by itself (EngineCore)"
    assert status.hangs == 0
    assert stage.engines[0].within_s == 2.5
    await stage.state(State.READY)
    stage.supervisor.request_stop()
    await run


async def test_a_helper_that_ends_is_no_failure(monkeypatch):
    """The engine says that it is well: it goes on, and the next death is looked at as well."""
    monkeypatch.setattr("model_server.supervisor._BROKEN_LOOK_S", 0.01)
    stage = Stage()
    run = asyncio.create_task(stage.supervisor.run())
    await stage.state(State.READY)
    stage.engines[0].ended.put_nowait("resource_tracker")
    await asyncio.sleep(0.05)
    assert len(stage.engines) == 1
    stage.probe.ready = False
    stage.engines[0].ended.put_nowait("Worker")
    await stage.until(lambda: len(stage.engines) == 2)
    stage.probe.ready = True
    stage.supervisor.request_stop()
    await run


async def test_an_engine_too_busy_to_say_how_it_is_is_not_broken(monkeypatch):
    """A helper ended while the engine had no time for its health page: it goes on."""
    monkeypatch.setattr("model_server.supervisor._BROKEN_LOOK_S", 0.01)
    stage = Stage()
    run = asyncio.create_task(stage.supervisor.run())
    await stage.state(State.READY)
    stage.probe.silent = True
    stage.engines[0].ended.put_nowait("resource_tracker")
    await asyncio.sleep(0.05)
    assert len(stage.engines) == 1
    assert stage.supervisor.status().state is State.READY
    stage.supervisor.request_stop()
    await run


async def test_what_came_back_is_followed_though_nobody_knows_what_was_held(monkeypatch):
    """As in a container on a GPU: what the device has free more is told all the same."""
    monkeypatch.setattr("model_server.supervisor._MEMORY_LOOK_S", 0.001)
    monkeypatch.setattr(FakeMemory, "returnable_bytes", lambda *_: None)
    stage = Stage()
    run = asyncio.create_task(stage.supervisor.run())
    await stage.state(State.READY)
    stage.supervisor.request_sleep()
    back = Unload(engine_bytes=None, freed_bytes=97)
    await stage.until(lambda: stage.supervisor.status().last_unload == back)
    stage.supervisor.request_stop()
    await run


async def test_a_changed_plan_is_another_engine():
    """What was changed is logged, and the failures before it do not count any more."""
    remedies = FakeRemedies(None, None, None, None, "the next start has less", None, None)
    stage = Stage(codes=[1] * 7, remedies=remedies)
    stage.probe.ready = False
    run = asyncio.create_task(stage.supervisor.run())
    await stage.until(lambda: len(stage.engines) == 8)
    assert stage.remedies.lives == 8
    assert stage.remedies.shown == [(["first line", "last words"], False)] * 7
    stage.supervisor.request_stop()
    await run


async def test_what_would_fail_the_same_way_again_is_not_tried_again():
    """One start, one clear error."""
    stage = Stage(codes=[1], remedies=FakeRemedies(CheckpointError("damaged")))
    stage.probe.ready = False
    with pytest.raises(CheckpointError):
        await stage.supervisor.run()
    assert len(stage.engines) == 1
    assert stage.supervisor.status().state is State.FAILED


async def test_memory_that_somebody_else_took_is_waited_for():
    """A plan that does not hold any more at a restart is a failure like any other, and told."""
    stage = Stage(codes=[None, DoesNotFit("2 GiB missing"), None])
    run = asyncio.create_task(stage.supervisor.run())
    await stage.state(State.READY)
    stage.engines[0].exit(1)
    await stage.until(lambda: len(stage.engines) == 2)
    await stage.until(lambda: stage.supervisor.status().last_error == "2 GiB missing")
    await stage.until(lambda: len(stage.engines) == 3)
    await stage.state(State.READY)
    stage.supervisor.request_stop()
    await run


async def test_a_port_in_use_ends_it_at_once():
    """Nothing is started, and nothing tried again, while another program has the port."""

    def taken():
        raise PortInUse("port 8000")

    stage = Stage(require_port=taken)
    with pytest.raises(PortInUse):
        await stage.supervisor.run()
    assert stage.engines == []


async def test_processes_that_cannot_be_killed_are_reported(caplog):
    """If something of the engine is left after stopping, the log and the state say so."""
    stage = Stage()
    run = asyncio.create_task(stage.supervisor.run())
    await stage.state(State.READY)
    stage.engines[0].left = 2
    stage.supervisor.request_stop()
    await run
    assert "2 processes of the engine could not be killed" in caplog.text


async def test_cancelling_ends_the_engine_too():
    """When the program is torn down instead of asked, the engine is ended all the same."""
    stage = Stage()
    run = asyncio.create_task(stage.supervisor.run())
    await stage.state(State.READY)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert stage.engines[0].terminated == 1


async def test_an_engine_that_nobody_asks_sleeps_until_it_is_woken(monkeypatch):
    """It is ended politely, counts as no failure, and is started once however often it is woken."""
    monkeypatch.setattr("model_server.supervisor._MEMORY_LOOK_S", 0.001)
    policy = Policy(
        poll_s=0.001, idle_unload_s=0.02, hang=Patience(hang_s=60, look_s=0.001), stop_s=7
    )
    stage = Stage(policy=policy)
    stage.probe.rests = True
    run = asyncio.create_task(stage.supervisor.run())
    await stage.until(lambda: stage.supervisor.status().unloads == 1)
    stage.probe.rests = False
    back = Unload(engine_bytes=100, freed_bytes=97)
    await stage.until(lambda: stage.supervisor.status().last_unload == back)
    status = stage.supervisor.status()
    assert (status.state, status.restarts, status.last_error) == (State.SLEEPING, 0, None)
    assert status.pid is None
    assert stage.engines[0].within_s == 7
    assert stage.remedies.shown == []
    await asyncio.sleep(0.05)
    assert len(stage.engines) == 1
    for _ in range(50):
        stage.supervisor.request_wake()
    await stage.state(State.READY)
    stage.supervisor.request_wake()
    await asyncio.sleep(0.01)
    status = stage.supervisor.status()
    assert (len(stage.engines), status.wakes, status.restarts, status.waking) == (2, 1, 0, False)
    stage.supervisor.request_stop()
    await run


async def test_a_wake_that_is_under_way_says_so_and_how_long_it_takes():
    """While it starts because somebody asked, it is waking; when that start fails, it is not."""
    stage = Stage(policy=Policy(poll_s=0.001, first_pause_s=60))
    run = asyncio.create_task(stage.supervisor.run())
    await stage.state(State.READY)
    assert stage.supervisor.status().start_s == 0.0
    assert stage.supervisor.request_sleep()
    await stage.state(State.SLEEPING)
    assert not stage.supervisor.request_sleep()
    stage.probe.ready = False
    stage.supervisor.request_wake()
    await stage.state(State.STARTING)
    assert stage.supervisor.status().waking
    stage.engines[1].exit(1)
    await stage.state(State.FAILED)
    assert not stage.supervisor.status().waking
    stage.supervisor.request_stop()
    await run


async def test_waking_while_it_falls_asleep_is_not_lost():
    """A question that comes while the engine is being ended starts it again."""
    stage = Stage()
    run = asyncio.create_task(stage.supervisor.run())
    await stage.state(State.READY)
    stage.engines[0].waits_to_drain = True
    stage.supervisor.request_sleep()
    await stage.state(State.SLEEPING)
    stage.supervisor.request_wake()
    stage.hear("drained")
    await stage.until(lambda: len(stage.engines) == 2)
    await stage.state(State.READY)
    stage.supervisor.request_stop()
    await run


async def test_others_are_served_while_the_kernel_counts_what_an_engine_holds(monkeypatch):
    """Under load that takes seconds, in which questions ask whether to wait for the engine."""
    asked, told = threading.Event(), threading.Event()

    def slow(*_):
        asked.set()
        assert told.wait(5), "the loop stood still meanwhile"
        return 100

    monkeypatch.setattr(FakeMemory, "returnable_bytes", slow)
    stage = Stage()
    run = asyncio.create_task(stage.supervisor.run())
    await stage.state(State.READY)
    stage.supervisor.request_sleep()
    await stage.until(asked.is_set)
    assert stage.supervisor.status().state is State.SLEEPING
    told.set()
    await stage.until(lambda: stage.supervisor.status().phase.startswith("asleep"))
    assert stage.supervisor.status().last_unload.engine_bytes == 100
    stage.supervisor.request_stop()
    await run


async def test_a_sleeping_engine_stops_at_once():
    """Asked to stop while it sleeps, the program ends; nothing is started for that."""
    stage = Stage()
    run = asyncio.create_task(stage.supervisor.run())
    await stage.state(State.READY)
    stage.supervisor.request_sleep()
    await stage.until(lambda: stage.supervisor.status().phase.startswith("asleep"))
    stage.supervisor.request_stop()
    await asyncio.wait_for(run, 5)
    assert len(stage.engines) == 1
    assert stage.supervisor.status().state is State.STOPPED


async def test_an_engine_sleeps_only_if_so_wished():
    """Without idle_unload_s an engine that nobody asks runs on."""
    stage = Stage(policy=Policy(poll_s=0.001, hang=Patience(hang_s=60, look_s=0.001)))
    stage.probe.rests = True
    run = asyncio.create_task(stage.supervisor.run())
    await stage.state(State.READY)
    await asyncio.sleep(0.1)
    assert stage.supervisor.status().unloads == 0
    stage.supervisor.request_stop()
    await run
