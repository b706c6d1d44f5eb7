"""What the service says of a dependency that failed."""

from orchestrator.resilience.circuit_breaker import BreakerPolicy, CircuitBreaker
from orchestrator.status import _by_breaker


def test_a_breaker_says_what_comes_next():
    """Left alone for so long, tried by whoever comes next, being tried, well: each in its words."""
    now_s = [0.0]
    breaker = CircuitBreaker(name="embedder", policy=BreakerPolicy(), clock=lambda: now_s[0])
    assert _by_breaker(breaker).status == "ok"
    for _ in range(5):
        breaker.enter().failed("why")
    told = [_by_breaker(breaker)]
    now_s[0] = 4.9
    told.append(_by_breaker(breaker))
    now_s[0] = 5.0
    told.append(_by_breaker(breaker))
    probe = breaker.enter()
    told.append(_by_breaker(breaker))
    assert {dependency.status for dependency in told} == {"degraded"}
    assert all("of late (why); " in dependency.detail for dependency in told)
    assert [dependency.detail.partition("; ")[2] for dependency in told] == [
        "it is tried again in 5 s.",
        "it is tried again in 1 s.",
        "the next call tries it.",
        "it is being tried at this moment.",
    ]
    probe.succeeded()
    assert _by_breaker(breaker).status == "ok"
