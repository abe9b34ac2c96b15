"""Systems of the published sizes with random weights: how long they take does not depend on what they have learnt."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hivlp.config import TEXT_GRAPH, HiVLPConfig, PictureConfig, TextConfig, TowerConfig
from hivlp.data.texts import TextTokenizer
from hivlp.encode import HiVLP
from hivlp.files.scratch import scratch_folder
from hivlp.levels import Level
from hivlp.systems.albef import Albef
from hivlp.systems.lightningdot import CLS, LightningDot
from hivlp.systems.meter import Meter
from hivlp.systems.uniter import Regions, UniterRanker

CAPTIONS = (
    "a young man in a blue shirt rides a skateboard down stairs",
    "two brown dogs play with a yellow ball on the green grass",
    "an old woman sells fresh fruit at a small market in town",
    "a red train passes a wooden station under a bright cloudy sky",
    "three children build a large castle of sand on the sunny beach",
    "a cat sleeps on top of a black laptop near the window",
    "people wait with their umbrellas at a busy crossing in the rain",
    "a plate of rice and vegetables stands on a white kitchen table",
)
"""Twelve words each, as long as a caption of Flickr30k; the first and the last token make fourteen."""
REGIONS = 36
"""Of a picture: as many as the fixed set of UNITER's features has."""
VOCABULARY = 28_996


def tokenizer(folder: Path) -> Path:
    """A ``tokenizer.json`` of the captions' words, with BERT's ids of [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    ids = {"[PAD]": 0, "[UNK]": 100, "[CLS]": CLS, "[SEP]": 102} | {word: 1000 + n for n, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    made.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", 102)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    made.save(str(path))
    return path


class Published:
    """The published systems with random weights; each is made when it is first asked for.

    Attributes:
        tokens: of the captions' words.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is made yet.

        Args:
            folder: for the tokenizer.
        """
        torch.manual_seed(0)
        self.tokens = TextTokenizer(tokenizer(folder), TextConfig(max_tokens=64))
        self._made: dict[str, Any] = {}

    def ids(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """(B, 14) int64 ids and a bool mask."""
        ids, mask = self.tokens(texts)
        return torch.from_numpy(ids), torch.from_numpy(mask).bool()

    def regions(self, count: int) -> Regions:
        """Random regions of some pictures."""
        features, boxes = torch.randn(count, REGIONS, 2048), torch.rand(count, REGIONS, 7)
        return Regions(features, boxes, torch.ones(count, REGIONS, dtype=torch.bool))

    def get(self, cls: Any, *arguments: Any) -> Any:
        """A system, which is held until :meth:`drop`; each takes about a gigabyte."""
        if cls.__name__ not in self._made:
            self._made[cls.__name__] = cls(*arguments).eval().requires_grad_(False)
        return self._made[cls.__name__]

    def drop(self) -> None:
        """Let go of the systems that are held."""
        self._made = {}

    def lightningdot_text(self, texts: list[str]) -> NDArray[np.float32]:
        """(B, 768) vectors by LightningDOT's text tower."""
        vectors: NDArray[np.float32] = self.get(LightningDot).encode_text(*self.ids(texts)).numpy()
        return vectors

    def lightningdot_picture(self, regions: Regions) -> NDArray[np.float32]:
        """(B, 768) vectors by LightningDOT's image tower."""
        vectors: NDArray[np.float32] = self.get(LightningDot).encode_regions(regions).numpy()
        return vectors

    def uniter(self, texts: list[str], regions: Regions) -> Tensor:
        """(B,) scores by UNITER-base."""
        model = self.get(UniterRanker)
        scores: Tensor = model(*self.ids(texts), model.uniter.embed_regions(regions), regions.mask)
        return scores

    def meter(self, texts: list[str], pixels: Tensor) -> Tensor:
        """(B,) scores by METER, CLIP-B/16 at 384 pixels, as its script computes them: all of it for each pair."""
        scores: Tensor = self.get(Meter)(*self.ids(texts), pixels)
        return scores

    def albef(self) -> Albef:
        """ALBEF at 384 pixels."""
        model: Albef = self.get(Albef)
        return model

    def clip(self) -> Any:
        """CLIP ViT-B/32 of ``transformers``."""
        from transformers import CLIPConfig, CLIPModel

        return self.get(CLIPModel, CLIPConfig())


def same_tower(folder: Path) -> HiVLP:
    """A hivlp model with LightningDOT's text tower, twelve layers of BERT, and its graph as ``hivlp export`` writes it.

    Args:
        folder: of the model; what is there is taken as it is.
    """
    from hivlp.export.graphs import export
    from hivlp.model.hivlp_model import HiVLPModel

    if not (folder / TEXT_GRAPH).is_file():
        bert = {"vocab_size": VOCABULARY, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
                "intermediate_size": 3072, "layer_norm_eps": 1e-12}  # fmt: skip
        config = HiVLPConfig(
            name="hivlp-12-layers",
            levels=(Level("fine", 768, 4, 12),),
            image_tower=TowerConfig("convnet", {}, {"fine": "linear"}),
            text_tower=TowerConfig("bert", bert, {"fine": "linear"}),
            picture=PictureConfig(size=64),
            text=TextConfig(max_tokens=64),
        )
        torch.manual_seed(0)
        HiVLPModel(config).save_pretrained(folder, tokenizer(folder / "words"))
        export(folder)
    return HiVLP.from_pretrained(folder)


def int8_tower(folder: Path, out: Path) -> HiVLP:
    """The same model as ``hivlp export --precision int8`` writes it.

    Args:
        folder: of :func:`same_tower`.
        out: of the new model; what is there is taken as it is.
    """
    from hivlp.export.graphs import export
    from hivlp.formats.conversion import shipped_captions

    if not out.is_dir():
        with scratch_folder(out) as scratch:
            made = scratch / "model"
            shutil.copytree(folder, made, ignore=shutil.ignore_patterns("*.onnx", "*.bin", "words"))
            export(made, texts=shipped_captions())
            made.replace(out)
    return HiVLP.from_pretrained(out)


def flops(call: Any) -> int:
    """Floating-point operations of a call of torch's."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())
