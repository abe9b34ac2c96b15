"""Metrics of the service as Prometheus reads them, and what a dashboard needs of them."""

from __future__ import annotations

import re

import pytest

import hivlp
from hivlp.index import Index
from hivlp.serve.metrics import Metrics
from serving import asked
from synthetic import FakeEncoder, index_pictures

LINE = re.compile(r'[a-z_:]+(\{[a-z]+="[^"\n]*"(,[a-z]+="[^"\n]*")*\})? \S+')


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    index = Index.open(index_pictures(folder, 3), FakeEncoder())
    with asked({"index": index}) as service:
        for method, path in (("GET", "/items/1"), ("GET", "/indexes/index/items/2"), ("DELETE", "/items/3"),
                             ("GET", "/items"), ("POST", "/items"), ("GET", "/nothing")):  # fmt: skip
            service(method, path)
        service.search(query="red")
        return service.get("/metrics").text


def test_every_line_is_one_of_the_text_format_and_has_its_kind(text):
    kinds = dict(re.findall(r"^# TYPE (\S+) (counter|gauge|histogram)$", text, re.MULTILINE))
    for line in text.splitlines():
        assert line.startswith("# ") or LINE.fullmatch(line), line
        if not line.startswith("#"):
            name = re.split(r"[{ ]", line)[0]
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in kinds or kinds[base] == "histogram"
    assert {name for name, kind in kinds.items() if kind == "counter"} == {
        name for name in kinds if name.endswith("_total")
    }


def test_a_request_is_counted_by_its_route_and_its_own_method(text):
    requests = dict(re.findall(r"^hivlp_requests_total(\{.*\}) (\d+)$", text, re.MULTILINE))
    assert requests['{route="/items/{id}",method="GET",status="200"}'] == "2", "of whichever index and item"
    assert requests['{route="/items/{id}",method="DELETE",status="200"}'] == "1"
    assert requests['{route="/search",method="POST",status="200"}'] == "1"
    assert requests['{route="other",method="GET",status="404"}'] == "1"
    for labels in ('route="/items",method="GET"', 'route="/items",method="POST"'):
        assert f"hivlp_request_seconds_count{{{labels}}} 1" in text, "uploads are not mixed with lists"


def test_load_version_and_process_are_told(text):
    for wanted in ("hivlp_in_flight ", "hivlp_ready ", "process_cpu_seconds_total ", "process_start_time_seconds "):
        assert f"\n{wanted}" in text
    assert f'hivlp_build_info{{version="{hivlp.__version__}"}} 1' in text


def test_a_large_count_keeps_its_last_digit():
    metrics = Metrics()
    metrics.requests.add("/search", "POST", "200", by=12_345_678)
    metrics.gauge("hivlp_x", "X.", (), lambda: {(): 0.5})
    assert 'status="200"} 12345678\n' in metrics.text() and "hivlp_x 0.5\n" in metrics.text()
