"""What an index holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hivlp.store.folder import Store


@dataclass(frozen=True)
class IndexInfo:
    """What an index holds.

    Attributes:
        path: of the folder.
        format: of the folder's files.
        vectors: codec of the stored vectors.
        items: in all.
        missing: items whose files were not there when their folders were last walked; searches leave them out.
        lost: items whose vectors were damaged and set aside.
        rows: of each vector file, those of tombstones included.
        dead: tombstones, which `hivlp compact` gives back.
        model: name of the model; ``embeddings`` for given vectors.
        source: where it can be loaded from.
        fingerprint: of its weights, or of the coarse maps.
        levels: dims of each, coarse to fine.
        bytes: on disk.
        engine_bytes: of them, those of the approximate index that `hivlp tune` made.
    """

    path: str
    format: int
    vectors: str
    items: int
    missing: int
    lost: int
    rows: int
    dead: int
    model: str
    source: str
    fingerprint: str
    levels: dict[str, int]
    bytes: int
    engine_bytes: int

    @classmethod
    def of(cls, store: Store, engine_bytes: int) -> IndexInfo:
        """What a store holds, and how long its approximate index's files are.

        Raises:
            IndexFolderError: if a vector file is missing or too short.
        """
        held = store.info()
        return cls(**{**held, "bytes": held["bytes"] + engine_bytes}, engine_bytes=engine_bytes)

    def to_json(self) -> dict[str, Any]:
        """The shape that ``hivlp info --json`` prints."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self.to_json().items())
