"""The path of a request through clip-retrieval's back end, in one file: Flask, FAISS, and metadata in Arrow.

clip-retrieval 2.45 pins numpy below 2 and pyarrow below 16, and embeds with PyTorch. Its ``/knn-service`` takes JSON;
embeds a text, here with the text tower that all services share; asks FAISS for ids together with the vectors, from
which it can drop duplicates; and looks up the metadata of each id in a table, here with one ``take`` where it makes a
frame of pandas. It runs Flask's own threaded server, here with connections kept open.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from hivlp.bench.ann.rivals.base import load_faiss
from hivlp.bench.products.rivals import Product
from hivlp.bench.products.rivals.base import Effort
from hivlp.bench.products.rivals.faiss_list import FaissHnsw
from hivlp.bench.products.rivals.listed import FILE
from hivlp.bench.serve.load import request_bytes
from hivlp.bench.serve.services.base import TEXT, VECTOR, K, Service, numbers_of
from hivlp.encode import HiVLP
from hivlp.levels import Vectors


class FlaskFaiss(Service):
    """clip-retrieval's back end, or as near as it can be come by."""

    name: ClassVar[str] = "clip-retrieval's path"
    packages: ClassVar[tuple[str, ...]] = ("flask", "faiss-cpu", "pyarrow")
    how: ClassVar[str] = f"Flask's threaded server, ids and vectors from FAISS, metadata in Arrow; {FaissHnsw.how}"
    kinds: ClassVar[tuple[str, ...]] = (VECTOR, TEXT)
    engine: ClassVar[type[Product] | None] = FaissHnsw

    def search_request(self, query: Vectors | str, effort: Effort) -> bytes:
        asked: dict[str, Any] = {"modality": "image", "num_images": K, "indice_name": "words"}
        asked |= {"text": query} if isinstance(query, str) else {"embedding_input": numbers_of(query)}
        return request_bytes("/knn-service", msgspec.json.encode(asked))

    def rows(self, answer: bytes) -> list[int]:
        return [hit["id"] for hit in msgspec.json.decode(answer)]


def create_app(faiss: Any, index: Any, table: Any, model: HiVLP, effort: Effort) -> Any:
    """The application.

    Args:
        faiss: the library.
        index: an open index, see :class:`hivlp.bench.products.rivals.faiss_list.FaissHnsw`.
        table: of Arrow, a row of metadata for each of the index.
        model: whose finest level is searched.
        effort: search parameters.
    """
    flask = importlib.import_module("flask")
    app, finest = flask.Flask("knn"), model.levels[-1].name
    graph = faiss.SearchParametersHNSW(efSearch=effort["ef"])
    params = faiss.IndexRefineSearchParameters(k_factor=effort["refined"], base_index_params=graph)

    def knn() -> Any:
        asked = flask.request.get_json(force=True)
        if asked.get("text"):
            query = np.asarray(model.encode_text([asked["text"]], levels=[finest])[finest][0], np.float32)
        else:
            query = np.array(asked["embedding_input"]).astype("float32")
        scores, rows, _ = index.search_and_reconstruct(query[None], asked["num_images"], params=params)
        known = table.take(rows[0]).to_pylist()
        return flask.jsonify(
            [
                {**each, "id": row, "similarity": score}
                for each, row, score in zip(known, rows[0].tolist(), scores[0].tolist(), strict=True)
            ]
        )

    app.add_url_rule("/knn-service", "knn", knn, methods=["POST"])
    app.add_url_rule("/readyz", "ready", lambda: "")
    return app


def main(folder: str, port: str, effort: str, model: str, _: str) -> None:
    """Serve until the process is told to end."""
    pa, serving = importlib.import_module("pyarrow"), importlib.import_module("werkzeug.serving")
    faiss = load_faiss()
    faiss.omp_set_num_threads(1)
    index = faiss.read_index(str(Path(folder) / "index.faiss"))
    with (Path(folder) / FILE).open() as lines:
        columns = zip(*map(json.loads, lines), strict=True)
        table = pa.table(dict(zip(("path", "caption", "year", "camera"), map(list, columns), strict=True)))

    class Handler(serving.WSGIRequestHandler):  # type: ignore[misc, name-defined]
        protocol_version = "HTTP/1.1"

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Say nothing: a line for each request takes a tenth of its time."""

    app = create_app(faiss, index, table, HiVLP.from_pretrained(model), json.loads(effort))
    app.run(port=int(port), threaded=True, request_handler=Handler)


if __name__ == "__main__":
    main(*sys.argv[1:])
