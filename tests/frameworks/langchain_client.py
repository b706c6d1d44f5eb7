"""LangChain's own OpenAI clients against a service: run by the Python of `.venv-frameworks`."""

import asyncio
import json
import sys

from langchain_openai import ChatOpenAI, OpenAIEmbeddings

QUESTION = "At what water level are the gates closed?"


def main(url: str, model: str, embedding_model: str) -> None:
    """Print what came: whole, as a stream, asynchronously, and a vector."""
    chat = ChatOpenAI(model=model, base_url=url, api_key="none", max_tokens=24, temperature=0)
    pieces = [chunk.content for chunk in chat.stream(QUESTION)]
    embeddings = OpenAIEmbeddings(
        model=embedding_model, base_url=url, api_key="none", check_embedding_ctx_length=False
    )
    found = {
        "whole": chat.invoke(QUESTION).content,
        "streamed": "".join(pieces),
        "pieces": len(pieces),
        "awaited": asyncio.run(chat.ainvoke(QUESTION)).content,
        "dimension": len(embeddings.embed_query(QUESTION)),
        "documents": len(embeddings.embed_documents(["one text", "another"])),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
