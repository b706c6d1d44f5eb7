"""
Who may go to the engine, who waits, who is refused: numbers in, decisions out.

No clock, no await, no I/O. Space is counted in KV tokens: a request is admitted if the engine's
cache will hold everybody at the worst moment to come, as far as output lengths can be foretold.
Time is counted in work: tokens that wait, over tokens that the engine gets done in a second.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Literal

from orchestrator.domain import Band

OUTPUT_WEIGHT = 2
"""
What a generated token is charged against a prompt token, between tenants.

Source: Sheng et al. 2024, "Fairness in serving large language models" (OSDI), section 5.
"""

MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """
    What the gate lets through.

    Attributes:
        max_concurrent: Requests with the engine at once.
        max_queued: Requests that may wait.
        wait_target_s: Longest predicted wait at which a request is still taken, in seconds.
        kv_tokens: Tokens that the engine's cache holds, until the engine itself says.
        safety: Share of the cache that is given out; the rest is for what cannot be foretold.
        batch_share: Share of everything that the batch band may fill; the rest stays free, so
            that others do not have to wait for it.
        prefill_window_tokens: Prompt tokens that may be with the engine before their first token;
            raised while they come soon (`Capacity`), but never for the batch band.
        brownout_at: Predicted wait, as a share of the target, from which answers are degraded.
        recover_at: The share below which they are whole again.
    """

    max_concurrent: int
    max_queued: int
    wait_target_s: float
    kv_tokens: int | None = None
    safety: float = 0.95
    batch_share: float = 0.6
    prefill_window_tokens: int = 4096
    brownout_at: float = 0.4
    recover_at: float = 0.2

    def __post_init__(self) -> None:
        if (
            self.max_concurrent < 1
            or self.max_queued < 0
            or self.wait_target_s <= 0
            or not 0 < self.safety <= 1
            or not 0 < self.batch_share <= 1
            or not 0 <= self.recover_at < self.brownout_at <= 1
        ):
            raise ValueError(f"not usable as limits: {self!r}")


@dataclass(frozen=True, slots=True)
class Demand:
    """
    What one request needs of the engine, in tokens.

    Attributes:
        prompt_tokens: Length of the prompt; an estimate before retrieval.
        output_tokens: Length of the answer that four in five stay below (q80).
        mean_output_tokens: Mean length of the answer.
        max_tokens: Length at which the engine cuts it off.
    """

    prompt_tokens: int
    output_tokens: int
    mean_output_tokens: int
    max_tokens: int

    @property
    def work_tokens(self) -> int:
        """What the engine will probably have to process."""
        return self.prompt_tokens + self.mean_output_tokens

    @property
    def charge(self) -> int:
        """What the tenant is charged before the answer's length is known."""
        return self.prompt_tokens + OUTPUT_WEIGHT * self.mean_output_tokens


Live = tuple[int, int]
"""(tokens in the cache, tokens that are still to come) of one request with the engine."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """
    What the engine can hold of ours right now.

    Attributes:
        kv_tokens: Cache that we may fill; None if nobody knows it.
        concurrent: Requests that we may have with the engine.
        prefill_tokens: Prompt tokens that may be there before their first token.
        in_time: Requests whose answers end in time if so many share the engine; None is any number.
    """

    kv_tokens: int | None
    concurrent: int
    prefill_tokens: int
    in_time: int | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """
    What is there already.

    Attributes:
        live: The requests with the engine.
        prefill_tokens: Prompt tokens of those without a first token.
        peers: How many of the live ones are at least as urgent as the request that is looked at.
    """

    live: Sequence[Live]
    prefill_tokens: int = 0
    peers: int = 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """One request in the queue, as the order sees it. `deadline_s` is on the gate's clock."""

    tenant: str
    band: Band
    deadline_s: float
    charge: int
    work_tokens: int


class Action(Enum):
    """What becomes of an arrival."""

    ADMIT = "admit"
    WAIT = "wait"
    DISPLACE = "displace"
    """It waits in the place of whoever would have been served last."""
    REFUSE = "refuse"


Reason = Literal["", "queue_full", "wait_too_long", "deadline_too_short"]


@dataclass(frozen=True, slots=True)
class Decision:
    """
    What becomes of an arrival, and what it is told.

    Attributes:
        eta_s: Predicted wait, in seconds; None if nothing is known yet.
        retry_after_s: For a refusal: when this request would have been served.
        reason: Why it is refused.
    """

    action: Action
    eta_s: float | None
    retry_after_s: float | None = None
    reason: Reason = ""


def future_peak_tokens(live: Iterable[Live]) -> int:
    """
    The most tokens that these requests will hold at once.

    Requests end in the order of what they have left. When the one with the k-th most to come ends,
    k requests have each grown by what it had left, and those with less are gone:
    max over k of (sum of the k first residents + k * remaining_k).

    Source:
        Gong et al. 2025, "Past-Future scheduler for LLM serving under SLA guarantees" (ASPLOS).
    """
    peak = resident = 0
    for count, (tokens, remaining) in enumerate(sorted(live, key=_most_to_come), start=1):
        resident += tokens
        peak = max(peak, resident + count * remaining)
    return peak


def remaining_tokens(produced: int, demand: Demand) -> int:
    """
    Tokens still to come of an answer that has `produced` so far.

    One that has outgrown its prediction is taken to grow by a quarter more, and never beyond its
    `max_tokens`.
    """
    left = demand.max_tokens - produced
    if produced < demand.output_tokens:
        return max(min(demand.output_tokens - produced, left), 0)
    return max(min(left, max(16, produced // 4)), 0)


class Bound(StrEnum):
    """Which limit keeps the next request from the engine."""

    SEATS = "seats"
    """As many are there as may be at once."""
    TIME = "time"
    """One more, and answers would not end in time."""
    PROMPTS = "prompts"
    """As many tokens as may be wait there to be read."""
    CACHE = "cache"
    """The engine's cache is given away, at its worst moment to come."""


def bound(
    demand: Demand, band: Band, load: Load, capacity: Capacity, limits: AdmissionLimits
) -> Bound | None:
    """
    What keeps this request from the engine; None if it can be held until all have ended.

    One request alone always fits: what is too large even then, the engine itself refuses.
    """
    if not load.live:
        return None
    share = limits.batch_share if band is Band.BATCH else 1.0
    if len(load.live) >= max(1, int(capacity.concurrent * share)):
        return Bound.SEATS
    # Those less urgent may be slowed down: who is urgent must not wait until they have ended.
    if capacity.in_time is not None and load.peers >= max(1, int(capacity.in_time * share)):
        return Bound.TIME
    prefill = load.prefill_tokens + demand.prompt_tokens
    if load.prefill_tokens and prefill > _window_tokens(band, capacity, limits):
        return Bound.PROMPTS
    if capacity.kv_tokens is None:
        return None
    peak = future_peak_tokens([*load.live, (demand.prompt_tokens, demand.output_tokens)])
    return Bound.CACHE if peak > capacity.kv_tokens * share else None


def serving_order(waiting: Sequence[Waiting], charged: Mapping[str, float]) -> list[int]:
    """
    Indexes of the queue in the order in which it will be served.

    Bands first; within a band the tenant that was charged least goes next and is charged for it;
    within a tenant the earliest deadline.

    Source:
        The virtual token counter of Sheng et al. 2024 (OSDI), played forward.
    """
    tags: list[tuple[Band, float, float, int]] = []
    virtual: dict[tuple[Band, str], float] = {}
    by_deadline = sorted(range(len(waiting)), key=lambda i: waiting[i].deadline_s)
    for index in by_deadline:
        request = waiting[index]
        line = (request.band, request.tenant)
        start = virtual.get(line, charged.get(request.tenant, 0.0))
        tags.append((request.band, start, request.deadline_s, index))
        virtual[line] = start + request.charge
    return [index for _, _, _, index in sorted(tags)]


@dataclass(frozen=True, slots=True)
class Standing:
    """
    Where an arrival would stand in the queue.

    Attributes:
        ahead_tokens: Work of those that will be served before it.
        before: Index of the one that is served last, if that one is of another tenant or band and
            comes after it.
    """

    ahead_tokens: int = 0
    before: int | None = None


def standing(
    arrival: Waiting, waiting: Sequence[Waiting], charged: Mapping[str, float]
) -> Standing:
    """Where `arrival` would stand among those that wait."""
    order = serving_order([*waiting, arrival], charged)
    mine, last = order.index(len(waiting)), order[-1]
    ahead = sum(waiting[index].work_tokens for index in order[:mine])
    others = last < len(waiting) and (
        (waiting[last].tenant, waiting[last].band) != (arrival.tenant, arrival.band)
    )
    return Standing(ahead, last if others else None)


def predicted_wait_s(
    work_ahead: int, own_work: int, drain_tokens_per_s: float | None
) -> float | None:
    """Seconds until room has come free for the work ahead and for one's own; None if unknown."""
    if not drain_tokens_per_s:
        return None
    return (work_ahead + own_work) / drain_tokens_per_s


def decide(
    *,
    fits_now: bool,
    anyone_ahead: bool,
    num_waiting: int,
    goes_before_last: bool,
    turn_s: float | None,
    eta_s: float | None,
    remaining_s: float,
    service_s: float,
    limits: AdmissionLimits,
) -> Decision:
    """
    What becomes of an arrival.

    Args:
        fits_now: Whether the engine has room for it.
        anyone_ahead: Whether somebody waits who goes first.
        num_waiting: Requests that wait.
        goes_before_last: Whether the last of them is somebody else's and comes after it: one who
            asks a lot must not fill the queue for those who ask little.
        turn_s: Predicted wait until nobody is before it; None if unknown. This is what the target
            is held against: with its own work in it, large prompts would be refused first.
        eta_s: Predicted wait until it has room, too; None if unknown.
        remaining_s: Seconds until its deadline.
        service_s: Seconds from dispatch to first token, as a rule.
        limits: What the gate lets through.
    """
    if fits_now and not anyone_ahead:
        return Decision(Action.ADMIT, 0.0)
    if eta_s is not None and eta_s + service_s > remaining_s:
        return Decision(Action.REFUSE, eta_s, retry_after_s(eta_s), "deadline_too_short")
    if eta_s is not None and turn_s is not None and turn_s > limits.wait_target_s:
        return Decision(Action.REFUSE, eta_s, retry_after_s(eta_s), "wait_too_long")
    if num_waiting >= limits.max_queued:
        if num_waiting and goes_before_last:
            return Decision(Action.DISPLACE, eta_s)
        wait_s = limits.wait_target_s if eta_s is None else eta_s
        return Decision(Action.REFUSE, eta_s, retry_after_s(wait_s), "queue_full")
    return Decision(Action.WAIT, eta_s)


def retry_after_s(eta_s: float) -> float:
    """When a refused request would have been served, within what clients obey, in seconds."""
    return min(max(eta_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)


def brownout(active: bool, eta_s: float | None, limits: AdmissionLimits) -> bool:  # noqa: FBT001 - the state that goes in comes out
    """Whether answers are degraded, given whether they were; between the two marks it stays."""
    if eta_s is None:
        return active
    share = eta_s / limits.wait_target_s
    return share > (limits.recover_at if active else limits.brownout_at)


def _most_to_come(live: Live) -> int:
    return -live[1]


def _window_tokens(band: Band, capacity: Capacity, limits: AdmissionLimits) -> float:
    """
    Prompt tokens that may be with the engine before their first token.

    The window is widened until prompts are read within a second, and who is urgent reads behind
    those that are there: batch work has no more of it than the window as it is set.
    """
    if band is not Band.BATCH:
        return capacity.prefill_tokens
    return min(capacity.prefill_tokens * limits.batch_share, limits.prefill_window_tokens)
