"""The load test's clients over real sockets: what they do when an engine is slow, full or broken."""

import asyncio
import time

import pytest

from loadtest.arrivals import Ask
from loadtest.client_rules import ClientRules
from loadtest.corpus import Prompt
from loadtest.generator import Run, Target, closed_loop, open_loop
from loadtest.http_client import Client, post
from tests.fake_engine import MODEL

POOL = (Prompt("small", "Which level?", 1, (), ({"role": "user", "content": "Which level?"},)),)
RULES = ClientRules(patience_s=0.4, grace_s=0.1, first_wait_s=0.01, max_wait_s=0.02)


@pytest.fixture
def target(fake_engine):
    host, port = fake_engine.url.removeprefix("http://").split(":")
    address = (host, int(port))
    return Target(engine=address, orchestrator=address, model=MODEL, bands=False, pool=POOL)


def run(count=1, *, system="engine", gap_s=0.0, rules=RULES, stop_s=5.0, cut_s=5.0):
    asks = tuple(
        Ask(
            at_s=n * gap_s,
            prompt=0,
            max_tokens=8,
            nonce="0" * 16,
            stream=True,
            tenant="load",
            band="normal",
            degrade=False,
        )
        for n in range(count)
    )
    return Run(system, asks, rules, stop_retries_s=stop_s, cut_s=cut_s, seed=1)


async def sent(load, *arguments, **named):
    """A generator has a loop of its own, as in its own process."""
    return await asyncio.to_thread(load, *arguments, **named)


async def test_an_answer_is_recorded(fake_engine, target):
    """One attempt, its first token before its end, and the engine's token counts."""
    fake_engine.play(token_s=0.02)
    (record,) = (await sent(open_loop, target, run())).records
    assert record.whole
    assert [a.code for a in record.attempts] == ["ok"]
    assert record.first_token_s is not None
    assert 0 < record.first_token_s < record.total_s
    assert (record.prompt_tokens, record.completion_tokens) == (10, 3)


async def test_a_refusal_is_tried_again(fake_engine, target):
    """A 503 and a 429 are followed by a third attempt, no earlier than Retry-After says."""
    fake_engine.play(statuses=[(503, {}, {}), (429, {}, {"retry-after-ms": "150"})])
    (record,) = (await sent(open_loop, target, run())).records
    assert [a.status for a in record.attempts] == [503, 429, 200]
    assert record.whole
    assert record.total_s >= 0.15


async def test_a_refusal_that_forbids_it_is_not_tried_again(fake_engine, target):
    """`x-should-retry: false` ends it."""
    fake_engine.play(statuses=[(429, {}, {"x-should-retry": "false"})])
    (record,) = (await sent(open_loop, target, run())).records
    assert [a.status for a in record.attempts] == [429]
    assert not record.whole


async def test_a_hung_engine_is_given_up_three_times(fake_engine, target):
    """After patience and grace the client hangs up, the engine sees it leave, and it tries again."""
    fake_engine.play(ending="hang")
    (record,) = (await sent(open_loop, target, run())).records
    assert [a.code for a in record.attempts] == ["gave_up"] * 3
    assert all(0.45 < a.took_s < 1.0 for a in record.attempts)
    assert record.first_token_s is None
    async with asyncio.timeout(2):
        while fake_engine.running:
            await asyncio.sleep(0.01)


async def test_arrivals_wait_for_no_answer(fake_engine, target):
    """Open loop: everybody arrives on time although nobody is answered."""
    fake_engine.play(first_token_s=0.3)
    found = await sent(open_loop, target, run(20, gap_s=0.005))
    assert fake_engine.peak == 20
    assert all(r.whole and r.late_s < 0.1 for r in found.records)


async def test_the_semaphore_bounds_and_its_wait_costs_patience(fake_engine, target):
    """Behind 64 places the others wait, and who waits too long gives up without having been sent."""
    fake_engine.play(first_token_s=0.35)
    rules = ClientRules(patience_s=0.4, grace_s=0.1, max_retries=0)
    found = await sent(open_loop, target, run(80, system="semaphore", rules=rules))
    codes = sorted(r.attempts[0].code for r in found.records)
    assert fake_engine.peak == 64
    assert codes == ["gave_up"] * 16 + ["ok"] * 64
    waited = [r.attempts[0].took_s for r in found.records if not r.whole]
    assert min(waited) >= 0.45


async def test_the_end_of_a_run_cuts_what_is_left(fake_engine, target):
    """Who had no answer by then is marked as cut, neither served nor failed."""
    fake_engine.play(ending="hang")
    patient = ClientRules(patience_s=20.0)
    began_s = time.monotonic()
    found = await sent(open_loop, target, run(3, rules=patient, cut_s=0.2))
    assert time.monotonic() - began_s < 5
    assert [r.cut for r in found.records] == [True] * 3


async def test_a_closed_loop_keeps_its_clients_busy(fake_engine, target):
    """Never more at once than there are clients, and each asks again once it was answered."""
    found = await sent(closed_loop, target, run(40, cut_s=5.0), clients=4)
    assert fake_engine.peak <= 4
    assert sum(r.whole for r in found.records) == 40


async def test_a_closed_loop_ends_with_whole_answers(fake_engine, target):
    """At the end nobody asks again, and what is being answered is answered."""
    fake_engine.play(first_token_s=0.2)
    found = await sent(closed_loop, target, run(40, stop_s=0.3, cut_s=5.0), clients=4)
    assert [r.whole for r in found.records] == [True] * 8


async def test_a_connection_is_used_again(fake_engine, target):
    """Two exchanges one after the other share a connection."""
    client = Client(*target.engine)
    request = target.system("engine").request(run().asks[0], retries=0, patience_s=1.0)
    for _ in range(2):
        response = await client.send(request, give_up_s=time.monotonic() + 5)
        assert response.ending == "whole"
    client.close()
    assert len(set(fake_engine.client_ports)) == 1


async def test_a_stream_that_is_cut_is_a_reset_or_incomplete(fake_engine, target):
    """An engine that stops in the middle is never an answer."""
    fake_engine.play(ending="cut")
    (record,) = (await sent(open_loop, target, run())).records
    assert {a.code for a in record.attempts} == {"incomplete"}
    assert not record.whole


async def test_nobody_listens(target):
    """A refused connection is an outcome, no crash."""
    client = Client("127.0.0.1", 9)
    response = await client.send(post("/", b"", host="127.0.0.1:9"), give_up_s=time.monotonic() + 1)
    assert response.ending == "refused"
