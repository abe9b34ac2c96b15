"""The OpenAPI description against the service: whatever fits it is answered, and never with a 5xx."""

from __future__ import annotations

import hypothesis
import pytest

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


def test_no_request_that_fits_the_description_breaks_the_service(service, operations):
    for operation in operations:

        @hypothesis.settings(
            max_examples=12, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        @hypothesis.given(case=operation.as_strategy())
        def ask(case):
            request = case.as_transport_kwargs(base_url="http://127.0.0.1:8000")
            request = {
                name: value for name, value in request.items()
                if name in ("method", "params", "headers", "json", "data", "files", "content") and value is not None
            }  # fmt: skip
            request.pop("headers", None) if case.body.__class__.__name__ == "NotSet" else None
            address = case.formatted_path
            answer = service(path=address, **request)
            assert answer.status_code < 500, (address, request, answer.text)

        ask()
    assert service.search(query="red").status_code == 200
