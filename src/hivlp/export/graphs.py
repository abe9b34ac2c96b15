"""ONNX export: ``image.onnx`` and ``text.onnx``, one output a level."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from hivlp.config import (
    IMAGE_GRAPH,
    IMAGE_WEIGHTS,
    TEXT_GRAPH,
    TEXT_WEIGHTS,
    TOKENIZER,
    PictureConfig,
    TextConfig,
    image_graph,
    text_graph,
)
from hivlp.data.texts import TextTokenizer
from hivlp.errors import ModelError
from hivlp.export.attention import make_plain
from hivlp.export.precision import Agreement, Samples, reduce, reduce_text
from hivlp.export.quantize import compress_tables, quantize_image
from hivlp.export.weights_first import put_weights_first
from hivlp.files.scratch import scratch_folder
from hivlp.levels import ONLY_LEVEL as LEVEL
from hivlp.levels import Level
from hivlp.model.hivlp_model import HiVLPModel

OPSET = 17


class _Graph(nn.Module):
    """A function of a model as a module of its own, which is what torch exports."""

    def __init__(self, model: nn.Module, function: Callable[..., Mapping[Any, Tensor]]) -> None:
        super().__init__()
        self.model = model  # so that its weights are the graph's
        self._function = function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._function(*inputs).values())


def export(
    folder: Path,
    *,
    calibration: NDArray[np.uint8] | None = None,
    quantize_text: bool = False,
    texts: Sequence[str] = (),
) -> float | None:
    """Write a model folder's graphs, beside its weights.

    ``text.onnx`` computes every level. Beside it, ``text.LEVEL.onnx`` stops at a coarser level, for each level but
    the last; all of them share the weights in ``text.bin``, so an early stop costs a few kilobytes. Beside
    ``image.onnx``, ``image.LEVEL.onnx`` stops at a level that reads an earlier layer than the finest.

    Args:
        folder: a model folder with ``config.json`` and ``model.safetensors``.
        calibration: (N, size, size, 3) uint8 pictures, whose ranges set the int8 scales of the image graph; without
            them it stays float32.
        quantize_text: int8 weights for the text graph, computed with as float.
        texts: with these, the text graph multiplies in int8 (:func:`hivlp.export.precision.reduce_text`), checked on
            them.

    Returns:
        The lowest mean cosine of a level of the int8 text graph with float32; None without ``texts``.

    Raises:
        ModelError: if the folder has no weights, or int8 is too far from float32.
    """
    model = HiVLPModel.from_pretrained(folder)
    names = [level.name for level in model.config.levels]
    pixels = _pixels(model)
    steps, cosine = 2 + (calibration is not None) + quantize_text + bool(texts), None
    with (
        scratch_folder(folder / "graphs") as scratch,
        tqdm(total=steps, desc="export", unit="graph", leave=False, disable=None) as progress,
        _quiet(),
    ):
        image, text = scratch / IMAGE_GRAPH, scratch / TEXT_GRAPH
        _write_graph(_Graph(model, model.encode_image), {"pixels": pixels}, names, image)
        progress.update()
        tokens = torch.ones(2, model.config.text.max_tokens if model.config.text.pad_to_max else 8, dtype=torch.int64)
        traced = {"input_ids": tokens, "attention_mask": tokens}
        if not texts:
            put_weights_first(model.text_tower)
        _write_graph(_Graph(model, model.encode_text), traced, names, text)
        progress.update()
        if calibration is not None:
            image = quantize_image(image, calibration, model.config.picture)
            progress.update()
        if quantize_text:
            text = compress_tables(text)
            progress.update()
        if texts:
            text, cosine = reduce_text(text, *TextTokenizer(folder / TOKENIZER, model.config.text)(list(texts)))
            progress.update()
        image.replace(folder / IMAGE_GRAPH)
        _write_early_image_graphs(folder, model.config.levels)
        _write_text_graphs(text, folder, names)
    return cosine


def export_towers(
    image: Callable[..., Tensor],
    text: Callable[[Tensor, Tensor], Tensor],
    modules: Sequence[nn.Module],
    picture: PictureConfig,
    words: TextConfig,
    folder: Path,
    precision: str = "float32",
    samples: Samples | None = None,
) -> tuple[int, Agreement | None]:
    """Write the graphs of another library's dual encoder, of one level.

    Args:
        image: (B, 3, S, S) float, normalised -> (B, dim); where pictures come in patches, (B, N, values) float, the
            (B, N) mask of those that are there, and (B, 2) rows and columns.
        text: (B, T) int64 ids and mask -> (B, dim).
        modules: that hold their weights.
        picture: how pictures are normalised, which the graph does.
        words: whether texts have one length.
        folder: where to write ``image.onnx``, ``text.onnx`` and ``text.bin``.
        precision: ``float32``, or ``float16`` or ``int8``, which are checked on ``samples``.
        samples: pictures and texts as the graphs take them.

    Returns:
        dim, and how the graphs agree with those in float32.

    Raises:
        ModelError: if graphs of this precision are too far from those in float32, or the towers do not fit together.
    """
    mean, std = torch.tensor(picture.mean), torch.tensor(picture.std)

    def encode_image(pixels: Tensor) -> Mapping[str, Tensor]:
        normalised = (pixels.float() - mean) / std
        if picture.fit != "patches":
            return {LEVEL: nn.functional.normalize(image(normalised.permute(0, 3, 1, 2)), dim=-1)}
        low, high = pixels[:, 0].flatten(1)[:, :4].to(torch.int64).unflatten(1, (2, 2)).unbind(2)  # type: ignore[no-untyped-call]
        grid = low + 256 * high
        mask = torch.arange(picture.patches)[None] < grid.prod(1, keepdim=True)
        vectors = image(normalised[:, 1:].flatten(2), mask.to(torch.int64), grid)
        return {LEVEL: nn.functional.normalize(vectors, dim=-1)}

    def encode_text(ids: Tensor, mask: Tensor) -> Mapping[str, Tensor]:
        return {LEVEL: nn.functional.normalize(text(ids, mask), dim=-1)}

    pixels = torch.zeros(2, *picture.shape, dtype=torch.uint8)
    if picture.fit == "patches":
        pixels[:, 0].view(2, -1)[:, [0, 2]] = 1
    tokens = torch.ones(2, words.max_tokens if words.pad_to_max else min(8, words.max_tokens), dtype=torch.int64)
    mask = tokens.clone()
    mask[1, -1] = 0  # one that masks nothing might be left out of the graph
    holder = nn.ModuleList(modules).eval()
    make_plain(holder)
    with scratch_folder(folder / "graphs") as scratch, _quiet(), torch.no_grad():
        dim, words_dim = (int(each[LEVEL].shape[1]) for each in (encode_image(pixels), encode_text(tokens, mask)))
        if dim != words_dim:
            raise ModelError(f"its pictures have vectors of {dim} dims, its texts of {words_dim}")
        images, texts = scratch / IMAGE_GRAPH, scratch / TEXT_GRAPH
        _write_graph(_Graph(holder, encode_image), {"pixels": pixels}, [LEVEL], images)
        _write_graph(_Graph(holder, encode_text), {"input_ids": tokens, "attention_mask": mask}, [LEVEL], texts)
        agreement = None
        if precision != "float32":
            assert samples is not None
            images, texts, agreement = reduce(images, texts, precision, samples)
        _write_with_weights(images, folder / IMAGE_GRAPH, IMAGE_WEIGHTS)
        _write_text_graphs(texts, folder, [LEVEL])
    return dim, agreement


def export_image_features(model: HiVLPModel, path: Path) -> None:
    """Write the image tower alone as a graph, one output (``layer7``, …) a layer that a level reads.

    On a CPU, ONNX Runtime runs a frozen tower several times as fast as torch does.
    """
    names = [f"layer{layer}" for layer in model.image_layers]
    with _quiet():
        _write_graph(_Graph(model, model.image_features), {"pixels": _pixels(model)}, names, path)


def _pixels(model: HiVLPModel) -> Tensor:
    return torch.zeros(2, model.config.picture.size, model.config.picture.size, 3, dtype=torch.uint8)


def _write_graph(graph: nn.Module, inputs: Mapping[str, Tensor], outputs: list[str], path: Path) -> None:
    """Trace a graph whose batch may have any size, and whose texts any length."""
    axes = {name: {0: "batch"} if name == "pixels" else {0: "batch", 1: "tokens"} for name in inputs}
    torch.onnx.export(
        graph.eval(),
        tuple(inputs.values()),
        str(path),
        input_names=list(inputs),
        output_names=outputs,
        dynamic_axes={**axes, **{name: {0: "batch"} for name in outputs}},
        opset_version=OPSET,
        dynamo=False,
    )


def _write_with_weights(path: Path, out: Path, weights: str) -> None:
    """A graph with its weights in a file beside it."""
    from onnx.external_data_helper import convert_model_to_external_data

    whole = onnx.load(str(path))
    del whole.graph.value_info[:]  # shapes of inner values, which ONNX Runtime infers again
    convert_model_to_external_data(whole, location=weights, size_threshold=1024)
    (out.parent / weights).write_bytes(b"")  # onnx appends to what is there, and writes none for a tiny model
    onnx.save(whole, str(out))


def _write_text_graphs(path: Path, folder: Path, levels: list[str]) -> None:
    """The whole text graph, and one cut after each level but the last, over one file of weights."""
    from onnx.utils import Extractor

    _write_with_weights(path, folder / TEXT_GRAPH, TEXT_WEIGHTS)
    whole = onnx.load(str(folder / TEXT_GRAPH), load_external_data=False)
    inputs = [value.name for value in whole.graph.input]  # SigLIP's graph has no mask
    for count in range(1, len(levels)):
        cut = Extractor(whole).extract_model(inputs, levels[:count])
        onnx.save(cut, str(folder / text_graph(levels[count - 1])))


def _write_early_image_graphs(folder: Path, levels: Sequence[Level]) -> None:
    """The image graph cut after each level that reads an earlier layer than the finest, with weights of its own.

    ONNX Runtime runs a graph as a whole, whichever outputs are asked for.
    """
    from onnx.utils import Extractor

    for old in folder.glob(image_graph("*")):
        old.unlink()
    early = [level.name for level in levels if level.image_layer < levels[-1].image_layer]
    whole = Extractor(onnx.load(str(folder / IMAGE_GRAPH))) if early else None
    for count, name in enumerate(early, start=1):
        assert whole is not None
        onnx.save(whole.extract_model(["pixels"], early[:count]), str(folder / image_graph(name)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tracer warns of every Python branch on a shape; ours depend on constants alone."""
    root = logging.getLogger()
    level = root.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root.setLevel(logging.ERROR)
        try:
            yield
        finally:
            root.setLevel(level)
