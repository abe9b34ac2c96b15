"""The clients against a server that is none: whatever it sends is told in one error, soon, and with a bound."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import time

import httpx
import pytest

from hivlp import AsyncClient, Client
from hivlp.serve.client import ServiceError

HIT = {"rank": 1, "id": 1, "path": "x", "caption": None, "scores": {}, "metadata": {}}
FOUND = {"hits": [HIT], "timings_ms": {}, "plan": []}


def client(body, **options):
    """A client of a server that always says the same."""
    content = {"content": body} if isinstance(body, bytes) or hasattr(body, "__next__") else {"json": body}
    return Client("http://x", transport=httpx.MockTransport(lambda _: httpx.Response(200, **content)), **options)


def test_an_answer_of_the_right_shape_is_one():
    copies = [{"id": 2, "path": "y"}]
    (hit,) = client({**FOUND, "hits": [{**HIT, "duplicates": copies, "more": 1}]}).search("red")
    assert (hit.path, hit.duplicates[0].path) == ("x", "y") and client(FOUND).search("red")[0].duplicates is None
    assert client({"data": [{"embedding": [1, 2]}]}).embed("red").tolist() == [[1, 2]]


@pytest.mark.parametrize(
    "body",
    [{}, [], "x", b"", b"\xff", b"[" * 100_000, {**FOUND, "hits": 3}, {**FOUND, "plan": None},
     {**FOUND, "hits": [{}]}, {**FOUND, "hits": [{**HIT, "path": 3}]},
     {**FOUND, "hits": [{**HIT, "scores": {"fine": "x"}}]}],
)  # fmt: skip
def test_another_shape_is_told(body):
    with pytest.raises(ServiceError):
        client(body).search("red")


@pytest.mark.parametrize("rows", [[], [{}], [{"embedding": None}], [{"embedding": [1]}, {"embedding": [1, 2]}]])
def test_vectors_of_another_shape_are_told(rows):
    with pytest.raises(ServiceError):
        client({"data": rows}).embed("red")


def test_fields_and_items_of_another_shape_are_told_and_items_have_an_end():
    with pytest.raises(ServiceError):
        client({"fields": 3}).fields()
    for body in ({"items": 3, "next": None}, {"items": []}, {"items": [{}], "next": 0}):
        with pytest.raises(ServiceError):
            list(itertools.islice(client(body).items(), 10))


def blocks(seconds, data=b" " * (1 << 20)):
    while True:
        time.sleep(seconds)
        yield data


def test_an_answer_without_end_is_given_up():
    with pytest.raises(ServiceError, match="larger"):
        client(blocks(0)).state()
    with pytest.raises(ServiceError, match=r"within 0\.1 s"):
        client(blocks(0.02, b" "), timeout=0.1).state()


def test_a_packed_answer_without_end_is_given_up():
    bomb = gzip.compress(bytes(300 << 20), 1)
    answer = httpx.MockTransport(lambda _: httpx.Response(200, headers={"content-encoding": "gzip"}, content=bomb))
    with pytest.raises(ServiceError, match="larger"):
        Client("http://x", transport=answer).state()


def test_the_other_client_has_the_same_bounds():
    async def endless():
        while True:
            yield b" " * (1 << 20)

    async def ask():
        for content in ({"content": endless()}, {"json": {"hits": 3}}):
            answer = httpx.MockTransport(lambda _, content=content: httpx.Response(200, **content))
            async with AsyncClient("http://x", transport=answer) as client:
                with pytest.raises(ServiceError):
                    await client.search("red")

    asyncio.run(ask())


@pytest.mark.parametrize("options", [{"url": "http://\0"}, {"token": "\xe9"}, {"url": "no address"}])
def test_an_address_or_a_token_that_makes_no_sense_is_told(options):
    with pytest.raises(ServiceError):
        Client(**options).state()
