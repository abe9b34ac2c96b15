"""The curated table: short names for models that are worth their size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

IMMICH = "immich's table: mean of R@1, 5 and 10 on Crossmodal-3600, English"
OPEN_CLIP = "open_clip docs/openclip_retrieval_results.csv"
MOBILECLIP = "ml-mobileclip results/*.jsonl"
PERCEPTION = "perception_models apps/pe/README.md"

CARD = "its page on the hub"
ORIGINAL = "the hub's page of the original weights"
OPENAI = "the repository openai/CLIP; the hub's pages state none"
APPLE = "the repository apple/ml-mobileclip, LICENSE_MODELS"
META = "the repository facebookresearch/perception_models, apps/pe/README.md"
OTHERS = "public repositories that use it"
"""Where a licence or a revision is stated. No hub can be reached from where hivlp is developed: pages of the hub are
stored copies, and that several public repositories name a commit of a model is how it is known to exist."""


@dataclass(frozen=True)
class Entry:
    """A model of the table. What nobody has verified is None, or empty.

    Attributes:
        hub_id: ``owner/name`` of the repository that is fetched.
        format: in which it is kept there; ``onnx`` and ``textual-visual`` need no torch.
        licence: of the weights.
        licence_source: where it is stated; empty where that was not verified.
        languages: that texts may be in.
        dims: of its vectors.
        parameters_m: millions of parameters, image and text tower.
        recall: text→image R@1 on COCO (5,000 pictures) in percent, as published; or another figure, which
            ``recall_source`` names.
        recall_source: where it was published.
        revision: commit that is fetched; None for the newest at the first use, which is then pinned.
        revision_source: where the commit is stated.
    """

    hub_id: str
    format: str
    licence: str
    licence_source: str
    languages: str
    dims: int
    parameters_m: float | None = None
    recall: float | None = None
    recall_source: str = ""
    revision: str | None = None
    revision_source: str = ""

    def to_json(self) -> dict[str, Any]:
        """What ``hivlp models --json`` prints of it."""
        return asdict(self)


MODELS: Mapping[str, Entry] = {
    # Ready graphs: these need no torch.
    "clip-b32": Entry(
        "Xenova/clip-vit-base-patch32", "onnx", "MIT", OPENAI, "English", 512, 151, 30.4, OPEN_CLIP,
        "d15189d7028b43f1d3e65039190477f6af591c2a", OTHERS,
    ),
    "clip-b16": Entry("Xenova/clip-vit-base-patch16", "onnx", "MIT", OPENAI, "English", 512, 150, 33.1, OPEN_CLIP),
    "clip-l14": Entry("Xenova/clip-vit-large-patch14", "onnx", "MIT", OPENAI, "English", 768, 428, 36.5, OPEN_CLIP),
    "siglip-b16": Entry(
        "Xenova/siglip-base-patch16-224", "onnx", "Apache-2.0", ORIGINAL, "English", 768, 203, 47.8, OPEN_CLIP,
        "294847d6b5fe86c91330269da98ce112d6c75e7e", CARD,
    ),
    "siglip2-b16": Entry(
        "onnx-community/siglip2-base-patch16-224-ONNX", "onnx", "Apache-2.0", OTHERS, "many", 768, None, 75.2, IMMICH,
        "ba1f3b0843f24bc5417d38e19c37b287d719b2f4", OTHERS,
    ),
    "siglip2-b32": Entry(
        "immich-app/ViT-B-32-SigLIP2-256__webli", "textual-visual", "Apache-2.0", "", "many", 768, None, 73.2, IMMICH
    ),
    "siglip2-l16-512": Entry(
        "immich-app/ViT-L-16-SigLIP2-512__webli", "textual-visual", "Apache-2.0", "", "many", 1024, None, 75.4, IMMICH
    ),
    "xlm-roberta-b32": Entry(
        "immich-app/XLM-Roberta-Base-ViT-B-32__laion5b_s13b_b90k", "textual-visual", "MIT", OTHERS, "100", 512, 366,
        37.8, OPEN_CLIP,
    ),
    # Weights: converted once, with torch.
    "clip-b32-laion": Entry(
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "transformers", "MIT", OTHERS, "English", 512, 151, 39.3, OPEN_CLIP,
        "1a25a446712ba5ee05982a381eed697ef9b435cf", OTHERS,
    ),
    "siglip-so400m-384": Entry(
        "google/siglip-so400m-patch14-384", "transformers", "Apache-2.0", CARD, "English", 1152, 878, 54.2, OPEN_CLIP,
        "9fdffc58afc957d1a03a25b10dba0329ab15c2a3", CARD,
    ),
    "siglip2-b16-naflex": Entry(
        "google/siglip2-base-patch16-naflex", "transformers", "Apache-2.0", OTHERS, "many", 768,
        revision="b53b807d3a2d5e2b3911292f2d69e5341cdc064c", revision_source=OTHERS,
    ),
    "metaclip2-b32": Entry(
        "facebook/metaclip-2-worldwide-b32", "transformers", "CC-BY-NC-4.0", OTHERS, "329", 512
    ),
    "altclip": Entry(
        "BAAI/AltCLIP", "transformers", "CreativeML OpenRAIL-M", CARD, "English, Chinese", 768,
        revision="5bd7aeb416ce2d4ca223baa8fa119f15abea5ffb", revision_source=CARD,
    ),
    "chinese-clip-b16": Entry(
        "OFA-Sys/chinese-clip-vit-base-patch16", "transformers", "none stated", CARD, "Chinese", 512,
        revision="36e679e65c2a2fead755ae21162091293ad37834", revision_source=CARD,
    ),
    "align": Entry("kakaobrain/align-base", "transformers", "", "", "English", 640),
    # The same, with open_clip.
    "mobileclip2-s0": Entry(
        "timm/MobileCLIP2-S0-OpenCLIP", "open_clip", "Apple AMLR", APPLE, "English", 512, 74.8, 43.7, MOBILECLIP,
        "095906d28bf54d7584dc411e8ffe448f34289e05", OTHERS,
    ),
    "mobileclip2-s2": Entry(
        "timm/MobileCLIP2-S2-OpenCLIP", "open_clip", "Apple AMLR", APPLE, "English", 512, 99.1, 48.8, MOBILECLIP
    ),
    "pe-core-b16": Entry("timm/PE-Core-B-16", "open_clip", "Apache-2.0", META, "English", 1024, None, 50.9, PERCEPTION),
}  # fmt: skip
"""Short name -> model."""
