"""One ONNX graph on ONNX Runtime: on which device it runs, and what it wants to be fed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from hivlp.errors import ArgumentError, ModelError
from hivlp.files.reading import one_line

DEVICES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "directml": "DmlExecutionProvider",
}
"""Word for a device -> ONNX Runtime's provider."""
_PACKAGES = {
    "cuda": "onnxruntime-gpu",
    "coreml": "onnxruntime, on macOS",
    "openvino": "onnxruntime-openvino",
    "directml": "onnxruntime-directml",
}
_TYPES: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


def providers(device: str) -> list[str]:
    """ONNX Runtime's providers for a device, the CPU behind it for what that cannot do.

    Raises:
        ArgumentError: if there is no such word.
        ModelError: naming those that are there, if the installed ONNX Runtime lacks this one.
    """
    if device not in DEVICES:
        raise ArgumentError(f"device must be one of {', '.join(DEVICES)}, not {device!r}")
    available = ort.get_available_providers()
    if DEVICES[device] not in available:
        here = ", ".join(word for word, provider in DEVICES.items() if provider in available)
        raise ModelError(
            f"device {device} is not in the installed ONNX Runtime, which has {here}: pip install {_PACKAGES[device]}"
        )
    return list(dict.fromkeys([DEVICES[device], DEVICES["cpu"]]))


def open_session(path: Path, device: str = "cpu") -> ort.InferenceSession:
    """A graph on one thread of the CPU, or on another device.

    Raises:
        ModelError: if ONNX Runtime does not accept the file, or lacks the device.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    chosen = providers(device)
    try:
        return ort.InferenceSession(str(path), options, providers=chosen)
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise ModelError(f"{path} cannot be opened: {one_line(error)}") from error


class Session:
    """A graph, opened on one device; on the CPU it runs on one thread a call."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        """Open a graph.

        Raises:
            ModelError: if ONNX Runtime does not accept the file, or lacks the device.
        """
        self.path, self.session = path, open_session(path, device)
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]

    def fixed(self, axis: int) -> int | None:
        """The only length that an axis of the first input may have; None if any will do."""
        shape = next(iter(self.inputs.values())).shape
        length = shape[axis] if len(shape) > axis else None
        return length if isinstance(length, int) and length > 0 else None

    def run(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The named outputs; of the feed, only what the graph takes, in the type that it takes.

        A graph whose batch has a fixed size is run as often as needed.

        Raises:
            ModelError: if the graph fails.
        """
        feed = {name: self._typed(name, array) for name, array in feed.items() if name in self.inputs}
        count, step = len(next(iter(feed.values()))), self.fixed(0)
        if step is None or step == count:
            return self._run(names, feed)
        parts = []
        for start in range(0, count, step):
            part = {name: array[start : start + step] for name, array in feed.items()}
            short = step - min(step, count - start)
            full = {name: np.concatenate([array, array[-1:].repeat(short, 0)]) for name, array in part.items()}
            parts.append([output[: step - short] for output in self._run(names, full)])
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _run(self, names: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        try:
            outputs: list[NDArray[Any]] = self.session.run(list(names), dict(feed))
        except Exception as error:
            raise ModelError(f"{self.path} cannot be run: {one_line(error)}") from error
        return outputs

    def _typed(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        kind = self.inputs[name].type
        if kind not in _TYPES:
            raise ModelError(f"{self.path} takes {name} as {kind}, which hivlp cannot make")
        return np.ascontiguousarray(array, _TYPES[kind])
