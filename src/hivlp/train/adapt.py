"""A coarse level for a model that is already trained, which itself stays as it is.

The towers run once over pictures and texts, which need not belong together; what comes out is kept, and the coarse
level's heads are fitted to it (:mod:`hivlp.train.fit`). The finest level is the original embedding, to the bit.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from tqdm import tqdm

from hivlp.config import HiVLPConfig
from hivlp.data.contents import PREPARED_BY, Contents, content_hash, folder_digest
from hivlp.data.pairs import SPLITS, Pair, load_pairs
from hivlp.data.pictures import load_pixels
from hivlp.data.walk import Found, find_pictures
from hivlp.encode import HiVLP, resolve_folder
from hivlp.encode.onnx import OnnxEncoder
from hivlp.encode.stream import Pixels, chunks, encode_stream
from hivlp.errors import DataError, HivlpError, ModelError
from hivlp.evaluate.recall import evaluate
from hivlp.export.card import model_card
from hivlp.export.graphs import export
from hivlp.levels import DEFAULT_SHORTLIST, Level
from hivlp.model.hivlp_model import HiVLPModel
from hivlp.model.pretrained import import_dual_encoder, is_transformers_folder
from hivlp.train.fit import Side, fit_level
from hivlp.train.kept import key_of, read_kept, write_kept
from hivlp.train.recipe import SelfDistillation
from hivlp.train.typed import Checked, Code, Count, Number

logger = logging.getLogger(__name__)
PART = 512  # pictures or texts whose vectors are kept in one file
PERPLEXITY = 10.0
SAMPLE = 1024
FEW = 300  # items below which drawing close ones brings nothing


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
    """What there is to learn from; pictures, texts or both."""

    pictures: Sequence[Pair]
    texts: Sequence[str]
    held_out: dict[str, list[Pair]]


def adapt(source: str, data: str, out: Path, config: AdaptConfig) -> dict[str, Any]:
    """Give a model a coarse level, and write it as a model folder with graphs, metrics and card.

    Run again, it uses what the towers said the first time, of what is still the same: the model's files, and the
    pictures and texts, by their contents.

    Args:
        source: a ``transformers`` dual encoder or a hivlp model with weights, as a folder or a hub id.
        data: pairs as :func:`hivlp.data.pairs.load_pairs` reads them, a folder of pictures, or a ``.txt`` file with a
            text in each line.
        out: the model folder to write; ``out/run`` keeps the towers' answers.
        config: which level.

    Returns:
        ``model``, ``levels`` (name -> dims), ``pictures``, ``texts``, ``seconds``, and recalls of each held-out part.

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
    vectors: dict[str, Tensor] = {}
    if items.pictures:
        vectors["pictures"] = picture_vectors(encoder, items.pictures, run)
    if items.texts:
        vectors["texts"] = text_vectors(encoder, items.texts, run)
    early_features = layer_features(model, encoder, items.texts, run) if early else None

    # The heads.
    fit_coarse(model, vectors, early_features, config)
    model.save_pretrained(out, original / "tokenizer.json")
    export(out)

    metrics: dict[str, Any] = {}
    adapted = HiVLP.from_pretrained(out)
    for name, pairs in items.held_out.items():
        metrics[name] = evaluate(pairs, adapted, shortlist=config.shortlist).to_json()
    result = {
        "model": str(out),
        "levels": {level.name: level.dim for level in model.config.levels},
        "pictures": len(vectors.get("pictures", ())),
        "texts": len(vectors.get("texts", ())),
        "seconds": round(time.perf_counter() - started, 1),
        **metrics,
    }
    (out / "metrics.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    notes = {
        "Origin": f"{base.config.name}, whose own embedding is the level {model.config.levels[-1].name}, unchanged. "
        f"The coarse level was fitted to it by {result['pictures']} pictures and {result['texts']} texts, to be stored "
        f"as {config.code}.",
        "Licence": "That of the original.",
    }
    (out / "README.md").write_text(model_card(model.config, metrics, notes), encoding="utf-8")
    return result


def read_items(data: str, config: AdaptConfig) -> Items:
    """Pictures and texts to learn from, and the pairs to measure on.

    Raises:
        DataError: if there is nothing to learn from.
    """
    path = Path(data)
    if path.suffix == ".txt" and path.is_file():
        try:
            lines = [" ".join(line.split()) for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error
        texts = list(dict.fromkeys(line for line in lines if line))[: config.limit]
        if not texts:
            raise DataError(f"{path} holds no text")
        return Items([], texts, {})
    try:
        pairs = load_pairs(data)
    except DataError:
        if not path.is_dir():
            raise
        found = [item.path for item in find_pictures([path]) if isinstance(item, Found)]
        if not found:
            raise
        alone = [Pair(str(picture.relative_to(path)), picture, ("",)) for picture in found]
        return Items(alone[: config.limit], [], {})
    split = config.split or "train"
    if split == "test":
        raise DataError("the test part is not to learn from: choose another --split")
    learn = [pair for pair in pairs if pair.split == split][: config.limit]
    if not learn:
        present = ", ".join(name for name in SPLITS if any(pair.split == name for pair in pairs))
        raise DataError(f"{data} holds no pairs of the split {split!r} to learn from; it has {present}")
    texts = list(dict.fromkeys(caption for pair in learn for caption in pair.captions))
    named = {"validation": "val", "test": "test"}
    held_out = {name: [pair for pair in pairs if pair.split == part] for name, part in named.items() if part != split}
    held_out = {name: part for name, part in held_out.items() if part}
    return Items(learn, texts[: config.limit], held_out or {"train": learn})


def prepare_original(source: str, out: Path) -> Path:
    """The model without its coarser levels, as a hivlp model folder with graphs, inside ``out``.

    Raises:
        ModelError: if it cannot be read.
        HivlpError: if ``out`` holds something else.
    """
    folder, marker = out / "run" / "original", out / "run" / "source.json"
    known = resolve_folder(source)
    name = str(Path(source).resolve()) if Path(source).exists() else source
    about = {"source": name, "contents": folder_digest(known)}
    before = _read_marker(marker)
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
        import_dual_encoder(source, folder)
    else:
        whole = HiVLPModel.from_pretrained(known)
        one = HiVLPModel(replace(whole.config, levels=whole.config.levels[-1:]))
        one.load_state_dict(_shared_state(whole, one))
        one.save_pretrained(folder, known / "tokenizer.json")
    export(folder)
    marker.write_text(json.dumps(about | {"original": folder_digest(folder)}), encoding="utf-8")
    return folder


def _read_marker(marker: Path) -> dict[str, Any] | None:
    """What an adaptation was made of; None if there is none yet."""
    try:
        about = json.loads(marker.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise HivlpError(f"{marker} cannot be read: choose another folder with -o") from error
    return about if isinstance(about, dict) else {}


def with_coarse_level(base: HiVLPModel, config: AdaptConfig) -> HiVLPModel:
    """The same towers and finest level, and a new level before it.

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


def picture_vectors(encoder: OnnxEncoder, pictures: Sequence[Pair], run: Path) -> Tensor:
    """(N, D) finest vectors of the pictures that can be read, kept part by part in ``run``.

    Raises:
        DataError: if none can be read.
    """
    parts = _Parts(run, "pictures", encoder)
    vectors = []
    with tqdm(total=len(pictures), desc="pictures", unit="", disable=None) as bar:
        for number, chunk in enumerate(chunks(pictures, PART)):
            known = None
            if parts.has(number):
                known = parts.read(number, Contents.read(chunk).digest)
            if known is None:
                known, contents = _encode_pictures(encoder, chunk)
                parts.write(number, contents.digest, known)
            bar.update(len(chunk))
            vectors.append(known)
    together = torch.cat(vectors)
    if not len(together):
        raise DataError("no picture could be read")
    return together


def _encode_pictures(encoder: OnnxEncoder, pictures: Sequence[Pair]) -> tuple[Tensor, Contents]:
    """(n, D) finest vectors of the pictures that can be read, and what was read."""
    hashes = [""] * len(pictures)

    def load(place: int) -> Pixels:
        data = pictures[place].read()
        hashes[place] = content_hash(data)
        return load_pixels(data, encoder.picture)

    found = []
    for batch in encode_stream(encoder, range(len(pictures)), load):
        for place, reason in batch.failures:
            logger.warning("skipped %s: %s", pictures[place].id, reason)
        found.append(batch.embeddings.fine)
    return torch.from_numpy(np.concatenate(found)), Contents.of(pictures, hashes)


def text_vectors(encoder: OnnxEncoder, texts: Sequence[str], run: Path) -> Tensor:
    """(M, D) finest vectors of the texts, kept part by part in ``run``."""
    parts = _Parts(run, "texts", encoder)
    vectors = []
    with tqdm(total=len(texts), desc="texts", unit="", disable=None) as bar:
        for number, chunk in enumerate(chunks(texts, PART)):
            contents = key_of(texts=chunk)
            known = parts.read(number, contents)
            if known is None:
                known = parts.write(number, contents, torch.from_numpy(encoder.encode_text(chunk).fine))
            vectors.append(known)
            bar.update(len(chunk))
    return torch.cat(vectors)


@torch.no_grad()
def layer_features(model: HiVLPModel, encoder: OnnxEncoder, texts: Sequence[str], run: Path) -> Tensor:
    """(M, W) features of the text layer that the coarse level reads, kept part by part in ``run``.

    Texts are cut, padded and lower-cased as the encoder does it.
    """
    layer = model.config.levels[0].text_layer
    parts = _Parts(run, f"layer{layer}", encoder)
    features = []
    with tqdm(total=len(texts), desc=f"text layer {layer}", unit="", disable=None) as bar:
        for number, chunk in enumerate(chunks(texts, PART)):
            contents = key_of(texts=chunk)
            known = parts.read(number, contents)
            if known is None:
                found = []
                for batch in chunks(chunk, 64):
                    ids, mask = (torch.from_numpy(array) for array in encoder.tokenize(batch))
                    found.append(model.text_tower(ids, mask, (layer,))[layer])
                known = parts.write(number, contents, torch.cat(found))
            features.append(known)
            bar.update(len(chunk))
    return torch.cat(features)


class _Parts:
    """Tensors in files of their own: an interrupted run goes on where it was, as far as nothing has changed."""

    def __init__(self, run: Path, kind: str, encoder: OnnxEncoder) -> None:
        self._folder = run / kind
        self._folder.mkdir(parents=True, exist_ok=True)
        self._of = {"kind": kind, "model": folder_digest(encoder.folder), "by": [PREPARED_BY, onnxruntime.__version__]}

    def has(self, number: int) -> bool:
        return self._path(number).is_file()

    def read(self, number: int, contents: str) -> Tensor | None:
        known = read_kept(self._path(number), key_of(contents=contents, **self._of))
        return None if known is None else known["rows"]

    def write(self, number: int, contents: str, rows: Tensor) -> Tensor:
        write_kept(self._path(number), key_of(contents=contents, **self._of), {"rows": rows})
        return rows

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06}.safetensors"


def fit_coarse(
    model: HiVLPModel, vectors: dict[str, Tensor], early_features: Tensor | None, config: AdaptConfig
) -> None:
    """Fit the heads of the first level.

    Args:
        model: from :func:`with_coarse_level`.
        vectors: ``pictures`` (N, D), ``texts`` (M, D), or one of them, which then stands for the other.
        early_features: (M, W) what the text head reads, if not the finest vectors.
        config: code and steps.
    """
    name = model.config.levels[0].name
    image_head, text_head = model.image_heads[name], model.text_heads[name]
    pictures = vectors.get("pictures", vectors.get("texts", torch.empty(0)))
    texts = vectors.get("texts", pictures)
    both = "pictures" in vectors and "texts" in vectors
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
        fit_level(image_head, text_head, picture_side, text_side, settings, config.seed)
        return
    # One kind alone cannot tell how the other should be mapped: both get the same map.
    fit_level(image_head, image_head, picture_side, text_side, settings, config.seed)
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
