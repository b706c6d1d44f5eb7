"""The plugs of `make chaos`, and what is promised while each of them is pulled."""

from dataclasses import dataclass

from loadtest.chaos_pulls import (
    KILLS,
    READY_S,
    STALE_WITHIN_S,
    Look,
    Pull,
    all_ready,
    by_proxy,
    disk_full,
    embedder_killed,
    engine_killed,
    engine_killed_again,
    engine_never_starts,
    engine_smaller,
    engine_stopped,
    keeper_killed,
    memory_eaten,
    metrics_dead,
    no_look,
    no_pressure,
    nothing,
    orchestrator_killed,
    orchestrator_starved,
)


@dataclass(frozen=True, slots=True)
class Plug:
    """
    Something that goes wrong.

    Attributes:
        promise: What callers are promised, in words.
        pull: Takes the stage, and the list for broken promises.
        out_s: How long it stays pulled.
        connections: Whether broken connections are part of it.
        served: Share of the arrivals that get a whole answer while it is pulled, at least.
        answered: Share of them that get an answer or the passages, at least.
        starts: How often the engine is started before it is back: vLLM takes half a minute each time.
        crowd: Whether its promise wants more people than ask vLLM on a CPU: a breaker judges by ten
            calls in ten seconds, and an alarm's half hour is half a minute here.
        storm_x: Further load while it is pulled, in multiples of the ordinary one.
        alarms: Of `deploy/prometheus/alerts.yaml`; each has to be raised.
        afterwards: Looks at what has to hold when nobody asks any more.
        needs: What it cannot be pulled without: "disk", "group" or "simulator".
    """

    name: str
    promise: str
    pull: Pull
    out_s: float = 10.0
    connections: bool = False
    served: float = 0.0
    answered: float = 0.0
    starts: int = 0
    crowd: bool = False
    storm_x: float = 0.0
    alarms: tuple[str, ...] = ()
    afterwards: Look = no_look
    needs: str = ""


TOLD = "an answer, the passages, or a refusal that says when to come back"
MOST = 0.9
PLUGS = (
    Plug(
        "engine killed",
        "the passages meanwhile; whole answers once it is back",
        engine_killed,
        out_s=5,
        answered=MOST,
        starts=1,
    ),
    Plug(
        "engine killed again and again",
        f"{TOLD}; an alarm",
        engine_killed_again,
        out_s=15,
        starts=KILLS,
        crowd=True,
        alarms=("TidegateEngineRestartsOften",),
    ),
    Plug(
        "engine stopped",
        "nobody waits beyond the deadline; found, killed and started again",
        engine_stopped,
        out_s=25,
        starts=1,
        alarms=("TidegateEngineHung",),
    ),
    Plug(
        "engine never starts",
        "the passages meanwhile; an alarm",
        engine_never_starts,
        out_s=26,
        starts=1,
        answered=MOST,
        alarms=("TidegateEngineDown", "TidegateEngineUnreachable"),
    ),
    Plug(
        "engine smaller",
        f"{TOLD}; an alarm",
        engine_smaller,
        out_s=12,
        alarms=("TidegateKvCacheOffPlan",),
        needs="simulator",
    ),
    Plug(
        "engine refuses",
        "the passages",
        by_proxy(refuse=True),
        answered=MOST,
        alarms=("TidegateBreakerOpen",),
    ),
    Plug(
        "engine slow",
        "the passages; nobody waits beyond the deadline",
        by_proxy(drip_bytes_per_s=40.0),
        out_s=40,
        answered=MOST,
        crowd=True,
    ),
    Plug(
        "engine lies",
        "the passages, never half an answer",
        by_proxy(garble_frame=2),
        answered=MOST,
        crowd=True,
    ),
    Plug(
        "engine cuts",
        "the passages, never half an answer",
        by_proxy(cut_after_bytes=600),
        answered=MOST,
    ),
    Plug(
        "metrics dead",
        "told in /status, and answers as always",
        metrics_dead,
        out_s=STALE_WITHIN_S + 10,
        served=MOST,
        alarms=("TidegateBlind",),
    ),
    Plug(
        "model_server killed",
        "the passages meanwhile; its engine goes with it; an alarm",
        keeper_killed,
        out_s=8,
        starts=1,
        answered=MOST,
        alarms=("TidegateEngineGivenUp", "TidegateEngineUnreachable"),
    ),
    Plug(
        "memory eaten",
        f"{TOLD}; alarms",
        memory_eaten,
        out_s=45,
        alarms=("TidegateMemoryHigh", "TidegateMemoryCritical"),
        afterwards=no_pressure,
        needs="group",
    ),
    Plug(
        "orchestrator killed",
        f"ready within {READY_S:g} s with all its documents",
        orchestrator_killed,
        out_s=2,
        connections=True,
    ),
    Plug(
        "orchestrator starved",
        f"{TOLD}; an alarm",
        orchestrator_starved,
        out_s=12,
        alarms=("TidegateEventLoopBlocked",),
    ),
    Plug(
        "embedder killed",
        "answers as always, searched by words meanwhile",
        embedder_killed,
        served=MOST,
    ),
    Plug(
        "disk full",
        "uploads get 507, work waits, questions are answered",
        disk_full,
        out_s=35,
        served=MOST,
        alarms=("TidegateDocumentsStand",),
        afterwards=all_ready,
        needs="disk",
    ),
    Plug(
        "storm",
        "refused in milliseconds, the others answered; an alarm",
        nothing,
        out_s=25,
        storm_x=20.0,
        alarms=("TidegateRefusesMany",),
    ),
)
