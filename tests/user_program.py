"""A user's small program, which is only typed: `mypy` reads it with the package (see `files` in pyproject.toml)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hivlp import HiVLP, HivlpError, Index
from hivlp.index import Mix


def program(folder: Path) -> None:
    """What the README and docs/python.md show."""
    index = Index.open_or_create("photos.hivlp", model=HiVLP.from_pretrained("hivlp-mini"), fields={"year": "int"})
    report = index.add(folder, captions={"a.png": "a dog"}, on_progress=lambda done: print(done.added))
    added: int = report.added
    for hit in index.search("a dog", k=added, where="year > 2000"):
        path, score = str(hit.path), float(hit.scores["fine"])
        assert path and score and hit.metadata.get("camera")
    several = index.search(["a dog", "a cat"])
    first: list[int] = several[0].ids
    assert index.search(image="a.png", group=0.9, recall=0.99)[0].path and index.search(like=first[0], exact=True)
    assert index.search(Mix.of_text("a dog") + Mix.of_image("beach.jpg") - 0.5 * Mix.of_text("snow")).hits
    assert index[3].caption and "a.png" in index and index.vectors([1, 2]).fine.shape == (2, 768)
    with Index.from_vectors(np.ones((3, 4)), ids=["a", "b", "c"], metadata={"n": [1, 2, 3]}) as small:
        assert small.search(vector=np.ones(4)).ids == small.search(vector={"fine": [1.0] * 4}).ids
        assert small.search_many(vectors=np.ones((2, 4)))[1].timings_ms["total"]
    try:
        index.remove([1, "a.png", folder])
    except HivlpError as error:
        assert str(error)


async def asynchronous(index: Index) -> str:
    """The best hit, without keeping an event loop waiting."""
    return (await index.asearch(vector=np.ones(4), k=1))[0].path
