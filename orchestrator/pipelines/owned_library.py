"""
The documents of one owner, and no way to those of others.

What is somebody else's is told like what never was: by the same error, in the same words, after the
same look into the store.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO

from orchestrator.access.api_keys import Identity
from orchestrator.access.ownership import owner_of, stored_name
from orchestrator.domain import Box, Document, DocumentId, DocumentStatus
from orchestrator.pipelines.library import Accepted, Library, no_such_document


class OwnedLibrary:
    """
    A library as its methods are in `Library`, for the documents of one owner.

    Collections go by the names that their owner gave them; a document's `collection` is the stored
    name.
    """

    def __init__(self, library: Library, identity: Identity) -> None:
        self._library = library
        self._identity = identity

    async def accept(
        self,
        source: BinaryIO,
        *,
        filename: str,
        collection: str,
        replaces: DocumentId | None = None,
    ) -> Accepted:
        """Take one file in, within what the owner may have; see `Library.accept`."""
        return await self._library.accept(
            source,
            filename=filename,
            collection=stored_name(self._identity.owner, collection),
            replaces=replaces,
            limits=self._identity.limits,
        )

    async def get(self, document_id: DocumentId) -> Document:
        """
        The document as it is now.

        Raises:
            DocumentNotFound: If there is none, or it is somebody else's.
        """
        return self._mine(await self._library.get(document_id))

    async def documents(
        self,
        *,
        collection: str | None,
        limit: int,
        after: DocumentId | None,
        status: DocumentStatus | None = None,
    ) -> list[Document]:
        """Up to `limit` of the owner's documents, newest first, those before `after`."""
        if after is not None:
            await self.get(after)
        owner = self._identity.owner
        return await self._library.documents(
            collection=None if collection is None else stored_name(owner, collection),
            owner=owner,
            status=status,
            limit=limit,
            after=after,
        )

    async def watch(self, document_id: DocumentId) -> AsyncGenerator[Document, None]:
        """The document now and after each change; see `Library.watch`."""
        async with aclosing(self._library.watch(document_id)) as changes:
            async for document in changes:
                yield self._mine(document)

    async def wait(self, document_id: DocumentId) -> Document:
        """The document once it is ready or failed."""
        await self.get(document_id)
        return await self._library.wait(document_id)

    async def delete(self, document_id: DocumentId) -> None:
        """Remove a document; see `Library.delete`."""
        await self.get(document_id)
        await self._library.delete(document_id)

    async def retry(self, document_id: DocumentId) -> Document:
        """Start a document that failed over; see `Library.retry`."""
        await self.get(document_id)
        return await self._library.retry(document_id)

    async def boxes(self, document_id: DocumentId, page: int, start: int, end: int) -> list[Box]:
        """Where a part of a page's text stands on it; see `Library.boxes`."""
        await self.get(document_id)
        return await self._library.boxes(document_id, page, start, end)

    async def file(self, document_id: DocumentId) -> tuple[Document, Path]:
        """A document, and where its PDF is."""
        document = await self.get(document_id)
        return document, self._library.file(document.id)

    def _mine(self, document: Document) -> Document:
        if owner_of(document.collection) != self._identity.owner:
            raise no_such_document(document.id)
        return document
