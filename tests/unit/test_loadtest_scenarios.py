"""What the curve's rows come to: turns and repeats, on a machine that drifts."""

from types import SimpleNamespace

import pytest

from loadtest.client_rules import ClientRules
from loadtest.generator import Attempt, Record
from loadtest.scenarios import goodput, recovery

LOADS = (1.0, 2.0, 10.0)


def rows(seed, tokens_of, *, slower=0.0):
    """Tidegate's rows of one repeat, there and back, each slower than the one before by so much."""
    order = [*LOADS, *reversed(LOADS)]
    return [
        SimpleNamespace(
            scenario="curve",
            system="tidegate",
            load_x=load_x,
            seed=seed,
            figures=SimpleNamespace(goodput_tok_s=tokens_of[load_x] - slower * place),
        )
        for place, load_x in enumerate(order)
    ]


def kept(results, load_x):
    """Goodput there, of its peak, a value a repeat."""
    what = f"goodput at {load_x:g}x, of its peak"
    return [check.value for check in goodput(results) if check.what == what]


def test_a_machine_that_slows_down_takes_nothing_from_a_flat_curve():
    """Whatever is lost on the way there is lost on the way back, too."""
    flat = dict.fromkeys(LOADS, 100.0)
    results = rows(1, flat, slower=4.0) + rows(2, flat, slower=4.0)
    assert kept(results, 2.0) == pytest.approx([1.0, 1.0])
    assert kept(results, 10.0) == pytest.approx([1.0, 1.0])


def test_a_loss_under_load_is_seen():
    """In each repeat, however fast the machine was in it."""
    lossy = {1.0: 100.0, 2.0: 90.0, 10.0: 80.0}
    slow = {load_x: tokens / 2 for load_x, tokens in lossy.items()}
    results = rows(1, lossy) + rows(2, slow)
    assert kept(results, 2.0) == pytest.approx([0.9, 0.9])
    assert kept(results, 10.0) == pytest.approx([0.8, 0.8])


@pytest.mark.parametrize("capacity_rps", [0.5, 1.1, 20.0])
def test_a_slow_engine_has_the_time_to_be_seen_recovered(capacity_rps):
    """A window with enough arrivals fits in after the burst, however long it has to be."""

    def served(scenario, system, flows, *, load_x, window):
        end_s = int(window.end_s)
        records = [
            Record(
                float(at_s), "small", "load", "normal",
                attempts=[Attempt("ok", 200, 1.0, 1.0, None)], whole=True, total_s=1.0,
            )
            for at_s in range(end_s)
        ]  # fmt: skip
        return SimpleNamespace(records=records)

    bench = SimpleNamespace(
        capacity_rps=capacity_rps,
        rules=ClientRules(),
        flow=lambda load_x, **options: options,
        open=served,
    )
    ours, _ = recovery(bench, 0).checks
    assert ours.value == 0
