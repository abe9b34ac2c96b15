"""Each kind of tower, sharded over two processes and with checkpointed activations, trains as it does whole."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("yaml")

from synthetic import shapes_recipe  # noqa: E402
from test_train import assert_same_losses, finished, run_train  # noqa: E402

pytestmark = [pytest.mark.train, pytest.mark.slow]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VIT = {"image_size": 32, "patch": 16, "width": 16, "depth": 2, "heads": 2, "registers": 1}
TOWERS = {
    "vit": ({"kind": "vit", "options": VIT}, None),
    "transformers": (
        {"kind": "transformers", "options": {"model_type": "vit", "image_size": 32, "patch_size": 16, **SMALL}},
        {"kind": "transformers", "options": {"model_type": "roberta", "max_position_embeddings": 16, **SMALL}},
    ),
}


@pytest.mark.parametrize("towers", TOWERS)
def test_it_trains_as_it_does_whole(tmp_path, towers):
    recipe = shapes_recipe(tmp_path)
    image, text = TOWERS[towers]
    recipe["image_tower"] = image
    if text is not None:
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        vocabulary = recipe["text_tower"]["options"]["vocab_size"]
        recipe["text_tower"] = {**text, "options": {**text["options"], **dropout, "vocab_size": vocabulary}}
    for level, layer in zip(recipe["levels"], (1, 2), strict=True):
        level["image_layer"] = level["text_layer"] = layer
    recipe["optim"] |= {"tower_lr": 1e-3, "feature_dropout": {}, "lr": 1e-3, "epochs": 1, "clip": 1.0}
    finished(run_train(tmp_path, recipe, "whole"))
    recipe["compute"] = {"shard": True, "checkpoint_activations": True}
    finished(run_train(tmp_path, recipe, "shared", processes=2))
    assert_same_losses(tmp_path, "whole", "shared", 4)
