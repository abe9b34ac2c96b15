"""The errors a person can cause and mend; the command line prints each as one line."""

from __future__ import annotations


class HivlpError(Exception):
    """Base of every error that hivlp raises on purpose; its text says what to do."""


class ModelError(HivlpError):
    """A model folder is missing, incomplete or does not fit."""


class DataError(HivlpError):
    """A data set cannot be found or read."""


class RecipeError(HivlpError):
    """A training recipe is missing, malformed or contradicts itself."""


class PictureError(HivlpError):
    """One picture cannot be decoded; it is reported and skipped."""


class IndexFolderError(HivlpError):
    """An index folder is missing, damaged, of another model, or cannot be written."""


class BusyIndexError(IndexFolderError):
    """Somebody else is writing to an index folder: try again when they are done."""


class DamagedIndexError(IndexFolderError):
    """What an index folder holds is not what was written: `hivlp info --verify` says where, `hivlp repair` mends it."""


class VectorError(HivlpError, ValueError):
    """A vector cannot be stored: it is not finite, not of unit length, or not of the level's shape."""


class QueryError(HivlpError):
    """A query cannot be answered as asked."""


class ArgumentError(QueryError, TypeError, ValueError):
    """What was given is not of a kind that can be used there."""


class NoItemError(QueryError, KeyError):
    """An index has no item of this id or path."""

    __str__ = Exception.__str__  # that of KeyError shows a quoted text


_TRAIN = "torch transformers accelerate safetensors onnx pyyaml tensorboard matplotlib fsspec pyarrow"
EXTRAS = {
    "data": "pyarrow",
    "photos": "pillow-heif pillow-jxl-plugin rawpy av watchfiles",
    "hub": "huggingface_hub",
    "otel": "opentelemetry-sdk opentelemetry-exporter-otlp-proto-http",
    "langchain": "langchain-core",
    "llama-index": "llama-index-core",
    "systems": "lmdb lz4 msgpack",
    "s3": "s3fs",
    "interop": "ir-measures ranx mteb",
    "train": _TRAIN,
    "open_clip": f"open_clip_torch timm {_TRAIN}",
    "bench": "faiss-cpu hnswlib usearch scann rabitqlib pyvsag matplotlib",
    "bench-products": "chromadb faiss-cpu lancedb pyarrow pysqlite3 qdrant-edge-py sqlite-vec usearch zvec matplotlib",
    "bench-serve": "pyarrow faiss-cpu flask qdrant-edge-py",
}
"""Extra -> the libraries that it stands for: hivlp itself cannot be named to pip, as it is in no package index."""
PACKAGES = {
    "yaml": "pyyaml",
    "PIL": "pillow",
    "faiss": "faiss-cpu",
    "resvg_py": "resvg-py",
    "pillow_heif": "pillow-heif",
}
"""Module -> what pip calls it, where that differs."""


class MissingExtraError(HivlpError, ImportError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs more than is installed: {install_command(extra)}")


def install_command(extra: str) -> str:
    """How to install an extra."""
    checkout = f"in a checkout of hivlp, pip install '.[{extra}]'"
    return f"pip install {EXTRAS[extra]} (or, {checkout})" if extra in EXTRAS else checkout


def missing_module(name: str) -> str:
    """What to say of a module that cannot be imported."""
    package = name.partition(".")[0]
    return f"this needs {package}, which is not installed: pip install {PACKAGES.get(package, package)}"
