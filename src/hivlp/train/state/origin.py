"""The recipe, data and first weights of a run: it is resumed only with equal ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivlp.train.inputs.batch import Reads

SHOWN = 5  # changed keys that a message names


@dataclass(frozen=True)
class Origin:
    """A run's recipe and all that it read.

    Attributes:
        settings: of the recipe (:meth:`hivlp.train.recipe.Recipe.settings`).
        weights: digest of the model before its first step.
        tokenizer: digest of the tokenizer's file.
        data: ``training``, and ``validation`` where it is watched: the pictures and captions, or shards.
    """

    settings: dict[str, Any]
    weights: str
    tokenizer: str
    data: Mapping[str, Reads]

    def about(self) -> dict[str, Any]:
        """In brief, for a checkpoint."""
        data = {name: contents.digest for name, contents in self.data.items()}
        return {"settings": self.settings, "weights": self.weights, "tokenizer": self.tokenizer, "data": data}

    def save(self, run: Path) -> None:
        """Keep what was read in the run's folder, so that changes can be named later."""
        for name, contents in self.data.items():
            contents.save(_path(run, name))

    def changes(self, before: Mapping[str, Any], run: Path) -> str:
        """What is different from :meth:`about` of a run that was begun; empty if nothing is.

        Args:
            before: of the checkpoint.
            run: the folder where :meth:`save` kept what was read.
        """
        found = []
        changed = list(_different("", before.get("settings"), self.settings))
        if changed:
            rest = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            found.append(f"the recipe changed ({', '.join(changed[:SHOWN])}{rest})")
        data = before.get("data") or {}
        for name, contents in self.data.items():
            if contents.digest != data.get(name):
                then = type(contents).load(_path(run, name))
                known = then is not None and then.digest == data.get(name)
                what = contents.changes(then) if known and then is not None else "other pictures, captions or shards"
                found.append(f"the {name} data changed ({what} since the checkpoint)")
        if before.get("tokenizer") != self.tokenizer:
            found.append("the tokenizer changed")
        elif before.get("weights") != self.weights:
            found.append("the weights that training starts from changed")
        return "; ".join(found)


def _different(where: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _different(f"{where}.{key}" if where else key, before.get(key), now.get(key))
    elif before != now:
        yield where or "all of it"


def _path(run: Path, name: str) -> Path:
    return run / f"{name}-contents.json"
