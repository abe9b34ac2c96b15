"""Requests as they come in JSON: checked while they are decoded, and the source of the OpenAPI schemas."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

K_MOST = 1000
MOST_TERMS = 32
MOST_SEEN = 10_000
MOST_TEXT = 4096
MOST_INPUTS = 2048
"""As OpenAI has it; clients send a thousand at once by themselves."""
LAST_ID = (1 << 63) - 1

Text = Annotated[str, Meta(max_length=MOST_TEXT)]
Id = Annotated[int, Meta(ge=1, le=LAST_ID)]
Numbers = Annotated[list[float], Meta(max_length=1 << 16)] | Annotated[str, Meta(max_length=1 << 20)]
"""A vector: numbers, or base64 of little-endian float32."""
Value = Annotated[str, Meta(max_length=MOST_TEXT)] | int | float | bool | None
Name = Annotated[str, Meta(max_length=1024)]


class Term(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One term of a query: exactly one of text, upload, image, item and vector, and how much it counts."""

    text: Text | None = None
    upload: Name | None = None
    image: str | None = None
    item: Id | None = None
    vector: Numbers | dict[str, Numbers] | None = None
    weight: Annotated[float, Meta(ge=-1000, le=1000)] = 1.0


class Filter(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Words of a photo filter; see :class:`hivlp.index.PhotoFilter`."""

    after: Name | None = None
    before: Name | None = None
    camera: Name | None = None
    lens: Name | None = None
    near: Annotated[list[float], Meta(min_length=3, max_length=3)] | None = None
    folder: Name | None = None
    format: Name | None = None
    rating: Annotated[int, Meta(ge=0, le=5)] | None = None
    keywords: Annotated[tuple[Name, ...], Meta(max_length=32)] = ()
    orientation: Literal["landscape", "portrait", "square"] | None = None


class SearchRequest(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A search: what for, among what, and how."""

    query: Text | Annotated[list[Term], Meta(max_length=MOST_TERMS)] | None = None
    k: Annotated[int, Meta(ge=1, le=K_MOST)] = 10
    offset: Annotated[int, Meta(ge=0, le=1 << 40)] = 0
    where: Annotated[str, Meta(max_length=20_000)] | None = None
    params: Annotated[list[Value], Meta(max_length=1000)] = []
    filter: Filter | None = None
    order: Literal["relevance", "newest", "oldest"] = "relevance"
    recall: Annotated[float, Meta(gt=0, le=1)] | None = None
    exact: bool = False
    shortlist: Annotated[int, Meta(ge=1, le=1 << 31)] | None = None
    threshold: Annotated[float, Meta(ge=-2, le=2)] | None = None
    cut: bool = False
    group: bool | Annotated[float, Meta(ge=-1, le=1)] = False
    seen: Annotated[list[Id], Meta(max_length=MOST_SEEN)] = []
    missing: bool = False
    explain: bool = False
    inspect: bool = False


class Ids(Struct, forbid_unknown_fields=True):
    """Items by their ids."""

    ids: Annotated[list[Id], Meta(min_length=1, max_length=MOST_SEEN)]


class NewVector(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A vector to store in an index of given embeddings, and what is known of it."""

    vector: Numbers
    path: Annotated[str, Meta(min_length=1, max_length=4096)]
    caption: Text | None = None
    metadata: dict[str, Any] = {}


class NewItems(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What to add: pictures by their paths beneath the roots, or vectors."""

    paths: Annotated[list[Annotated[str, Meta(min_length=1, max_length=4096)]], Meta(max_length=1000)] = []
    vectors: Annotated[list[NewVector], Meta(max_length=MOST_SEEN)] = []


class Uploads(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What is known of uploaded pictures, by the names of their files."""

    captions: dict[str, Text] = {}
    metadata: dict[str, dict[str, Any]] = {}


class NewJob(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A job: folders to index."""

    paths: Annotated[list[Annotated[str, Meta(min_length=1, max_length=4096)]], Meta(min_length=1, max_length=1000)]
    kind: Literal["index"] = "index"
    prune: bool = False


class EmbeddingsRequest(Struct):
    """A request for embeddings as OpenAI has it, with what others have added for pictures.

    ``input`` is texts, or with ``modality`` ``image`` pictures as data URIs; ``messages`` is one input as a chat, whose
    last message has a text or an ``image_url``.
    """

    input: str | Annotated[list[str], Meta(max_length=MOST_INPUTS)] | None = None
    model: str | None = None
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    modality: Literal["text", "image"] = "text"
    messages: list[dict[str, Any]] | None = None
    user: str | None = None


def decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """What decodes and checks a request."""
    return msgspec.json.Decoder(kind)
