"""What ten minutes of random requests prove (`make fuzz`), with some hundreds."""

import pytest

from tests.fuzz import SEED, fuzz, table

OPERATIONS = 17
BY_THE_EDGES = ["--max-examples", "2"]
AT_RANDOM = ["--max-examples", "4", "--phases", "fuzzing,stateful"]
WITHIN_S = 150.0


@pytest.mark.parametrize(
    ("keyed", "budget"), [(False, BY_THE_EDGES), (True, AT_RANDOM)], ids=["no keys", "keys"]
)
def test_every_answer_is_as_documented(tmp_path, keyed, budget):
    """No 5xx, no field, header, type or status beyond the OpenAPI document, whatever is sent."""
    found = fuzz(tmp_path, budget=budget, keyed=keyed, seed=SEED, within_s=WITHIN_S)
    assert found.failures == [], found.told
    answered = {route for route, code in found.requests if code == "ok"}
    assert len(answered) >= OPERATIONS - 3, table(found.requests)
