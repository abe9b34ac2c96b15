"""Services that are measured, hivlp's first, behind one interface; each is a program of one file."""

from hivlp.bench.serve.services.base import Service
from hivlp.bench.serve.services.flask_faiss import FlaskFaiss
from hivlp.bench.serve.services.infinity import Infinity
from hivlp.bench.serve.services.ours import Ours
from hivlp.bench.serve.services.starlette_app import StarletteHnsw, StarletteIvf, StarletteQdrant

SERVICES: tuple[type[Service], ...] = (Ours, StarletteIvf, StarletteHnsw, StarletteQdrant, FlaskFaiss, Infinity)

__all__ = ["SERVICES", "Service"]
