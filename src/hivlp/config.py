"""The configuration of a model (``config.json``); readable without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hivlp.errors import ModelError
from hivlp.files.reading import one_line, read_json
from hivlp.levels import Level, check_levels

FORMAT = 1
IMAGE_GRAPH, TEXT_GRAPH, TOKENIZER = "image.onnx", "text.onnx", "tokenizer.json"
"""Files of a model folder, beside ``config.json``; the text graphs share the weights in ``text.bin``, the image graph
of another library's model has its own in ``image.bin``."""
TEXT_WEIGHTS, IMAGE_WEIGHTS = "text.bin", "image.bin"
LARGEST_INPUT = 1 << 14
"""Pixels a side of a prepared picture, and tokens of a text, at most: no file may ask for more memory."""


RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Filters by the number that Pillow, and the processors of ``transformers``, give them."""
RESIZES: tuple[set[str], ...] = (set(), {"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"height", "width"})


def image_graph(level: str) -> str:
    """File of the image graph that stops at a level."""
    return f"image.{level}.onnx"


def text_graph(level: str) -> str:
    """File of the text graph that stops at a level."""
    return f"text.{level}.onnx"


@dataclass(frozen=True)
class PictureConfig:
    """How a decoded picture becomes the image tower's input: ``size`` × ``size`` pixels, ``(rgb - mean) / std``.

    For ``fit`` ``patches`` (SigLIP2's NaFlex), the input is a row of patches instead: see
    :func:`hivlp.data.pictures.preparing.prepare`.

    Attributes:
        size: side of the square; for ``patches``, of one patch.
        fit: ``pad``, the whole picture between white bars; ``crop``, the centre square of the scaled picture, black
            where that is smaller; ``stretch``, the whole picture whatever its proportions; or ``patches``, the whole
            picture in nearly its proportions, as large as ``patches`` patches make. For ``pad`` a large picture is
            decoded at a fraction of its size; the others are exactly what the PIL processors of ``transformers`` do.
        mean: of each channel, with ``rgb`` in 0…255.
        std: of each channel, with ``rgb`` in 0…255.
        resample: the filter, one of :data:`RESAMPLE`.
        resize: for ``crop``, what the picture is scaled to first: ``shortest_edge`` (and ``longest_edge``, which it
            may not exceed), or ``height`` and ``width``; empty for not at all, None for ``size`` as the shortest edge.
        margin: for ``crop``, the rounding of half of what is cut off: ``down`` as ``transformers``, or ``even`` (half
            to even) as torchvision, and thus open_clip, have it.
        patches: for ``patches``, how many there are at most.
    """

    size: int = 224
    fit: str = "pad"
    mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)
    resample: str = "bicubic"
    resize: Mapping[str, int] | None = None
    margin: str = "down"
    patches: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")
        if self.fit not in ("pad", "crop", "stretch", "patches"):
            raise ValueError(f"fit must be pad, crop, stretch or patches, not {self.fit!r}")
        if (self.fit == "patches") != (self.patches > 0) or self.patches > LARGEST_INPUT:
            raise ValueError(f"patches must be 1 to {LARGEST_INPUT} for fit patches, and 0 otherwise")
        if self.fit == "patches" and not (self.size >= 2 and self.size**2 * self.patches <= LARGEST_INPUT**2):
            raise ValueError(f"{self.patches} patches of {self.size} pixels a side are too many, or too small")
        if self.margin not in ("down", "even"):
            raise ValueError(f"margin must be down or even, not {self.margin!r}")
        if self.resample not in RESAMPLE:
            raise ValueError(f"resample must be one of {', '.join(RESAMPLE)}, not {self.resample!r}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} must be three finite numbers, not {values}")
        if 0 in self.std:
            raise ValueError("std must not be 0: a picture is divided by it")
        if self.resize is not None:
            if self.fit != "crop":
                raise ValueError(f"resize belongs to fit crop, not {self.fit}")
            if set(self.resize) not in RESIZES or not all(isinstance(n, int) and n > 0 for n in self.resize.values()):
                raise ValueError(f"resize must be shortest_edge (and longest_edge) or height and width, in pixels, "
                                 f"not {dict(self.resize)}")  # fmt: skip

    @property
    def shape(self) -> tuple[int, ...]:
        """(size, size, 3), of a prepared picture; (patches + 1, size, size, 3) of one in patches."""
        square = (self.size, self.size, 3)
        return (self.patches + 1, *square) if self.fit == "patches" else square

    def at(self, size: int) -> PictureConfig:
        """This preparation at another size in pixels a side; unchanged for pictures that are never scaled."""
        if self.resize is None:
            return replace(self, size=size)
        if not self.resize:
            return self
        scaled = {name: max(1, round(value * size / self.size)) for name, value in self.resize.items()}
        return replace(self, size=size, resize=scaled)


@dataclass(frozen=True)
class TextConfig:
    """How a text becomes the text tower's input.

    Attributes:
        max_tokens: where longer texts are cut.
        lowercase: whether texts are lower-cased first.
        pad_to_max: whether shorter texts are filled up to ``max_tokens``; otherwise to the longest beside them.
        pad_id: what they are filled up with.
        padding_side: where, ``right`` or ``left``; on the left it moves every word, so it needs ``pad_to_max``.
        truncation_side: which end of a longer text is cut off, ``right`` or ``left``.
        clean: what open_clip does to a text first: ``whitespace``, HTML entities are read and runs of white space
            become one space; ``canonicalize``, as well lower case and no punctuation; empty for nothing.
    """

    max_tokens: int = 64
    lowercase: bool = False
    pad_to_max: bool = False
    pad_id: int = 0
    padding_side: str = "right"
    truncation_side: str = "right"
    clean: str = ""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
        for name, side in (("padding_side", self.padding_side), ("truncation_side", self.truncation_side)):
            if side not in ("right", "left"):
                raise ValueError(f"{name} must be right or left, not {side!r}")
        if self.clean not in ("", "whitespace", "canonicalize"):
            raise ValueError(f"clean must be whitespace, canonicalize or empty, not {self.clean!r}")
        if self.padding_side == "left" and not self.pad_to_max:
            raise ValueError("padding_side left needs pad_to_max: a text's vector would depend on those beside it")


@dataclass(frozen=True)
class TowerConfig:
    """Which network a tower is, and which heads stand on it.

    Attributes:
        kind: a name in the registries of :mod:`hivlp.model.towers`, or ``dual_encoder`` for both towers at once.
        options: the network's own settings.
        heads: level name -> a name in :data:`hivlp.model.heads.HEADS` (default ``linear``).
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    heads: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class HiVLPConfig:
    """Everything that defines a model except its weights."""

    name: str
    levels: tuple[Level, ...]
    image_tower: TowerConfig
    text_tower: TowerConfig
    picture: PictureConfig = PictureConfig()
    text: TextConfig = TextConfig()

    def __post_init__(self) -> None:
        check_levels(self.levels)

    def to_json(self) -> str:
        """The text of ``config.json``."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HiVLPConfig:
        """Build from parsed JSON.

        Raises:
            ModelError: if the content is not a hivlp model's configuration.
        """
        try:
            if data["format"] != FORMAT:
                raise ModelError(
                    f"model format {data['format']} is not the {FORMAT} that this hivlp reads; upgrade hivlp"
                )
            picture = dict(data["picture"])
            picture["mean"], picture["std"] = tuple(picture["mean"]), tuple(picture["std"])
            if not isinstance(data["name"], str):
                raise ValueError("name must be text")
            config = cls(
                name=data["name"],
                levels=tuple(Level(**level) for level in data["levels"]),
                image_tower=TowerConfig(**data["image_tower"]),
                text_tower=TowerConfig(**data["text_tower"]),
                picture=PictureConfig(**picture),
                text=TextConfig(**data["text"]),
            )
            for what, value in (("size", config.picture.size), ("max_tokens", config.text.max_tokens)):
                if type(value) is not int or not 1 <= value <= LARGEST_INPUT:
                    raise ValueError(f"{what} must be a whole number of at least 1, and at most {LARGEST_INPUT}")
            return config
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ModelError(f"not a hivlp model configuration: {one_line(repr(error))}") from error

    @classmethod
    def load(cls, folder: Path) -> HiVLPConfig:
        """Read ``folder/config.json``.

        Raises:
            ModelError: if the file is missing or is not a hivlp model's.
        """
        path = folder / "config.json"
        if not path.exists():
            raise ModelError(f"{folder} is not a model folder: it has no config.json")
        data = read_json(path, ModelError)
        try:
            return cls.from_dict(data)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
