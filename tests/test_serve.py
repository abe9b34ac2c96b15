"""The service's contract, route by route."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hivlp
from hivlp.index import Index
from hivlp.index.from_embeddings import index_embeddings
from hivlp.serve.parameters import bound
from hivlp.serve.settings import Settings
from serving import asked, error
from synthetic import FakeEncoder, cloud, write_pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    write_pictures(folder / "pictures", 30)
    with Index.create(folder / "photos.hivlp", model=FakeEncoder(), fields={"year": "int"}) as index:
        paths = sorted((folder / "pictures").iterdir())
        facts = {
            str(path): {"year": 2000 + number, "taken": f"20{number % 25:02}-01-01T00:00:00"}
            for number, path in enumerate(paths)
        }
        index.add(folder / "pictures", metadata=facts, captions={str(path): path.stem for path in paths})
    return folder


@pytest.fixture(scope="module")
def service(folder):
    index = Index.open(folder / "photos.hivlp", FakeEncoder())
    with asked({"photos": index}, Settings(roots=(folder / "pictures",))) as client:
        yield client


@pytest.fixture(scope="module")
def index(folder):
    with Index.open(folder / "photos.hivlp", FakeEncoder()) as index:
        yield index


def ids(response):
    assert response.status_code == 200, response.text
    return [hit["id"] for hit in response.json()["hits"]]


def test_a_text_finds_what_the_index_finds(service, index):
    found = service.search(query="red square", k=5).json()
    wanted = index.search("red square", k=5)
    assert [(hit["id"], hit["path"]) for hit in found["hits"]] == [(hit.id, hit.path) for hit in wanted]
    assert [hit["scores"]["fine"] for hit in found["hits"]] == pytest.approx([hit.scores["fine"] for hit in wanted])
    assert found["total"] == 30 and found["next_offset"] == 5


def test_a_hit_says_where_its_thumbnail_and_its_original_are(service):
    hit = service.search(query="red", k=1).json()["hits"][0]
    small, whole = service.get(hit["thumbnail"]), service.get(hit["original"])
    assert small.headers["content-type"] == "image/webp" and Image.open(io.BytesIO(small.content)).format == "WEBP"
    with Path(hit["path"]).open("rb") as file:
        assert whole.content == file.read()
    again = service.get(hit["thumbnail"], headers={"if-none-match": small.headers["etag"]})
    assert again.status_code == 304 and not again.content


def test_a_part_of_an_original_is_sent(service):
    whole = service.get("/items/1/original").content
    part = service.get("/items/1/original", headers={"range": "bytes=3-7"})
    assert part.status_code == 206 and part.content == whole[3:8]
    assert error(service.get("/items/1/original", headers={"range": f"bytes={len(whole)}-"})) == (416, "bad_range")


def test_an_item_a_vector_and_an_uploaded_picture_are_looked_for(service, index):
    item = index.get(3)
    assert ids(service.search(query=[{"item": 3}], k=4)) == [hit.id for hit in index.search(like=3, k=4)]
    vectors = {name: rows[0].tolist() for name, rows in index.vectors(3).items()}
    assert ids(service.search(query=[{"vector": vectors}], k=1)) == [3]
    with Path(item.path).open("rb") as file:
        data = file.read()
    form = {"request": json.dumps({"query": [{"upload": "seen"}], "k": 1})}
    assert ids(service("POST", "/search", data=form, files={"seen": ("x.png", data)})) == [3]
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    assert ids(service.search(query=[{"image": uri}], k=1)) == [3]


def test_terms_are_mixed_with_their_weights(service, index):
    from hivlp.index import Mix

    mix = Mix.of_text("red") + Mix.of_item(4) - 0.5 * Mix.of_text("blue")
    terms = [{"text": "red"}, {"item": 4}, {"text": "blue", "weight": -0.5}]
    assert ids(service.search(query=terms, k=5)) == [hit.id for hit in index.search(mix, k=5)]


def test_conditions_parameters_and_filters_narrow_a_search(service):
    assert set(ids(service.search(query="red", k=30, where="year >= ? AND year < ?", params=[2003, 2006]))) == {4, 5, 6}
    assert set(ids(service.search(query="red", k=30, filter={"after": "2023"}))) == {24, 25}
    assert 7 not in ids(service.search(query="red", k=30, seen=[7, 8]))


def test_browsing_gives_every_item_once_by_date(service):
    pages, offset = [], 0
    while offset is not None:
        found = service.search(k=7, offset=offset).json()
        pages += found["hits"]
        offset = found["next_offset"]
    dates = [hit["taken"] for hit in pages]
    assert sorted(hit["id"] for hit in pages) == list(range(1, 31)) and found["total"] == 30
    assert dates == sorted(dates, reverse=True)
    oldest = [hit["taken"] for hit in service.search(k=30, order="oldest").json()["hits"]]
    assert oldest == sorted(dates)


@pytest.mark.parametrize("query", [{"query": "red"}, {"query": [{"item": 3}], "cut": True}, {}])
def test_an_order_by_date_is_of_the_whole_answer(service, query):
    whole = service.search(k=30, order="newest", **query).json()
    assert whole["total"] == len(whole["hits"]) and whole["next_offset"] is None
    dates = [hit["taken"] for hit in whole["hits"]]
    assert dates == sorted(dates, reverse=True)
    pages, offset = [], 0
    while offset is not None:
        found = service.search(k=4, offset=offset, order="newest", **query).json()
        pages, offset = pages + found["hits"], found["next_offset"]
    assert [hit["id"] for hit in pages] == [hit["id"] for hit in whole["hits"]]


def test_searches_that_are_answered_together_keep_their_orders(service):
    async def ask():
        requests = [{"query": word, "k": 30, "order": order}
                    for word in ("red", "blue") for order in ("relevance", "newest") * 4]  # fmt: skip
        work = [service._client.request("POST", "/search", json=request) for request in requests]
        return requests, await asyncio.gather(*work)

    for request, response in zip(*service.run(ask()), strict=True):
        dates = [hit["taken"] for hit in response.json()["hits"]]
        assert (dates == sorted(dates, reverse=True)) == (request["order"] == "newest")


def test_an_inspected_search_says_how_ranks_moved(service):
    stages = service.search(query="red", k=3, inspect=True, explain=True).json()["inspect"]["stages"]
    assert [stage["name"] for stage in stages] == ["coarse", "fine"]
    coarse = {row[0]: row[2] for row in stages[0]["ranks"]}
    assert all(row[1] == coarse[row[0]] for row in stages[1]["ranks"])


def test_items_are_listed_a_page_at_a_time(service):
    first = service.get("/items?limit=20").json()
    rest = service.get(f"/items?limit=20&after={first['next']}").json()
    assert [item["id"] for item in first["items"] + rest["items"]] == list(range(1, 31)) and rest["next"] is None
    assert [item["id"] for item in service.get("/items?where=year=2004").json()["items"]] == [5]
    assert service.get("/items/5").json()["caption"] and error(service.get("/items/999")) == (404, "not_found")


def test_fields_say_which_values_there_are(service):
    year = next(field for field in service.get("/fields").json()["fields"] if field["name"] == "year")
    assert (year["type"], year["min"], year["max"], len(year["values"])) == ("int", 2000, 2029, 30)


def test_state_metrics_and_health(service):
    state = service.get("/api/state").json()
    assert state["version"] == hivlp.__version__ and state["indexes"][0]["items"] == 30
    assert service.get("/healthz").json() == {"status": "ok"}
    service.search(query="red")
    text = service.get("/metrics").text
    assert 'hivlp_requests_total{route="/search",method="POST",status="200"}' in text
    assert 'hivlp_batch_size_bucket{queue="searches",le="1"}' in text


@pytest.mark.parametrize("packed", [True, False])
def test_embeddings_have_the_shape_that_openai_gave_them(service, packed):
    request = {"input": ["red", "blue"], "encoding_format": "base64" if packed else "float", "dimensions": 16}
    found = service("POST", "/v1/embeddings", json=request).json()
    wanted = FakeEncoder().encode_text(["red", "blue"]).coarse
    rows = [each["embedding"] for each in found["data"]]
    rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows] if packed else rows
    assert found["object"] == "list" and np.allclose(rows, wanted, atol=1e-6)


@pytest.mark.slow
def test_an_index_of_given_vectors_is_searched_by_vectors_and_takes_more(tmp_path):
    rows = cloud(200, 16, 0)
    np.save(tmp_path / "rows.npy", rows)
    index_embeddings(tmp_path / "given.hivlp", tmp_path / "rows.npy", dims=8, method="pca")
    with asked({"given": Index.open(tmp_path / "given.hivlp")}) as service:
        packed = base64.b64encode(rows[7].astype("<f4").tobytes()).decode()
        assert ids(service.search(query=[{"vector": packed}], k=1)) == [8]
        assert ids(service.search(query=[{"vector": rows[7].tolist()}], k=1)) == [8]
        assert error(service.search(query="a text")) == (400, "bad_request")
        new = {"vectors": [{"vector": (-rows[7]).tolist(), "path": "new", "caption": "turned"}]}
        assert service("POST", "/items", json=new).json()["added"] == 1
        found = service.search(query=[{"vector": (-rows[7]).tolist()}], k=1).json()["hits"][0]
        assert (found["path"], found["caption"]) == ("new", "turned")
        assert service("DELETE", "/items", json={"ids": [1, 2]}).json() == {"removed": 2, "items": 199}
        assert error(service("DELETE", "/items/1")) == (404, "not_found")


@pytest.mark.parametrize(
    "request_",
    [
        {"k": 0}, {"k": 10**9}, {"unknown": 1}, {"query": 5}, {"query": []}, {"query": [{}]}, {"query": " "},
        {"query": [{"text": "a", "item": 1}]}, {"query": [{"text": "a", "weight": -1}]}, {"query": [{"item": 999}]},
        {"query": [{"upload": "none"}]}, {"query": [{"image": "x"}]}, {"query": [{"vector": "?"}]},
        {"query": [{"vector": [1.0]}]}, {"query": [{"text": "a"}] * 40}, {"seen": list(range(1, 10_002))},
        {"where": "1; DROP TABLE items"}, {"where": "year > ?"}, {"where": "year > 1", "params": [1]},
        {"where": "0) UNION SELECT (1"}, {"where": "load_extension('x')"}, {"filter": {"near": [0, 0]}},
        {"filter": {"after": "never"}}, {"order": "random"}, {"recall": 2},
    ],
)  # fmt: skip
def test_a_search_that_makes_no_sense_is_told_so(service, request_):
    assert error(service("POST", "/search", json=request_)) == (400, "bad_request")


def test_parameters_stand_where_question_marks_are_and_nowhere_else():
    assert bound("a = ? AND b = '?' AND \"?\" = ? -- ?", ["it's", 2]) == "a = 'it''s' AND b = '?' AND \"?\" = (2) -- ?"


def test_the_page_and_its_files_are_sent_with_a_strict_policy(service):
    page = service.get("/")
    assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    assert error(service.get("/static/nothing.js")) == (404, "not_found")
    assert error(service.get("/nothing")) == (404, "not_found")
    assert error(service("PUT", "/items")) == (405, "method_not_allowed")
    assert error(service.get("/indexes/other/items")) == (404, "not_found")
    assert service.get("/indexes/photos/items").status_code == 200


def test_the_page_s_files_are_compressed_and_asked_after_by_their_tags(service):
    script = service.get("/static/js/app.js", headers={"accept-encoding": "gzip"})
    assert script.headers["content-encoding"] == "gzip" and b"export function change" in script.content
    assert script.headers["cache-control"] == "no-cache"
    again = service.get("/static/js/app.js", headers={"if-none-match": script.headers["etag"]})
    assert again.status_code == 304 and not again.content


def test_the_client_gives_what_the_index_gives(service, index):
    import httpx

    from hivlp import AsyncClient

    async def ask():
        async with AsyncClient("http://localhost", transport=httpx.ASGITransport(service.asgi)) as client:
            with pytest.raises(hivlp.HivlpError, match="k"):
                await client.search("red", k=0)
            return await client.search("red", k=4), await client.embed("red")

    found, embedded = service.run(ask())
    wanted = index.search("red", k=4)
    assert [hit._replace(scores={}) for hit in found] == [hit._replace(scores={}) for hit in wanted]
    assert np.allclose(embedded, FakeEncoder().encode_text(["red"]).fine)
