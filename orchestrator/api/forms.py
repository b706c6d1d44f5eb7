"""Bodies that carry files: multipart forms."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.datastructures import FormData

from orchestrator.errors import InvalidParameter, InvalidRequest, UnsupportedMediaType

MAX_FIELDS = 10


@asynccontextmanager
async def form_of(request: Request, *, max_files: int) -> AsyncIterator[FormData]:
    """
    What came, until the block ends.

    Args:
        request: Whose body it is.
        max_files: How many files may be in it.

    Raises:
        UnsupportedMediaType: If it is no form.
        InvalidRequest: If it is in a charset that cannot be read.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise UnsupportedMediaType(
            "Send the PDF as multipart/form-data in the field `file`: "
            f"curl -F file=@paper.pdf …{request.url.path}"
        )
    try:
        form = await request.form(max_files=max_files, max_fields=MAX_FIELDS)
    except UnicodeError as exc:
        raise InvalidRequest(
            "The form cannot be read in the charset that its Content-Type names. Send UTF-8."
        ) from exc
    try:
        yield form
    finally:
        await form.close()


def only(form: FormData, field: str) -> object:
    """
    What a field that comes once holds; None if it did not come.

    Raises:
        InvalidParameter: If it came more than once.
    """
    found = form.getlist(field)
    if len(found) > 1:
        raise InvalidParameter(f"`{field}` came {len(found)} times. Send it once.", param=field)
    return found[0] if found else None
