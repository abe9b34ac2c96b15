"""Traces of requests, as a collector receives them."""

from __future__ import annotations

import gzip
import http.server
import threading

import pytest
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.testclient import TestClient

from hivlp.serve.tracing import traced

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="OpenTelemetry is not installed (the otel extra)")
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def collected(monkeypatch):
    """Resources and spans that a collector has received."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            packed = self.headers.get("content-encoding") == "gzip"
            for each in ExportTraceServiceRequest.FromString(gzip.decompress(body) if packed else body).resource_spans:
                about = {fact.key: fact.value.string_value for fact in each.resource.attributes}
                found.extend((about, span) for scope in each.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield found
        server.shutdown()


def ask(*paths):
    async def answer(request):
        return Response(status_code=int(request.query_params.get("status", 200)))

    routes = [Route("/indexes/{name}/items/{id:int}", answer, name="/items/{id}"), Route("/healthz", answer)]
    with TestClient(traced(Router(routes))) as client:
        for path in paths:
            client.get(path, headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})


def test_a_span_is_named_by_its_route_and_belongs_to_the_trace_that_was_begun(collected):
    ask("/indexes/photos/items/7", "/indexes/photos/items/8?status=503", "/healthz")
    assert [span.name for _, span in collected] == ["GET /items/{id}"] * 2, "ids and health checks make no names"
    assert {span.trace_id.hex() for _, span in collected} == {TRACE}
    assert [span.status.code for _, span in collected] == [0, 2], "a 5xx is an error"
    facts = {fact.key: fact.value.string_value for fact in collected[0][1].attributes}
    assert (facts["http.route"], facts["url.path"]) == ("/items/{id}", "/indexes/photos/items/7")


@pytest.mark.parametrize("named", ["service", "resource", "nothing"])
def test_a_service_has_the_name_that_the_environment_gives_it(collected, monkeypatch, named):
    if named == "service":
        monkeypatch.setenv("OTEL_SERVICE_NAME", "pictures")
    elif named == "resource":
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=pictures")
    ask("/indexes/photos/items/7")
    assert collected[0][0]["service.name"] == ("hivlp" if named == "nothing" else "pictures")
