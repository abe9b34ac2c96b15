"""Any vision model and any text encoder of ``transformers`` as a tower, by its ``model_type``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hivlp.errors import ModelError
from hivlp.files.reading import one_line
from hivlp.model.tower import Features, Tower

_CLASS_TOKEN = re.compile(r"(^|\.)(cls_token|class_embedding)$")
_COUNTS_FROM_PADDING = ("camembert", "longformer", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xmod")
"""Models whose positions are counted from beyond the padding's own."""


class _Enough(Exception):
    """Stops a forward pass after the deepest layer that is asked for."""


class TransformersTower(Tower):
    """A ``transformers`` network whose layers, the longest list of its modules, give features.

    Options are those of the model's configuration, ``model_type`` among them, and ``pool``: ``class`` for the state of
    the first token, ``mean`` for the mean state. The features of the last layer are of ``last_hidden_state``.
    """

    undecayed = re.compile(r"(cls_token|class_embedding|position_embeddings?|register_tokens|mask_token)(\.weight)?$")

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import AutoConfig

        given = {**options}
        pool = given.pop("pool", None)
        try:
            config = AutoConfig.for_model(**given)
        except (TypeError, ValueError, KeyError) as error:
            raise ModelError(f"options name no model of transformers: {one_line(error, 200)}") from error
        if hasattr(config, "vision_config") and hasattr(config, "text_config"):
            raise ModelError(f"{config.model_type} is two towers at once: its kind is dual_encoder")
        self.config: Any = config
        self.network = _network(config).float()
        name, blocks = _blocks(self.network)
        self.depth = len(blocks)
        self.numbered = re.compile(re.escape(f"network.{name}.") + r"(\d+)\.")
        self.first = tuple(f"network.{each}" for each, _ in self.network.named_children() if "embed" in each)
        has_class = any(_CLASS_TOKEN.search(each) for each, _ in self.network.named_parameters())
        if pool not in (None, "class", "mean"):
            raise ModelError(f"options.pool must be class or mean, not {pool!r:.40}")
        self._pool = pool or ("class" if has_class else "mean")
        self._special = int(has_class) + int(getattr(config, "num_register_tokens", 0) or 0)
        self._states: dict[int, Tensor] = {}
        self._last = 0
        for number, block in enumerate(blocks, start=1):
            block.register_forward_hook(lambda _module, _inputs, output, number=number: self._note(number, output))

    def _note(self, number: int, output: Any) -> None:
        if number <= self._last:
            self._states[number] = output[0] if isinstance(output, (tuple, list)) else output
            if number == self._last < self.depth:
                raise _Enough

    def layer_states(self, layers: tuple[int, ...], **inputs: Tensor) -> dict[int, Tensor]:
        """Layer -> states as the network has them: (B, N, width), or (B, width, H, W) of a convolutional one."""
        self._states, self._last = {}, max(layers)
        try:
            output = self.network(**inputs)
            self._states[self.depth] = output.last_hidden_state
        except _Enough:
            pass
        finally:
            states, self._states, self._last = self._states, {}, 0
        return {layer: states[layer] for layer in layers}


class TransformersImageTower(TransformersTower):
    """A vision model: ViT, DINOv2 (with registers), DINOv3, BEiT, Swin, ConvNeXt, CLIP's half and others."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self._size = getattr(self.config, "image_size", None)
        side = self._size if isinstance(self._size, int) else 224
        every = tuple(range(1, self.depth + 1))
        # Widths differ from stage to stage in some, so a forward pass without numbers tells them.
        probe = self if next(self.parameters()).is_meta else _on_meta(self, options)
        try:
            with torch.no_grad():
                seen = probe.eval().layer_states(every, pixel_values=torch.zeros(1, 3, side, side, device="meta"))
        except Exception as error:
            raise ModelError(f"{self.config.model_type} is no vision model: {one_line(error, 200)}") from error
        self.widths = [int(states.shape[2 if states.ndim == 3 else 1]) for states in seen.values()]

    def check_size(self, size: int, layer: int) -> None:
        """See :meth:`Tower.check_size`."""
        if isinstance(self._size, int) and size != self._size:
            raise ValueError(f"{self._size}, the image_size of image_tower.options")

    def forward(self, pixels: Tensor, layers: tuple[int, ...]) -> Features:
        """(B, 3, size, size) float -> layer -> (B, width) float; of earlier layers with LayerNorm, without gains."""
        states = self.layer_states(layers, pixel_values=pixels)
        return {layer: self._pooled(part, layer) for layer, part in states.items()}

    def _pooled(self, states: Tensor, layer: int) -> Tensor:
        if states.ndim == 4:
            pooled = states.mean((2, 3))
        else:
            pooled = states[:, 0] if self._pool == "class" else states[:, self._special :].mean(1)
        return pooled if layer == self.depth else F.layer_norm(pooled, (self.widths[layer - 1],), eps=1e-6)


class TransformersTextTower(TransformersTower):
    """A text encoder: BERT, RoBERTa, MPNet, ModernBERT, CLIP's text half and others; by default the mean state."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        config = self.config
        if options.get("pool") is None:
            self._pool = "mean"
        self.vocabulary = int(config.vocab_size)
        self.positions = int(config.max_position_embeddings)
        if config.model_type in _COUNTS_FROM_PADDING:
            self.positions -= int(config.pad_token_id) + 1
        self.widths = [int(config.hidden_size)] * self.depth

    def forward(self, input_ids: Tensor, attention_mask: Tensor, layers: tuple[int, ...]) -> Features:
        """(B, T) int64 ids and mask -> layer -> (B, hidden) float."""
        states = self.layer_states(layers, input_ids=input_ids, attention_mask=attention_mask)
        if self._pool == "class":
            return {layer: part[:, 0] for layer, part in states.items()}
        weight = attention_mask.to(next(iter(states.values())).dtype)
        weight = (weight / weight.sum(1, keepdim=True))[..., None]
        return {layer: (part * weight).sum(1) for layer, part in states.items()}


def _network(config: Any) -> nn.Module:
    """The network of a configuration, without a pooler where it can do without."""
    from transformers import AutoModel

    try:
        return cast(nn.Module, AutoModel.from_config(config, add_pooling_layer=False))  # type: ignore[no-untyped-call]
    except TypeError:
        return cast(nn.Module, AutoModel.from_config(config))  # type: ignore[no-untyped-call]


def _blocks(network: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and modules of the network's layers: as many as its configuration says, or else the first list."""
    found = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.ModuleList) and len(part)]
    depth = getattr(getattr(network, "config", None), "num_hidden_layers", None)
    fitting = [each for each in found if len(each[1]) == depth] or found
    if not fitting:
        raise ModelError(f"{type(network).__name__} has no list of layers that levels could read")
    return fitting[0]


def _on_meta(tower: TransformersImageTower, options: Mapping[str, Any]) -> TransformersTower:
    with torch.device("meta"):
        return TransformersTower(options)
