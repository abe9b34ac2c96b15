"""Clients of a service: the same for programs with an event loop, and nothing that is given to them goes unused."""

from __future__ import annotations

import inspect
import json

import httpx
import numpy as np
import pytest
from PIL import Image

from hivlp import AsyncClient, Client, HivlpError, ServiceError
from hivlp.index import Index, PhotoFilter
from serving import Asked, asked
from synthetic import FakeEncoder, index_pictures, write_pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    index_pictures(folder, 6)
    return folder


@pytest.fixture(scope="module")
def service(folder):
    with asked({"index": Index.open(folder / "index", FakeEncoder())}) as service:
        yield service


class Bridge(httpx.BaseTransport):
    """What asks a service on another thread's event loop."""

    def __init__(self, service: Asked) -> None:
        self.service, self.bodies = service, []

    def handle_request(self, request):
        self.bodies.append(request.read())
        answer = self.service(
            request.method, request.url.raw_path.decode(), content=request.content, headers=dict(request.headers)
        )
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


@pytest.fixture
def client(service):
    with Client("http://localhost", transport=Bridge(service)) as client:
        yield client


def test_both_clients_have_the_same_methods_with_the_same_parameters():
    def methods(kind):
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(call).parameters) for name, call in found if name[0] != "_"}

    assert methods(Client) == methods(AsyncClient)


def test_an_event_loop_s_client_lists_fields_gets_items_and_begins_jobs(service, client):
    async def ask():
        async with AsyncClient("http://localhost", transport=httpx.ASGITransport(service.asgi)) as other:
            items = [item["id"] async for item in other.items(after=2)]
            with pytest.raises(ServiceError) as refused:
                await other.index(["/etc"])
            return items, await other.fields(), await other.get(1), await other.get(99), refused.value.status

    assert service.run(ask()) == ([3, 4, 5, 6], client.fields(), client.get(1), None, 403)


def test_numbers_of_numpy_and_pictures_of_pillow_are_taken(client, folder):
    ids = np.array([1, 2])
    assert client.search(like=ids[0], k=np.int64(1), seen=ids)[0].id not in (1, 2)
    file = sorted((folder / "pictures").iterdir())[0]
    with Image.open(file) as picture:
        assert client.search(image=picture, k=1)[0].id == client.search(image=file, k=1)[0].id
    with pytest.raises(HivlpError, match="cannot be read: No such file"):
        client.search(image=folder / "gone.png")


def test_a_photo_filter_and_its_words_say_the_same(client):
    for words, count in ({"format": "png"}, 6), ({"format": "heic"}, 0):
        assert client.search("red", filter=PhotoFilter(**words)).ids == client.search("red", filter=words).ids
        assert len(client.search("red", filter=PhotoFilter(**words))) == count


def test_several_texts_at_once_are_refused_before_they_are_sent(client):
    with pytest.raises(HivlpError, match="one text or Mix at a time"):
        client.search(["a dog", "a cat"])  # type: ignore[arg-type]


def test_any_number_of_texts_is_embedded_a_few_at_a_time(client):
    texts = [f"number {number}" for number in range(300)]
    assert np.array_equal(client.embed(texts)[[0, 299]], client.embed([texts[0], texts[299]]))


def test_an_explained_search_says_what_the_index_itself_would_say(client, folder):
    explained = client.search("red", k=2, explain=True)
    with Index.open(folder / "index", FakeEncoder()) as index:
        wanted = index.search("red", k=2)
    assert explained.chosen.to_json() == wanted.chosen.to_json()
    assert str(explained.chosen) == str(wanted.chosen)


@pytest.mark.parametrize("told", ["captions", "metadata"])
def test_what_is_told_of_a_picture_that_is_not_added_is_no_secret(client, service, folder, told, tmp_path):
    write_pictures(tmp_path, 1, start=40)
    (picture,) = tmp_path.iterdir()
    value = "a caption" if told == "captions" else {"year": 2020}
    with pytest.raises(HivlpError, match="none of the pictures"):
        client.add([picture], **{told: {"other.png": value}})
    form = {"request": json.dumps({told: {"other.png": value}})}
    answer = service("POST", "/items", data=form, files={"files": ("one.png", picture.read_bytes())})
    assert answer.status_code == 400 and "other.png" in answer.text


def test_captions_go_by_paths_however_they_are_written(client, tmp_path):
    write_pictures(tmp_path, 1, start=41)
    (picture,) = tmp_path.iterdir()
    for key in (picture, str(picture), f"{picture.parent}/./{picture.name}"):
        asked_for = client.uploading([picture], {key: "a caption"}, None)
        assert json.loads(asked_for["data"]["request"])["captions"] == {f"0-{picture.name}": "a caption"}


def test_an_index_s_name_stays_one_part_of_the_address(service):
    with (
        Client("http://localhost", index="x/../index", transport=Bridge(service)) as client,
        pytest.raises(ServiceError),
    ):
        client.search("red")


def test_a_busy_service_says_when_to_come_again():
    busy = httpx.Response(429, headers={"Retry-After": "3"}, json={"error": {"code": "busy", "message": "full"}})
    with Client(transport=httpx.MockTransport(lambda _: busy)) as client, pytest.raises(ServiceError) as refused:
        client.search("red")
    assert (refused.value.status, refused.value.code, refused.value.retry_after) == (429, "busy", 3.0)


def test_a_connection_that_breaks_without_a_word_is_named():
    def broken(_):
        raise httpx.ReadError("")

    with Client(transport=httpx.MockTransport(broken)) as client, pytest.raises(ServiceError, match="ReadError"):
        client.search("red")


def test_a_vector_of_one_level_is_told_how_to_ask_where_each_has_its_own(client):
    with pytest.raises(ServiceError, match="asked for by name"):
        client.search(vector=client.embed("red")[0])
    levels = {level["name"]: client.embed("red", dimensions=level["dim"])[0] for level in levels_of(client)}
    assert client.search(vector=levels, k=2).ids == client.search("red", k=2).ids


def levels_of(client):
    return client.state()["indexes"][0]["levels"]
