"""An answer as OpenAI's Responses have it: while it grows, as events, and whole."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.api.answer_json import citation_json, degraded_json
from orchestrator.api.error_responses import error_retry_after_s
from orchestrator.api.file_search_json import place_json
from orchestrator.api.responses_schemas import ResponseRequest
from orchestrator.api.sse import frame
from orchestrator.domain import Answer, DocumentId, Passage
from orchestrator.errors import OrchestratorError
from orchestrator.generation.citations import marks
from orchestrator.retrieval.registry_rows import StoreFile


class ResponseDraft:
    """
    One answer.

    Args:
        body: What was asked.
        request_id: The request's; the ids of the answer and its parts are made of it.
        query: What a store was searched for; None if none was.
        with_results: Whether the passages are shown with the search.
    """

    def __init__(
        self, body: ResponseRequest, *, request_id: str, query: str | None, with_results: bool
    ) -> None:
        self._fixed = _fixed(body, request_id)
        self._search_id = f"fs_{request_id}"
        self._message_id = f"msg_{request_id}"
        self._query = query
        self._with_results = with_results
        self._passages: Sequence[Passage] = ()
        self._files: Mapping[DocumentId, StoreFile] = {}
        self._next = 0
        self._text = ""
        self._begun = False

    def found(self, passages: Sequence[Passage], files: Mapping[DocumentId, StoreFile]) -> None:
        """Note what the model is shown, and which files of the store that is."""
        self._passages = passages
        self._files = files

    def answered(self, answer: Answer) -> dict[str, Any]:
        """The whole answer."""
        cut = answer.finish_reason == "length"
        return self._whole(
            "incomplete" if cut else "completed",
            output=[
                *self._searched(),
                self._message(answer.text, self._annotations(answer), cut=cut),
            ],
            answer=answer,
        )

    def created(self) -> str:
        """The first event."""
        return self._event("response.created", response=self._whole("in_progress"))

    def queued(self, position: int, eta_s: float | None) -> str:
        """It waits."""
        whole = self._whole("queued")
        return self._event("response.queued", response=whole, position=position, eta_s=eta_s)

    def begun(self) -> str:
        """It is being answered: what was searched, and an empty message."""
        self._begun = True
        events = [self._event("response.in_progress", response=self._whole("in_progress"))]
        for item in self._searched():
            begun = {**item, "status": "in_progress", "results": None}
            events.append(self._item("response.output_item.added", 0, item=begun))
            for step in ("in_progress", "searching", "completed"):
                name = f"response.file_search_call.{step}"
                events.append(self._item(name, 0, item_id=self._search_id))
            events.append(self._item("response.output_item.done", 0, item=item))
        at = self._message_index
        empty = {**self._message("", []), "status": "in_progress", "content": []}
        events.append(self._item("response.output_item.added", at, item=empty))
        events.append(self._content("response.content_part.added", part=_part("", [])))
        return "".join(events)

    def delta(self, text: str) -> str:
        """More of the text."""
        self._text += text
        return self._content("response.output_text.delta", delta=text, logprobs=[])

    def ended(self, answer: Answer) -> str:
        """The last events."""
        annotations = self._annotations(answer)
        cut = answer.finish_reason == "length"
        message = self._message(answer.text, annotations, cut=cut)
        events = [
            self._content(
                "response.output_text.annotation.added", annotation_index=n, annotation=annotation
            )
            for n, annotation in enumerate(annotations)
        ]
        part = _part(answer.text, annotations)
        events += [
            self._content("response.output_text.done", text=answer.text, logprobs=[]),
            self._content("response.content_part.done", part=part),
            self._item("response.output_item.done", self._message_index, item=message),
            self._event(
                "response.incomplete" if cut else "response.completed",
                response=self.answered(answer),
            ),
        ]
        return "".join(events)

    def failed(self, error: OrchestratorError) -> str:
        """It breaks off: why, and what there is of it."""
        told = self._event(
            "error",
            code=error.code,
            message=error.message,
            param=error.param,
            retry_after_s=error_retry_after_s(error),
        )
        output = self._searched() if self._begun else []
        if self._text:
            output.append(self._message(self._text, [], cut=True))
        whole = self._whole("failed", output=output)
        whole["error"] = {"code": error.code, "message": error.message}
        return told + self._event("response.failed", response=whole)

    @property
    def _message_index(self) -> int:
        return 0 if self._query is None else 1

    def _searched(self) -> list[dict[str, Any]]:
        """That a store was searched, if one was."""
        if self._query is None:
            return []
        results = [self._result(passage) for passage in self._passages]
        return [
            {
                "id": self._search_id,
                "type": "file_search_call",
                "status": "completed",
                "queries": [self._query],
                "results": results if self._with_results else None,
            }
        ]

    def _result(self, passage: Passage) -> dict[str, Any]:
        file = self._files.get(passage.document_id)
        return {
            **self._named(passage),
            "score": round(max(0.0, passage.score), 4),
            "text": passage.text,
            "attributes": {} if file is None else file.attributes,
            **place_json(passage),
        }

    def _named(self, passage: Passage) -> dict[str, str]:
        """The file that a passage is from; where no store was searched, the document."""
        file = self._files.get(passage.document_id)
        if file is None:
            return {"file_id": passage.document_id, "filename": passage.filename}
        return {"file_id": file.file_id, "filename": file.filename}

    def _annotations(self, answer: Answer) -> list[dict[str, Any]]:
        """One for each mark in the text."""
        by_number = {citation.n: citation.passage for citation in answer.citations}
        return [
            {
                "type": "file_citation",
                "index": index,
                **self._named(by_number[n]),
                "n": n,
                **place_json(by_number[n]),
            }
            for n, index in marks(answer.text)
            if n in by_number
        ]

    def _message(
        self, text: str, annotations: list[dict[str, Any]], *, cut: bool = False
    ) -> dict[str, Any]:
        return {
            "id": self._message_id,
            "type": "message",
            "role": "assistant",
            "status": "incomplete" if cut else "completed",
            "content": [_part(text, annotations)],
        }

    def _whole(
        self,
        status: str,
        *,
        output: Sequence[dict[str, Any]] = (),
        answer: Answer | None = None,
    ) -> dict[str, Any]:
        return {
            **self._fixed,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"}
            if status == "incomplete"
            else None,
            "output": list(output),
            "usage": None if answer is None else _usage(answer),
            "citations": [] if answer is None else [citation_json(c) for c in answer.citations],
            "degraded": None if answer is None else degraded_json(answer.degraded),
        }

    def _event(self, name: str, **payload: Any) -> str:
        number, self._next = self._next, self._next + 1
        return frame({"type": name, "sequence_number": number, **payload}, name)

    def _item(self, name: str, index: int, **payload: Any) -> str:
        return self._event(name, output_index=index, **payload)

    def _content(self, name: str, **payload: Any) -> str:
        return self._item(
            name, self._message_index, item_id=self._message_id, content_index=0, **payload
        )


def _fixed(body: ResponseRequest, request_id: str) -> dict[str, Any]:
    """What stands in every picture of the answer."""
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or []]
    return {
        "id": f"resp_{request_id}",
        "object": "response",
        "created_at": int(time.time()),
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": body.model,
        "parallel_tool_calls": False,
        "previous_response_id": None,
        "store": False,
        "temperature": body.temperature or 0.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": tools,
        "top_p": body.top_p,
        "truncation": "disabled",
    }


def _part(text: str, annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": []}


def _usage(answer: Answer) -> dict[str, Any]:
    prompt, completion = answer.usage.prompt_tokens, answer.usage.completion_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + completion,
    }
