"""What an index holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hivlp.store.fields import files
from hivlp.store.fields.commit import CommitColumns
from hivlp.store.fields.declared import FieldCounts
from hivlp.store.folder import Store


@dataclass(frozen=True)
class IndexInfo:
    """What an index holds.

    Attributes:
        path: of the folder.
        format: of the folder's files.
        vectors: codec of the stored vectors.
        items: searchable.
        lost: items whose vectors were damaged and set aside.
        rows: of each vector file, those of tombstones included.
        dead: tombstones, which `hivlp compact` gives back.
        model: name of the model; ``embeddings`` for given vectors.
        source: where it can be loaded from.
        fingerprint: of its weights, or of the coarse maps.
        levels: dims of each, coarse to fine.
        bytes: on disk.
        engine_bytes: of them, those of the approximate index that `hivlp tune` made.
        fields: declared ones by name: their type, and how many items have a value of it, and how many none.
    """

    path: str
    format: int
    vectors: str
    items: int
    lost: int
    rows: int
    dead: int
    model: str
    source: str
    fingerprint: str
    levels: dict[str, int]
    bytes: int
    engine_bytes: int
    fields: dict[str, FieldCounts]

    @classmethod
    def of(cls, store: Store, engine_bytes: int) -> IndexInfo:
        """What a store holds, and how long its approximate index's files are.

        Raises:
            IndexFolderError: if a vector file is missing or too short.
        """
        with store.reading() as reader:
            held, fields = reader.info(), CommitColumns(store.path).counts(reader)
        held["bytes"] += engine_bytes + files.stored_bytes(store.path)
        return cls(**held, engine_bytes=engine_bytes, fields=fields)

    def to_json(self) -> dict[str, Any]:
        """The shape that ``hivlp info --json`` prints."""
        return {**asdict(self), "fields": {name: counts.to_json() for name, counts in self.fields.items()}}

    def __str__(self) -> str:
        lines = [f"{name}: {value}" for name, value in self.to_json().items() if name != "fields"]
        return "\n".join([*lines, *map(str, self.fields.values())])
