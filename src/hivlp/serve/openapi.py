"""The OpenAPI description, of the same types that requests are checked by."""

from __future__ import annotations

from typing import Any

import msgspec

import hivlp
from hivlp.serve.models import EmbeddingsRequest, Ids, NewItems, NewJob, SearchRequest
from hivlp.serve.replies import JSON

ERRORS = {
    400: "The request makes no sense.",
    401: "The token is missing or wrong.",
    403: "It is not allowed.",
    404: "It is not there.",
    409: "It cannot be done now.",
    413: "It is too large.",
    415: "It is not a picture that is read.",
    429: "Too many wait; ask again after Retry-After seconds.",
    503: "It cannot be answered now.",
}
SEARCH = {"query": "a dog on a beach", "k": 5, "where": "metadata ->> 'width' >= ?", "params": [1000]}
MIXED = {"query": [{"text": "a dog"}, {"item": 3, "weight": 0.5}, {"text": "snow", "weight": -0.5}], "k": 5}
ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1, "maximum": 2**63 - 1}}
JOB = {"name": "job", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[0-9a-f]{16}$"}}


def description() -> dict[str, Any]:
    """The description of every route, as JSON."""
    requests = (SearchRequest, NewItems, Ids, NewJob, EmbeddingsRequest)
    _, schemas = msgspec.json.schema_components(requests, ref_template="#/components/schemas/{name}")
    schemas["Error"] = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
            }
        },
    }
    form = {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "request": {"type": "string"},
                    "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                },
            }
        }
    }
    size, after, limit, where = (
        _query("size", {"type": "integer", "minimum": 1, "maximum": 65536}),
        _query("after", {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}),
        _query("limit", {"type": "integer", "minimum": 1, "maximum": 1000}),
        _query("where", {"type": "string", "maxLength": 20000}),
    )
    search = _body("SearchRequest", {"a text, filtered": SEARCH, "texts and an item, mixed": MIXED})
    items = _body("NewItems", {"pictures that lie there": {"paths": ["/photos/2024"]}})
    items["content"].update(form)
    embeddings = _body("EmbeddingsRequest", {"texts": {"input": ["a dog", "a cat"], "dimensions": 64}})
    of_an_index: dict[str, dict[str, Any]] = {
        "/search": {"post": _operation("Search", body=search)},
        "/items": {
            "get": _operation("Items by id", [after, limit, where]),
            "post": _operation("Add pictures or vectors", body=items),
            "delete": _operation("Remove items", body=_body("Ids", {"two": {"ids": [1, 2]}})),
        },
        "/items/{id}": {
            "get": _operation("What is known of an item", [ID]),
            "delete": _operation("Remove an item", [ID]),
        },
        "/items/{id}/thumbnail": {"get": _operation("A thumbnail", [ID, size], kind="image/webp")},
        "/items/{id}/original": {"get": _operation("The picture's file", [ID], kind="image/*")},
        "/fields": {"get": _operation("Fields and which values they have")},
        "/map": {
            "get": _operation("Positions in two dimensions", kind="application/octet-stream", also={202: "Not yet."})
        },
        "/jobs": {
            "get": _operation("Jobs"),
            "post": _operation(
                "Index folders", body=_body("NewJob", {"a folder": {"paths": ["/photos"]}}), also={201: "Begun."}
            ),
        },
        "/jobs/{job}": {"get": _operation("A job", [JOB])},
        "/jobs/{job}/events": {"get": _operation("Progress of a job", [JOB], kind="text/event-stream")},
        **{
            f"/jobs/{{job}}/{how}": {"post": _operation(f"{how.capitalize()} a job", [JOB])}
            for how in ("pause", "resume", "cancel")
        },
    }
    paths: dict[str, dict[str, Any]] = {
        "/healthz": {"get": _operation("Whether it runs")},
        "/readyz": {"get": _operation("Whether the models are loaded")},
        "/metrics": {"get": _operation("Metrics for Prometheus", kind="text/plain")},
        "/api/state": {"get": _operation("What is served")},
        "/v1/embeddings": {"post": _operation("Embeddings as OpenAI has them", body=embeddings)},
        **of_an_index,
    }
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    for path, operations in of_an_index.items():
        paths[f"/indexes/{{name}}{path}"] = {"parameters": [name], **operations}
    return {
        "openapi": "3.1.0",
        "info": {"title": "hivlp", "version": hivlp.__version__, "description": "Coarse-to-fine picture search."},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


def _operation(
    summary: str,
    parameters: list[dict[str, Any]] | None = None,
    *,
    body: dict[str, Any] | None = None,
    kind: str = JSON,
    also: dict[int, str] | None = None,
) -> dict[str, Any]:
    schema = {"type": "object"} if kind == JSON else {}
    error = {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: dict[str, Any] = {"200": {"description": summary, "content": {kind: {"schema": schema}}}}
    responses |= {str(status): {"description": text} for status, text in (also or {}).items()}
    responses |= {str(status): {"description": text, "content": error} for status, text in ERRORS.items()}
    made: dict[str, Any] = {"summary": summary, "responses": responses}
    if parameters:
        made["parameters"] = parameters
    return made if body is None else {**made, "requestBody": body}


def _body(schema: str, examples: dict[str, Any]) -> dict[str, Any]:
    told = {name: {"value": value} for name, value in examples.items()}
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"}, "examples": told}
    return {"required": True, "content": {JSON: content}}


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema}
