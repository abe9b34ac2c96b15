"""The route that embeds texts and pictures, in the shape that OpenAI gave it."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from hivlp.levels import Level, Vectors
from hivlp.serve.asking import picture_of, read_json, service_of
from hivlp.serve.errors import bad_request, not_found
from hivlp.serve.models import MOST_TEXT, EmbeddingsRequest, decoder
from hivlp.serve.replies import json_reply
from hivlp.serve.served import Served
from hivlp.serve.service import Said, Seen, Service
from hivlp.serve.vectors import as_base64

EMBEDDINGS = decoder(EmbeddingsRequest)
AT_ONCE = 16
"""Inputs of one request that are encoded side by side, so that others are not kept waiting."""


async def embeddings(request: Request) -> Response:
    """``POST /v1/embeddings``."""
    service = service_of(request)
    wanted = await read_json(request, EMBEDDINGS)
    served = _served(service, wanted.model)
    level = _level(served, wanted.dimensions)
    turn = asyncio.Semaphore(AT_ONCE)

    async def encode(kind: str, value: str) -> Vectors:
        async with turn:
            if kind == "image":
                known = await service.pictures.do(Seen(served, await picture_of(service, value)))
            else:
                known = await service.text(Said(served, value), single=single)
        return np.asarray(known[level.name], np.float32).reshape(-1)

    inputs = _inputs(wanted)
    single = len(inputs) == 1
    rows = [await encode(*inputs[0])] if single else await asyncio.gather(*(encode(*each) for each in inputs))
    packed = wanted.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": place, "embedding": as_base64(row) if packed else row.tolist()}
        for place, row in enumerate(rows)
    ]
    answer = {
        "object": "list",
        "data": data,
        "model": served.index.store.about.model,
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }
    return json_reply(answer)


def _served(service: Service, model: str | None) -> Served:
    """The index whose model is meant: by its own name, or its index's; the first one where none is named."""
    for served in service.indexes.values():
        if served.has_model and model in (
            None,
            "",
            served.name,
            served.index.model_source,
            served.index.store.about.model,
        ):
            return served
    raise not_found(f"no index is served with a model {model!r:.80}")


def _level(served: Served, dimensions: int | None) -> Level:
    levels = served.index.levels
    if served.index.maps is not None:  # the coarse one is made from the finest by the index
        levels = levels[-1:]
    found = next((level for level in reversed(levels) if dimensions in (None, level.dim)), None)
    if found is None:
        raise bad_request(f"dimensions is one of {', '.join(str(level.dim) for level in levels)}, not {dimensions}")
    return found


def _inputs(wanted: EmbeddingsRequest) -> list[tuple[str, str]]:
    """Each input: ``text`` or ``image``, and what it is."""
    if (wanted.input is None) == (wanted.messages is None):
        raise bad_request("give either input or messages")
    if wanted.messages is not None:
        return [_of_messages(wanted.messages)]
    given = [wanted.input] if isinstance(wanted.input, str) else list(wanted.input or ())
    if not given:
        raise bad_request("input is empty")
    if wanted.modality == "text" and any(len(text) > MOST_TEXT for text in given):
        raise bad_request(f"a text has {MOST_TEXT} characters at most")
    return [(wanted.modality, value) for value in given]


def _of_messages(messages: list[dict[str, Any]]) -> tuple[str, str]:
    """The text or the picture of a chat's last message."""
    content = messages[-1].get("content") if messages else None
    parts: Any = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if isinstance(parts, list) and len(parts) == 1 and isinstance(parts[0], dict):
        part = parts[0]
        text, picture = part.get("text"), part.get("image_url")
        address = picture.get("url") if isinstance(picture, dict) else picture
        if part.get("type") == "image_url" and isinstance(address, str):
            return "image", address
        if part.get("type") == "text" and isinstance(text, str) and len(text) <= MOST_TEXT:
            return "text", text
    raise bad_request("the last message needs a content of one text or one image_url")
