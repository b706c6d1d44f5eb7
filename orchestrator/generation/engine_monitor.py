"""What is known of the engine right now: whether it answers, what it serves, how long its window is."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from orchestrator.errors import EngineError, EngineUnavailable
from orchestrator.generation.engine_client import EngineClient, EngineModel
from orchestrator.generation.engine_metrics import EngineMetrics, parse

RETRY_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class EngineState:
    """
    The engine as last seen.

    Attributes:
        model: The one that requests name; None while the engine does not answer.
        served: Every model that the engine lists.
        detail: Why it is not ready, in words.
    """

    model: EngineModel | None
    served: tuple[EngineModel, ...] = ()
    detail: str = "The engine has not answered yet: it may still be loading."


class EngineMonitor:
    """
    Looks at the engine every `poll_s` seconds.

    Args:
        wanted: Model to ask for; None takes the first one listed.
        default_window_tokens: Used when the engine does not state its window.
        on_change: Called with the new state whenever readiness changes.
        on_metrics: Called after each look with the engine's metrics, or with None if it gave none;
            without it they are not asked for.
    """

    def __init__(
        self,
        *,
        client: EngineClient,
        poll_s: float,
        default_window_tokens: int,
        wanted: str | None = None,
        on_change: Callable[[EngineState], None] = lambda _: None,
        on_metrics: Callable[[EngineMetrics | None], None] | None = None,
    ) -> None:
        self._client = client
        self._poll_s = poll_s
        self._default_window_tokens = default_window_tokens
        self._wanted = wanted
        self._on_change = on_change
        self._on_metrics = on_metrics
        self._task: asyncio.Task[None] | None = None
        self.state = EngineState(model=None)

    async def start(self) -> None:
        """Look once, then keep looking in the background."""
        await asyncio.gather(self.refresh(), self._scrape())
        self._task = asyncio.create_task(self._watch(), name="engine-monitor")

    async def aclose(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def refresh(self) -> EngineState:
        """The state, looked at now."""
        try:
            served = tuple(await self._client.pages.models())
            state = EngineState(self._choose(served), served, detail="")
        except EngineError as exc:
            state = EngineState(model=None, detail=exc.message)
        changed = (state.model is None) != (self.state.model is None)
        self.state = state
        if changed:
            self._on_change(state)
        return state

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

    def _choose(self, served: tuple[EngineModel, ...]) -> EngineModel:
        named = [m for m in served if self._wanted in {None, m.id}]
        if not named:
            listed = ", ".join(m.id for m in served) or "no model at all"
            raise EngineUnavailable(
                f"The engine serves {listed}, not {self._wanted!r}: set ORCHESTRATOR_ENGINE_MODEL."
            )
        return named[0]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await asyncio.gather(self.refresh(), self._scrape())

    async def _scrape(self) -> None:
        """A dead or slow /metrics is told as None, and does not hold up the other look."""
        if self._on_metrics is None:
            return
        try:
            found = parse(await self._client.pages.metrics_text())
        except EngineError:
            found = None
        self._on_metrics(found)
