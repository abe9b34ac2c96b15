"""``hivlp adapt``: a coarse level for a trained model, whose own embedding stays as it is.

The towers run once over pictures and texts, which need not belong together; their vectors are kept, and the coarse
level's heads are fitted to them (:mod:`hivlp.train.distillation.level`). The finest level is the original embedding, to
the bit.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hivlp.config import HiVLPConfig
from hivlp.data.contents import folder_digest
from hivlp.data.load import load_pairs
from hivlp.data.pairs import Pair, Pairs
from hivlp.data.walk import Found, find_pictures
from hivlp.encode import HiVLP, resolve_folder
from hivlp.errors import DataError, HivlpError, ModelError
from hivlp.evaluate.evaluation import evaluate
from hivlp.evaluate.results import Evaluation
from hivlp.export.card import model_card
from hivlp.export.graphs import export
from hivlp.files.reading import read_json, read_lines
from hivlp.formats.dual_encoder import import_dual_encoder
from hivlp.formats.transformers import FILES, is_transformers_folder
from hivlp.levels import DEFAULT_SHORTLIST, Level
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.train.distillation.level import Side, distill_level
from hivlp.train.inputs.vectors import layer_features, picture_vectors, text_vectors
from hivlp.train.recipe.schema import SelfDistillation
from hivlp.typed import Checked, Code, Count, Number

logger = logging.getLogger(__name__)
PERPLEXITY = 10.0
SAMPLE = 1024


@dataclass(frozen=True)
class AdaptConfig(Checked):
    """What coarse level to make.

    Attributes:
        dims: of its vectors.
        code: how they will be stored: ``float``, ``int8`` or ``binary``.
        text_layer: of the text tower that it reads; None for the last, whose projection costs next to nothing.
        steps: of learning; 0 leaves the closed form.
        split: part of the data to learn from, ``train`` or ``val``; None for ``train``.
        limit: pictures, and texts, that are looked at.
        shortlist: for the recalls that are measured at the end.
        seed: of every random choice.
    """

    dims: Count = 64
    code: Code = "int8"
    text_layer: Count | None = None
    steps: Number = 1500
    split: Literal["train", "val", "test"] | None = None
    limit: Count | None = None
    shortlist: Count = DEFAULT_SHORTLIST
    seed: Number = 0


@dataclass(frozen=True)
class Items:
    """What there is to learn from: pictures, texts or both; and pairs to measure on, by what results call them."""

    pictures: Sequence[Pair]
    texts: Sequence[str]
    held_out: Mapping[str, Sequence[Pair]]


@dataclass(frozen=True)
class AdaptResult:
    """A model folder with a new coarse level.

    Attributes:
        model: the folder.
        levels: name -> dims.
        pictures: how many it learned from.
        texts: how many it learned from.
        seconds: of the whole job.
        recalls: ``validation`` and ``test``, or ``train`` where there is neither -> what
            :func:`hivlp.evaluate.evaluation.evaluate` found.
    """

    model: Path
    levels: Mapping[str, int]
    pictures: int
    texts: int
    seconds: float
    recalls: Mapping[str, Evaluation]

    def to_json(self) -> dict[str, Any]:
        """What ``metrics.json`` holds and ``hivlp adapt --json`` prints."""
        counts = {"pictures": self.pictures, "texts": self.texts, "seconds": self.seconds}
        recalls = {name: found.to_json() for name, found in self.recalls.items()}
        return {"model": str(self.model), "levels": dict(self.levels), **counts, **recalls}


def adapt(source: str, data: str, out: Path, config: AdaptConfig) -> AdaptResult:
    """Give a model a coarse level, and write it as a model folder with graphs, metrics and card.

    Run again, it reads back the vectors of the first time, as far as the model's files and the contents of the pictures
    and texts are what they were.

    Args:
        source: a ``transformers`` dual encoder or a hivlp model with weights, as a folder or a hub id.
        data: pairs as :func:`hivlp.data.load.load_pairs` reads them, a folder of pictures, or a ``.txt`` file with a
            text in each line.
        out: the model folder to write; ``out/run`` keeps the vectors.
        config: which level.

    Raises:
        HivlpError: if the model or data cannot be read, or do not allow what is asked.
    """
    started = time.perf_counter()
    items = read_items(data, config)
    original = prepare_original(source, out)
    base = HiVLPModel.from_pretrained(original)
    model = with_coarse_level(base, config)
    early = model.config.levels[0].text_layer < model.config.levels[-1].text_layer
    if early and not items.texts:
        raise HivlpError(f"{data} holds pictures alone; to read text layer {config.text_layer}, texts are needed")

    # The towers, once.
    encoder = HiVLP.from_pretrained(original)
    run = out / "run"
    pictures = picture_vectors(encoder, items.pictures, run) if items.pictures else None
    texts = text_vectors(encoder, items.texts, run) if items.texts else None
    early_features = layer_features(model, encoder, items.texts, run) if early else None

    # The heads.
    distill_coarse(model, pictures, texts, early_features, config)
    model.save_pretrained(out, original / "tokenizer.json")
    export(out)

    # What was written, measured.
    adapted = HiVLP.from_pretrained(out)
    result = AdaptResult(
        model=out,
        levels={level.name: level.dim for level in model.config.levels},
        pictures=0 if pictures is None else len(pictures),
        texts=0 if texts is None else len(texts),
        recalls={name: evaluate(pairs, adapted, shortlist=config.shortlist) for name, pairs in items.held_out.items()},
        seconds=round(time.perf_counter() - started, 1),
    )
    (out / "metrics.json").write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
    notes = {
        "Origin": f"{base.config.name}, whose own embedding is the level {model.config.levels[-1].name}, unchanged. "
        f"The coarse level was fitted to it by {result.pictures} pictures and {result.texts} texts, to be stored "
        f"as {config.code}.",
        "Licence": "That of the original.",
    }
    (out / "README.md").write_text(model_card(model.config, result.to_json(), notes), encoding="utf-8")
    return result


def read_items(data: str, config: AdaptConfig) -> Items:
    """Pictures and texts to learn from, and the pairs to measure on.

    Raises:
        DataError: if there is nothing to learn from.
    """
    path = Path(data)
    if path.suffix == ".txt" and path.is_file():
        lines = (" ".join(line.split()) for line in read_lines(path))
        texts = list(dict.fromkeys(line for line in lines if line))[: config.limit]
        if not texts:
            raise DataError(f"{path} holds no text")
        return Items([], texts, {})
    try:
        pairs = load_pairs(data)
    except DataError:
        found = [item.path for item in find_pictures([path]) if isinstance(item, Found)] if path.is_dir() else []
        if not found:
            raise
        alone = [Pair(str(picture.relative_to(path)), picture, ("",)) for picture in found]
        return Items(alone[: config.limit], [], {})
    split = config.split or "train"
    if split == "test":
        raise DataError("the test part is not to learn from: choose another --split")
    learn = pairs.of(split)[: config.limit]
    if not learn:
        raise DataError(f"{data} holds no pairs of the split {split!r} to learn from; it has {pairs.splits()}")
    texts = list(dict.fromkeys(caption for pair in learn for caption in pair.captions))
    parts: dict[str, Pairs] = {
        name: pairs.of(part) for name, part in (("validation", "val"), ("test", "test")) if part != split
    }
    held_out = {name: part for name, part in parts.items() if part}
    return Items(learn, texts[: config.limit], held_out or {"train": learn})


def prepare_original(source: str, out: Path) -> Path:
    """The model without its coarser levels, as a hivlp model folder with graphs, inside ``out``.

    Raises:
        ModelError: if it cannot be read.
        HivlpError: if ``out`` holds something else.
    """
    folder, marker = out / "run" / "original", out / "run" / "source.json"
    known = resolve_folder(source, FILES)
    name = str(Path(source).resolve()) if Path(source).exists() else source
    about = {"source": name, "contents": folder_digest(known)}
    try:
        before = read_json(marker) if marker.exists() else None
    except DataError as error:
        raise HivlpError(f"{marker} cannot be read: choose another folder with -o") from error
    if before is not None:
        if before.get("source") != name:
            raise HivlpError(f"{out} holds another model's adaptation: choose another folder with -o")
        if before == about | {"original": folder_digest(folder)}:
            return folder
        logger.warning("%s changed since it was adapted to %s: done anew", source, out)
    elif (out / "config.json").exists():
        raise HivlpError(f"{out} holds a model that is not an adaptation: choose another folder with -o")
    shutil.rmtree(folder, ignore_errors=True)
    marker.unlink(missing_ok=True)
    if is_transformers_folder(known):
        import_dual_encoder(known, folder, "" if Path(source).is_dir() else source)
    else:
        whole = HiVLPModel.from_pretrained(known)
        one = HiVLPModel(replace(whole.config, levels=whole.config.levels[-1:]))
        one.load_state_dict(_shared_state(whole, one))
        one.save_pretrained(folder, known / "tokenizer.json")
    export(folder)
    marker.write_text(json.dumps(about | {"original": folder_digest(folder)}), encoding="utf-8")
    return folder


def with_coarse_level(base: HiVLPModel, config: AdaptConfig) -> HiVLPModel:
    """A copy of the model with a new coarse level before its finest one, and no other.

    Raises:
        ModelError: if the level does not fit the model.
    """
    finest = base.config.levels[-1]
    layer = config.text_layer or finest.text_layer
    if config.dims >= finest.dim:
        raise ModelError(f"{config.dims} dims are no coarser than the {finest.dim} of the level {finest.name}")
    if not 1 <= layer <= finest.text_layer:
        raise ModelError(f"text layer {layer} does not exist: the text tower has layers 1 to {finest.text_layer}")
    coarse = Level("coarse" if finest.name != "coarse" else "coarser", config.dims, finest.image_layer, layer)
    text_head = "projection" if layer == finest.text_layer else "mlp"
    changed: HiVLPConfig = replace(
        base.config,
        levels=(coarse, finest),
        image_tower=replace(
            base.config.image_tower, heads={**base.config.image_tower.heads, coarse.name: "projection"}
        ),
        text_tower=replace(base.config.text_tower, heads={**base.config.text_tower.heads, coarse.name: text_head}),
    )
    model = HiVLPModel(changed)
    model.load_state_dict({**model.state_dict(), **_shared_state(base, model)})
    return model.eval()


def _shared_state(old: nn.Module, new: nn.Module) -> dict[str, Tensor]:
    names = set(new.state_dict())
    return {name: tensor for name, tensor in old.state_dict().items() if name in names}


def distill_coarse(
    model: HiVLPModel,
    pictures: Tensor | None,
    texts: Tensor | None,
    early_features: Tensor | None,
    config: AdaptConfig,
) -> None:
    """Fit the heads of the first level to vectors of the finest.

    Args:
        model: from :func:`with_coarse_level`.
        pictures: (N, D) vectors; None to let the texts stand for them.
        texts: (M, D) vectors; None to let the pictures stand for them.
        early_features: (M, W) what the text head reads, if not the finest vectors.
        config: code and steps.
    """
    name = model.config.levels[0].name
    image_head, text_head = model.image_heads[name], model.text_heads[name]
    both = pictures is not None and texts is not None
    pictures = texts if pictures is None else pictures
    texts = pictures if texts is None else texts
    assert pictures is not None and texts is not None
    settings = SelfDistillation(
        steps=config.steps,
        batch_size=min(512, len(pictures), len(texts)),
        lr=3e-3 if early_features is None else 1e-3,
        temperature=temperature_for(texts, pictures, config.seed),
        shortlist=1.0,
        learn_projections=both or early_features is None,
        neighbours=False,
        code=config.code,
    )
    picture_side = Side(pictures, pictures, torch.ones(len(pictures)))
    text_side = Side(texts if early_features is None else early_features, texts, torch.ones(len(texts)))
    if both or early_features is not None:
        distill_level(image_head, text_head, picture_side, text_side, settings, config.seed)
        return
    # One kind alone cannot tell how the other should be mapped: both get the same map.
    distill_level(image_head, image_head, picture_side, text_side, settings, config.seed)
    text_head.load_state_dict(image_head.state_dict())


def temperature_for(texts: Tensor, pictures: Tensor, seed: int, perplexity: float = PERPLEXITY) -> float:
    """The temperature at which the finest level hesitates between about ten pictures.

    Cosines of one model lie between 0.1 and 0.35, another's between -0.2 and 0.9; what a ranking means must not depend
    on that.

    Args:
        texts: (M, D) unit vectors.
        pictures: (N, D) unit vectors.
        seed: of the sample that is looked at.
        perplexity: of the softmax over pictures, the mean (in bits) over texts.
    """
    rng = np.random.default_rng(seed)
    asked, seen = (side[torch.from_numpy(rng.permutation(len(side))[:SAMPLE])].double() for side in (texts, pictures))
    scores = asked @ seen.T
    wanted = np.log(min(perplexity, max(1.5, len(seen) / 2)))
    low, high = 1e-4, 10.0
    for _ in range(50):
        middle = (low * high) ** 0.5
        logs = (scores / middle).log_softmax(1)
        entropy = float(-(logs.exp() * logs).sum(1).mean())
        low, high = (middle, high) if entropy < wanted else (low, middle)
    return float((low * high) ** 0.5)
