"""From weights to the two graphs that search needs: ``image.onnx`` and ``text.onnx``, one output a level."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from hivlp.encode.onnx import IMAGE_GRAPH, TEXT_GRAPH, TEXT_WEIGHTS, text_graph
from hivlp.model.hivlp_model import HiVLPModel

OPSET = 17
CALIBRATION_BATCH = 8
LARGE = 10_000  # elements


class _ImageGraph(nn.Module):
    """Preparation and towers in one graph, so that callers hand over plain uint8 pixels."""

    def __init__(self, model: HiVLPModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.encode_image(pixels).values())


class _FeatureGraph(nn.Module):
    def __init__(self, model: HiVLPModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.image_features(pixels)[layer] for layer in self.model.image_layers)


class _TextGraph(nn.Module):
    def __init__(self, model: HiVLPModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.encode_text(input_ids, attention_mask).values())


def export(
    folder: Path,
    *,
    calibration: NDArray[np.uint8] | None = None,
    quantize_text: bool = False,
) -> None:
    """Write a model folder's graphs, beside its weights.

    ``text.onnx`` computes every level. Beside it, ``text.LEVEL.onnx`` stops at a coarser level, for each level but
    the last; all of them share the weights in ``text.bin``, so an early stop costs a few kilobytes.

    Args:
        folder: a model folder with ``config.json`` and ``model.safetensors``.
        calibration: (N, S, S, 3) uint8 pictures, any S, whose ranges set the int8 scales of the image graph; without
            them it stays float32.
        quantize_text: int8 weights for the text graph, computed with as float.

    Raises:
        ModelError: if the folder has no weights.
    """
    model = HiVLPModel.from_pretrained(folder)
    names = [level.name for level in model.config.levels]
    size = model.config.picture.size
    batch = {0: "batch"}
    steps = 2 + (calibration is not None) + quantize_text
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        tqdm(total=steps, desc="export", unit="graph", leave=False) as progress,
        _quiet(),
    ):
        image, text = Path(scratch) / IMAGE_GRAPH, Path(scratch) / TEXT_GRAPH
        torch.onnx.export(
            _ImageGraph(model).eval(),
            (torch.zeros(2, size, size, 3, dtype=torch.uint8),),
            str(image),
            input_names=["pixels"],
            output_names=names,
            dynamic_axes={"pixels": batch, **dict.fromkeys(names, batch)},
            opset_version=OPSET,
            dynamo=False,
        )
        progress.update()
        tokens = torch.ones(2, model.config.text.max_tokens if model.config.text.pad_to_max else 8, dtype=torch.int64)
        sequence = {0: "batch", 1: "tokens"}
        torch.onnx.export(
            _TextGraph(model).eval(),
            (tokens, tokens),
            str(text),
            input_names=["input_ids", "attention_mask"],
            output_names=names,
            dynamic_axes={"input_ids": sequence, "attention_mask": sequence, **dict.fromkeys(names, batch)},
            opset_version=OPSET,
            dynamo=False,
        )
        progress.update()
        if calibration is not None:
            from hivlp.train.augment import plain_view

            image = _quantize_image(image, np.stack([plain_view(pixels, size) for pixels in calibration]))
            progress.update()
        if quantize_text:
            text = _compress_tables(text)
            progress.update()
        image.replace(folder / IMAGE_GRAPH)
        _write_text_graphs(text, folder, names)


def export_image_features(model: HiVLPModel, path: Path) -> None:
    """Write the image tower alone as a graph, one output (``layer7``, …) a layer that a level reads.

    On a CPU, ONNX Runtime runs a frozen tower several times as fast as torch does.
    """
    size = model.config.picture.size
    names = [f"layer{layer}" for layer in model.image_layers]
    with _quiet():
        torch.onnx.export(
            _FeatureGraph(model).eval(),
            (torch.zeros(2, size, size, 3, dtype=torch.uint8),),
            str(path),
            input_names=["pixels"],
            output_names=names,
            dynamic_axes={"pixels": {0: "batch"}, **{name: {0: "batch"} for name in names}},
            opset_version=OPSET,
            dynamo=False,
        )


def _write_text_graphs(path: Path, folder: Path, levels: list[str]) -> None:
    """The whole text graph, and one cut after each level but the last, over one file of weights."""
    import onnx
    from onnx.external_data_helper import convert_model_to_external_data
    from onnx.utils import Extractor

    whole = onnx.load(str(path))
    del whole.graph.value_info[:]  # shapes of inner values, which ONNX Runtime infers again
    convert_model_to_external_data(whole, location=TEXT_WEIGHTS, size_threshold=1024)
    (folder / TEXT_WEIGHTS).write_bytes(b"")  # onnx appends to what is there, and writes none for a tiny model
    onnx.save(whole, str(folder / TEXT_GRAPH))
    whole = onnx.load(str(folder / TEXT_GRAPH), load_external_data=False)
    for count in range(1, len(levels)):
        cut = Extractor(whole).extract_model(["input_ids", "attention_mask"], levels[:count])
        onnx.save(cut, str(folder / text_graph(levels[count - 1])))


def _quantize_image(path: Path, calibration: NDArray[np.uint8]) -> Path:
    """Static int8 (per-channel weights, per-tensor activations) for the convolutions; the heads stay float.

    The heads are a thousandth of the work, and their softmax and unit length suffer from eight bits.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            starts = range(0, len(calibration), CALIBRATION_BATCH)
            self._batches = iter([calibration[start : start + CALIBRATION_BATCH] for start in starts])

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"pixels": batch}

    prepared, quantized = path.with_suffix(".prepared.onnx"), path.with_suffix(".int8.onnx")
    quant_pre_process(str(path), str(prepared))
    # Everything up to the last convolution is quantised; what follows (pooling, heads) is not.
    graph = onnx.load(str(prepared)).graph
    last = max(index for index, node in enumerate(graph.node) if node.op_type == "Conv")
    first = min(index for index, node in enumerate(graph.node) if node.op_type == "Conv")
    heads = [node.name for index, node in enumerate(graph.node) if index > last + 1 or index < first]
    heads += [node.name for node in graph.node if node.op_type in ("ReduceMean", "Gemm", "MatMul", "Softmax")]
    quantize_static(
        str(prepared),
        str(quantized),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        nodes_to_exclude=sorted(set(heads)),
    )
    return _compress_tables(quantized)


def _compress_tables(path: Path) -> Path:
    """Store the large matrices of a graph as int8, with a scale for each thing they output; compute in float.

    Rounding activations too would be no faster for texts of a dozen tokens, and costs a point of recall. A cast and a
    product, rather than ``DequantizeLinear``, because ONNX Runtime folds them into one float matrix when it loads; only
    a table that is looked up (``Gather``) stays int8 in memory, and just the rows that were looked up become float.
    """
    import onnx

    model = onnx.load(str(path))
    readers = {name: node for node in model.graph.node for name in node.input}
    for table in list(model.graph.initializer):
        if table.data_type == onnx.TensorProto.FLOAT and len(table.dims) == 2 and np.prod(table.dims) >= LARGE:
            _compress_table(model.graph, table, readers[table.name])
    compressed = path.with_suffix(".tables.onnx")
    onnx.save(model, str(compressed))
    return compressed


def _compress_table(graph: Any, table: Any, reader: Any) -> None:
    """Replace a float matrix by its codes, its scales, and the nodes that multiply them."""
    from onnx import TensorProto, helper, numpy_helper

    values = numpy_helper.to_array(table)
    # x @ W has an output a column; a lookup, and x @ W.T (Gemm), have one a row.
    along = 0 if reader.op_type == "MatMul" else 1
    scale = (np.abs(values).max(along, keepdims=True).clip(1e-12) / 127).astype(np.float32)
    codes, scales = f"{table.name}.int8", f"{table.name}.scale"
    graph.initializer.remove(table)
    graph.initializer.append(numpy_helper.from_array(np.rint(values / scale).astype(np.int8), codes))
    graph.initializer.append(numpy_helper.from_array(scale, scales))
    at, name, steps = 0, table.name, []
    if reader.op_type == "Gather":
        at, name = list(graph.node).index(reader), reader.output[0]
        rows = [f"{name}.int8", f"{name}.scale"]
        steps = [
            helper.make_node("Gather", [source, reader.input[1]], [row], axis=0)
            for source, row in zip((codes, scales), rows, strict=True)
        ]
        codes, scales = rows
        graph.node.remove(reader)
    steps.append(helper.make_node("Cast", [codes], [f"{name}.cast"], to=TensorProto.FLOAT))
    steps.append(helper.make_node("Mul", [f"{name}.cast", scales], [name]))
    for offset, step in enumerate(steps):
        graph.node.insert(at + offset, step)


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
