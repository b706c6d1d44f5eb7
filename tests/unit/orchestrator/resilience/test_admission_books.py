"""The gate's books under any order of events: what is reserved, who waits, who is never forgotten."""

import contextlib
import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from orchestrator.domain import Band, Caller
from orchestrator.errors import DeadlineExceeded, NotReady, Overloaded, QueueFull, QueueTimeout
from orchestrator.resilience.admission import AdmissionGate
from orchestrator.resilience.admission_policy import (
    AdmissionLimits,
    Bound,
    Demand,
    future_peak_tokens,
)
from orchestrator.resilience.deadline import Deadline
from orchestrator.resilience.engine_capacity import EngineReading
from orchestrator.resilience.load_estimates import WINDOW

NUMBER = st.none() | st.integers(-5, 50)
READING = st.none() | st.builds(
    EngineReading,
    kv_tokens=st.sampled_from([None, 0, 1, 2000, 4000, 10**6]),
    kv_usage=st.none() | st.floats(-1, 2),
    running=NUMBER,
    waiting=NUMBER,
    waiting_for_cache=NUMBER,
    preemptions=NUMBER,
    token_s=st.none() | st.floats(0, 10),
)
DEMAND = st.builds(
    lambda prompt, output, limit: Demand(
        prompt, min(output, limit), max(1, min(output, limit) // 2), limit
    ),
    st.integers(0, 3000),
    st.integers(1, 400),
    st.integers(1, 800),
)


class GateMachine(RuleBasedStateMachine):
    """Everything that can happen at the gate, in any order, on a clock that is pushed by hand."""

    @initialize(
        max_concurrent=st.integers(1, 5),
        max_queued=st.integers(0, 6),
        kv_tokens=st.sampled_from([None, 1000, 4000]),
        wait_target_s=st.sampled_from([0.5, 5.0, 500.0]),
    )
    def open(self, max_concurrent, max_queued, kv_tokens, wait_target_s):
        self.now_s = 1000.0
        self.limits = AdmissionLimits(
            max_concurrent, max_queued, wait_target_s, kv_tokens, prefill_window_tokens=2000
        )
        self.gate = AdmissionGate(limits=self.limits, clock=lambda: self.now_s, jitter=lambda: 1.0)
        self.ledger = self.gate._ledger
        self.tickets = []
        self.granted = set()
        self.draining = False
        self.dispatched = True
        self.told_s = 1.0

    def ticket(self, data):
        return data.draw(st.sampled_from(self.tickets))

    def unsent(self):
        """A prompt is assembled before its answer begins."""
        return [t for t in self.live() if not t.prefilled]

    def live(self):
        return [t for t in self.tickets if t.granted]

    def forget(self, ticket):
        self.tickets.remove(ticket)
        self.granted.discard(ticket)

    @rule(seconds=st.floats(0, 30))
    def time_passes(self, seconds):
        self.now_s += seconds

    @rule(
        demand=DEMAND,
        tenant=st.sampled_from("abc"),
        band=st.sampled_from(Band),
        patience_s=st.floats(0.1, 600),
    )
    def enter(self, demand, tenant, band, patience_s):
        deadline = Deadline(patience_s, clock=lambda: self.now_s)
        if self.draining:
            with pytest.raises(NotReady):
                self.gate.enter(demand, deadline, Caller(tenant, band))
            return
        try:
            ticket = self.gate.enter(demand, deadline, Caller(tenant, band))
        except Overloaded as refusal:
            self.told_s = refusal.retry_after_s
        else:
            self.tickets.append(ticket)
        self.dispatched = True

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), finished=st.booleans(), again=st.booleans())
    def leave(self, data, finished, again):
        ticket = self.ticket(data)
        ticket.finished = finished
        self.gate.leave(ticket)
        self.forget(ticket)
        if again:
            state = self.gate.state()
            self.gate.leave(ticket)
            assert self.gate.state() == state
        self.dispatched = True

    @precondition(lambda self: self.live())
    @rule(data=st.data(), tokens=st.integers(1, 300))
    def progress(self, data, tokens):
        ticket = data.draw(st.sampled_from(self.live()))
        first = not ticket.prefilled
        before = ticket.produced
        self.gate.progress(ticket, tokens)
        assert ticket.produced == before + tokens
        # A single answer that grows can lower the foreseen peak; that room is given out with the
        # next event, not with every token.
        self.dispatched = first

    @precondition(lambda self: self.unsent())
    @rule(data=st.data(), prompt_tokens=st.integers(0, 4000))
    def resize(self, data, prompt_tokens):
        ticket = data.draw(st.sampled_from(self.unsent()))
        self.granted.discard(ticket)
        held = self.ledger.resize(ticket, prompt_tokens, self.now_s)
        assert held is ticket.granted
        assert ticket.demand.prompt_tokens == prompt_tokens
        if held:
            self.granted.add(ticket)
        self.dispatched = True

    @rule(reading=READING, rounds=st.integers(1, 3))
    def look_at_the_engine(self, reading, rounds):
        for _ in range(rounds):
            self.now_s += 1.0
            self.gate.observe(reading)
        self.dispatched = True

    @precondition(lambda self: len(self.tickets) > 2)
    @rule()
    def drain(self):
        self.gate.drain()
        self.draining = True

    @invariant()
    def every_ticket_is_in_one_place(self):
        """Live, or waiting, or displaced: never two of them, and nobody else is there."""
        live, queue = set(self.ledger.live), set(self.ledger.queue)
        displaced = {t for t in self.tickets if t.displaced}
        assert not live & queue
        assert live == {t for t in self.tickets if t.granted}
        assert live | queue | displaced == set(self.tickets)
        assert not displaced & (live | queue)
        assert (self.gate.running, self.gate.queued) == (len(live), len(queue))

    @invariant()
    def the_refused_are_told_something_useful(self):
        """Every refusal names a time that clients obey."""
        assert 1.0 <= self.told_s <= 60.0

    @invariant()
    def what_is_reserved_is_what_the_live_need(self):
        """The books' total is what their own tickets add up to."""
        assert self.gate.state().reserved_tokens == future_peak_tokens(t.live for t in self.live())

    @invariant()
    def nobody_new_overfills_the_engine(self):
        """Whoever was let in beside others left their worst moment within the budget."""
        new = set(self.live()) - self.granted
        self.granted = set(self.live())
        capacity = self.gate.capacity.current()
        assert self.gate.running <= self.limits.max_concurrent
        if not new or len(self.live()) == 1:
            return
        assert len(self.live()) <= capacity.concurrent
        if capacity.kv_tokens is not None:
            assert self.gate.state().reserved_tokens <= capacity.kv_tokens

    @invariant()
    def nobody_waits_before_an_open_door(self):
        """After each event the next in line does not fit: a wake-up is never lost."""
        if self.ledger.queue and self.dispatched and not self.draining:
            assert not self.ledger._fits(self.ledger._in_order()[0])

    @invariant()
    def lengths_are_awaited_of_the_live(self):
        """Whoever waits again, or left, holds nobody's length back."""
        begun = self.ledger._in_time._long_answers._begun
        assert {t for t, tokens in begun.items() if tokens is None} == set(self.ledger.live)

    @invariant()
    def charges_are_never_negative(self):
        """What a tenant is charged is what it took, and nothing once nobody is here."""
        charged = self.ledger._charges.charged
        assert all(value >= -1e-6 for value in charged.values())
        if not any(t.granted for t in self.tickets) and not self.ledger.queue:
            assert not charged

    def teardown(self):
        """When nobody new comes, everybody who waits is let in: none is forgotten."""
        if not hasattr(self, "gate"):
            return
        while self.ledger.queue:
            assert self.ledger.live, "a queue before an empty engine"
            for ticket in list(self.ledger.live):
                self.gate.leave(ticket)
        for ticket in list(self.ledger.live):
            self.gate.leave(ticket)
        assert (self.gate.running, self.gate.queued) == (0, 0)
        assert self.gate.state().reserved_tokens == 0


GateMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40)
test_books = GateMachine.TestCase


class Bench:
    """A gate on a clock that is pushed by hand."""

    def __init__(self, **limits):
        self.now_s = 1000.0
        facts = {"max_concurrent": 1, "max_queued": 2, "wait_target_s": 10.0} | limits
        self.gate = AdmissionGate(
            limits=AdmissionLimits(**facts), clock=lambda: self.now_s, jitter=lambda: 1.0
        )

    def deadline(self, seconds=100.0):
        return Deadline(seconds, clock=lambda: self.now_s)

    def enter(self, tenant="one", band=Band.NORMAL, *, prompt=100, output=10, within_s=100.0):
        demand = Demand(prompt, output, output, output)
        return self.gate.enter(demand, self.deadline(within_s), Caller(tenant, band))

    def serve(self, ticket, seconds=1.0):
        """The whole answer, and the ticket back."""
        self.now_s += seconds
        self.gate.progress(ticket, ticket.demand.output_tokens)
        ticket.finished = True
        self.gate.leave(ticket)

    def warm(self, seconds=1.0, prompt=100):
        """Let the gate learn how fast the engine is: one request every `seconds`."""
        first, second = self.enter(prompt=prompt), self.enter(prompt=prompt)
        for _ in range(20):
            self.serve(first, seconds)
            first, second = second, self.enter(prompt=prompt)
        self.serve(first, seconds)
        self.serve(second, seconds)


def test_the_room_of_one_who_gives_up_goes_to_those_behind():
    """A large request that leaves the head of the queue lets the small one behind it through."""
    bench = Bench(max_concurrent=3, kv_tokens=1000, safety=1.0)
    bench.enter(prompt=600)
    large, small = bench.enter(prompt=600, within_s=50.0), bench.enter(prompt=100)
    assert (large.granted, small.granted) == (False, False)
    bench.gate.leave(large)
    assert small.granted


def test_room_given_back_by_a_prompt_that_grew_goes_to_others():
    """A ticket that outgrew its room waits, and somebody for whom there is room does not."""
    bench = Bench(max_concurrent=3, kv_tokens=1000, safety=1.0)
    bench.enter("a", prompt=500)
    grows = bench.enter("b", prompt=100)
    waits = bench.enter("c", Band.INTERACTIVE, prompt=400)
    assert not waits.granted
    held = bench.gate._ledger.resize(grows, 5000, bench.now_s)
    assert (held, grows.granted, waits.granted) == (False, False, True)
    assert grows not in bench.gate._ledger._in_time._long_answers._begun, (
        "nobody's length waits for it"
    )


def test_a_prompt_that_turned_out_shorter_gives_room_back():
    """The difference between estimate and truth goes to the next one at once."""
    bench = Bench(max_concurrent=3, kv_tokens=1000, safety=1.0)
    shrinks = bench.enter(prompt=800)
    waits = bench.enter(prompt=400)
    assert not waits.granted
    assert bench.gate._ledger.resize(shrinks, 300, bench.now_s)
    assert waits.granted


def test_room_that_the_engine_shows_is_given_out():
    """When a look at the engine raises the limits, those who wait do not wait for an event."""
    bench = Bench(max_concurrent=3, kv_tokens=1000, safety=1.0)
    bench.enter(prompt=600)
    waits = bench.enter(prompt=600)
    bench.gate.observe(None)
    assert not waits.granted
    bench.gate.observe(EngineReading(kv_tokens=2000, kv_usage=0.3, running=1, waiting=0))
    assert waits.granted


def test_what_the_engine_has_sent_is_counted():
    """All tokens of all answers, also of those that are over; none of whom the books do not know."""
    bench = Bench(max_concurrent=3)
    first, second = bench.enter(), bench.enter()
    bench.gate.progress(first, 3)
    bench.gate.leave(first)
    bench.gate.progress(first, 100)
    bench.gate.progress(second, 4)
    assert bench.gate._ledger.own_load().received_tokens == 7


def test_a_tenant_is_charged_what_it_used():
    """Foretold at first, corrected with the prompt's length, and with the answer's in the end."""
    bench = Bench(max_concurrent=3)
    charged = bench.gate._ledger._charges.charged
    bench.enter("stays", prompt=1)
    ticket = bench.enter("b", prompt=100, output=10)
    bench.gate.progress(ticket, 0)
    start = charged["stays"]
    assert charged["b"] - start == 100 + 2 * 10
    assert bench.gate._ledger.resize(ticket, 300, bench.now_s)
    assert charged["b"] - start == 300 + 2 * 10
    bench.gate.progress(ticket, 4)
    bench.gate.leave(ticket)
    assert charged["b"] - start == 300 + 2 * 4


def test_nobody_overtakes_who_fits_better():
    """A small request waits behind a large one of its tenant, or large ones would starve."""
    bench = Bench(max_concurrent=3, kv_tokens=1000, safety=1.0)
    bench.enter(prompt=600)
    large, small = bench.enter(prompt=600), bench.enter(prompt=10)
    assert (large.granted, small.granted) == (False, False)


def test_time_without_a_queue_does_not_slow_the_engine():
    """The rate that waits are predicted from is that of an engine with work to do."""
    bench = Bench()
    bench.warm()
    before = bench.gate.state().drain_tokens_per_s
    bench.now_s += 3600.0
    assert bench.gate.state().drain_tokens_per_s == before


def test_questions_that_find_nothing_do_not_make_the_engine_slow():
    """A crowd that asks for what is not there holds places, and leaves without asking the engine."""
    bench = Bench()
    bench.warm()
    before = bench.gate.state().drain_tokens_per_s
    first, second = bench.enter(), bench.enter()
    for _ in range(50):
        bench.now_s += 0.2
        bench.gate.leave(first)
        first, second = second, bench.enter()
    assert bench.gate.state().drain_tokens_per_s >= before
    bench.gate.leave(first)
    bench.gate.leave(second)


def test_a_promise_is_not_judged_by_a_later_crowd():
    """Once the queue is empty, what was told to the refused cannot be held against us."""
    bench = Bench()
    bench.warm()
    tickets = [bench.enter() for _ in range(3)]
    with pytest.raises(QueueFull):
        bench.enter()
    for ticket in tickets:
        bench.serve(ticket)
    bench.now_s += 3600.0
    bench.warm()
    assert bench.gate.state().forecasts == 0


def test_admitting_one_tenant_can_let_another_in():
    """The charge for an admission changes who is next; whoever fits now is let in with it."""
    bench = Bench(max_concurrent=4, max_queued=5, kv_tokens=1000, safety=1.0)
    bench.enter("a", prompt=100)
    bench.enter("b", prompt=200)
    large = bench.enter("a", prompt=900, within_s=90.0)
    small = bench.enter("b", prompt=110)
    assert (large.granted, small.granted) == (False, False)
    urgent = bench.enter("a", prompt=300, within_s=10.0)
    assert (urgent.granted, large.granted, small.granted) == (True, False, True)


def test_retry_after_is_the_work_ahead_over_the_drain():
    """110 tokens a second and two before: the third is told 3 s; the wording says why."""
    bench = Bench(max_queued=2)
    bench.warm()
    for _ in range(3):
        bench.enter()
    with pytest.raises(QueueFull, match="2 requests wait, and 2 may") as refusal:
        bench.enter()
    assert refusal.value.retry_after_s == pytest.approx(3.0, rel=0.1)
    assert refusal.value.should_retry


def test_a_deadline_that_cannot_be_met_is_refused_at_the_door():
    """Nothing is spent on a request whose time is up before its turn."""
    bench = Bench()
    bench.warm(seconds=5.0)
    bench.enter()
    bench.enter()
    with pytest.raises(Overloaded, match="begin in about 8 s, and the request has 7 s") as refusal:
        bench.enter(within_s=7.0)
    assert refusal.value.should_retry
    with pytest.raises(Overloaded) as refusal:
        bench.enter(within_s=2.0)
    assert not refusal.value.should_retry
    assert not bench.enter(within_s=50.0).granted


def test_a_wait_over_the_target_is_refused_at_the_door():
    """The work of those ahead counts, not one's own length."""
    bench = Bench(max_queued=50, wait_target_s=2.5)
    bench.warm()
    for _ in range(4):
        bench.enter()
    with pytest.raises(Overloaded, match=r"about 4 s, and the limit is 2\.5 s"):
        bench.enter()


def test_in_sustained_overload_clients_are_told_not_to_retry():
    """Five seconds of refusals, and the retry is called off; a pause of two calls it on again."""
    bench = Bench(max_queued=0)
    bench.enter()
    told = []
    for _ in range(7):
        with pytest.raises(QueueFull) as refusal:
            bench.enter()
        told.append(refusal.value.should_retry)
        bench.now_s += 1.0
    assert told == [True] * 5 + [False] * 2
    bench.now_s += 2.0
    with pytest.raises(QueueFull) as refusal:
        bench.enter()
    assert refusal.value.should_retry


def test_a_full_queue_makes_room_for_who_goes_first():
    """A light tenant, and a higher band, take the place of whoever would have been last."""
    bench = Bench(max_queued=2)
    bench.enter("hog")
    first, last = bench.enter("hog"), bench.enter("hog")
    light = bench.enter("light")
    assert (last.displaced, first.displaced, bench.gate.queued) == (True, False, 2)
    with pytest.raises(QueueFull, match="others went before"):
        bench.gate.notice(last, bench.deadline(), bench.gate.patience_until_s())
    bench.gate.leave(last)
    assert bench.gate.queued == 2
    person = bench.enter("hog", Band.INTERACTIVE)
    assert (first.displaced, light.displaced, person.displaced) == (False, True, False)
    with pytest.raises(QueueFull):
        bench.enter("hog", Band.BATCH)


def test_waiting_ends_at_twice_the_target():
    """A prediction can be wrong: then the waiter is told when to come again."""
    bench = Bench()
    bench.enter()
    waits = bench.enter()
    until_s = bench.gate.patience_until_s()
    bench.now_s += 19.9
    assert bench.gate.notice(waits, bench.deadline(), until_s).position == 1
    bench.now_s += 0.2
    with pytest.raises(QueueTimeout, match="within 20 s") as refusal:
        bench.gate.notice(waits, bench.deadline(), until_s)
    assert refusal.value.retry_after_s == 10.0


def test_a_waiter_gives_up_when_its_time_cannot_suffice():
    """With less left than an answer's first token takes, its place goes to others."""
    bench = Bench()
    bench.warm(seconds=5.0)
    bench.enter()
    waits = bench.enter()
    service_s = bench.gate._ledger.service_s
    assert service_s > 1.0
    with pytest.raises(DeadlineExceeded):
        bench.gate.notice(waits, bench.deadline(service_s - 0.1), bench.now_s + 100.0)


def test_waiters_are_told_their_place_and_time():
    """Positions count from 1 in the order of service, with a predicted wait once one is known."""
    bench = Bench()
    bench.warm()
    bench.enter("hog")
    waits = [bench.enter("hog"), bench.enter("hog")]
    until_s = bench.gate.patience_until_s()
    notices = [bench.gate.notice(t, bench.deadline(), until_s) for t in waits]
    assert [n.position for n in notices] == [1, 2]
    assert [n.eta_s for n in notices] == pytest.approx([1.0, 2.0], rel=0.1)


def test_batch_work_that_waits_degrades_nobody():
    """Only what waits before a screen is worth a lesser answer."""
    bench = Bench(max_queued=50, wait_target_s=10.0)
    bench.warm()
    bench.enter()
    for _ in range(8):
        bench.enter("job", Band.BATCH)
    assert not bench.gate.brownout
    waits = [bench.enter("person") for _ in range(5)]
    assert bench.gate.brownout
    for ticket in waits[1:]:
        bench.gate.leave(ticket)
    assert not bench.gate.brownout


def test_somebody_without_a_wait_does_not_end_the_brownout():
    """An arrival that goes before the queue says nothing about those who are in it."""
    bench = Bench(max_concurrent=2, max_queued=50, kv_tokens=1000, safety=1.0)
    bench.warm(seconds=5.0, prompt=600)
    bench.enter("hog", prompt=500)
    for _ in range(2):
        bench.enter("hog", prompt=600)
    assert bench.gate.brownout
    assert bench.enter("light", prompt=100, within_s=50.0).granted
    assert bench.gate.brownout


@pytest.mark.parametrize(
    ("within_s", "late", "cut"), [(20.0, 3, True), (20.0, 2, False), (3.0, 3, False)]
)
def test_answers_that_ran_out_of_time_shrink_the_limits(within_s, late, cut):
    """Only if they are many, had more time than answers need, and not from callers in a hurry."""
    bench = Bench()
    bench.warm(seconds=5.0)
    for _ in range(late):
        ticket = bench.enter(within_s=within_s)
        bench.now_s += within_s
        bench.gate.leave(ticket)
    bench.gate.observe(None)
    assert (bench.gate.state().correction < 1.0) is cut


@pytest.mark.parametrize(("seconds", "tokens"), [(20.0, 500), (1.0, math.inf)])
def test_one_that_ran_out_of_time_was_a_long_one(seconds, tokens):
    """It might have had all its tokens; one whose client hung up says nothing."""
    bench = Bench()
    for _ in range(WINDOW):
        ticket = bench.enter(output=500, within_s=20.0)
        bench.gate.progress(ticket, 20)
        bench.now_s += seconds
        bench.gate.leave(ticket)
    assert bench.gate._ledger._in_time._long_answers.tokens() == tokens


def test_what_the_next_one_waits_for_is_told():
    """The first limit that keeps it out; nothing where nobody waits."""
    bench = Bench(max_concurrent=3, kv_tokens=1000, safety=1.0)
    bench.enter(prompt=600)
    assert bench.gate.state().waits_for is None
    large = bench.enter(prompt=600)
    assert bench.gate.state().waits_for is Bound.CACHE
    bench.gate.leave(large)
    for _ in range(3):
        bench.enter(prompt=10)
    assert bench.gate.state().waits_for is Bound.SEATS


def test_the_next_answer_is_foretold_from_those_that_ended():
    """Lengths are learnt for each route, and only from answers that were seen to their end."""
    bench = Bench()
    for _ in range(25):
        ticket = bench.enter(output=30)
        bench.gate.progress(ticket, 30)
        ticket.finished = True
        bench.gate.leave(ticket)
        cancelled = bench.enter(output=30)
        bench.gate.progress(cancelled, 1)
        bench.gate.leave(cancelled)
    known = bench.gate.demand("ask", prompt_tokens=5, max_tokens=1000)
    assert (known.output_tokens, known.mean_output_tokens) == (30, 30)
    other = bench.gate.demand("chat", prompt_tokens=5, max_tokens=1000)
    assert (other.output_tokens, other.mean_output_tokens) == (500, 500)


def test_a_draining_gate_lets_nobody_in():
    """New requests and those that wait are refused; who is inside goes on."""
    bench = Bench()
    inside, waits = bench.enter(), bench.enter()
    bench.gate.drain()
    with pytest.raises(NotReady) as refusal:
        bench.enter()
    assert refusal.value.retry_after_s == 5.0
    with pytest.raises(NotReady):
        bench.gate.notice(waits, bench.deadline(), bench.now_s + 100.0)
    bench.gate.observe(None)
    assert (inside.granted, waits.granted) == (True, False)


def share(bench, *, token_s, seconds):
    """Eight callers who ask again, 60 s each for 40 tokens that come every `token_s`."""
    tickets = list(bench.gate._ledger.live) + list(bench.gate._ledger.queue)
    for _ in range(round(seconds / token_s)):
        bench.now_s += token_s
        for ticket in [t for t in tickets if t.granted]:
            bench.gate.progress(ticket, 1)
            if ticket.produced >= 40:
                ticket.finished = True
                bench.gate.leave(ticket)
                tickets.remove(ticket)
        for _ in range(8 - len(tickets)):
            with contextlib.suppress(Overloaded):
                tickets.append(bench.enter(prompt=0, output=40, within_s=60.0))
    return bench.gate.state().concurrent


def test_as_many_share_a_slow_engine_as_get_their_answers_in_time():
    """It is followed down when it becomes slow, never to nobody, and up when it is fast again."""
    bench = Bench(max_concurrent=6, max_queued=50, wait_target_s=1000.0)
    assert share(bench, token_s=0.05, seconds=60) == 6
    assert 1 <= share(bench, token_s=2.0, seconds=240) <= 4
    assert bench.gate.running <= 4
    assert share(bench, token_s=0.05, seconds=60) == 6


def test_a_pause_leaves_the_limit_as_it_was():
    """An hour without anybody makes a slow engine neither fast nor unknown; to be fast again does."""
    bench = Bench(max_concurrent=6, max_queued=50, wait_target_s=1000.0)
    share(bench, token_s=0.05, seconds=60)
    slow = share(bench, token_s=2.0, seconds=240)
    for ticket in [*bench.gate._ledger.queue, *bench.gate._ledger.live]:
        bench.gate.leave(ticket)
    bench.now_s += 3600.0
    bench.gate.observe(None)
    assert bench.gate.state().concurrent == slow < 6
    assert share(bench, token_s=0.05, seconds=60) == 6
