"""The OpenAPI description against the service: whatever fits it is answered, and never with a 5xx."""

from __future__ import annotations

import hypothesis
import pytest
import requests

from hivlp.index import Index
from serving import asked
from synthetic import FakeEncoder, write_pictures

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed (the dev extra)")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("described")
    write_pictures(folder / "pictures", 8)
    index = Index.create(folder / "index", model=FakeEncoder())
    index.add(folder / "pictures")
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
