"""Infinity with the text tower that all services share: its server, queue and batching around our ONNX graph.

No engine of Infinity's runs a model of this format, so its test engine is made to: the texts of a batch are encoded as
one. Infinity 0.0.78 pins numpy below 2 and uvicorn below 0.33; ``HIVLP_INFINITY_PYTHON`` names the Python of an
environment with ``infinity_emb[server]`` and what hivlp needs.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import uvicorn

from hivlp.bench.products.rivals.base import Effort
from hivlp.bench.serve.load import request_bytes
from hivlp.bench.serve.services.base import EMBED, Service
from hivlp.encode import HiVLP

PYTHON = "HIVLP_INFINITY_PYTHON"


class Infinity(Service):
    """Embeddings alone."""

    name: ClassVar[str] = "Infinity"
    packages: ClassVar[tuple[str, ...]] = ("infinity_emb",)
    how: ClassVar[str] = "its server and dynamic batching around the text tower, no usage statistics"
    kinds: ClassVar[tuple[str, ...]] = (EMBED,)

    def command(self, folder: Path, port: int, effort: Effort, model: str) -> list[str]:
        return [os.environ.get(PYTHON, sys.executable), "-m", __name__, str(port), model]

    def embed_request(self, text: str) -> bytes:
        return request_bytes("/embeddings", msgspec.json.encode({"model": "tower", "input": text}))


def main(port: str, name: str) -> None:
    """Serve until the process is told to end."""
    dummy = importlib.import_module("infinity_emb.transformer.embedder.dummytransformer").DummyTransformer
    args, server = (importlib.import_module(f"infinity_emb.{each}") for each in ("args", "infinity_server"))
    model = HiVLP.from_pretrained(name)
    finest = model.levels[-1].name

    def encode(_: Any, texts: Any) -> Any:
        return np.asarray(model.encode_text([str(text) for text in texts], levels=[finest])[finest])

    dummy.encode_core = encode
    engine = args.EngineArgs(
        model_name_or_path=name, served_model_name="tower", engine="debugengine", device="cpu", model_warmup=False
    )
    app = server.create_server(engine_args_list=[engine])
    uvicorn.run(app, port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
