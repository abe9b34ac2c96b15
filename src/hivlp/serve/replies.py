"""Answers in JSON."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from starlette.responses import Response

JSON = "application/json"
_ENCODER = msgspec.json.Encoder()


def json_reply(value: Any, status: int = 200) -> Response:
    """An answer in JSON; bytes are JSON already."""
    return Response(value if isinstance(value, bytes) else encoded_json(value), status, media_type=JSON)


def encoded_json(value: Any) -> bytes:
    """A value as JSON; texts that are no text (half a surrogate pair, as stored metadata may hold) escaped."""
    try:
        return _ENCODER.encode(value)
    except (UnicodeEncodeError, TypeError, OverflowError):
        return json.dumps(value, default=str).encode()
