"""Starting weights from a folder, a file, the hub or an earlier run, with what was and was not loaded.

``init: {image: PLACE, text: PLACE}`` fills a tower, ``init: {model: PLACE}`` both towers and the heads. What a place
may be, by the towers that it fills:

==================================  ================================================================
a model of hivlp, such as a run     any tower of the same kind; the whole model, heads by level
a folder or hub id, transformers'   ``transformers``, ``bert``; ``dual_encoder`` as ``init.model``
``.safetensors``, ``.bin``, ``.pt`` any tower, by the names of its parameters (``vit``: those of timm)
==================================  ================================================================

Nothing is unpickled.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from hivlp.encode import resolve_folder
from hivlp.errors import ModelError
from hivlp.files.reading import one_line, printable, read_json
from hivlp.formats.own import is_own
from hivlp.formats.preparation import write_tokenizer
from hivlp.formats.transformers import weight_files
from hivlp.model.hivlp_model import WEIGHTS, HiVLPModel
from hivlp.model.tower import Tower
from hivlp.systems.checkpoints import State, read_tensors

logger = logging.getLogger(__name__)
FETCHED = ("*.json", "*.safetensors", "pytorch_model*.bin", "*.txt", "*.model")
"""What is fetched of a hub id."""
_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_INSIDE = ("state_dict", "model", "model_dict")
# Parameters that a tower may have and its weights may lack: poolers that no level reads, and tokens that were added.
_MAY_LACK = re.compile(r"(^|\.)(pooler|head)\.|reg_token$")
_HEADS_TOO = re.compile(rf"{_MAY_LACK.pattern}|^(image|text)_heads\.")
_NOTHING = re.compile(r"(?!)")
_BUFFER = re.compile(r"(position_ids|token_type_ids|num_batches_tracked)$")
_POSITIONS = re.compile(r"(pos_embed|position_embeddings?(\.weight)?|positional_embedding)$")
_WORDS = re.compile(r"(word_embeddings|token_embedding|embed_tokens|tok_embeddings)\.weight$")


@dataclass(frozen=True)
class Loaded:
    """What became of starting weights.

    Attributes:
        part: ``image``, ``text`` or ``model``.
        source: the place that the recipe names.
        tensors: that were loaded.
        parameters: numbers in them.
        resized: positions that were resized or cut to the tower's size.
        missing: names of the part's own parameters that the place does not have; they stay random.
        unused: names of what the place has and the part does not.
    """

    part: str
    source: str
    tensors: int
    parameters: int
    resized: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"init.{self.part}: loaded {self.tensors} tensors ({self.parameters:,} parameters) of {self.source}"]
        for what, names in (("resized", self.resized), ("random", self.missing), ("not used", self.unused)):
            if names:
                rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
                parts.append(f"{what}: {', '.join(names[:3])}{rest}")
        return "; ".join(parts)


def is_place(name: str) -> bool:
    """Whether a name in ``init`` is a folder, a file or a hub id, rather than a word that a package registers."""
    return "/" in name or name.endswith(_FILES) or Path(name).exists()


def load_tower(tower: Tower, side: str, name: str) -> Loaded:
    """Fill a tower.

    Args:
        tower: with random weights.
        side: ``image`` or ``text``.
        name: of the place.

    Raises:
        ModelError: naming what the place lacks, or what does not fit.
    """
    held = _read(name)
    own = {key.removeprefix(f"{side}_tower."): value for key, value in held.items() if key.startswith(f"{side}_tower.")}
    return _fill(tower, own or held, side, name)


def load_whole(model: HiVLPModel, name: str) -> Loaded:
    """Fill both towers and, from a model of hivlp, the heads of levels with the same names.

    Raises:
        ModelError: as :func:`load_tower`.
    """
    held = _read(name)
    dual = getattr(model.image_tower, "dual", None)
    if dual is not None and not any(key.startswith("image_tower.") for key in held):
        found = _fill(dual.network, held, "model", name, _NOTHING)
        heads = tuple(sorted(key for key in model.state_dict() if "_heads." in key))
        return replace(found, missing=(*found.missing, *heads))
    if not any(key.startswith("image_tower.") for key in held):
        raise ModelError(f"init.model: {name} is no model of hivlp and not both towers; name init.image and init.text")
    wanted = model.state_dict(keep_vars=True)
    names: dict[int, str] = {}
    for key, tensor in wanted.items():  # a tensor with two names is kept under the first
        first = names.setdefault(id(tensor), key)
        if first != key and first in held:
            held[key] = held[first]
    return _fill(model, held, "model", name, _HEADS_TOO)


def load_part(part: nn.Module, label: str, name: str) -> Loaded:
    """Fill a network by the names of its parameters.

    Args:
        part: with random weights.
        label: what messages call it.
        name: of the place.

    Raises:
        ModelError: as :func:`load_tower`.
    """
    return _fill(part, _read(name), label, name)


def starting_tokenizer(name: str, out: Path) -> bool:
    """Write the tokenizer that lies beside starting weights; false if there is none.

    Raises:
        ModelError: if there is one that cannot be read.
    """
    folder = _folder(name)
    if folder is None:
        return False
    if (folder / "tokenizer.json").is_file():
        out.write_bytes((folder / "tokenizer.json").read_bytes())
        return True
    if (folder / "config.json").is_file() and any(folder.glob("*vocab*")):
        write_tokenizer(folder, name, out)
        return True
    return False


def _fill(
    part: nn.Module, held: Mapping[str, Tensor], label: str, name: str, may_lack: re.Pattern[str] = _MAY_LACK
) -> Loaded:
    """Load tensors by name, whatever prefix they have here and there."""
    wanted = {key: value for key, value in part.state_dict().items() if not _BUFFER.search(key)}
    given = {_modern(key): value for key, value in held.items() if not _BUFFER.search(key)}
    names = _matched(list(wanted), set(given))
    where = f"init.{label}: {name}"
    if len(names) < len(wanted) / 2:
        there = f"it has {min(given)} and {len(given) - 1} others" if given else "it holds no tensors"
        raise ModelError(f"{where} has the weights of another architecture: no {_first(wanted, names)}; {there}")
    missing = [key for key in wanted if key not in names]
    lacking = [key for key in missing if not may_lack.search(key)]
    if lacking:
        raise ModelError(f"{where} lacks {len(lacking)} of {len(wanted)} tensors, the first of them {lacking[0]}")
    state: State = {}
    resized = []
    for key, other in names.items():
        value, like = given[other], wanted[key]
        if value.shape != like.shape and _POSITIONS.search(key):
            value = _positions(value, like, where, other)
            resized.append(key)
        if value.shape != like.shape:
            what = ""
            if _WORDS.search(key):
                what = f": a vocabulary of {len(value):,} does not fit the text tower's {len(like):,} (vocab_size)"
            raise ModelError(f"{where}: {other} is {tuple(value.shape)}, not {tuple(like.shape)}{what}")
        state[key] = value.to(like.dtype)
    part.load_state_dict(state, strict=False)
    unused = tuple(sorted(set(given) - set(names.values())))
    count = sum(value.numel() for value in state.values())
    return Loaded(label, name, len(state), count, tuple(resized), tuple(missing), unused)


def _matched(wanted: Sequence[str], given: set[str]) -> dict[str, str]:
    """Names here -> names there, after the pair of prefixes that matches most."""
    own = {"", *(f"{key.partition('.')[0]}." for key in wanted[:1])}
    prefixes = {(mine, "") for mine in own}
    for mine in own:
        for key in sorted(wanted)[:: max(1, len(wanted) // 8)]:
            tail = key.removeprefix(mine)
            prefixes |= {(mine, other[: -len(tail)]) for other in given if other.endswith(f".{tail}")}
    best: dict[str, str] = {}
    for mine, theirs in sorted(prefixes, key=lambda pair: (len(pair[0]) + len(pair[1]), pair)):
        found = {key: theirs + key[len(mine) :] for key in wanted if key.startswith(mine)}
        found = {key: other for key, other in found.items() if other in given}
        best = found if len(found) > len(best) else best
    return best


def _first(wanted: Mapping[str, Tensor], names: Mapping[str, str]) -> str:
    return next((key for key in wanted if key not in names), next(iter(wanted)))


def _positions(value: Tensor, like: Tensor, where: str, name: str) -> Tensor:
    """Learned positions for another size: a picture's grid resized bicubically, a text's rows cut at the end."""
    rows, count = value.reshape(-1, value.shape[-1]), like.shape[-2]
    if value.shape[-1] != like.shape[-1]:
        return value
    if value.ndim == 2 and not _square(len(rows)):
        if len(rows) < count:
            raise ModelError(f"{where}: {name} has {len(rows)} positions, the text tower {count}")
        return rows[:count].reshape(like.shape)
    extra = 1 if _square(count - 1) else 0
    here = next((each for each in (extra, 0, 1) if _square(len(rows) - each)), None)
    if here is None:
        return value
    side, new = math.isqrt(len(rows) - here), math.isqrt(count - extra)
    grid = rows[here:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False, antialias=side > new)
    first = rows[:here].float() if here else torch.zeros(extra, rows.shape[1])
    return torch.cat([first[:extra], grid.permute(0, 2, 3, 1).reshape(new * new, -1)]).reshape(like.shape)


def _square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def _modern(name: str) -> str:
    """A name as newer libraries have it: ``gamma`` and ``beta`` of BERT's LayerNorm, not those of layer scale."""
    return re.sub(r"(LayerNorm)\.(gamma|beta)$", lambda m: f"{m[1]}.{'weight' if m[2] == 'gamma' else 'bias'}", name)


def _folder(name: str) -> Path | None:
    """The folder of a place; None if it is a file."""
    if Path(name).is_file():
        return None
    if name.endswith(_FILES) or (name.startswith(("/", ".", "~")) and not Path(name).is_dir()):
        raise ModelError(f"{printable(name)} does not exist")
    return resolve_folder(name, FETCHED)


def _read(name: str) -> State:
    """The tensors of a place."""
    folder = _folder(name)
    if folder is None:
        return read_tensors(Path(name), *_INSIDE)
    if is_own(folder):
        if not (folder / WEIGHTS).is_file():
            raise ModelError(f"{name} has graphs but no {WEIGHTS}: it cannot be trained further")
        return read_tensors(folder / WEIGHTS)
    if (folder / "config.json").is_file() and "model_type" in read_json(folder / "config.json", ModelError):
        return _of_transformers(folder, name)
    files = [folder / each for each in weight_files([path.name for path in folder.iterdir()]) if "index" not in each]
    if not files:
        raise ModelError(f"{name} holds no weights: neither model.safetensors nor pytorch_model.bin")
    return {key: value for path in files for key, value in read_tensors(path, *_INSIDE).items()}


def _of_transformers(folder: Path, name: str) -> State:
    """The tensors of a ``transformers`` checkpoint under the names that the installed library has for them."""
    from transformers import AutoModel

    safe = not any(each.endswith(".bin") for each in weight_files([path.name for path in folder.iterdir()]))
    try:
        network, found = AutoModel.from_pretrained(
            folder, use_safetensors=safe, weights_only=True, trust_remote_code=False, dtype=torch.float32,
            output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # of files, of safetensors, of torch
        raise ModelError(f"{name} cannot be loaded: {one_line(error, 300)}") from error
    lacking = set(found["missing_keys"])  # which are random there
    return {key: value for key, value in network.state_dict().items() if key not in lacking}
