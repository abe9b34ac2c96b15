"""The OpenAPI description against the service: whatever fits it is answered, and never with a 5xx."""

from __future__ import annotations

import hypothesis
import pytest
import requests

from hivlp.index import Index
from serving import asked
from synthetic import FakeEncoder, index_pictures

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed (the dev extra)")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("described")
    index = Index.open(index_pictures(folder, 8), FakeEncoder())
    with asked({"index": index}) as client:
        yield client


@pytest.fixture(scope="module")
def operations(service):
    schema = schemathesis.openapi.from_dict(service.get("/openapi.json").json())
    found = [result.ok() for result in schema.get_all_operations()]
    assert len(found) > 30
    # Those of a named index are the same routes.
    return [each for each in found if not each.path.startswith("/indexes/") and not each.path.endswith("/events")]


def transport(case):
    return case.as_transport_kwargs(base_url="http://127.0.0.1:8000")


def test_no_request_that_fits_the_description_breaks_the_service(service, operations):
    statuses = []
    for operation in operations:

        @hypothesis.settings(
            max_examples=30, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy())
        def ask(case):
            kept = ("method", "url", "params", "headers", "json", "data", "files", "cookies")
            given = {name: value for name, value in transport(case).items() if name in kept}
            try:
                request = requests.Request(**given).prepare()
            except (ValueError, AttributeError, TypeError):  # not every form can be written down
                return
            answer = service(request.method, request.path_url, headers=request.headers, content=request.body)
            statuses.append(answer.status_code)
            assert answer.status_code < 500, (request.method, request.path_url, request.body, answer.text)

        ask()
    assert service.search(query="red").status_code == 200
    assert len(statuses) > 100 and 200 in statuses and 400 in statuses


def test_the_examples_of_searches_and_embeddings_are_answered(service):
    paths = service.get("/openapi.json").json()["paths"]
    for path in ("/search", "/v1/embeddings"):
        examples = paths[path]["post"]["requestBody"]["content"]["application/json"]["examples"]
        for name, example in examples.items():
            answer = service("POST", path, json={**example["value"], **({"dimensions": 16} if "v1" in path else {})})
            assert answer.status_code == 200, (name, answer.text)


def test_no_schema_is_a_truth_value_which_generators_of_clients_do_not_read(service):
    def schemas(value):
        if isinstance(value, dict):
            for name, each in value.items():
                assert name not in ("items", "additionalProperties", "not") or isinstance(each, dict), value
                schemas(each)
        elif isinstance(value, list):
            for each in value:
                schemas(each)

    described = service.get("/openapi.json").json()["components"]["schemas"]
    for schema in described.values():
        schema.pop("additionalProperties", None)  # of objects, for which false is usual
    schemas(described)


def test_as_many_texts_are_embedded_at_once_as_libraries_for_openai_send(service):
    answer = service("POST", "/v1/embeddings", json={"input": ["a dog"] * 2048, "dimensions": 16})
    assert answer.status_code == 200 and len(answer.json()["data"]) == 2048
