"""A process that decodes pictures which nobody vouches for: it may die, and is then started anew.

It reads one request after another from standard input, and writes the answers to standard output: a line of JSON, which
says how many bytes follow it. The end of its input ends it.
"""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from hivlp.config import PictureConfig
from hivlp.data.pictures import decode, load_pixels
from hivlp.errors import PictureError

MEMORY = 3 << 30
"""Bytes of address space; decoding a picture takes 512 MB at most."""
QUALITY = 80


def main() -> None:
    """Serve requests until the input ends."""
    _limit()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no answer
    while line := source.readline():
        request = json.loads(line)
        data = source.read(request["bytes"])
        try:
            answer, made = _made(request, data)
        except PictureError as error:
            answer, made = {"error": str(error)}, b""
        except MemoryError:
            answer, made = {"error": "needs more memory than there is"}, b""
        sink.write(json.dumps({**answer, "bytes": len(made)}).encode() + b"\n" + made)
        sink.flush()


def _made(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    picture: bytes | Path = data if request.get("path") is None else Path(request["path"])
    if "picture" in request:
        pixels = load_pixels(picture, PictureConfig(**request["picture"]))
        return {"shape": pixels.shape}, pixels.tobytes()
    side: int = request["side"]
    image = decode(picture, target=side)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=QUALITY, method=2)
    return {"width": image.width, "height": image.height}, out.getvalue()


def _limit() -> None:
    """Give up what decoding needs not: memory beyond a bound, core dumps, a place before others at the processor."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, AttributeError):
        os.nice(5)


if __name__ == "__main__":
    main()
