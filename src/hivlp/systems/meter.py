"""METER (Dou et al., CVPR 2022): a vision tower and RoBERTa, then six layers in which two streams look at each other.

The score of a text and a picture is the logit of ``rank_output`` on the two pooled streams. A picture's tokens before
the six layers depend on no text, so they can be kept. Parameters have the published names; facts from zdou0830/METER,
commit f4f0934.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hivlp.errors import ModelError
from hivlp.systems.blocks import HEAD, bert_config, bert_part, states_of
from hivlp.systems.checkpoints import State, build, count_layers, modern, patch_of, read_checkpoint, renamed, width_of
from hivlp.systems.clip_vit import ClipVisual, resize_positions
from hivlp.systems.swin import Swin, resize_bias

# METER's other tasks, and what CLIP's text half and timm leave behind.
LEFT_OVER = (
    r"mlm_score\.|vqa_classifier\.|nlvr2_classifier\.|snli_classifier\.|vit_model\.(positional_embedding$|ln_final\.|head\.)"
    r"|vit_model\.(logit_scale|text_projection|token_embedding)|.*\.(position_ids|attn_mask|relative_position_index)$"
)


@dataclass(frozen=True)
class MeterConfig:
    """Size of a METER model.

    Attributes:
        vision: ``clip`` (ViT-B/16 without its twelfth block) or ``swin`` (Swin-B).
        size: of a picture's side in pixels.
        patch: pixels a side.
        vision_width: of a token's state in the vision tower's (first) layers.
        vision_depths: blocks of the vision tower, of each stage where it has several.
        window: of Swin.
        width: of the text tower and of the fusion layers.
        text_layers: of RoBERTa.
        fusion_layers: of each stream.
        feed_forward: width inside a feed-forward part.
        vocabulary: of roberta-base.
        positions: rows of RoBERTa's position table.
    """

    vision: Literal["clip", "swin"] = "clip"
    size: int = 384
    patch: int = 16
    vision_width: int = 768
    vision_depths: tuple[int, ...] = (11,)
    window: int = 12
    width: int = 768
    text_layers: int = 12
    fusion_layers: int = 6
    feed_forward: int = 3072
    vocabulary: int = 50_265
    positions: int = 514

    @property
    def image_width(self) -> int:
        """Of a picture's token as the vision tower gives it."""
        return self.vision_width << (len(self.vision_depths) - 1)

    def tower(self) -> nn.Module:
        """The vision tower, with random weights."""
        if self.vision == "swin":
            return Swin(self.size, self.vision_width, self.vision_depths, self.window, self.patch)
        return ClipVisual(self.size, self.patch, self.vision_width, self.vision_depths[0])


CLIP_B16 = MeterConfig()
SWIN_B = MeterConfig(vision="swin", patch=4, vision_width=128, vision_depths=(2, 2, 18, 2))


class _Clip(nn.Module):
    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Tensor) -> Tensor:
        output: Tensor = self.visual(pixels)
        return output


class _Pooler(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, first: Tensor) -> Tensor:
        return torch.tanh(self.dense(first))


class _Matching(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 2)


class Meter(nn.Module):
    """METER with its matching and ranking heads."""

    def __init__(self, config: MeterConfig = CLIP_B16) -> None:
        super().__init__()
        from transformers import RobertaConfig, RobertaModel

        self.config = config
        heads = max(1, config.width // HEAD)
        roberta = RobertaConfig(
            vocab_size=config.vocabulary, hidden_size=config.width, num_hidden_layers=config.text_layers,
            num_attention_heads=heads, intermediate_size=config.feed_forward, type_vocab_size=1,
            max_position_embeddings=config.positions, layer_norm_eps=1e-5,
        )  # fmt: skip
        # Self-attention, cross-attention, feed-forward, each normalised after its sum: a BERT decoder's layer.
        fusion = bert_config(
            config.width, intermediate_size=config.feed_forward, is_decoder=True, add_cross_attention=True
        )
        tower, fused = config.tower(), range(config.fusion_layers)
        self.vit_model = _Clip(tower) if config.vision == "clip" else tower
        self.text_transformer = RobertaModel(roberta)
        self.cross_modal_text_transform = nn.Linear(config.width, config.width)
        self.cross_modal_image_transform = nn.Linear(config.image_width, config.width)
        self.token_type_embeddings = nn.Embedding(2, config.width)
        self.cross_modal_image_layers = nn.ModuleList(bert_part("BertLayer", fusion) for _ in fused)
        self.cross_modal_text_layers = nn.ModuleList(bert_part("BertLayer", fusion) for _ in fused)
        self.cross_modal_image_pooler = _Pooler(config.width)
        self.cross_modal_text_pooler = _Pooler(config.width)
        self.itm_score = _Matching(2 * config.width)
        self.rank_output = nn.Linear(2 * config.width, 1)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) normalised pixels -> (B, N, width) tokens that fusion begins with."""
        states = self.cross_modal_image_transform(self.vit_model(pixels))
        return states + self.token_type_embeddings.weight[1]  # type: ignore[no-any-return]

    def encode_text(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """(B, T) int64 ids and mask -> (B, T, width) tokens that fusion begins with."""
        text: Any = self.text_transformer
        states = text(input_ids=tokens, attention_mask=token_mask.long()).last_hidden_state
        return self.cross_modal_text_transform(states) + self.token_type_embeddings.weight[0]  # type: ignore[no-any-return]

    def fuse(self, text: Tensor, token_mask: Tensor, image: Tensor) -> Tensor:
        """(B,) scores of texts with pictures, by the ranking head; arguments as of :meth:`pooled`."""
        scores: Tensor = self.rank_output(self.pooled(text, token_mask, image))[:, 0]
        return scores

    def pooled(self, text: Tensor, token_mask: Tensor, image: Tensor) -> Tensor:
        """(B, 2 width): both streams behind the fusion layers, which the heads read.

        Args:
            text: (B, T, width) of :meth:`encode_text`.
            token_mask: (B, T) True for tokens, False for padding.
            image: (B, N, width) of :meth:`encode_image`.
        """
        text_bias = ((1.0 - token_mask.to(text.dtype)) * torch.finfo(text.dtype).min)[:, None, None, :]
        image_bias = image.new_zeros(len(image), 1, 1, image.shape[1])
        for text_layer, image_layer in zip(self.cross_modal_text_layers, self.cross_modal_image_layers, strict=True):
            # Both look at what the other was before this layer.
            text, image = (
                states_of(text_layer(text, text_bias, encoder_hidden_states=image, encoder_attention_mask=image_bias)),
                states_of(image_layer(image, image_bias, encoder_hidden_states=text, encoder_attention_mask=text_bias)),
            )
        first = image[:, 0] if self.config.vision == "clip" else image.mean(1)
        return torch.cat([self.cross_modal_text_pooler(text[:, 0]), self.cross_modal_image_pooler(first)], 1)

    def forward(self, tokens: Tensor, token_mask: Tensor, pixels: Tensor) -> Tensor:
        """(B,) scores of texts with pictures, from ids and pixels."""
        return self.fuse(self.encode_text(tokens, token_mask), token_mask, self.encode_image(pixels))


def load_meter(path: Path, size: int = 384) -> Meter:
    """METER from a published checkpoint, CLIP or Swin.

    Positions of another picture size are resized bicubically. A file without ``rank_output.weight`` (a pre-trained one)
    ranks by row 1 of its matching head.

    Args:
        path: of the file.
        size: of the pictures' side in pixels that will be given.

    Raises:
        ModelError: if the file cannot be read, or lacks a tensor.
    """
    state = renamed(read_checkpoint(path, "state_dict"), modern)
    if "rank_output.weight" not in state and "itm_score.fc.weight" in state:
        state["rank_output.weight"], state["rank_output.bias"] = (
            state[f"itm_score.fc.{part}"][1:2].clone() for part in ("weight", "bias")
        )
    config = _config(state, size, path)

    def resized(wanted: State) -> State:
        found = dict(state)
        for name, value in state.items():
            if name == "vit_model.visual.positional_embedding" and name in wanted:
                found[name] = resize_positions(value, len(wanted[name]))
            elif name.endswith("relative_position_bias_table") and name in wanted:
                found[name] = resize_bias(value, len(wanted[name]))
        return found

    return build(lambda: Meter(config), state, path, LEFT_OVER, resized)


def _config(state: State, size: int, path: Path) -> MeterConfig:
    width, image_width = width_of(state, "cross_modal_image_transform.weight", path)
    vocabulary, _ = width_of(state, "text_transformer.embeddings.word_embeddings.weight", path)
    positions, _ = width_of(state, "text_transformer.embeddings.position_embeddings.weight", path)
    feed_forward, _ = width_of(state, "cross_modal_text_layers.0.intermediate.dense.weight", path)
    common = {
        "size": size,
        "width": width,
        "text_layers": count_layers(state, r"text_transformer\.encoder\.layer\.(\d+)\."),
        "fusion_layers": count_layers(state, r"cross_modal_text_layers\.(\d+)\."),
        "feed_forward": feed_forward,
        "vocabulary": vocabulary,
        "positions": positions,
    }
    if "vit_model.visual.conv1.weight" in state:
        patch = patch_of(state, "vit_model.visual.conv1.weight", path)
        blocks = count_layers(state, r"vit_model\.visual\.transformer\.resblocks\.(\d+)\.")
        return MeterConfig("clip", patch=patch, vision_width=image_width, vision_depths=(blocks,), **common)
    if "vit_model.patch_embed.proj.weight" in state:
        patch = patch_of(state, "vit_model.patch_embed.proj.weight", path)
        stages = count_layers(state, r"vit_model\.layers\.(\d+)\.")
        depths = tuple(count_layers(state, rf"vit_model\.layers\.{n}\.blocks\.(\d+)\.") for n in range(stages))
        if stages:
            # A window is as many tokens as the last stage has a side: 12 of 384 pixels, 7 of 224, as published.
            window = size // (patch << (stages - 1))
            width = image_width >> (stages - 1)
            return MeterConfig("swin", patch=patch, vision_width=width, vision_depths=depths, window=window, **common)
    raise ModelError(f"{path} has neither CLIP's nor Swin's vision tower: it is not a checkpoint of METER")
