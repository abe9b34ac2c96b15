"""A hivlp model as ``mteb`` runs one: its image-text tasks (retrieval, classification, pairs) ask for vectors.

    import mteb
    from hivlp import HiVLP
    from hivlp.evaluate.mteb_model import MtebModel

    mteb.evaluate(MtebModel(HiVLP.from_pretrained("hivlp-mini")), mteb.get_tasks(["Flickr30kT2IRetrieval"]))

Tasks are fetched by ``mteb`` from its hub; prompts that they name are not used, as dual encoders have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hivlp.encode.base import Encoder, check_encoder
from hivlp.errors import DataError, MissingExtraError
from hivlp.levels import Vectors


class MtebModel:
    """An encoder of ``mteb`` (2.0 or newer) over one level of a hivlp model.

    Attributes:
        model: the hivlp model.
        level: whose vectors are given.
        mteb_model_meta: what results are filed under: ``hivlp/NAME-LEVEL``, the fingerprint as revision.
    """

    def __init__(self, model: Encoder, level: str | None = None) -> None:
        """Wrap a model.

        Args:
            model: a loaded model.
            level: name of one of its levels; None for the finest.

        Raises:
            ArgumentError: if it is no loaded model.
            DataError: if it has no such level.
            MissingExtraError: if ``mteb`` is not installed.
        """
        check_encoder(model)
        dims = {each.name: each.dim for each in model.levels}
        level = level or model.levels[-1].name
        if level not in dims:
            raise DataError(f"{model.name} has no level {level!r:.40}: choose from {', '.join(dims)}")
        try:
            from mteb.models import ModelMeta
        except ImportError as error:
            raise MissingExtraError("mteb's tasks", "interop") from error
        self.model, self.level = model, level
        name = model.name.replace("/", "-")
        unknown = ("release_date", "n_parameters", "memory_usage_mb", "max_tokens", "license", "open_weights",
                   "public_training_code", "public_training_data", "training_datasets")  # fmt: skip
        self.mteb_model_meta = ModelMeta(
            loader=None, name=f"hivlp/{name}-{level}", revision=model.fingerprint[:40], languages=None,
            embed_dim=dims[level], framework=["ONNX"], similarity_fn_name="cosine", use_instructions=False,
            modalities=["text", "image"], **dict.fromkeys(unknown),
        )  # fmt: skip

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **options: Any,
    ) -> Vectors:
        """(N, dim) float32 unit vectors of texts or of pictures; of items with both, the unit mean of the two.

        Args:
            inputs: batches with ``text``, a list of str, or ``image``, a list of PIL images, or both.
            task_metadata: of the task; not used, as are the arguments below.
            hf_split: of the task.
            hf_subset: of the task.
            prompt_type: query or document.
            options: such as the batch size, which the model chooses itself.

        Raises:
            DataError: if a batch has neither.
        """
        return np.concatenate([self._encode(batch) for batch in inputs])

    def _encode(self, batch: Mapping[str, Any]) -> Vectors:
        sides = []
        if batch.get("text"):
            sides.append(self.model.encode_text(list(batch["text"]), levels=[self.level])[self.level])
        if batch.get("image"):
            sides.append(self.model.encode_image(list(batch["image"]))[self.level])
        if not sides:
            raise DataError(f"mteb gave neither text nor image, but {', '.join(batch) or 'nothing'}")
        return sides[0] if len(sides) == 1 else _unit(sides[0] + sides[1])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """(N, M) cosines of two (N, dim) and (M, dim) arrays of vectors, as a torch tensor."""
        import torch

        return torch.from_numpy(_unit(embeddings1) @ _unit(embeddings2).T)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """(N,) cosines of the rows of two (N, dim) arrays, as a torch tensor."""
        import torch

        return torch.from_numpy((_unit(embeddings1) * _unit(embeddings2)).sum(1))


def _unit(vectors: Any) -> Vectors:
    rows: Vectors = np.atleast_2d(np.asarray(vectors, np.float32))
    unit: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return unit
