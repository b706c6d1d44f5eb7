"""What is known of the engine right now: whether it answers, what it serves, how long its window is."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from orchestrator.concurrency import forever
from orchestrator.errors import EngineError, EngineTimeout, EngineUnavailable
from orchestrator.generation.engine_client import EngineClient, EngineModel
from orchestrator.generation.engine_keeper import EngineKeeper, EngineLife
from orchestrator.generation.engine_metrics import EngineMetrics, parse

RETRY_AFTER_S = 5.0
ASLEEP = "The engine sleeps: the next question wakes it."
AWAY_POLL_S = 0.25
SILENT_LOOKS = 3
"""
Looks in a row without an answer in time after which an engine that listed its model counts as away.

A busy one can be slow to say what it serves, and answers questions all the same; if it does hang, the
timers and the breaker of the questions themselves say so.
"""
KEEPER_SILENT_S = 10.0
"""Silence of the keeper's after which what it said last counts no longer."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """
    The engine as last seen.

    Attributes:
        model: The one that requests name; None while the engine does not answer.
        served: Every model that the engine listed when it last answered, or will once it is awake.
        detail: Why it is not ready, in words.
        life: What its keeper says of it; None without one, or if that is silent.
    """

    model: EngineModel | None
    served: tuple[EngineModel, ...] = ()
    detail: str = "The engine has not answered yet: it may still be loading."
    life: EngineLife | None = None

    @property
    def asleep(self) -> bool:
        """Whether it was ended because nobody asked, or is on its way back from there."""
        return self.life is not None and self.life.asleep

    @property
    def under_pressure(self) -> bool:
        """Whether its keeper says that memory is getting short."""
        return self.life is not None and self.life.pressure


class EngineMonitor:
    """
    Looks at the engine every `poll_s` seconds, and more often while it is away.

    Args:
        wanted: Model to ask for; None takes the first one listed.
        default_window_tokens: Used when the engine does not state its window.
        on_change: Called with the new state, and the one before, when it comes, goes, or sleeps.
        on_metrics: Called after each look with the engine's metrics, or with None if it gave none;
            without it they are not asked for.
        keeper: Who started it and can say why it does not answer.
    """

    def __init__(
        self,
        *,
        client: EngineClient,
        poll_s: float,
        default_window_tokens: int,
        wanted: str | None = None,
        on_change: Callable[[EngineState, EngineState], None] = lambda _now, _before: None,
        on_metrics: Callable[[EngineMetrics | None], None] | None = None,
        keeper: EngineKeeper | None = None,
    ) -> None:
        self._client = client
        self._poll_s = poll_s
        self._default_window_tokens = default_window_tokens
        self._wanted = wanted
        self._on_change = on_change
        self._on_metrics = on_metrics
        self._keeper = keeper
        self._heard_at_s = -KEEPER_SILENT_S
        self._silent_looks = 0
        self._task: asyncio.Task[None] | None = None
        self.state = EngineState(model=None)

    async def start(self) -> None:
        """Look once, then keep looking in the background."""
        await asyncio.gather(self.refresh(), self._scrape())
        self._task = asyncio.create_task(
            forever(self._look_again, what="the engine's monitor"), name="engine-monitor"
        )

    async def aclose(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def refresh(self) -> EngineState:
        """The state, looked at now."""
        state, life = await asyncio.gather(self._look(), self._ask_keeper())
        state = replace(state, life=life)
        if life is not None and life.asleep:
            # vLLM's pages answer until its very end, when no question is taken any more.
            served = (EngineModel(life.model, None),) if life.model else state.served
            state = replace(state, model=None, served=served, detail=ASLEEP)
        before, self.state = self.state, state
        if (state.model is None, state.asleep) != (before.model is None, before.asleep):
            self._on_change(state, before)
        return state

    async def _look(self) -> EngineState:
        silent, self._silent_looks = self._silent_looks, 0
        try:
            served = tuple(await self._client.pages.models())
            return EngineState(self._choose(served), served, detail="")
        except EngineError as exc:
            if isinstance(exc, EngineTimeout):
                self._silent_looks = silent + 1
                if self.state.model is not None and self._silent_looks < SILENT_LOOKS:
                    return self.state
            return EngineState(None, self.state.served, detail=exc.message)

    async def _ask_keeper(self) -> EngineLife | None:
        """What the keeper says, or has said of late: an engine that starts leaves it little time."""
        if self._keeper is None:
            return None
        now_s = asyncio.get_running_loop().time()
        if (life := await self._keeper.life()) is not None:
            self._heard_at_s = now_s
            return life
        return self.state.life if now_s - self._heard_at_s < KEEPER_SILENT_S else None

    @property
    def window_tokens(self) -> int:
        """The context window, in tokens."""
        model = self.state.model
        return (model and model.max_model_len) or self._default_window_tokens

    def require(self) -> EngineModel:
        """
        The model to ask.

        Raises:
            EngineUnavailable: If the engine did not answer the last look.
        """
        if self.state.model is None:
            raise EngineUnavailable(
                f"{self.state.detail} Try again in a moment.",
                retry_after_s=RETRY_AFTER_S,
            )
        return self.state.model

    def listed(self) -> tuple[EngineModel, ...]:
        """
        The models that can be asked for: of an engine that sleeps or is away too, as last seen.

        Raises:
            EngineUnavailable: If the engine has not answered once yet.
        """
        if not self.state.served:
            self.require()
        return self.state.served

    def _choose(self, served: tuple[EngineModel, ...]) -> EngineModel:
        named = [m for m in served if self._wanted in {None, m.id}]
        if not named:
            listed = ", ".join(m.id for m in served) or "no model at all"
            raise EngineUnavailable(
                f"The engine serves {listed}, not {self._wanted!r}: set ORCHESTRATOR_ENGINE_MODEL."
            )
        return named[0]

    async def _look_again(self) -> None:
        await self._pause()
        await asyncio.gather(self.refresh(), self._scrape())

    async def _pause(self) -> None:
        """
        The time between two looks.

        An engine that is away is looked for meanwhile: every moment that it is back unseen is lost.
        """
        clock = asyncio.get_running_loop().time
        over_s = clock() + self._poll_s
        while self.state.model is None and over_s - clock() > AWAY_POLL_S:
            await asyncio.sleep(AWAY_POLL_S)
            await self.refresh()
        await asyncio.sleep(max(0.0, over_s - clock()))

    async def _scrape(self) -> None:
        """
        A dead or slow /metrics is told as None, and does not hold up the other look.

        An engine that sleeps has none, and that says nothing of it: what was learnt holds when it wakes.
        """
        if self._on_metrics is None or self.state.asleep:
            return
        try:
            found = parse(await self._client.pages.metrics_text())
        except EngineError:
            found = None
        self._on_metrics(found)
