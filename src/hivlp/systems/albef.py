"""ALBEF (Li et al., NeurIPS 2021): a ViT, six text layers of BERT, and six that look at the picture too.

Parameters have the published names, ``bert.`` cut out of them; facts from salesforce/ALBEF, commit b9727e4.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hivlp.systems.blocks import HEAD, Mlp, bert_config, bert_part, states_of
from hivlp.systems.checkpoints import State, build, count_layers, modern, patch_of, read_checkpoint, renamed, width_of
from hivlp.systems.clip_vit import resize_positions

LEFT_OVER = r".*_m\.|.*_queue$|queue_ptr$|temp$|text_encoder\.cls\.|.*position_ids$"
"""Names of the momentum copies, the queues, the temperature and the language head."""


@dataclass(frozen=True)
class AlbefConfig:
    """Size of an ALBEF model.

    Attributes:
        size: of a picture's side in pixels.
        patch: pixels a side.
        vision_width: of a token's state in the vision tower.
        vision_layers: of it.
        width: of the text tower.
        layers: of it, those with cross-attention included.
        fusion_layer: the first layer with cross-attention, counted from 0.
        feed_forward: width inside a feed-forward part.
        vocabulary: of bert-base-uncased.
        positions: tokens that a text may have.
        dim: of the contrastive vectors.
    """

    size: int = 384
    patch: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    width: int = 768
    layers: int = 12
    fusion_layer: int = 6
    feed_forward: int = 3072
    vocabulary: int = 30_522
    positions: int = 512
    dim: int = 256


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        count, tokens, width = states.shape
        query, key, value = self.qkv(states).reshape(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.proj(mixed.transpose(1, 2).reshape(count, tokens, width))
        return output


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, states: Tensor) -> Tensor:
        states = states + self.attn(self.norm1(states))
        output: Tensor = states + self.mlp(self.norm2(states))
        return output


class _PatchEmbed(nn.Module):
    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)


class VisionTransformer(nn.Module):
    """A ViT with timm's names: the normalised states of all its tokens."""

    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        width = config.vision_width
        self.patch_embed = _PatchEmbed(config.patch, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (config.size // config.patch) ** 2, width))
        self.blocks = nn.ModuleList(_Block(width) for _ in range(config.vision_layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) normalised pixels -> (B, 1 + patches, width)."""
        states = self.patch_embed.proj(pixels).flatten(2).transpose(1, 2)
        states = torch.cat([self.cls_token.expand(len(states), -1, -1), states], 1) + self.pos_embed
        for block in self.blocks:
            states = block(states)
        output: Tensor = self.norm(states)
        return output


class _Layers(nn.Module):
    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        size: dict[str, Any] = {"intermediate_size": config.feed_forward}
        plain = bert_config(config.width, **size)
        cross = bert_config(config.width, is_decoder=True, add_cross_attention=True, **size)
        self.layer = nn.ModuleList(
            bert_part("BertLayer", plain if number < config.fusion_layer else cross) for number in range(config.layers)
        )


class _TextEncoder(nn.Module):
    def __init__(self, config: AlbefConfig) -> None:
        super().__init__()
        bert = bert_config(
            config.width, vocab_size=config.vocabulary, max_position_embeddings=config.positions,
            intermediate_size=config.feed_forward,
        )  # fmt: skip
        self.embeddings = bert_part("BertEmbeddings", bert)
        self.encoder = _Layers(config)


class Albef(nn.Module):
    """ALBEF as it is evaluated: the towers, their projections, and the matching head."""

    def __init__(self, config: AlbefConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AlbefConfig()
        self.visual_encoder = VisionTransformer(config)
        self.text_encoder = _TextEncoder(config)
        self.vision_proj = nn.Linear(config.vision_width, config.dim)
        self.text_proj = nn.Linear(config.width, config.dim)
        self.itm_head = nn.Linear(config.width, 2)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) normalised pixels -> (B, 1 + patches, width)."""
        states: Tensor = self.visual_encoder(pixels)
        return states

    def encode_text(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """(B, T) int64 ids and mask -> (B, T, width) states after the layers without cross-attention."""
        bias = _bias(token_mask)
        states: Tensor = self.text_encoder.embeddings(input_ids=tokens)
        for layer in list(self.text_encoder.encoder.layer)[: self.config.fusion_layer]:
            states = states_of(layer(states, bias))
        return states

    def fuse(self, text: Tensor, token_mask: Tensor, image: Tensor) -> Tensor:
        """(B,) logits that texts and pictures belong together.

        Args:
            text: (B, T, width) of :meth:`encode_text`.
            token_mask: (B, T) True for tokens, False for padding.
            image: (B, N, width) of :meth:`encode_image`.
        """
        bias = _bias(token_mask)
        seen = image.new_zeros(len(image), 1, 1, image.shape[1])
        for layer in list(self.text_encoder.encoder.layer)[self.config.fusion_layer :]:
            text = states_of(layer(text, bias, encoder_hidden_states=image, encoder_attention_mask=seen))
        logits: Tensor = self.itm_head(text[:, 0])[:, 1]
        return logits


def load_albef(path: Path, size: int = 384) -> Albef:
    """ALBEF from a published checkpoint; positions of another picture size are resized bicubically.

    Args:
        path: of the file: a dict with ``model``, or its tensors alone.
        size: of the pictures' side in pixels that will be given.

    Raises:
        ModelError: if the file cannot be read, or lacks a tensor.
    """
    state = renamed(read_checkpoint(path, "model"), lambda name: modern(name.replace("bert.", "")))
    config = _config(state, size, path)

    def resized(wanted: State) -> State:
        rows, name = state.get("visual_encoder.pos_embed"), "visual_encoder.pos_embed"
        if rows is None or rows.ndim != 3:
            return state
        return {**state, name: resize_positions(rows[0], wanted[name].shape[1])[None]}

    return build(lambda: Albef(config), state, path, LEFT_OVER, resized)


def _config(state: State, size: int, path: Path) -> AlbefConfig:
    vocabulary, width = width_of(state, "text_encoder.embeddings.word_embeddings.weight", path)
    positions, _ = width_of(state, "text_encoder.embeddings.position_embeddings.weight", path)
    feed_forward, _ = width_of(state, "text_encoder.encoder.layer.0.intermediate.dense.weight", path)
    dim, vision_width = width_of(state, "vision_proj.weight", path)
    kernel = "visual_encoder.patch_embed.proj.weight"
    layers = count_layers(state, r"text_encoder\.encoder\.layer\.(\d+)\.")
    fused = sum(f"text_encoder.encoder.layer.{n}.crossattention.self.query.weight" in state for n in range(layers))
    return AlbefConfig(
        size=size, patch=patch_of(state, kernel, path) if kernel in state else 16, vision_width=vision_width,
        vision_layers=count_layers(state, r"visual_encoder\.blocks\.(\d+)\."), width=width, layers=layers,
        fusion_layer=layers - fused, feed_forward=feed_forward, vocabulary=vocabulary, positions=positions, dim=dim,
    )  # fmt: skip


def _bias(mask: Tensor) -> Tensor:
    return ((1.0 - mask.float()) * torch.finfo(torch.float32).min)[:, None, None, :]
