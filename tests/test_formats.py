"""Every format against its own library: vectors of texts and of odd pictures agree to 1e-4."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from checkpoints import TEXTS, as_rgb, library_vectors, save_checkpoint, write_odd_pictures  # noqa: E402
from hivlp.encode import HiVLP  # noqa: E402

pytestmark = pytest.mark.train
FAMILIES = ["clip", "siglip", "metaclip_2", "align", "altclip", "chinese_clip"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HIVLP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_odd_pictures(tmp_path_factory.mktemp("pictures"))


def assert_same(model: HiVLP, expected, pictures) -> None:
    texts, images = expected
    assert np.abs(texts @ texts.T - 1).max() > 1e-2, "the checkpoint does not tell texts apart"
    np.testing.assert_allclose(model.encode_text(TEXTS).fine, texts, atol=1e-4)
    for text, row in zip(TEXTS, texts, strict=True):
        np.testing.assert_allclose(model.encode_text(text).fine[0], row, atol=1e-4)
    for (name, path), row in zip(pictures.items(), images, strict=True):
        np.testing.assert_allclose(model.encode_image([path]).fine[0], row, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_transformers_checkpoint_gives_its_librarys_vectors(kind, pickled, tmp_path, pictures):
    saved = save_checkpoint(tmp_path / kind, kind, pickled=pickled)
    model = HiVLP.from_pretrained(tmp_path / kind)
    assert_same(model, library_vectors(*saved, TEXTS, [as_rgb(path) for path in pictures.values()]), pictures)
