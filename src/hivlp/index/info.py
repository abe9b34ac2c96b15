"""What an index holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hivlp.search.operating_points import Tuned
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
        relative: whether paths are relative to the folder that the index lies in.
        vectors: codec of the stored vectors.
        items: in all.
        missing: items whose files were not there when their folders were last walked; searches leave them out.
        pending: items that have the coarsest level's vector alone, until `hivlp index` computes the others.
        lost: items whose vectors were damaged and set aside.
        rows: of each vector file, those of tombstones included.
        dead: tombstones, which `hivlp compact` gives back.
        model: name of the model; ``embeddings`` for given vectors.
        source: where it can be loaded from.
        fingerprint: of its weights, or of the coarse maps.
        levels: dims of each, coarse to fine.
        bytes: on disk.
        engine_bytes: of them, those of the approximate index that `hivlp tune` made.
        tuned: what is known of that one: ``rows`` in its inverted lists, ``learnt_rows`` that it was trained on,
            ``checked_rows`` that there were when recall was last measured, the ``recall`` that it is tuned for, what
            searches find ``at_least`` (None where they read all rows), and ``tune_again``: why that would help, or
            None. None without an approximate index of this format.
        fields: declared ones by name: their type, and how many items have a value of it, and how many none.
    """

    path: str
    format: int
    relative: bool
    vectors: str
    items: int
    missing: int
    pending: int
    lost: int
    rows: int
    dead: int
    model: str
    source: str
    fingerprint: str
    levels: dict[str, int]
    bytes: int
    engine_bytes: int
    tuned: dict[str, Any] | None
    fields: dict[str, FieldCounts]

    @classmethod
    def of(cls, store: Store, engine_bytes: int, tuned: Tuned | None) -> IndexInfo:
        """What a store holds, how long its approximate index's files are, and what was measured of that.

        Raises:
            IndexFolderError: if a vector file is missing or too short.
        """
        with store.reading() as reader:
            held, fields, generation = reader.info(), CommitColumns(store.path).counts(reader), reader.state.generation
        held["bytes"] += engine_bytes + files.stored_bytes(store.path)
        known = None if tuned is None else _known(tuned, generation)
        return cls(**held, engine_bytes=engine_bytes, tuned=known, fields=fields)

    def to_json(self) -> dict[str, Any]:
        """The shape that ``hivlp info --json`` prints."""
        return {**asdict(self), "fields": {name: counts.to_json() for name, counts in self.fields.items()}}

    def __str__(self) -> str:
        counts = {name: getattr(self, name) for name in ("missing", "pending", "lost", "dead")}
        held = ", ".join([f"{self.items:,} items", *(f"{count:,} {name}" for name, count in counts.items() if count)])
        engine = self.engine_bytes / 1e6
        paths = ", paths relative to its place" if self.relative else ""
        lines = [
            f"path: {self.path} (format {self.format}{paths})",
            f"holds: {held}",
            f"model: {self.model}" + (f", from {self.source}" if self.source not in ("", self.model) else ""),
            f"fingerprint: {self.fingerprint}",
            f"levels: {', '.join(f'{name} {dim}' for name, dim in self.levels.items())} dims, finest as {self.vectors}",
            f"disk: {self.bytes / 1e6:,.1f} MB" + (f", {engine:,.1f} of them the approximate index" if engine else ""),
            *_tuned_lines(self.tuned),
        ]
        return "\n".join([*lines, *map(str, self.fields.values())])


def _tuned_lines(tuned: dict[str, Any] | None) -> list[str]:
    if tuned is None:
        return ["tuned: no"]
    found = tuned["at_least"]
    finds = "reads all rows" if found is None else f"finds at least {found:.3f}"
    held = f"tuned: {tuned['rows']:,} rows, trained on {tuned['learnt_rows']:,}, checked at {tuned['checked_rows']:,}"
    again = tuned["tune_again"]
    lines = [f"{held}; for a recall of {tuned['recall']} it {finds}"]
    return lines if again is None else [*lines, f"tune again: {again}"]


def _known(tuned: Tuned, generation: int) -> dict[str, Any]:
    """What is shown of an approximate index."""
    point = tuned.depths[0].point(tuned.recall)
    return {
        **{name: getattr(tuned, name) for name in ("rows", "learnt_rows", "checked_rows", "recall")},
        "at_least": None if point is None else point.at_least,
        "tune_again": _tune_again(tuned, generation),
    }


def _tune_again(tuned: Tuned, generation: int) -> str | None:
    """Why tuning again would help; None where it would not."""
    if tuned.generation != generation:
        return "the rows have other numbers now, and searches do not use the approximate index"
    if tuned.falls_short:
        return f"after what has changed, no search parameters are known to find {tuned.recall}: all rows are read"
    return None
