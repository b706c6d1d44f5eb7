"""What ten minutes of random requests prove (`make fuzz`), with some hundreds."""

import pytest

from tests.fuzz import SEED, fuzz, table

OPERATIONS = 17
SOME = ["--max-examples", "6"]
WITHIN_S = 150.0


@pytest.mark.parametrize("keyed", [False, True], ids=["without keys", "with keys"])
def test_every_answer_is_as_documented(tmp_path, keyed):
    """No 5xx, no field, header, type or status beyond the OpenAPI document, whatever is sent."""
    found = fuzz(tmp_path, budget=SOME, keyed=keyed, seed=SEED, within_s=WITHIN_S)
    assert found.failures == [], found.told
    answered = {route for route, code in found.requests if code == "ok"}
    assert len(answered) >= OPERATIONS - 3, table(found.requests)
