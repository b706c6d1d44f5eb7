"""
The one error tree of the orchestrator.

    OrchestratorError
    ├─ RequestError        InvalidRequest · InvalidParameter · ContextTooLong · ModelNotFound ·
    │                      RouteNotFound · MethodNotAllowed · BodyTooLarge · UnsupportedMediaType ·
    │                      DocumentNotFound · CollectionNotFound · DocumentNotReady · ClientClosed ·
    │                      InvalidApiKey · AdminKeyNeeded · ForeignOrigin · RateLimited · QuotaExceeded ·
    │                      RangeNotSatisfiable · UploadNotFound · VectorStoreNotFound · FileBatchNotFound
    ├─ DocumentError       NotAPdf · EmptyFile · DamagedDocument · EncryptedDocument · NoTextInDocument ·
    │                      NoPages · TooManyPages · DocumentTooLarge · ParserTimeout · ParserOutOfMemory ·
    │                      IngestionInterrupted
    ├─ StorageFull · CollectionFull · StoreUnavailable · IndexNotReady · EmbedderUnavailable · CircuitOpen · NotReady · Internal
    ├─ Overloaded          QueueFull · QueueTimeout · IngestionQueueFull
    ├─ DeadlineExceeded
    └─ EngineError         EngineUnavailable · EngineOverloaded · EngineTimeout · EngineRejected ·
                           EngineProtocolError

Every message says what happened, the limit, and what to do. `code` is a stable word: the wire's
`error.code`, the metric's label and the runbook's heading. Which HTTP status a class becomes is
known in `api/error_responses.py` alone.
"""

from typing import ClassVar


class OrchestratorError(Exception):
    """
    Base of everything that the orchestrator raises on purpose.

    Attributes:
        code: Stable snake_case word.
        retryable: Whether the same request may succeed later.
        retry_after_s: When, if that is known, in seconds.
        param: The request field at fault, if one is.
        should_retry: Whether the client should try by itself; None leaves it to the client.
    """

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry


class Internal(OrchestratorError):
    """A bug of ours: the details are in the log, under the request's id."""


class RequestError(OrchestratorError):
    """The caller's request cannot be served as it is."""

    code = "request_error"


class InvalidRequest(RequestError):
    """Not JSON, not multipart, or not what the route takes."""

    code = "invalid_request"


class InvalidParameter(RequestError):
    """A field is missing, of the wrong type, or out of range."""

    code = "invalid_parameter"


class ContextTooLong(RequestError):
    """Question and history alone do not fit the model's context window."""

    code = "context_length_exceeded"


class ModelNotFound(RequestError):
    """The named model is not served here."""

    code = "model_not_found"


class RouteNotFound(RequestError):
    """No such route."""

    code = "route_not_found"


class MethodNotAllowed(RequestError):
    """The route exists, but not for this method."""

    code = "method_not_allowed"


class BodyTooLarge(RequestError):
    """The request's body is over the limit of its route."""

    code = "body_too_large"


class UnsupportedMediaType(RequestError):
    """The body's Content-Type is not one that the route reads."""

    code = "unsupported_media_type"


class RangeNotSatisfiable(RequestError):
    """
    No byte of the file is in the ranges that were asked for.

    Attributes:
        size_bytes: What the file has, where that is known.
    """

    code = "range_not_satisfiable"

    def __init__(self, message: str, *, size_bytes: int | None = None) -> None:
        super().__init__(message)
        self.size_bytes = size_bytes


class DocumentNotFound(RequestError):
    """No document has this id."""

    code = "document_not_found"


class CollectionNotFound(RequestError):
    """No document was ever added to this collection."""

    code = "collection_not_found"


class UploadNotFound(RequestError):
    """No uploaded file has this id, or none in this vector store."""

    code = "file_not_found"


class VectorStoreNotFound(RequestError):
    """No vector store has this id."""

    code = "vector_store_not_found"


class FileBatchNotFound(RequestError):
    """No batch of files of this vector store has this id."""

    code = "file_batch_not_found"


class DocumentNotReady(RequestError):
    """The document exists, but cannot be searched yet, or failed."""

    code = "document_not_ready"
    retryable = True


class ClientClosed(RequestError):
    """The caller hung up before its request was read."""

    code = "client_closed_request"


class InvalidApiKey(RequestError):
    """A key is needed, and none came, or none that is good."""

    code = "invalid_api_key"


class AdminKeyNeeded(RequestError):
    """What the service as a whole is doing is shown to admin keys only."""

    code = "admin_key_needed"


class ForeignOrigin(RequestError):
    """A page of another site asks, in the name of whoever looks at it."""

    code = "foreign_origin"


class RateLimited(RequestError):
    """What the key may use up in a minute is used up."""

    code = "rate_limit_exceeded"
    retryable = True


class QuotaExceeded(RequestError):
    """The key's owner has as many documents, or bytes, as it may."""

    code = "quota_exceeded"


class DocumentError(OrchestratorError):
    """The PDF cannot be used."""

    code = "unreadable_document"


class NotAPdf(DocumentError):
    """The bytes are no PDF, whatever the name says."""

    code = "not_a_pdf"


class EmptyFile(DocumentError):
    """A file of zero bytes."""

    code = "empty_file"


class DamagedDocument(DocumentError):
    """A PDF whose structure cannot be read."""

    code = "damaged_document"


class EncryptedDocument(DocumentError):
    """A PDF that opens only with a password."""

    code = "encrypted_document"


class NoTextInDocument(DocumentError):
    """A PDF of images: there is no text to search."""

    code = "no_text"


class NoPages(DocumentError):
    """A PDF without a page."""

    code = "no_pages"


class TooManyPages(DocumentError):
    """More pages than the limit."""

    code = "too_many_pages"


class DocumentTooLarge(DocumentError):
    """More bytes, or more text, than the limit."""

    code = "document_too_large"


class ParserTimeout(DocumentError):
    """Reading the PDF took longer than the limit."""

    code = "parser_timeout"


class ParserOutOfMemory(DocumentError):
    """Reading the PDF took more memory than the limit."""

    code = "parser_out_of_memory"


class IngestionInterrupted(DocumentError):
    """The process ended again and again while it worked on this PDF, which may be the reason."""

    code = "ingestion_interrupted"
    retryable = True


class StorageFull(OrchestratorError):
    """The data folder has no room for this."""

    code = "storage_full"
    retryable = True


class CollectionFull(OrchestratorError):
    """The collection holds as many documents, or bytes, as it may."""

    code = "collection_full"


class StoreUnavailable(OrchestratorError):
    """The document store cannot be read or written."""

    code = "store_unavailable"
    retryable = True


class IndexNotReady(OrchestratorError):
    """The collection's vector index is being loaded or rebuilt: it is searched by words meanwhile."""

    code = "index_not_ready"
    retryable = True


class EmbedderUnavailable(OrchestratorError):
    """The embedder's process is gone or does not answer; it is being restarted."""

    code = "embedder_unavailable"
    retryable = True


class CircuitOpen(OrchestratorError):
    """A dependency failed too often of late: it is left alone for a while."""

    code = "circuit_open"
    retryable = True


class NotReady(OrchestratorError):
    """Still starting, or already shutting down."""

    code = "not_ready"
    retryable = True


class Overloaded(OrchestratorError):
    """Up, but full."""

    code = "overloaded"
    retryable = True


class QueueFull(Overloaded):
    """The queue has no place left."""

    code = "queue_full"


class QueueTimeout(Overloaded):
    """The request waited as long as it may and was not admitted."""

    code = "queue_timeout"


class IngestionQueueFull(Overloaded):
    """As many documents wait to be read as may."""

    code = "ingestion_queue_full"


class DeadlineExceeded(OrchestratorError):
    """The request's time is up."""

    code = "deadline_exceeded"
    retryable = True


class EngineError(OrchestratorError):
    """The engine did not answer as an engine should."""

    code = "engine_error"
    retryable = True


class EngineUnavailable(EngineError):
    """Nothing answers at the engine's address, or it is still loading."""

    code = "engine_unavailable"


class EngineOverloaded(EngineError):
    """The engine itself refused: its queue is full."""

    code = "engine_overloaded"


class EngineTimeout(EngineError):
    """The engine accepted the request and then went silent."""

    code = "engine_timeout"


class EngineRejected(EngineError):
    """The engine calls our request wrong: a bug of ours, or a model without a chat template."""

    code = "engine_rejected"
    retryable = False


class EngineProtocolError(EngineError):
    """The engine's stream broke off, or was not the OpenAI wire."""

    code = "engine_protocol_error"


def leaves(root: type[OrchestratorError] = OrchestratorError) -> list[type[OrchestratorError]]:
    """Every class below `root` that can be raised, depth first; the docs are tested against it."""
    found: list[type[OrchestratorError]] = []
    for child in root.__subclasses__():
        found.append(child)
        found.extend(leaves(child))
    return found
