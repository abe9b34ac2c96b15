"""int8 quantization of exported graphs: static for convolutions, weights alone for matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.config import PictureConfig

CALIBRATION_BATCH = 8
LARGE = 10_000  # elements


def quantize_image(path: Path, calibration: NDArray[np.uint8], picture: PictureConfig) -> Path:
    """Static int8 (per-channel weights, per-tensor activations) for the convolutions; the heads stay float.

    The heads are a thousandth of the work, and their softmax and unit length suffer from eight bits. What would be
    computed in float between two convolutions, or before the first, is taken out of the way: it cost as much as they
    do.

    Args:
        path: float32 graph from ``pixels`` (B, S, S, 3) uint8.
        calibration: (N, S, S, 3) uint8, whose ranges set the scales.
        picture: how the graph normalises pixels.

    Returns:
        The new graph's path, beside the old one.
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
    model = onnx.load(str(prepared))
    _fold_padding(model.graph)
    onnx.save(model, str(prepared))
    # Everything up to the last convolution is quantised; what follows (pooling, heads) is not.
    graph = model.graph
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
    model = onnx.load(str(quantized))
    _feed_bytes(model.graph, picture)
    onnx.save(model, str(quantized))
    return compress_tables(quantized)


def _fold_padding(graph: Any) -> None:
    """Make a constant zero padding before convolutions their own.

    PyTorch pads lopsidedly in a node of its own, which would run in float between two integer convolutions.
    """
    from onnx import helper, numpy_helper

    constants = {table.name: numpy_helper.to_array(table) for table in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Pad"]:
        pads = constants.get(node.input[1])
        value = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        readers = [reader for reader in graph.node if node.output[0] in reader.input]
        if pads is None or value is None or value.any() or pads.reshape(2, -1)[:, :2].any():
            continue
        if any(reader.op_type != "Conv" for reader in readers):
            continue
        for reader in readers:
            own = next((attribute for attribute in reader.attribute if attribute.name == "pads"), None)
            total = pads.reshape(2, -1)[:, 2:].reshape(-1) + (0 if own is None else np.array(own.ints))
            if own is not None:
                reader.attribute.remove(own)
            reader.attribute.append(helper.make_attribute("pads", [int(each) for each in total]))
            reader.input[0] = node.input[0]
        graph.node.remove(node)
    _prune(graph)


def _feed_bytes(graph: Any, picture: PictureConfig) -> None:
    """Take the pixels themselves as the first convolution's integers: normalisation is a scale and a zero point.

    ``(rgb - mean) / std`` is what an unsigned byte means with scale ``1 / std`` and zero point ``mean``, exactly, if
    all channels share them and the mean is whole. Otherwise the graph stays as it is.
    """
    from onnx import TensorProto, helper

    mean, std = picture.mean[0], picture.std[0]
    if set(picture.mean) != {mean} or set(picture.std) != {std} or mean != int(mean) or not 0 <= mean <= 255:
        return
    chain: list[Any] = []
    name = graph.input[0].name
    while not chain or chain[-1].op_type != "QuantizeLinear":
        readers = [node for node in graph.node if name in node.input]
        if len(readers) != 1 or readers[0].op_type not in ("Cast", "Sub", "Div", "Transpose", "QuantizeLinear"):
            return
        chain.append(readers[0])
        name = readers[0].output[0]
    transposes = [node for node in chain if node.op_type == "Transpose"]
    readers = [node for node in graph.node if name in node.input]
    if len(transposes) != 1 or any(node.op_type != "DequantizeLinear" for node in readers):
        return
    for node in chain:
        graph.node.remove(node)
    transposes[0].input[0], transposes[0].output[0] = graph.input[0].name, name
    graph.node.insert(0, transposes[0])
    graph.initializer.append(helper.make_tensor("pixels.scale", TensorProto.FLOAT, [], [1 / std]))
    graph.initializer.append(helper.make_tensor("pixels.zero_point", TensorProto.UINT8, [], [int(mean)]))
    for node in readers:
        node.input[1], node.input[2] = "pixels.scale", "pixels.zero_point"
    _prune(graph)


def _prune(graph: Any) -> None:
    """Drop constants that nothing reads any more."""
    read = {name for node in graph.node for name in node.input}
    for node in [node for node in graph.node if node.op_type == "Constant" and node.output[0] not in read]:
        graph.node.remove(node)
    for table in [table for table in graph.initializer if table.name not in read]:
        graph.initializer.remove(table)


def compress_tables(path: Path) -> Path:
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
    # x @ W has an output a column; a lookup, x @ W.T (Gemm) and W.T @ x have one a row.
    along = 0 if reader.op_type == "MatMul" and table.name == reader.input[1] else 1
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
