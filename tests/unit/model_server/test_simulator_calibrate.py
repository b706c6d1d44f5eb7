"""Fitting a profile to an engine: the constants that went in come out."""

import pytest

from model_server.simulator.calibrate import DecodeStep, fit
from model_server.simulator.latency import PROFILES


def steps_of(profile, *, error=0.0):
    """What would be measured of an engine that is exactly that profile, give or take an error."""
    measured = []
    for n, (decoding, context) in enumerate(
        (decoding, context) for context in (100, 420) for decoding in (1, 4, 16, 32)
    ):
        step_s = profile.step_s(
            prefill_tokens=0, decoding=decoding, resident_tokens=decoding * context
        )
        measured.append(DecodeStep(decoding, context, step_s * (1 + error * (-1) ** n)))
    return measured


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_the_constants_come_out_again(name):
    """Exact measurements give the exact constants, large and small."""
    profile = PROFILES[name]
    assert fit(steps_of(profile)) == pytest.approx(
        (profile.base_s, profile.decoding_s, profile.resident_token_s), rel=1e-6
    )


def test_noise_makes_no_constant_negative():
    """A term that noise would turn below zero is left out, and the rest still fits."""
    profile = PROFILES["h100-8b"]
    measured = steps_of(profile, error=0.2)
    base_s, decoding_s, resident_token_s = fit(measured)
    assert min(base_s, decoding_s, resident_token_s) >= 0
    assert base_s == pytest.approx(profile.base_s, rel=0.3)


def test_steps_that_only_shrink_are_a_constant():
    """Nothing but a base is left when every other term would be negative."""
    measured = [DecodeStep(n, 100, 0.05 - 0.001 * n) for n in (1, 4, 16, 32)]
    base_s, decoding_s, resident_token_s = fit(measured)
    assert base_s > 0
    assert (decoding_s, resident_token_s) == (0, 0)
