"""Haystack's own OpenAI clients against a service: run by the Python of `.venv-frameworks`."""

import json
import sys

from haystack.components.embedders import OpenAITextEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.utils import Secret

QUESTION = "At what water level are the gates closed?"


def main(url: str, model: str, embedding_model: str) -> None:
    """Print what came: whole, as a stream, and a vector."""
    pieces: list[str] = []

    def asked(**more: object) -> str:
        generator = OpenAIChatGenerator(
            api_key=Secret.from_token("none"),
            model=model,
            api_base_url=url,
            generation_kwargs={"max_tokens": 24, "temperature": 0},
            **more,
        )
        return str(generator.run([ChatMessage.from_user(QUESTION)])["replies"][0].text)

    embedder = OpenAITextEmbedder(
        api_key=Secret.from_token("none"), model=embedding_model, api_base_url=url
    )
    found = {
        "whole": asked(),
        "streamed": asked(streaming_callback=lambda chunk: pieces.append(chunk.content)),
        "pieces": len(pieces),
        "dimension": len(embedder.run(QUESTION)["embedding"]),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
