"""What a model folder's ``config.json`` says; readable without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hivlp.errors import ModelError
from hivlp.levels import Level, check_levels
from hivlp.reading import one_line, read_json

FORMAT = 1
LARGEST_INPUT = 1 << 14
"""Pixels a side of a prepared picture, and tokens of a text, at most: no file may ask for more memory."""


@dataclass(frozen=True)
class PictureConfig:
    """How a decoded picture becomes the image tower's input.

    The picture is scaled into a ``size`` × ``size`` square and normalised as ``(rgb - mean) / std``, with ``rgb``
    in 0…255. ``fit`` is ``pad`` (whole picture, white bars), ``crop`` (centre square) or ``stretch``.
    """

    size: int = 224
    fit: str = "pad"
    mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)

    def __post_init__(self) -> None:
        if self.fit not in ("pad", "crop", "stretch"):
            raise ValueError(f"fit must be pad, crop or stretch, not {self.fit!r}")


@dataclass(frozen=True)
class TextConfig:
    """How a text becomes the text tower's input; longer texts are cut at ``max_tokens``."""

    max_tokens: int = 64
    lowercase: bool = False
    pad_to_max: bool = False
    pad_id: int = 0


@dataclass(frozen=True)
class TowerConfig:
    """Which network a tower is, and which heads stand on it.

    Attributes:
        kind: ``efficientnet_lite`` or ``convnet`` (images), ``bert`` (texts), or ``dual_encoder`` (both).
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
