"""Traces of requests by OpenTelemetry, where it is installed and told where to send them."""

from __future__ import annotations

import asyncio
import os

from starlette.types import ASGIApp, Message, Receive, Scope, Send

import hivlp
from hivlp.errors import MissingExtraError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
UNTRACED = ("/healthz", "/readyz", "/metrics")
"""Paths that machines ask for all day."""


def traced(app: ASGIApp) -> ASGIApp:
    """An application whose requests are traced, a span each, if the environment says where to.

    Spans have the names and attributes of OpenTelemetry's conventions for HTTP servers, and belong to the trace that a
    request's ``traceparent`` names. ``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``, ``OTEL_TRACES_SAMPLER`` and
    what else the SDK reads is as its documentation says.

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
    about = {"service.version": hivlp.__version__}
    if "OTEL_SERVICE_NAME" not in os.environ and "service.name=" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        about["service.name"] = "hivlp"
    provider = TracerProvider(resource=Resource.create(about))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    tracer = provider.get_tracer("hivlp.serve", hivlp.__version__)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            try:
                await app(scope, receive, send)
            finally:  # a process that is told to end does not run what is left for its exit
                await asyncio.to_thread(provider.shutdown)
            return
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method = scope["method"]
        known = {"http.request.method": method, "url.path": scope["path"], "url.scheme": scope["scheme"]}
        with tracer.start_as_current_span(
            method, propagate.extract(headers), trace.SpanKind.SERVER, attributes=known
        ) as span:

            async def told(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(trace.StatusCode.ERROR)
                await send(message)

            await app(scope, receive, told)
            route = getattr(scope.get("route"), "name", None)
            if route is not None:  # ids are none of a span's name, of which there are to be few
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)

    return answer
