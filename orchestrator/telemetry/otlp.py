"""Traces, sent to an OpenTelemetry collector over OTLP."""

import asyncio
from types import TracebackType

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace import Tracer as SdkTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from orchestrator.errors import OrchestratorError
from orchestrator.telemetry.logs import REQUEST_ID
from orchestrator.telemetry.tracing import NOTHING, Attribute, Phase, Tracer

SERVICE = "tidegate"
EXPORT_S = 5.0
SEND_EVERY_MS = 1000

_PROPAGATOR = TraceContextTextMapPropagator()


class OtlpTracer(Tracer):
    """
    Begins traces and sends them, in a thread of its own; what cannot be sent is lost.

    Args:
        url: Where the collector takes traces, such as `http://localhost:4318/v1/traces`.
        share: Of the questions, from 0 to 1; one that comes with a trace is followed if that is.
        version: Ours.
    """

    def __init__(self, url: str, *, share: float, version: str) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": SERVICE, "service.version": version}),
            sampler=ParentBased(TraceIdRatioBased(share)),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=url, timeout=EXPORT_S)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=SEND_EVERY_MS)
        )
        self._tracer = self._provider.get_tracer(SERVICE, version)

    def begin(self, name: str, *, traceparent: str | None) -> Phase:
        """The way of one request; nothing, if it is not among those that are followed."""
        carrier = {} if traceparent is None else {"traceparent": traceparent}
        span = self._tracer.start_span(
            name,
            context=_PROPAGATOR.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"tidegate.request_id": REQUEST_ID.get()},
        )
        return _SpanPhase(self._tracer, span) if span.is_recording() else NOTHING

    async def aclose(self) -> None:
        """Send what is still to be sent, for a few seconds at most."""
        await asyncio.to_thread(self._provider.shutdown)


class _SpanPhase(Phase):
    """A phase that is a span."""

    def __init__(self, tracer: SdkTracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(span))
        self.traceparent = carrier["traceparent"]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._failed(error)
        self.end()

    def note(self, attributes: dict[str, Attribute]) -> None:
        self._span.set_attributes(attributes)

    def phase(
        self, name: str, attributes: dict[str, Attribute] | None = None, *, remote: bool = False
    ) -> Phase:
        span = self._tracer.start_span(
            name,
            context=set_span_in_context(self._span),
            kind=SpanKind.CLIENT if remote else SpanKind.INTERNAL,
            attributes=attributes,
        )
        return _SpanPhase(self._tracer, span)

    def end(self) -> None:
        self._span.end()

    def _failed(self, error: BaseException) -> None:
        """By its code; whoever hung up has made no error of ours."""
        if isinstance(error, GeneratorExit | asyncio.CancelledError):
            self._span.set_attribute("tidegate.abandoned", value=True)
            return
        code = error.code if isinstance(error, OrchestratorError) else type(error).__name__
        self._span.set_attribute("error.type", code)
        self._span.set_status(Status(StatusCode.ERROR, code))
