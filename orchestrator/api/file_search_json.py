"""Files, vector stores and what is found in them, on OpenAI's wire."""

from typing import Any

from orchestrator.domain import Passage
from orchestrator.errors import DocumentError, NotAPdf, NoTextInDocument, leaves
from orchestrator.retrieval.registry_rows import (
    FileBatch,
    FileCounts,
    StoreFile,
    UploadedFile,
    VectorStore,
)

_UNREADABLE = {kind.code for kind in leaves() if issubclass(kind, DocumentError)}


def file_json(file: UploadedFile) -> dict[str, Any]:
    """A file on the wire."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": int(file.created_at),
        "expires_at": None,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def store_json(store: VectorStore, counts: FileCounts) -> dict[str, Any]:
    """A store on the wire."""
    return {
        "id": store.id,
        "object": "vector_store",
        "created_at": int(store.created_at),
        "last_active_at": int(store.last_active_at),
        "name": store.name,
        "metadata": store.metadata,
        "usage_bytes": counts.usage_bytes,
        "file_counts": _counts_json(counts),
        "status": "in_progress" if counts.in_progress else "completed",
        "expires_after": None,
        "expires_at": None,
    }


def batch_json(batch: FileBatch, counts: FileCounts) -> dict[str, Any]:
    """A batch on the wire."""
    going_on = "in_progress" if counts.in_progress else "completed"
    return {
        "id": batch.id,
        "object": "vector_store.files_batch",
        "created_at": int(batch.created_at),
        "vector_store_id": batch.store_id,
        "status": "cancelled" if batch.cancelled else going_on,
        "file_counts": _counts_json(counts),
    }


def store_file_json(file: StoreFile) -> dict[str, Any]:
    """A file in a store on the wire."""
    return {
        "id": file.file_id,
        "object": "vector_store.file",
        "created_at": int(file.created_at),
        "vector_store_id": file.store_id,
        "status": file.status,
        "last_error": _last_error(file),
        "usage_bytes": file.size_bytes if file.status == "completed" else 0,
        "attributes": file.attributes,
        "chunking_strategy": {"type": "auto"},
        "document_id": file.document_id,
    }


def result_json(passage: Passage, file: StoreFile) -> dict[str, Any]:
    """A passage that was found in a store, on the wire."""
    return {
        "file_id": file.file_id,
        "filename": file.filename,
        "score": round(max(0.0, passage.score), 4),
        "attributes": file.attributes,
        "content": [{"type": "text", "text": passage.text}],
        **place_json(passage),
    }


def place_json(passage: Passage) -> dict[str, Any]:
    """Where a passage stands, on the wire."""
    return {
        "document_id": passage.document_id,
        "page": passage.page,
        "char_start": passage.char_start,
        "char_end": passage.char_end,
    }


def _counts_json(counts: FileCounts) -> dict[str, int]:
    return {
        "in_progress": counts.in_progress,
        "completed": counts.completed,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "total": counts.total,
    }


def _last_error(file: StoreFile) -> dict[str, str] | None:
    """Why it failed: in OpenAI's three codes, and in our words."""
    if file.status != "failed":
        return None
    if file.error_code is None:
        message = "The document was deleted (DELETE /documents/{id}). Put the file in again."
        return {"code": "invalid_file", "message": message}
    code = "server_error"
    if file.error_code in {NotAPdf.code, NoTextInDocument.code}:
        code = "unsupported_file"
    elif file.error_code in _UNREADABLE:
        code = "invalid_file"
    return {"code": code, "message": file.error_message or file.error_code}
