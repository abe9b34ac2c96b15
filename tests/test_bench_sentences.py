from pathlib import Path

import numpy as np
import pytest

from hivlp.bench.ann import sentences
from hivlp.bench.ann.collection import Collection
from hivlp.bench.ann.documents import Documents
from hivlp.bench.ann.sentences import read_sentences
from hivlp.bench.ann.truth import exact
from synthetic import FakeEncoder

TEXTS = Documents([f"sentence {n}" for n in range(95)], *([f"{part} {n}" for n in range(12)] for part in "abc"))
QUERIES = [*TEXTS.test, *TEXTS.validation, *TEXTS.train]


class Encoder(FakeEncoder):
    """Counts what it encodes, and may stop."""

    def __init__(self, most: int = 10**6) -> None:
        super().__init__()
        self.asked: list[str] = []
        self._most = most

    def encode_text(self, texts, *, levels=None):
        if len(self.asked) + len(texts) > self._most:
            raise KeyboardInterrupt
        self.asked += texts
        return super().encode_text(texts, levels=levels)


def read(encoder: Encoder, count: int = 95) -> Collection:
    return read_sentences(encoder, count, lambda: TEXTS)


@pytest.fixture(autouse=True)
def small_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIVLP_CACHE", str(tmp_path))
    monkeypatch.setattr(sentences, "PART", 10)
    monkeypatch.setattr(sentences, "default_workers", lambda: 1)


def test_a_collection_holds_every_text_in_order_and_exact_answers() -> None:
    made = read(Encoder())
    expected = FakeEncoder()
    for name, texts in {
        "items": TEXTS.sentences, "queries": TEXTS.test, "validation": TEXTS.validation, "train": TEXTS.train,
    }.items():  # fmt: skip
        found, wanted = made.read(f"{name}.npy"), expected.encode_text(texts)["fine"]
        assert found.shape == wanted.shape and np.allclose(found, wanted, atol=1e-3)
    assert made.read("items.npy").dtype == np.float16
    assert (made.read("truth.npy") == exact(made.read("items.npy"), np.array(made.read("queries.npy")))).all()


def test_who_was_interrupted_goes_on_where_it_stopped() -> None:
    first, second, third = Encoder(70), Encoder(), Encoder()
    with pytest.raises(KeyboardInterrupt):
        read(first)
    made = read(second)
    assert first.asked and sorted(first.asked + second.asked) == sorted(QUERIES + TEXTS.sentences)
    assert read(third) == made and third.asked == []


def test_fewer_are_the_first_ones_and_more_are_encoded_beside_them() -> None:
    first, second, third = Encoder(), Encoder(), Encoder()
    fewer = np.array(read(first, 30).read("items.npy"))
    more = read(second, 55)
    assert first.asked == QUERIES + TEXTS.sentences[:30] and second.asked == TEXTS.sentences[30:55]
    assert (np.array(more.read("items.npy"))[:30] == fewer).all()
    assert read(third, 10**6).read("items.npy").shape[0] == 95
    assert third.asked == TEXTS.sentences[50:]  # the last part was not a full one


def test_what_was_damaged_is_made_again() -> None:
    made = read(Encoder())
    items = np.array(made.read("items.npy"))
    path, part = made.folder / "items.npy", made.folder.parent / "parts" / "items-20.npz"
    for each in (path, part):
        data = bytearray(each.read_bytes())
        data[len(data) // 2] ^= 1
        each.write_bytes(data)
    assert not made.is_whole()
    again = Encoder()
    assert (np.array(read(again).read("items.npy")) == items).all()
    assert again.asked == TEXTS.sentences[20:30] and made.is_whole()
    part.unlink()
    (made.folder / "train.npy").unlink()
    assert not made.is_whole()
    assert read(Encoder()).is_whole()


def test_another_model_or_other_texts_have_their_own_folder() -> None:
    other = Documents(TEXTS.sentences[1:], TEXTS.test, TEXTS.validation, TEXTS.train)
    model = Encoder()
    model.fingerprint = "f" * 32
    folders = [made.folder for made in (read(Encoder()), read(model), read_sentences(Encoder(), 95, lambda: other))]
    assert len({folder.parent for folder in folders}) == 3
