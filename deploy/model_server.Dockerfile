# model_server with vLLM on the CPU. One environment for both: the engine's lock holds what
# model_server imports as well.
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
COPY requirements/engine-cpu.txt /build/
RUN /venv/bin/pip install --no-deps --requirement /build/engine-cpu.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE /build/
COPY orchestrator /build/orchestrator
COPY model_server /build/model_server
RUN /venv/bin/pip install --no-deps --no-build-isolation /build

FROM python:3.11-slim-bookworm
# libnuma: vLLM's CPU kernels. g++: only for MODEL_SERVER_ENFORCE_EAGER=false, which compiles.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home tidegate \
    && install -d -o tidegate -g tidegate /models /cache
COPY --from=build /venv /venv
COPY deploy/prepare_model.py /app/deploy/
ENV PATH=/venv/bin:$PATH \
    HOME=/tmp \
    XDG_CACHE_HOME=/cache \
    PYTHONUNBUFFERED=1 \
    MODEL="" \
    MODEL_SERVER_MODEL=/models/current \
    MODEL_SERVER_DEVICE=cpu \
    MODEL_SERVER_HOST=0.0.0.0 \
    MODEL_SERVER_ENGINE_PORT=8000 \
    MODEL_SERVER_CONTROL_HOST=0.0.0.0 \
    MODEL_SERVER_CONTROL_PORT=8081 \
    MODEL_SERVER_LOG_DIR=/cache/logs
WORKDIR /app
USER 10001:10001
VOLUME ["/models", "/cache"]
EXPOSE 8000 8081
CMD ["sh", "-c", "python deploy/prepare_model.py ${MODEL:+\"$MODEL\"} --models /models --link /models/current >/dev/null && exec python -m model_server serve"]
