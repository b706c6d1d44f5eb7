"""What a request may ask for, whichever door it comes to."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request

from orchestrator.access.ownership import stored_name
from orchestrator.api.access import identity
from orchestrator.domain import Band, Caller, DocumentId, Message, Question, Sampling
from orchestrator.errors import InvalidParameter
from orchestrator.resilience.deadline import Deadline

DEADLINE_HEADER = "x-request-deadline-ms"
OPENAI_TIMEOUT_HEADER = "x-stainless-read-timeout"
BANDS = {band.name.lower(): band for band in Band}


@dataclass(frozen=True, slots=True)
class QuestionLimits:
    """What a question may ask for, and what it gets when it does not say."""

    max_question_chars: int
    max_history_messages: int
    top_k: int
    max_top_k: int
    max_tokens: int
    max_max_tokens: int
    request_timeout_s: float

    def question(
        self,
        text: str,
        *,
        request: Request,
        collection: str,
        document_ids: Sequence[str],
        top_k: int | None,
        max_tokens: int | None = None,
        history: Sequence[Message] = (),
        sampling: Sampling = Sampling(),
        priority: str = "normal",
        degrade: bool = True,
        route: str = "ask",
        param: str = "question",
    ) -> Question:
        """
        A question within the limits, over the documents of whoever asks.

        Raises:
            InvalidParameter: If it is outside of them.
        """
        self._check(text, param=param)
        if len(history) > self.max_history_messages:
            raise InvalidParameter(
                f"{len(history)} earlier turns were sent; at most {self.max_history_messages} are "
                "taken. Leave out the oldest.",
                param="history",
            )
        return Question(
            text=text,
            collection=stored_name(identity(request).owner, collection),
            top_k=_bounded(top_k or self.top_k, self.max_top_k, "top_k"),
            max_tokens=_bounded(max_tokens or self.max_tokens, self.max_max_tokens, "max_tokens"),
            document_ids=tuple(DocumentId(i) for i in document_ids),
            history=tuple(history),
            sampling=sampling,
            caller=_caller(request, priority),
            degrade=degrade,
            route=route,
            traceparent=request.headers.get("traceparent"),
        )

    def deadline(self, request: Request, timeout_s: float | None) -> Deadline:
        """The earliest of the default, the body's `timeout_s` and the headers that clients send."""
        asked = [
            self.request_timeout_s,
            timeout_s,
            _seconds(request, DEADLINE_HEADER, unit_s=0.001),
            _seconds(request, OPENAI_TIMEOUT_HEADER, unit_s=1.0),
        ]
        return Deadline(min(s for s in asked if s is not None))

    def _check(self, text: str, *, param: str) -> None:
        if not text.strip():
            raise InvalidParameter("The question is empty. Write one.", param=param)
        if len(text) > self.max_question_chars:
            raise InvalidParameter(
                f"The question has {len(text)} characters; the limit is "
                f"{self.max_question_chars}. Shorten it.",
                param=param,
            )


def _caller(request: Request, priority: str) -> Caller:
    """Who asks: by API key, or by address where there are no keys; no better than the key may."""
    key = identity(request).key
    asked = BANDS[priority]
    if key is None:
        return Caller(request.client.host if request.client else "unknown", asked)
    return Caller(key.id, max(asked, key.band))


def _bounded(value: int, limit: int, param: str) -> int:
    if value > limit:
        raise InvalidParameter(f"{param} is {value}; the limit is {limit}.", param=param)
    return value


def _seconds(request: Request, header: str, *, unit_s: float) -> float | None:
    """
    A time that the caller gave in a header, in seconds.

    Raises:
        InvalidParameter: If our own header holds no positive number; foreign ones are forgiven.
    """
    text = request.headers.get(header)
    if text is None:
        return None
    try:
        seconds = float(text) * unit_s
    except ValueError:
        seconds = 0.0
    if 0 < seconds < float("inf"):
        return seconds
    if header == DEADLINE_HEADER:
        raise InvalidParameter(f"{header} must be a positive number of milliseconds.", param=header)
    return None
