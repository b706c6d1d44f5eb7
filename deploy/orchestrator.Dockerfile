# The orchestrator: HTTP in front of the engine, documents and indexes in /data.
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
# --build-arg OCR=1 adds what reads pages that are pictures.
ARG OCR=""
COPY requirements/app.txt requirements/ocr.txt /build/
RUN /venv/bin/pip install --no-deps --requirement /build/app.txt \
        --extra-index-url https://download.pytorch.org/whl/cpu
RUN test -z "$OCR" || /venv/bin/pip install --no-deps --requirement /build/ocr.txt
COPY pyproject.toml README.md LICENSE /build/
COPY orchestrator /build/orchestrator
COPY model_server /build/model_server
RUN /venv/bin/pip install --no-deps --no-build-isolation /build

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --no-create-home tidegate && install -d -o tidegate -g tidegate /data
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    HOME=/tmp \
    HF_HUB_OFFLINE=1 \
    PYTHONUNBUFFERED=1 \
    ORCHESTRATOR_HOST=0.0.0.0 \
    ORCHESTRATOR_PORT=8080 \
    ORCHESTRATOR_DATA_DIR=/data
WORKDIR /tmp
USER 10001:10001
VOLUME /data
EXPOSE 8080
CMD ["python", "-m", "orchestrator", "serve"]
