"""What each tenant was charged, so that the one that was charged least goes next."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

MAX_TENANTS = 4096
"""Tenants whose charges are remembered while they are away; made-up keys must not fill memory."""


class TenantCharges:
    """
    Virtual counters in tokens, one a tenant.

    Source:
        Sheng et al. 2024, "Fairness in serving large language models" (OSDI).
    """

    def __init__(self) -> None:
        self._charged: dict[str, float] = {}

    @property
    def charged(self) -> Mapping[str, float]:
        """Tokens charged to each tenant; who is missing was charged nothing."""
        return self._charged

    def arrive(self, tenant: str, present: AbstractSet[str]) -> None:
        """
        Level a tenant that comes back with those who are `present`.

        Its absence was no saving: with a credit for it, it would shut out everybody else.
        """
        if len(self._charged) > MAX_TENANTS:
            self._charged = {t: c for t, c in self._charged.items() if t in present}
        if present and tenant not in present:
            level = min(self._charged.get(other, 0.0) for other in present)
            self._charged[tenant] = max(self._charged.get(tenant, 0.0), level)

    def charge(self, tenant: str, tokens: float) -> None:
        """Add `tokens` to a tenant's counter; a negative number takes them back."""
        self._charged[tenant] = self._charged.get(tenant, 0.0) + tokens

    def forget(self) -> None:
        """Nobody is here who could be owed anything."""
        self._charged = {}
