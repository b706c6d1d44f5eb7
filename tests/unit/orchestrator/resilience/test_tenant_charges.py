"""What tenants are charged, and what an absence is worth: nothing."""

from orchestrator.resilience.tenant_charges import MAX_TENANTS, TenantCharges


def test_charges_add_up_and_can_be_taken_back():
    """A counter is the sum of what it was charged."""
    charges = TenantCharges()
    charges.charge("a", 100)
    charges.charge("a", -40)
    assert charges.charged == {"a": 60}


def test_a_tenant_that_comes_back_starts_level():
    """Its counter is lifted to the least of those present, and never lowered."""
    charges = TenantCharges()
    charges.charge("a", 500)
    charges.charge("b", 300)
    charges.charge("lead", 900)
    for tenant in ("new", "lead"):
        charges.arrive(tenant, {"a", "b"})
    assert (charges.charged["new"], charges.charged["lead"]) == (300, 900)


def test_a_tenant_that_is_here_keeps_its_place():
    """Whoever was charged least among those present is not lifted."""
    charges = TenantCharges()
    charges.charge("a", 500)
    charges.charge("b", 300)
    charges.arrive("b", {"a", "b"})
    assert charges.charged["b"] == 300


def test_made_up_names_do_not_fill_memory():
    """Beyond the limit those who are away are forgotten, and those who are here are not."""
    charges = TenantCharges()
    charges.charge("here", 700)
    for number in range(3 * MAX_TENANTS):
        charges.arrive(f"made up {number}", {"here"})
    assert len(charges.charged) <= MAX_TENANTS + 1
    assert charges.charged["here"] == 700


def test_forgetting_empties_the_counters():
    """Nobody is owed anything afterwards."""
    charges = TenantCharges()
    charges.charge("a", 1)
    charges.forget()
    assert not charges.charged
