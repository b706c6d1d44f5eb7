"""Whether an owner may have more."""

from orchestrator.access.api_keys import KeyLimits
from orchestrator.errors import QuotaExceeded
from orchestrator.retrieval.holdings import Holdings


def require_within(
    limits: KeyLimits, holdings: Holdings, owner: str, *, documents: int, size_bytes: int
) -> None:
    """
    Do nothing if an owner may have so much more; blocks.

    Args:
        limits: What may be theirs.
        holdings: What is.
        owner: Whose it will be.
        documents: How many more.
        size_bytes: How many bytes of files more.

    Raises:
        QuotaExceeded: If they may not.
    """
    if limits.documents is None and limits.size_bytes is None:
        return
    have, have_bytes = holdings.usage(owner)
    over = None
    if limits.documents is not None and have + documents > max(limits.documents, have):
        over = f"{have} documents are yours, of {limits.documents} that may be"
    elif limits.size_bytes is not None and have_bytes + size_bytes > limits.size_bytes:
        over = (
            f"Your PDFs take {have_bytes} bytes, and with this they would take more than the "
            f"{limits.size_bytes} that they may"
        )
    if over is not None:
        raise QuotaExceeded(
            f"{over}. Delete some (DELETE /documents/{{id}}), or ask whoever runs this service for "
            "more.",
            should_retry=False,
        )
