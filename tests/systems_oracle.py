"""Compared systems once more: the published names and shapes of their checkpoints, and their outputs in numpy.

Written from the descriptions of the published checkpoints alone, so that it shares nothing with ``hivlp.systems``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Shapes = dict[str, tuple[int, ...]]
State = dict[str, np.ndarray]


def linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def attention(name: str, width: int) -> Shapes:
    parts = [linear(f"{name}.self.{part}", width, width) for part in ("query", "key", "value")]
    return merged(*parts, linear(f"{name}.output.dense", width, width), norm(f"{name}.output.LayerNorm", width))


def layer(name: str, width: int, inner: int, *, cross: bool = False) -> Shapes:
    return merged(
        attention(f"{name}.attention", width),
        attention(f"{name}.crossattention", width) if cross else {},
        linear(f"{name}.intermediate.dense", inner, width),
        linear(f"{name}.output.dense", width, inner),
        norm(f"{name}.output.LayerNorm", width),
    )


def bert(prefix: str, layers: int, width: int, inner: int, vocabulary: int, positions: int, types: int) -> Shapes:
    return merged(
        {
            f"{prefix}embeddings.word_embeddings.weight": (vocabulary, width),
            f"{prefix}embeddings.position_embeddings.weight": (positions, width),
            f"{prefix}embeddings.token_type_embeddings.weight": (types, width),
        },
        norm(f"{prefix}embeddings.LayerNorm", width),
        *(layer(f"{prefix}encoder.layer.{number}", width, inner) for number in range(layers)),
        linear(f"{prefix}pooler.dense", width, width),
    )


def uniter(prefix: str, layers: int, width: int, inner: int, vocabulary: int, positions: int, features: int) -> Shapes:
    image = f"{prefix}img_embeddings"
    return merged(
        bert(prefix, layers, width, inner, vocabulary, positions, 2),
        linear(f"{image}.img_linear", width, features),
        norm(f"{image}.img_layer_norm", width),
        linear(f"{image}.pos_linear", width, 7),
        norm(f"{image}.pos_layer_norm", width),
        {f"{image}.mask_embedding.weight": (2, features)},
        norm(f"{image}.LayerNorm", width),
    )


def uniter_ranker(*size: int) -> Shapes:
    width = size[1]
    return merged(uniter("uniter.", *size), linear("itm_output", 2, width), linear("rank_output", 1, width))


def lightningdot(*size: int) -> Shapes:
    layers, width, inner, vocabulary, positions, _ = size
    heads: list[Shapes] = []
    for side in ("img_model", "txt_model"):
        head = f"{side}.encode_proj"
        heads += [
            linear(f"{head}.0", 2 * width, width),
            norm(f"{head}.2", 2 * width),
            linear(f"{head}.3", width, 2 * width),
        ]
    text = bert("txt_model.bert.", layers, width, inner, vocabulary, positions, 2)
    return merged(uniter("img_model.bert.", *size), text, *heads)


def clip(blocks: int, width: int, patch: int, grid: int) -> Shapes:
    prefix = "vit_model.visual."
    found = {
        f"{prefix}class_embedding": (width,),
        f"{prefix}positional_embedding": (1 + grid**2, width),
        f"{prefix}conv1.weight": (width, 3, patch, patch),
    } | merged(norm(f"{prefix}ln_pre", width), norm(f"{prefix}ln_post", width))
    for number in range(blocks):
        block = f"{prefix}transformer.resblocks.{number}"
        found |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        found |= merged(
            linear(f"{block}.attn.out_proj", width, width),
            norm(f"{block}.ln_1", width),
            linear(f"{block}.mlp.c_fc", 4 * width, width),
            linear(f"{block}.mlp.c_proj", width, 4 * width),
            norm(f"{block}.ln_2", width),
        )
    return found


def swin(depths: tuple[int, ...], width: int, patch: int, window: int) -> Shapes:
    prefix = "vit_model."
    found: Shapes = {f"{prefix}patch_embed.proj.weight": (width, 3, patch, patch)}
    found |= {f"{prefix}patch_embed.proj.bias": (width,)} | norm(f"{prefix}patch_embed.norm", width)
    for stage, depth in enumerate(depths):
        size = width << stage
        for number in range(depth):
            block = f"{prefix}layers.{stage}.blocks.{number}"
            found[f"{block}.attn.relative_position_bias_table"] = ((2 * window - 1) ** 2, max(1, size // 32))
            found |= merged(
                norm(f"{block}.norm1", size),
                linear(f"{block}.attn.qkv", 3 * size, size),
                linear(f"{block}.attn.proj", size, size),
                norm(f"{block}.norm2", size),
                linear(f"{block}.mlp.fc1", 4 * size, size),
                linear(f"{block}.mlp.fc2", size, 4 * size),
            )
        if stage < len(depths) - 1:
            found[f"{prefix}layers.{stage}.downsample.reduction.weight"] = (2 * size, 4 * size)
            found |= norm(f"{prefix}layers.{stage}.downsample.norm", 4 * size)
    return found | norm(f"{prefix}norm", width << (len(depths) - 1))


def meter(
    vision: Shapes, image_width: int, layers: int, fusion: int, width: int, inner: int, vocabulary: int, positions: int
) -> Shapes:
    streams = [
        layer(f"cross_modal_{side}_layers.{number}", width, inner, cross=True)
        for side in ("image", "text")
        for number in range(fusion)
    ]
    return merged(
        vision,
        bert("text_transformer.", layers, width, inner, vocabulary, positions, 1),
        linear("cross_modal_text_transform", width, width),
        linear("cross_modal_image_transform", width, image_width),
        {"token_type_embeddings.weight": (2, width)},
        *streams,
        linear("cross_modal_image_pooler.dense", width, width),
        linear("cross_modal_text_pooler.dense", width, width),
        linear("itm_score.fc", 2, 2 * width),
        linear("rank_output", 1, 2 * width),
    )


def albef(
    blocks: int, vision_width: int, patch: int, grid: int, layers: int, first: int, inner: int, vocabulary: int,
    positions: int, dim: int, width: int = 64,
) -> Shapes:  # fmt: skip
    found: Shapes = {
        "visual_encoder.cls_token": (1, 1, vision_width),
        "visual_encoder.pos_embed": (1, 1 + grid**2, vision_width),
        "visual_encoder.patch_embed.proj.weight": (vision_width, 3, patch, patch),
        "visual_encoder.patch_embed.proj.bias": (vision_width,),
    } | norm("visual_encoder.norm", vision_width)
    for number in range(blocks):
        block = f"visual_encoder.blocks.{number}"
        found |= merged(
            norm(f"{block}.norm1", vision_width),
            linear(f"{block}.attn.qkv", 3 * vision_width, vision_width),
            linear(f"{block}.attn.proj", vision_width, vision_width),
            norm(f"{block}.norm2", vision_width),
            linear(f"{block}.mlp.fc1", 4 * vision_width, vision_width),
            linear(f"{block}.mlp.fc2", vision_width, 4 * vision_width),
        )
    words = bert("text_encoder.", 0, width, inner, vocabulary, positions, 2)
    return merged(
        found,
        {name: shape for name, shape in words.items() if "pooler" not in name},
        *(
            layer(f"text_encoder.encoder.layer.{number}", width, inner, cross=number >= first)
            for number in range(layers)
        ),
        linear("vision_proj", dim, vision_width),
        linear("text_proj", dim, width),
        linear("itm_head", 2, width),
    )


def merged(*parts: Shapes) -> Shapes:
    found: Shapes = {}
    for part in parts:
        assert not found.keys() & part.keys()
        found |= part
    return found


def numbers(shapes: Shapes) -> int:
    """How many numbers tensors of these shapes hold."""
    return sum(math.prod(shape) for shape in shapes.values())


def random_state(shapes: Shapes, seed: int = 0) -> State:
    """Random tensors of moderate size, float32; normalisations near their usual weight."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(0, 0.15, shape) + ("orm" in name or ".ln_" in name) * name.endswith("weight")).astype("f4")
        for name, shape in shapes.items()
    }


# The systems in numpy, float64.


class Oracle:
    """A system's parts, computed from a checkpoint's tensors."""

    def __init__(self, state: State, head: int = 64) -> None:
        self.state, self.head = {name: value.astype(np.float64) for name, value in state.items()}, head

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.state[f"{name}.weight"].T + self.state.get(f"{name}.bias", 0)

    def norm(self, name: str, x: np.ndarray, eps: float) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def mix(self, query: np.ndarray, key: np.ndarray, value: np.ndarray, bias: Any = 0) -> np.ndarray:
        """(n, width), (m, width), (m, width) -> (n, width); bias (heads, n, m)."""
        heads = max(1, query.shape[1] // self.head)
        split = [part.reshape(len(part), heads, -1).transpose(1, 0, 2) for part in (query, key, value)]
        logits = split[0] @ split[1].transpose(0, 2, 1) / np.sqrt(split[0].shape[-1]) + bias
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ split[2]
        return mixed.transpose(1, 0, 2).reshape(len(query), -1)

    def attention(self, name: str, x: np.ndarray, other: np.ndarray, eps: float) -> np.ndarray:
        query = self.linear(f"{name}.self.query", x)
        key, value = (self.linear(f"{name}.self.{part}", other) for part in ("key", "value"))
        mixed = self.linear(f"{name}.output.dense", self.mix(query, key, value))
        return self.norm(f"{name}.output.LayerNorm", mixed + x, eps)

    def layer(self, name: str, x: np.ndarray, eps: float, other: np.ndarray | None = None) -> np.ndarray:
        x = self.attention(f"{name}.attention", x, x, eps)
        if other is not None:
            x = self.attention(f"{name}.crossattention", x, other, eps)
        inner = gelu(self.linear(f"{name}.intermediate.dense", x))
        return self.norm(f"{name}.output.LayerNorm", self.linear(f"{name}.output.dense", inner) + x, eps)

    def stack(self, prefix: str, x: np.ndarray, layers: int, eps: float) -> np.ndarray:
        for number in range(layers):
            x = self.layer(f"{prefix}encoder.layer.{number}", x, eps)
        return x

    def words(self, prefix: str, tokens: list[int], eps: float, first: int = 0) -> np.ndarray:
        table = {part: self.state[f"{prefix}embeddings.{part}_embeddings.weight"] for part in ("word", "position")}
        types = self.state[f"{prefix}embeddings.token_type_embeddings.weight"][0]
        x = table["word"][tokens] + table["position"][first : first + len(tokens)] + types
        return self.norm(f"{prefix}embeddings.LayerNorm", x, eps)

    def regions(self, prefix: str, features: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        image = f"{prefix}img_embeddings"
        seen = self.norm(f"{image}.img_layer_norm", self.linear(f"{image}.img_linear", features), 1e-12)
        placed = self.norm(f"{image}.pos_layer_norm", self.linear(f"{image}.pos_linear", boxes), 1e-12)
        types = self.state[f"{prefix}embeddings.token_type_embeddings.weight"][1]
        return self.norm(f"{image}.LayerNorm", seen + placed + types, 1e-12)

    def uniter_score(self, tokens: list[int], features: np.ndarray, boxes: np.ndarray, layers: int) -> float:
        """One pair by itself, so that there is no padding at all."""
        x = np.concatenate([self.words("uniter.", tokens, 1e-12), self.regions("uniter.", features, boxes)])
        x = self.stack("uniter.", x, layers, 1e-12)
        return float(self.linear("rank_output", np.tanh(self.linear("uniter.pooler.dense", x[:1])))[0, 0])

    def project(self, side: str, x: np.ndarray) -> np.ndarray:
        inner = self.norm(f"{side}.encode_proj.2", gelu(self.linear(f"{side}.encode_proj.0", x)), 1e-12)
        return self.linear(f"{side}.encode_proj.3", inner)

    def lightningdot_image(self, features: np.ndarray, boxes: np.ndarray, layers: int) -> np.ndarray:
        prefix = "img_model.bert."
        x = np.concatenate([self.words(prefix, [101], 1e-12), self.regions(prefix, features, boxes)])
        return self.project("img_model", self.stack(prefix, x, layers, 1e-12)[:1])[0]

    def lightningdot_text(self, tokens: list[int], layers: int) -> np.ndarray:
        prefix = "txt_model.bert."
        x = self.stack(prefix, self.words(prefix, tokens, 1e-12), layers, 1e-12)
        return self.project("txt_model", x[:1])[0]

    def clip(self, pixels: np.ndarray, blocks: int) -> np.ndarray:
        """(3, side, side) -> (1 + patches, width)."""
        prefix = "vit_model.visual."
        kernel = self.state[f"{prefix}conv1.weight"]
        x = patches(pixels, kernel)
        x = np.concatenate([self.state[f"{prefix}class_embedding"][None], x])
        x = self.norm(f"{prefix}ln_pre", x + self.state[f"{prefix}positional_embedding"], 1e-5)
        for number in range(blocks):
            block = f"{prefix}transformer.resblocks.{number}"
            normed = self.norm(f"{block}.ln_1", x, 1e-5)
            joined = normed @ self.state[f"{block}.attn.in_proj_weight"].T + self.state[f"{block}.attn.in_proj_bias"]
            x = x + self.linear(f"{block}.attn.out_proj", self.mix(*np.split(joined, 3, 1)))
            inner = self.linear(f"{block}.mlp.c_fc", self.norm(f"{block}.ln_2", x, 1e-5))
            x = x + self.linear(f"{block}.mlp.c_proj", inner / (1 + np.exp(-1.702 * inner)))
        return self.norm(f"{prefix}ln_post", x, 1e-5)

    def swin(self, pixels: np.ndarray, depths: tuple[int, ...], window: int) -> np.ndarray:
        """(3, side, side) -> (tokens, width); token by token, each block's window and shift by its definition."""
        kernel = self.state["vit_model.patch_embed.proj.weight"]
        patch, side = kernel.shape[-1], pixels.shape[-1] // kernel.shape[-1]
        grid = np.empty((side, side, len(kernel)))
        for row in range(side):
            for column in range(side):
                cell = pixels[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                grid[row, column] = kernel.reshape(len(kernel), -1) @ cell.ravel()
        grid = self.norm("vit_model.patch_embed.norm", grid + self.state["vit_model.patch_embed.proj.bias"], 1e-5)
        for stage, depth in enumerate(depths):
            for number in range(depth):
                grid = self._swin_block(f"vit_model.layers.{stage}.blocks.{number}", grid, window, bool(number % 2))
            if stage < len(depths) - 1:
                name = f"vit_model.layers.{stage}.downsample"
                joined = [grid[0::2, 0::2], grid[1::2, 0::2], grid[0::2, 1::2], grid[1::2, 1::2]]
                grid = self.linear(f"{name}.reduction", self.norm(f"{name}.norm", np.concatenate(joined, -1), 1e-5))
        return self.norm("vit_model.norm", grid, 1e-5).reshape(-1, grid.shape[-1])

    def _swin_block(self, name: str, grid: np.ndarray, window: int, shifted: bool) -> np.ndarray:
        side, width = len(grid), grid.shape[-1]
        shift = window // 2 if shifted and side > window else 0
        normed = self.norm(f"{name}.norm1", grid, 1e-5)
        query, key, value = np.split(self.linear(f"{name}.attn.qkv", normed), 3, -1)
        table = self.state[f"{name}.attn.relative_position_bias_table"]
        heads, mixed = table.shape[1], np.empty_like(grid)
        # Windows begin at `shift`, and tokens before that are in those that the edge cuts off.
        part = [(each - shift) // window for each in range(side)]
        for row in range(side):
            for column in range(side):
                near = [
                    (r, c) for r in range(side) for c in range(side) if (part[r], part[c]) == (part[row], part[column])
                ]
                offset = [(row - r + window - 1) * (2 * window - 1) + column - c + window - 1 for r, c in near]
                keys, values = (np.stack([source[place] for place in near]) for source in (key, value))
                bias = table[offset].T[:, None, :]
                mixed[row, column] = self.mix(query[row, column][None], keys, values, bias)[0]
        assert heads == max(1, width // self.head)
        grid = grid + self.linear(f"{name}.attn.proj", mixed)
        inner = gelu(self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", grid, 1e-5)))
        return grid + self.linear(f"{name}.mlp.fc2", inner)

    def albef_score(self, tokens: list[int], pixels: np.ndarray, blocks: int, layers: int, first: int) -> float:
        """One pair by itself."""
        prefix = "visual_encoder."
        kernel = self.state[f"{prefix}patch_embed.proj.weight"]
        y = patches(pixels, kernel) + self.state[f"{prefix}patch_embed.proj.bias"]
        y = np.concatenate([self.state[f"{prefix}cls_token"][0], y]) + self.state[f"{prefix}pos_embed"][0]
        for number in range(blocks):
            block = f"{prefix}blocks.{number}"
            joined = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", y, 1e-6))
            y = y + self.linear(f"{block}.attn.proj", self.mix(*np.split(joined, 3, 1)))
            inner = gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", y, 1e-6)))
            y = y + self.linear(f"{block}.mlp.fc2", inner)
        y = self.norm(f"{prefix}norm", y, 1e-6)
        x = self.words("text_encoder.", tokens, 1e-12)
        for number in range(layers):
            x = self.layer(f"text_encoder.encoder.layer.{number}", x, 1e-12, y if number >= first else None)
        return float(self.linear("itm_head", x[:1])[0, 1])

    def meter_score(self, tokens: list[int], image: np.ndarray, layers: int, fusion: int, pool: str) -> float:
        """One pair by itself, from what the vision tower gave."""
        # RoBERTa's positions begin after that of its padding, id 1.
        x = self.stack("text_transformer.", self.words("text_transformer.", tokens, 1e-5, 2), layers, 1e-5)
        types = self.state["token_type_embeddings.weight"]
        x = self.linear("cross_modal_text_transform", x) + types[0]
        y = self.linear("cross_modal_image_transform", image) + types[1]
        for number in range(fusion):
            text, picture = f"cross_modal_text_layers.{number}", f"cross_modal_image_layers.{number}"
            x, y = self.layer(text, x, 1e-12, y), self.layer(picture, y, 1e-12, x)
        first = y[:1] if pool == "first" else y.mean(0, keepdims=True)
        pooled = [
            np.tanh(self.linear("cross_modal_text_pooler.dense", x[:1])),
            np.tanh(self.linear("cross_modal_image_pooler.dense", first)),
        ]
        return float(self.linear("rank_output", np.concatenate(pooled, 1))[0, 0])


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def patches(pixels: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(3, side, side), (width, 3, patch, patch) -> (patches, width), row by row."""
    patch, count = kernel.shape[-1], pixels.shape[-1] // kernel.shape[-1]
    cells = [
        pixels[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch].ravel()
        for row in range(count)
        for column in range(count)
    ]
    return np.stack(cells) @ kernel.reshape(len(kernel), -1).T
