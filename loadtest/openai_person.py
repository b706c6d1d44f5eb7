"""A person whose program uses the official `openai` client, which tries again by itself."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import gevent
import openai
from openai.types.chat import ChatCompletionChunk

from loadtest.client_rules import NO_STATUS, ClientRules, retry_after_s
from loadtest.logbook import Entry, Try, refused
from loadtest.workload import Act

WHOLE_REASONS = {"stop", "length"}


def ask_openai(
    act: Act, entry: Entry, *, due_s: float, url: str, model: str, key: str, rules: ClientRules
) -> None:
    """
    One streamed chat completion, written down in the entry.

    Args:
        act: What is asked.
        entry: Its first token, ending and outcome are set; it stays `hung` without an end in time.
        due_s: When it was due, on the monotonic clock.
        url: Of the service, without `/v1`.
        model: Its name there.
        key: The person's.
        rules: How long each try may take, and how many there are.
    """
    attempt_s = rules.patience_s + rules.grace_s
    # The client's own timeout is one for each read; this is for all tries with their pauses.
    limit_s = (rules.max_retries + 1) * (attempt_s + rules.max_wait_s)
    with openai.OpenAI(
        base_url=f"{url}/v1", api_key=key, timeout=attempt_s, max_retries=rules.max_retries
    ) as client:
        gevent.with_timeout(
            limit_s, _ask, client, act, entry, due_s, model, rules.patience_s, timeout_value=None
        )


def _ask(
    client: openai.OpenAI, act: Act, entry: Entry, due_s: float, model: str, patience_s: float
) -> None:
    began_s = time.monotonic()
    turns = (*act.history, ("user", act.question))
    messages: list[Any] = [{"role": role, "content": text} for role, text in turns]
    tried = Try(200)
    try:
        chunks = client.chat.completions.create(
            model=model,
            messages=messages,
            max_tokens=act.max_tokens,
            stream=True,
            extra_body={"timeout_s": patience_s},
        )
        whole = _follow(chunks, entry, due_s)
        lesser = entry.degraded is not None
        entry.outcome = "cut" if not whole else "degraded" if lesser else "whole"
    except openai.APIError as exc:
        tried = _tried(exc)
        entry.outcome = refused(tried)
    tried.took_s = time.monotonic() - began_s
    entry.tries.append(tried)


def _follow(chunks: Iterable[ChatCompletionChunk], entry: Entry, due_s: float) -> bool:
    """Whether the answer came to its end; its times go to the entry."""
    last_s: float | None = None
    reason = None
    for chunk in chunks:
        now_s = time.monotonic()
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            if not choice.delta.content:
                continue
            if last_s is None:
                entry.first_token_s, entry.gap_max_s = now_s - due_s, 0.0
            else:
                entry.gap_max_s = max(entry.gap_max_s or 0.0, now_s - last_s)
            last_s = now_s
        extra = chunk.model_extra or {}
        if extra.get("degraded"):
            entry.degraded = extra["degraded"].get("level")
    return reason in WHOLE_REASONS


def _tried(exc: openai.APIError) -> Try:
    body = exc.body if isinstance(exc.body, dict) else {}
    code = str(body.get("code") or exc.code or type(exc).__name__)
    if isinstance(exc, openai.APIStatusError):
        headers: Mapping[str, str] = exc.response.headers
        return Try(exc.status_code, code, retry_after_s(headers))
    if isinstance(exc, openai.APIConnectionError):
        return Try(NO_STATUS, type(exc).__name__)
    return Try(200, code)
