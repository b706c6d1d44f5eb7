"""
Clients of the orchestrator, for what the `openai` client cannot say; the command line speaks through one.

    from orchestrator.client import Client

    with Client("http://localhost:8080") as tidegate:
        document = tidegate.wait(tidegate.upload(Path("paper.pdf")).id)
        answer = tidegate.ask("What was measured?")
        print(answer.answer, [(c.n, c.filename, c.page) for c in answer.citations if c.cited])

Answers have the shapes of `api/schemas.py`, which the OpenAPI document is made of. Who is refused with a
time to come back comes back by itself, a few times; nothing else is tried again.
"""

from orchestrator.client.blocking import Client
from orchestrator.client.nonblocking import AsyncClient
from orchestrator.client.wire import AnswerEvent, AskOptions, ClientError, SearchOptions

__all__ = ["AnswerEvent", "AskOptions", "AsyncClient", "Client", "ClientError", "SearchOptions"]
