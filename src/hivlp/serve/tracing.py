"""Traces of requests by OpenTelemetry, where it is installed and told where to send them."""

from __future__ import annotations

import os

from starlette.types import ASGIApp, Message, Receive, Scope, Send

import hivlp
from hivlp.errors import MissingExtraError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def traced(app: ASGIApp) -> ASGIApp:
    """An application whose requests are traced, a span each, if the environment says where to.

    Raises:
        MissingExtraError: if it does, and OpenTelemetry is not installed.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return app
    try:
        from opentelemetry import propagate, trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtraError("tracing", "otel") from error
    provider = TracerProvider(resource=Resource.create({"service.name": "hivlp", "service.version": hivlp.__version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer("hivlp.serve")

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with tracer.start_as_current_span(
            f"{scope['method']} {scope['path']}", propagate.extract(headers), trace.SpanKind.SERVER
        ) as span:
            span.set_attribute("http.request.method", scope["method"])

            async def told(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            await app(scope, receive, told)

    return answer
