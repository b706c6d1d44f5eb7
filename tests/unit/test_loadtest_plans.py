"""The table of plans on cards that are not here, and what it says when a plan breaks its promise."""

from dataclasses import replace

import pytest

from loadtest.plans import main, table, trials
from model_server.planner import make_plan
from tests.public_models import CARDS_GB, PUBLIC_MODELS


def bold(**asked):
    """A planner that gives the KV cache a hundredth more than there is."""
    plan = make_plan(**asked)
    return replace(plan, kv_tokens=int(plan.kv_tokens * 1.01))


def forgetful(**asked):
    """A planner that leaves the activations out of its sum, and gives them to the KV cache."""
    plan = make_plan(**asked)
    per_token = plan.kv_cache_bytes // plan.kv_tokens
    more = plan.sums.activations // per_token
    return replace(plan, sums=replace(plan.sums, activations=0), kv_tokens=plan.kv_tokens + more)


def test_every_model_has_a_row_for_every_card_and_no_plan_is_over_its_budget(capsys):
    """As it is: a plan under its budget, or what would fit; and exit code 0."""
    found = trials()
    assert len(found) == len(PUBLIC_MODELS) * len(CARDS_GB)
    assert not any(t.is_over_budget for t in found)
    assert {t.plan is None for t in found} == {True, False}
    assert main() == 0
    assert "no plan is over its budget" in capsys.readouterr().out


@pytest.mark.parametrize("planner", [bold, forgetful])
def test_a_plan_over_its_budget_is_named_and_fails_the_command(planner, capsys):
    """Whatever the planner says of itself: the parts are added up again."""
    assert main(planner) == 1
    printed = capsys.readouterr().out
    assert "OVER BUDGET: SmolLM2-135M on the 8 GB card" in printed
    assert "% OVER |" in printed


def test_the_rows_show_the_flags_that_follow_and_the_advice_where_nothing_does():
    """Whoever reads a row can act on it; every row has as many cells as the head."""
    found = {(t.model, t.device.name): t.row for t in trials()}
    fitting = found["Llama-3.2-3B", "24 GB card"]
    assert "--max-num-seqs 256" in fitting
    assert "--gpu-memory-utilization 0.89" in fitting
    assert "123,216 tokens" in fitting
    refused = found["Llama-3.2-3B", "8 GB card"]
    assert "does not fit" in refused
    assert "a 4-bit checkpoint (AWQ, GPTQ)" in refused
    assert len({line.count("|") for line in table(trials()).splitlines()}) == 1
