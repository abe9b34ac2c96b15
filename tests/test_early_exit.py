"""What an early exit saves: the measurement itself, and that an early layer costs less."""

from pathlib import Path

import pytest

from hivlp.bench.early_exit import adaptive_exit, run
from hivlp.encode import HiVLP
from hivlp.levels import Embeddings
from synthetic import unit


def test_the_surest_stop_first_and_keep_what_the_coarse_level_says():
    # The coarse level is sure of text 0, and right; it is unsure of text 1, and wrong; the fine level is right of both.
    images = Embeddings({"coarse": unit([[1, 0], [0, 1]]), "fine": unit([[1, 0], [0, 1]])})
    texts = Embeddings({"coarse": unit([[1, 0], [1, 0.9]]), "fine": unit([[1, 0], [0, 1]])})
    rows = adaptive_exit(images, texts, deeper_ms=2.0)
    assert [(row["share"], row["R@1"]) for row in rows] == [
        (0.0, 100.0), (0.1, 100.0), (0.25, 100.0), (0.5, 100.0), (0.75, 50.0), (1.0, 50.0)
    ]  # fmt: skip
    assert rows[0]["margin"] is None and rows[3]["margin"] == pytest.approx(1.0)
    assert rows[3]["saved_ms"] == 1.0 and all(row["R@10"] == 100.0 for row in rows)


@pytest.mark.slow
@pytest.mark.stamps
@pytest.mark.skipif(not Path("/usr/share/tuxpaint/stamps").is_dir(), reason="the Tux Paint stamps are not installed")
def test_the_measurement_on_the_model_that_ships():
    result = run(HiVLP.from_pretrained("hivlp-mini"), queries=20)
    assert set(result.encode_ms) == {"coarse", "fine"} and min(result.encode_ms.values()) > 0
    assert result.exit[-1]["R@10"] <= result.exit[0]["R@10"]
    assert "overlap saves" in result.to_text()


@pytest.mark.train
def test_an_early_layer_costs_less():
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from hivlp.model.hivlp_model import HiVLPModel
    from synthetic import tiny_config

    model = HiVLPModel(tiny_config()).eval()
    pixels, tokens = torch.zeros(1, 3, 32, 32), torch.ones(1, 8, dtype=torch.int64)

    def flops(side: str, layer: int) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            if side == "image":
                model.image_tower(pixels, (layer,))
            else:
                model.text_tower(tokens, tokens, (layer,))
        return int(counter.get_total_flops())

    text = [flops("text", layer) for layer in (1, 2, 3)]
    assert text[1] == 2 * text[0] and text[2] == 3 * text[0]
    image = [flops("image", layer) for layer in range(1, 9)]
    assert image == sorted(image) and len(set(image)) == 8
