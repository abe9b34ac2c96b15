"""The measurement of models: its rows, on networks small enough for a test."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from hivlp.bench import models
from hivlp.cli import main

pytestmark = pytest.mark.train
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_each_architecture_has_a_row_in_each_precision_beside_the_plain_way(monkeypatch, capsys):
    tiny = {"text_config": {**SMALL, "projection_dim": 16}, "vision_config": {**SMALL, "patch_size": 56}}
    for name, kind in (("CLIP ViT-B/32", "CLIP"), ("SigLIP B/16", "Siglip")):
        settings = tiny if kind == "Siglip" else {**tiny, "projection_dim": 16}
        monkeypatch.setitem(models._CONFIGS, name, (kind, settings))
    assert main(["bench", "models", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(row["architecture"], row["precision"]) for row in report["rows"]] == [
        (name, precision) for name in ("CLIP ViT-B/32", "SigLIP B/16") for precision in ("float32", "int8")
    ]
    for row in report["rows"]:
        assert row["cosine"] > 0.99 and (row["precision"] == "int8" or row["cosine"] > 0.99999)
        assert row["text_speedup"] == pytest.approx(row["plain_query_ms"] / row["query_ms"], rel=0.1)
        assert row["pictures_a_second"] > 0 and row["plain_pictures_a_second"] > 0
    assert models.ModelsReport(**{**report, "rows": [models.ModelRow(**row) for row in report["rows"]]}).to_text()
