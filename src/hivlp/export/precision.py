"""Graphs in int8 or float16, made of those in float32 and held against them on real pictures and captions."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.errors import ModelError
from hivlp.export.quantize import compress_tables

LEAST = 0.99
"""Mean cosine with the vectors in float32 that is good enough, for pictures as for texts."""
BATCH = 8
HITS = 10


@dataclass(frozen=True)
class Samples:
    """What graphs are checked on.

    Attributes:
        pixels: (N, ...) uint8, as the image graph takes them.
        ids: (M, T) int64.
        mask: (M, T) int64.
    """

    pixels: NDArray[np.uint8]
    ids: NDArray[np.int64]
    mask: NDArray[np.int64]


@dataclass(frozen=True)
class Agreement:
    """How near the vectors of reduced graphs are to those in float32.

    Attributes:
        image_cosine: mean over the pictures.
        text_cosine: mean over the texts.
        recall: share of each text's ten nearest pictures that stay among its ten nearest.
    """

    image_cosine: float
    text_cosine: float
    recall: float


def reduce(image: Path, text: Path, precision: str, samples: Samples) -> tuple[Path, Path, Agreement]:
    """Graphs in another precision, the first of several ways to make them that agrees with float32.

    int8 has weights by output channel, activations by tensor, both multiplied as integers; where the layers after an
    activation function suffer from it, they stay in float. The weights have seven bits, since processors without VNNI
    would overflow with eight; that costs nothing that can be measured. float16 is for devices that compute with it.

    Args:
        image: the graph in float32.
        text: the graph in float32.
        precision: ``int8`` or ``float16``.
        samples: what they are checked on.

    Returns:
        Both graphs, beside the given ones, and how they agree.

    Raises:
        ModelError: if no way agrees to :data:`LEAST`.
    """
    exact = _vectors(image, text, samples)
    best = 0.0
    for images, texts in _ways(image, text, precision):
        found = _vectors(images, texts, samples)
        agreement = _agreement(exact, found)
        lower = min(agreement.image_cosine, agreement.text_cosine)
        if lower >= LEAST:
            return images, texts, agreement
        best = max(best, lower)
    raise ModelError(
        f"in {precision} its vectors agree with those in float32 to {best:.3f} only: leave out :{precision}"
    )


def reduce_text(text: Path, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> tuple[Path, float]:
    """A text graph in int8, made and checked as :func:`reduce` does, at every level.

    Args:
        text: the graph in float32, one output a level.
        ids: (M, T) int64 ids of the texts that it is checked on.
        mask: (M, T) int64.

    Returns:
        The graph, beside the given one, and the lowest mean cosine of a level with float32.

    Raises:
        ModelError: if no way agrees to :data:`LEAST`.
    """
    feed = {"input_ids": ids, "attention_mask": mask}
    exact, best = _outputs(text, feed), 0.0
    for spare in (False, True):
        found = compress_tables(_quantized(text, spare=spare))
        pairs = zip(exact, _outputs(found, feed), strict=True)
        lowest = min(float((ours * theirs).sum(1).mean()) for ours, theirs in pairs)
        if lowest >= LEAST:
            return found, lowest
        best = max(best, lowest)
    raise ModelError(f"in int8 its texts' vectors agree with those in float32 to {best:.3f} only: export float32")


def _ways(image: Path, text: Path, precision: str) -> Iterator[tuple[Path, Path]]:
    if precision == "float16":
        yield _half(image), _half(text)
        return
    for spare in (False, True):
        yield _quantized(image, spare=spare), compress_tables(_quantized(text, spare=spare))


def _quantized(path: Path, *, spare: bool) -> Path:
    """Dynamic int8 for the matrices; ``spare`` those that read an activation function's outliers."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out = path.with_suffix(f".int8{'.spared' if spare else ''}.onnx")
    left_out = _after_activations(onnx.load(str(path), load_external_data=False).graph) if spare else []
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # it recommends a preparation that changes nothing here
    try:
        quantize_dynamic(
            str(path), str(out), op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, reduce_range=True,
            weight_type=QuantType.QInt8, nodes_to_exclude=left_out, use_external_data_format=_is_large(path),
        )  # fmt: skip
    finally:
        logging.getLogger().setLevel(level)
    return out


def _after_activations(graph: Any) -> list[str]:
    """Names of matrix products whose input is a product, as the last step of every GELU is, and not a norm."""
    producers = {output: node.op_type for node in graph.node for output in node.output}
    return [
        node.name for node in graph.node
        if node.op_type in ("MatMul", "Gemm") and producers.get(node.input[0]) in ("Mul", "Gelu", "Relu", "Sigmoid")
    ]  # fmt: skip


def _half(path: Path) -> Path:
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are nearly 0, which become 0
        # A norm's sum of squares would overflow.
        blocked = [
            *DEFAULT_OP_BLOCK_LIST,
            "ReduceL2",
            "ReduceSum",
            "Pow",
            "ReduceMean",
            "LayerNormalization",
            "Softmax",
            "Sqrt",
        ]
        model = convert_float_to_float16(onnx.load(str(path)), keep_io_types=True, op_block_list=blocked)
    out = path.with_suffix(".float16.onnx")
    onnx.save(model, str(out), save_as_external_data=_is_large(path), location=f"{out.name}.data")
    return out


def _is_large(path: Path) -> bool:
    """Whether a graph's weights do not fit into one file of its format."""
    return sum(each.stat().st_size for each in path.parent.iterdir() if each.is_file()) > 1_900_000_000


def _vectors(image: Path, text: Path, samples: Samples) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    pixels = {"pixels": samples.pixels}
    return _run(image, pixels), _run(text, {"input_ids": samples.ids, "attention_mask": samples.mask})


def _run(path: Path, feed: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    return _outputs(path, feed)[0]


def _outputs(path: Path, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
    """Every output of a graph."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    known = {value.name for value in session.get_inputs()}
    count = len(next(iter(feed.values())))
    parts = [
        session.run(None, {name: array[at : at + BATCH] for name, array in feed.items() if name in known})
        for at in range(0, count, BATCH)
    ]
    return [np.concatenate(output).astype(np.float32) for output in zip(*parts, strict=True)]


def _agreement(exact: tuple[NDArray[np.float32], ...], found: tuple[NDArray[np.float32], ...]) -> Agreement:
    images, texts = (float((a * b).sum(1).mean()) for a, b in zip(exact, found, strict=True))
    count = min(HITS, len(exact[0]))
    nearest = [np.argsort(-(texts @ images.T), axis=1)[:, :count] for images, texts in (exact, found)]
    kept = [len(set(a) & set(b)) / count for a, b in zip(*(rows.tolist() for rows in nearest), strict=True)]
    return Agreement(round(images, 5), round(texts, 5), round(float(np.mean(kept)), 4))
