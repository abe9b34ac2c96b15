"""The model: two towers and, for each level, a head on either."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hivlp.config import HiVLPConfig
from hivlp.errors import ModelError
from hivlp.model.heads import HEADS, build_head, reads_finest
from hivlp.model.tower import Features
from hivlp.model.towers import build_towers

WEIGHTS = "model.safetensors"
LevelVectors = dict[str, Tensor]


class HiVLPModel(nn.Module):
    """Pictures and texts to unit vectors at every level.

    Each level reads one layer of each tower (:class:`hivlp.levels.Level`): an early one for a coarse level, the last
    for the finest, as in HiVLP (arXiv 2205.12105).
    """

    def __init__(self, config: HiVLPConfig) -> None:
        """Build with random weights.

        Raises:
            ModelError: if a level reads a layer that its tower does not have, or a head does not fit.
        """
        super().__init__()
        self.config = config
        self.image_tower, self.text_tower = build_towers(config.image_tower, config.text_tower)
        if self.text_tower.sees_padding and not config.text.pad_to_max:
            raise ModelError(
                "this text tower sees its padding, so text.pad_to_max must be true: neighbours must not count"
            )
        image_heads: dict[str, nn.Module] = {}
        text_heads: dict[str, nn.Module] = {}
        finest = config.levels[-1]
        for level in reversed(config.levels):  # so that the finest starts alike however many are below it
            for heads, tower, layer, last, settings in (
                (image_heads, self.image_tower, level.image_layer, finest.image_layer, config.image_tower),
                (text_heads, self.text_tower, level.text_layer, finest.text_layer, config.text_tower),
            ):
                if layer > tower.depth:
                    raise ModelError(f"level {level.name} reads layer {layer} of a tower of {tower.depth}")
                kind, width = settings.heads.get(level.name, "linear"), tower.widths[layer - 1]
                if reads_finest(HEADS.get(kind)):
                    if level == finest or layer != last:
                        raise ModelError(f"level {level.name}: a {kind} is of a finer level, at that level's layer")
                    width = finest.dim
                try:
                    heads[level.name] = build_head(kind, width, level.dim)
                except ValueError as error:
                    raise ModelError(f"level {level.name}: {error}") from error
        self.image_heads = nn.ModuleDict({level.name: image_heads[level.name] for level in config.levels})
        self.text_heads = nn.ModuleDict({level.name: text_heads[level.name] for level in config.levels})

    @property
    def image_layers(self) -> tuple[int, ...]:
        """Layers of the image tower that some level reads, ascending."""
        return tuple(sorted({level.image_layer for level in self.config.levels}))

    @property
    def text_layers(self) -> tuple[int, ...]:
        """Layers of the text tower that some level reads, ascending."""
        return tuple(sorted({level.text_layer for level in self.config.levels}))

    def project_image(
        self,
        features: Mapping[int, Tensor],
        dropout: Mapping[str, float] | None = None,
        gradient: Mapping[str, float] | None = None,
    ) -> LevelVectors:
        """Layer -> (B, width) features to level -> (B, dim) unit vectors; the rest as :meth:`forward`."""
        inputs = {
            level.name: nn.functional.dropout(features[level.image_layer], (dropout or {}).get(level.name, 0.0))
            for level in self.config.levels
        }
        return self._project(self.image_heads, inputs, gradient or {})

    def project_text(self, features: Mapping[int, Tensor], gradient: Mapping[str, float] | None = None) -> LevelVectors:
        """Layer -> (B, width) features to level -> (B, dim) unit vectors; the rest as :meth:`forward`."""
        inputs = {level.name: features[level.text_layer] for level in self.config.levels}
        return self._project(self.text_heads, inputs, gradient or {})

    def _project(
        self, heads: nn.ModuleDict, inputs: Mapping[str, Tensor], gradient: Mapping[str, float]
    ) -> LevelVectors:
        *coarser, finest = (level.name for level in self.config.levels)
        vector = heads[finest](inputs[finest])
        vectors = {}
        for name in coarser:
            read = vector if reads_finest(heads[name]) else inputs[name]
            vectors[name] = heads[name](_throttled(read, gradient.get(name, 1.0)))
        return {**vectors, finest: vector}

    def image_features(self, pixels: Tensor) -> Features:
        """Tower features, layer -> (B, width), of (B, size, size, 3) uint8 RGB pixels."""
        settings = self.config.picture
        mean = torch.tensor(settings.mean, device=pixels.device)
        std = torch.tensor(settings.std, device=pixels.device)
        normalised = ((pixels.float() - mean) / std).permute(0, 3, 1, 2)
        features: Features = self.image_tower(normalised, self.image_layers)
        return {layer: features[layer] for layer in self.image_layers}

    def text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """Tower features, layer -> (B, width), of (B, T) int64 ids and mask."""
        features: Features = self.text_tower(input_ids, attention_mask, self.text_layers)
        return features

    def forward(
        self,
        image: Tensor | Features,
        text: tuple[Tensor, Tensor] | Features,
        dropout: Mapping[str, float] | None = None,
        gradient: Mapping[str, float] | None = None,
    ) -> tuple[LevelVectors, LevelVectors]:
        """Level vectors of pictures and texts, from pixels and tokens or, with frozen towers, from stored features.

        Args:
            image: (B, size, size, 3) uint8 RGB, or layer -> (B, width).
            text: (B, T) int64 ids and mask, or layer -> (B, width).
            dropout: level -> share of the image features that is hidden from its head.
            gradient: coarser level -> share of its gradient that goes on from its heads into what they read.
        """
        image_features = self.image_features(image) if isinstance(image, Tensor) else image
        text_features = text if isinstance(text, dict) else self.text_features(*text)
        return self.project_image(image_features, dropout, gradient), self.project_text(text_features, gradient)

    def encode_image(self, pixels: Tensor) -> LevelVectors:
        """(B, size, size, 3) uint8 RGB -> level -> (B, dim) unit vectors."""
        return self.project_image(self.image_features(pixels))

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> LevelVectors:
        """(B, T) int64 ids and mask -> level -> (B, dim) unit vectors."""
        return self.project_text(self.text_features(input_ids, attention_mask))

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> HiVLPModel:
        """Load configuration and weights from a model folder.

        Raises:
            ModelError: if the folder is incomplete or its weights do not fit its configuration.
        """
        folder = Path(folder)
        model = cls(HiVLPConfig.load(folder))
        path = folder / WEIGHTS
        if not path.is_file():
            raise ModelError(f"{folder} has graphs but no {WEIGHTS}; train it again (`hivlp train`) to get weights")
        try:
            state = load_file(path)
            names: dict[int, str] = {}
            for name, tensor in model.state_dict(keep_vars=True).items():
                first = names.setdefault(id(tensor), name)
                if first != name and first in state:
                    state[name] = state[first]
            model.load_state_dict(state)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise ModelError(f"{path} does not fit config.json: {str(error).splitlines()[0]}") from error
        return model.eval()

    def save_pretrained(self, folder: Path | str, tokenizer: Path | None = None) -> None:
        """Write ``config.json``, ``model.safetensors`` and, if given, a copy of the tokenizer."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(self.config.to_json(), encoding="utf-8")
        save_file(distinct_state(self), folder / WEIGHTS, metadata={"format": "pt"})
        if tokenizer is not None and tokenizer.resolve() != (folder / "tokenizer.json").resolve():
            shutil.copyfile(tokenizer, folder / "tokenizer.json")


def distinct_state(module: nn.Module) -> dict[str, Tensor]:
    """A state dict in which a tensor with two names, as a dual encoder's two towers have them, is under the first."""
    names: dict[int, str] = {}
    state = module.state_dict(keep_vars=True)
    return {
        name: tensor.detach().contiguous()
        for name, tensor in state.items()
        if names.setdefault(id(tensor), name) == name
    }


def _throttled(features: Tensor, share: float) -> Tensor:
    """The features as they are, with a share of the gradient that comes back."""
    if share == 1 or not features.requires_grad:
        return features
    return share * features + (1 - share) * features.detach() if share else features.detach()
