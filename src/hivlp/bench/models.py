"""Models of the usual architectures, with random weights: hivlp's graphs beside plain PyTorch, in the same run.

The plain way is float32 in the model's own library, texts padded to the length that the model was trained with. Speed
does not depend on what the weights are; cosines do, so these are of random weights, and a real model's are checked when
its graphs are made (:mod:`hivlp.export.precision`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from hivlp.bench.report import Report, measured, milliseconds
from hivlp.config import TOKENIZER
from hivlp.data.pictures import load_pixels
from hivlp.encode import HiVLP
from hivlp.encode.stream import encode_stream
from hivlp.formats import preparation

if TYPE_CHECKING:
    from torch import Tensor

QUERIES, PICTURES, ROUNDS = 32, 24, 3
LEAST_TEXT, LEAST_IMAGE, LEAST_COSINE = 3.0, 1.5, 0.99
PRECISIONS = ("float32", "int8")


@dataclass(frozen=True)
class Plain:
    """A model in its own library.

    Attributes:
        text: one text -> (1, dim).
        image: (B, ...) uint8 pixels as hivlp prepares them -> (B, dim).
    """

    text: Callable[[str], Tensor]
    image: Callable[[NDArray[np.uint8]], Tensor]


@dataclass(frozen=True)
class ModelRow:
    """One architecture in one precision; speed-ups are over the plain way, whose figures stand beside ours.

    Attributes:
        architecture: as people call it.
        precision: of hivlp's graphs.
        text_speedup: of one query on one core.
        image_speedup: of pictures on two cores.
        cosine: mean with the plain vectors, of texts or of pictures, whichever is lower.
        query_ms: median.
        pictures_a_second: prepared ones, in the best of a few rounds.
        plain_query_ms: median.
        plain_pictures_a_second: prepared ones, in the best of a few rounds.
    """

    architecture: str
    precision: str
    text_speedup: float
    image_speedup: float
    cosine: float
    query_ms: float
    pictures_a_second: float
    plain_query_ms: float
    plain_pictures_a_second: float


@dataclass(frozen=True, kw_only=True)
class ModelsReport(Report):
    """Rows by architecture; see :func:`run`."""

    rows: list[ModelRow]
    short: list[str]
    left_out: list[str]

    def to_text(self) -> str:
        """Tables for the terminal."""
        lines = [f"{'architecture':24s}{'':10s}{'query ms':>10s}{'plain':>8s}{'×':>7s}{'pictures/s':>12s}{'plain':>8s}"
                 f"{'×':>7s}{'cosine':>9s}"]  # fmt: skip
        lines += [
            f"{row.architecture:24s}{row.precision:10s}{row.query_ms:10.1f}{row.plain_query_ms:8.1f}"
            f"{row.text_speedup:7.1f}{row.pictures_a_second:12.1f}{row.plain_pictures_a_second:8.1f}"
            f"{row.image_speedup:7.1f}{row.cosine:9.4f}"
            for row in self.rows
        ]
        lines += [f"short of the aim: {each}" for each in self.short]
        lines += [f"left out: {each}" for each in self.left_out]
        return "\n".join([*lines, f"{self.seconds:.0f} s"])


def run(size: Literal["small", "full"] = "small", architectures: Sequence[str] | None = None) -> ModelsReport:
    """Write each architecture's checkpoint, load it as a person would, and time it beside its own library.

    Args:
        size: ``small``, ViT-B/32 and SigLIP B/16; ``full``, all of :data:`ARCHITECTURES`.
        architectures: names of them, in place of a size.
    """
    started = time.perf_counter()
    names = architectures or (list(ARCHITECTURES) if size == "full" else list(ARCHITECTURES)[:2])
    rows: list[ModelRow] = []
    left_out: list[str] = []
    with tqdm(total=len(names) * len(PRECISIONS), desc="models", disable=None) as bar:
        for name in names:
            needed = "open_clip" if ARCHITECTURES[name] is _open_clip else "transformers"
            if importlib.util.find_spec(needed) is None or (needed == "open_clip" and not _has_torchvision()):
                left_out.append(f"{name}, which needs {needed}")
                bar.update(len(PRECISIONS))
                continue
            with tempfile.TemporaryDirectory() as scratch, _cache_in(Path(scratch) / "cache"):
                folder = Path(scratch) / "model"
                folder.mkdir()
                plain = ARCHITECTURES[name](name, folder)
                for precision in PRECISIONS:
                    model = HiVLP.from_pretrained(f"{folder}:{precision}")
                    rows.append(_compared(name, precision, model, plain))
                    bar.update()
    short = [
        f"{row.architecture} {row.precision}: {what} {value:g}, below {least:g}"
        for row in rows
        for what, value, least in (
            ("text_speedup", row.text_speedup, LEAST_TEXT),
            ("image_speedup", row.image_speedup, LEAST_IMAGE),
            ("cosine", row.cosine, LEAST_COSINE),
        )
        if value < least
    ]
    return ModelsReport(
        rows=rows, short=short, left_out=left_out, **measured(started, "torch", "transformers", "onnxruntime")
    )


def _compared(name: str, precision: str, model: HiVLP, plain: Plain) -> ModelRow:
    """Both ways in turns, so that whatever else the machine does falls on both."""
    import torch

    folder = Path(str(resources.files("hivlp"))) / "assets" / "pictures"
    shown = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [each["caption"] for each in shown[:QUERIES]]
    pixels = np.stack([load_pixels(folder / each["file"], model.picture) for each in shown[:PICTURES]])

    torch.set_num_threads(1)
    queries: list[float] = []
    plain_queries: list[float] = []
    cosines = []
    for text in texts:
        ours, theirs = model.encode_text(text).fine, _unit(plain.text(text))  # which also warms both up
        cosines.append((ours * theirs).sum())
        queries.append(milliseconds(lambda text=text: model.encode_text(text)))  # type: ignore[misc]
        plain_queries.append(milliseconds(lambda text=text: plain.text(text)))  # type: ignore[misc]

    def stream() -> NDArray[np.float32]:
        batches = encode_stream(model, range(PICTURES), lambda number: pixels[number], workers=2)
        return np.concatenate([batch.embeddings.fine for batch in batches])

    def batches() -> NDArray[np.float32]:
        return np.concatenate([_unit(plain.image(pixels[at : at + 8])) for at in range(0, PICTURES, 8)])

    torch.set_num_threads(2)
    image_cosine = float((stream() * batches()).sum(1).mean())
    # The best of a few rounds: threads that wait for each other suffer out of proportion from a busy machine.
    times = [(milliseconds(stream), milliseconds(batches)) for _ in range(ROUNDS)]
    ours_ms, plain_ms = (min(column) for column in zip(*times, strict=True))
    query, plain_query = statistics.median(queries), statistics.median(plain_queries)
    return ModelRow(
        name,
        precision,
        text_speedup=round(plain_query / query, 2),
        image_speedup=round(plain_ms / ours_ms, 2),
        cosine=round(min(float(np.mean(cosines)), image_cosine), 5),
        query_ms=round(query, 2),
        pictures_a_second=round(1000 * PICTURES / ours_ms, 1),
        plain_query_ms=round(plain_query, 2),
        plain_pictures_a_second=round(1000 * PICTURES / plain_ms, 1),
    )


def _unit(vectors: Tensor) -> NDArray[np.float32]:
    array = vectors.numpy()
    rows: NDArray[np.float32] = array / np.linalg.norm(array, axis=1, keepdims=True)
    return rows


@contextlib.contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    before = os.environ.get("HIVLP_CACHE")
    os.environ["HIVLP_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["HIVLP_CACHE"]
        else:
            os.environ["HIVLP_CACHE"] = before


def _has_torchvision() -> bool:
    return importlib.util.find_spec("torchvision") is not None and importlib.util.find_spec("timm") is not None


def _transformers(name: str, folder: Path) -> Plain:
    """A checkpoint of ``transformers`` of the size that its name says, with hivlp-mini's tokenizer."""
    import torch
    import transformers
    from tokenizers import Tokenizer

    kind, settings = _CONFIGS[name]
    shutil.copyfile(Path(str(resources.files("hivlp"))) / "assets" / "hivlp-mini" / TOKENIZER, folder / TOKENIZER)
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    end, pad = tokenizer.token_to_id("[SEP]"), tokenizer.token_to_id("[PAD]")
    siglip = kind.startswith("Siglip")
    words = {"eos_token_id": end, "pad_token_id": pad, **settings.get("text_config", {})}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**settings, "text_config": words})
    network = getattr(transformers, f"{kind}Model")(config).eval()
    network.save_pretrained(folder, max_shard_size="100GB")
    length = int(config.text_config.max_position_embeddings) if siglip else 77
    about = {"pad_token": "[PAD]", "model_max_length": length, "padding_side": "right"}
    (folder / preparation.SETTINGS).write_text(json.dumps(about), encoding="utf-8")
    processor = {"Siglip2": preparation.NAFLEX, "Siglip": "SiglipImageProcessor"}.get(kind, f"{kind}ImageProcessor")
    (folder / preparation.PICTURES).write_text(json.dumps({"image_processor_type": processor}), encoding="utf-8")
    picture = preparation.picture_config(folder, name, None)
    mean, std = np.array(picture.mean, np.float32), np.array(picture.std, np.float32)
    tokenizer.enable_padding(length=length, pad_id=pad, pad_token="[PAD]")
    tokenizer.enable_truncation(length)

    def text(query: str) -> Tensor:
        encoding = tokenizer.encode(query.lower() if siglip else query)
        mask = {} if siglip else {"attention_mask": torch.tensor([encoding.attention_mask])}
        with torch.inference_mode():
            return _pooled(network.get_text_features(input_ids=torch.tensor([encoding.ids]), **mask))

    def image(pixels: NDArray[np.uint8]) -> Tensor:
        if picture.fit == "patches":
            grid = pixels[:, 0].reshape(len(pixels), -1)[:, :4].astype(np.int64) @ np.array(
                [[1, 0], [256, 0], [0, 1], [0, 256]]
            )
            mask = np.arange(picture.patches) < grid.prod(1, keepdims=True)
            given = {
                "pixel_values": torch.from_numpy(((pixels[:, 1:] - mean) / std).reshape(*mask.shape, -1)),
                "pixel_attention_mask": torch.from_numpy(mask.astype(np.int64)),
                "spatial_shapes": torch.from_numpy(grid),
            }
        else:
            given = {"pixel_values": torch.from_numpy(((pixels - mean) / std).transpose(0, 3, 1, 2).copy())}
        with torch.inference_mode():
            return _pooled(network.get_image_features(**given))

    return Plain(text, image)


def _pooled(output: Any) -> Tensor:
    pooled: Tensor = getattr(output, "pooler_output", output)
    return pooled


def _open_clip(name: str, folder: Path) -> Plain:
    """A folder of open_clip."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = open_clip.create_model(name, pretrained=None).eval()
    prepare = asdict(open_clip.PreprocessCfg(**open_clip.get_model_preprocess_cfg(network)))
    about = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": prepare}
    (folder / "open_clip_config.json").write_text(json.dumps(about), encoding="utf-8")
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    tokenizer = open_clip.get_tokenizer(name)
    mean, std = (255 * np.array(prepare[each], np.float32) for each in ("mean", "std"))

    def text(query: str) -> Tensor:
        with torch.inference_mode():
            encoded: Tensor = network.encode_text(tokenizer([query]))
            return encoded

    def image(pixels: NDArray[np.uint8]) -> Tensor:
        with torch.inference_mode():
            encoded: Tensor = network.encode_image(
                torch.from_numpy(((pixels - mean) / std).transpose(0, 3, 1, 2).copy())
            )
            return encoded

    return Plain(text, image)


_B16 = {"patch_size": 16}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "CLIP ViT-B/32": ("CLIP", {}),
    "SigLIP B/16": ("Siglip", {}),
    "CLIP ViT-B/16": ("CLIP", {"vision_config": _B16}),
    "MetaCLIP 2 ViT-B/32": ("MetaClip2", {"vision_config": {"patch_size": 32}}),
    # With 32,000 words in place of 256,000, whose table is not computed with.
    "SigLIP2 B/16 NaFlex": ("Siglip2", {}),
    "Chinese-CLIP B/16": ("ChineseCLIP", {"vision_config": _B16}),
}
ARCHITECTURES: dict[str, Callable[[str, Path], Plain]] = {
    **dict.fromkeys(_CONFIGS, _transformers),
    "MobileCLIP2-S0": _open_clip,
    "PE-Core-T-16-384": _open_clip,
}
"""Name -> what writes its checkpoint into a folder and gives the plain way."""
