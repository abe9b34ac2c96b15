"""Which files show the same picture, and that nothing evaluated on is trained on."""

import io
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from hivlp.data.load import load_pairs
from hivlp.data.pairs import Pair
from hivlp.data.pictures import decode
from hivlp.data.same_picture import KnownPictures, excluding, joined, looks_of, same_as
from hivlp.mini import flashcards, openclipart, stamps

HERE = stamps.DEFAULT_ROOT.is_dir()
RECIPES = Path(__file__).parent.parent / "recipes"


def drawing(seed: int, side: int = 240) -> Image.Image:
    """A cut-out of a dozen coloured shapes in a heap: RGBA, mostly transparent around."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, w, h = (rng.uniform(low, high) * side for low, high in ((0.15, 0.6), (0.1, 0.6), (0.1, 0.4), (0.1, 0.4)))
        colour = (*(int(value) for value in rng.integers(20, 220, 3)), 255)
        kind = rng.integers(3)
        if kind == 0:
            draw.ellipse((x, y, x + w, y + h), colour, outline=(0, 0, 0, 255), width=3)
        elif kind == 1:
            draw.polygon([(x, y), (x + w, y + h / 3), (x + w / 2, y + h)], colour)
        else:
            draw.rectangle((x, y, x + w, y + h), colour)
    return image


def photograph(seed: int) -> Image.Image:
    """Soft noise of several sizes, in colour, without any border."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((320, 240), 3), np.float32)
        for n in (4, 9, 20)
    ]
    return Image.fromarray((sum(layers) / 3).astype(np.uint8))


def on(image: Image.Image, colour: str) -> Image.Image:
    flat = Image.new("RGB", image.size, colour)
    flat.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    return flat


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def recoloured(image: Image.Image, turn: int) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    return Image.merge("HSV", (hue.point(lambda h: (h + turn) % 256), saturation, value)).convert("RGB")


def pair(name: str, data: bytes) -> Pair:
    return Pair(name, data, ("x",))


COPIES = {
    "as it is": lambda image: encoded(image),
    "smaller": lambda image: encoded(image.resize((image.width * 2 // 5, image.height * 2 // 5), 3)),
    "larger": lambda image: encoded(image.resize((image.width * 3, image.height * 3), 3)),
    "with margins": lambda image: encoded(ImageOps.expand(on(image, "white"), (90, 10, 20, 150), "white")),
    "mirrored": lambda image: encoded(ImageOps.mirror(image)),
    "JPEG of poor quality": lambda image: encoded(on(image, "white"), "JPEG", quality=35),
    "WebP": lambda image: encoded(image, "WEBP", quality=60),
    "brighter": lambda image: encoded(on(image, "white").point(lambda value: min(255, int(value * 1.06)))),
    "mirrored, smaller, with margins, as JPEG": lambda image: encoded(
        ImageOps.expand(ImageOps.mirror(on(image, "white")).resize((image.width // 2, image.height // 2)), 30, "white"),
        "JPEG",
        quality=70,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("colours", [False, True])
@pytest.mark.parametrize("make", [drawing, photograph])
@pytest.mark.parametrize("change", COPIES)
def test_a_copy_is_found_and_nothing_else(change, make, colours):
    held_out = looks_of(pair(str(seed), encoded(make(seed))) for seed in range(12))
    copies = [pair(f"copy {seed}", COPIES[change](make(seed))) for seed in (3, 8)]
    others = [pair(f"other {seed}", COPIES[change](make(seed))) for seed in range(20, 32)]
    assert same_as([*others, *copies], held_out, colours=colours).tolist() == [-1] * 12 + [3, 8]
    known = KnownPictures(held_out)
    assert [known.find(decode(each.read())) for each in (*others, *copies)] == [-1] * 12 + [3, 8]


def test_one_by_one_the_same_copies_are_found_as_all_at_once():
    made = [photograph(seed) for seed in range(10)] + [on(drawing(seed), "white") for seed in range(10)]
    made += [shape("ellipse", colour) for colour in ("red", "darkred", "blue")] + [Image.new("RGB", (50, 50), "navy")]
    held_out = looks_of(pair(str(number), encoded(image)) for number, image in enumerate(made))
    known = KnownPictures(joined([held_out.rows(np.arange(7)), held_out.rows(np.arange(7, len(made)))]))
    changes = [COPIES[name] for name in ("smaller", "JPEG of poor quality", "mirrored")]
    asked = [pair("", changes[number % 3](image)) for number, image in enumerate(made)]
    asked += [
        pair("", encoded(image)) for image in (shape("ellipse", "green"), photograph(50), Image.new("RGB", (9, 9)))
    ]
    expected = same_as(asked, held_out, colours=True).tolist()
    assert [known.find(decode(each.read())) for each in asked] == expected
    assert expected[:20] == list(range(20)) and expected[23:] == [23, -1, -1, -1]
    assert KnownPictures(looks_of([])).find(made[0]) == -1


@pytest.mark.parametrize("turn", [20, 85, 150])
def test_a_drawing_in_other_colours_is_the_same_drawing_but_another_picture(turn):
    held_out = looks_of(pair(str(seed), encoded(drawing(seed))) for seed in range(6))
    turned = [pair("turned", encoded(recoloured(on(drawing(4), "white"), turn)))]
    assert same_as(turned, held_out).tolist() == [4]
    square = [pair(colour, encoded(shape("rectangle", colour))) for colour in ("red", "blue")]
    assert same_as(square[:1], looks_of(square[1:]), colours=True).tolist() == [-1]


@pytest.mark.parametrize("ground", ["black", "navy", "khaki"])
def test_the_background_of_a_cut_out_does_not_count(ground):
    held_out = looks_of(pair(str(seed), encoded(drawing(seed))) for seed in range(6))
    assert same_as([pair("x", encoded(on(drawing(2), ground)))], held_out).tolist() == [2]


def shape(kind: str, colour: str) -> Image.Image:
    image = Image.new("RGB", (120, 120), "white")
    getattr(ImageDraw.Draw(image), kind)((20, 20, 100, 100), colour)
    return image


def test_round_things_of_different_colours_are_different_things():
    textured = shape("ellipse", "orange")
    ImageDraw.Draw(textured).ellipse((55, 40, 70, 55), "brown")
    ball, fruit = looks_of([pair("ball", encoded(shape("ellipse", "green")))]), pair("fruit", encoded(textured))
    assert excluding([fruit], ball, colours=True) == [fruit]


def test_pictures_of_nothing_are_alike_and_like_nothing_else():
    blank, wide, broken = encoded(Image.new("RGB", (9, 9), "white")), encoded(Image.new("RGB", (90, 9), "white")), b"x"
    held_out = looks_of([pair("blank", blank), pair("broken", broken)])
    pairs = [pair("wide", wide), pair("broken", broken), pair("drawing", encoded(drawing(1)))]
    assert same_as(pairs, held_out).tolist() == [0, -1, -1]
    assert same_as(pairs, looks_of([])).tolist() == [-1] * 3
    assert same_as([], held_out).tolist() == []


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 2), (5000, 3)])
def test_a_picture_of_any_size_can_be_compared(size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise))
    assert same_as([pair("x", data)], looks_of([pair("y", data)])).tolist() == [0]


# --- the data sets that hivlp-mini is made of


def save(root, name: str, image: Image.Image, caption: str | None = None) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)


def test_no_drawing_is_on_both_sides_of_the_stamps_split(tmp_path, monkeypatch):
    monkeypatch.setattr(stamps, "TEST_SIZE", 4)
    monkeypatch.setattr(stamps, "VAL_SIZE", 4)
    root, cards = tmp_path / "stamps", tmp_path / "cards"
    for number in range(12):
        save(root, f"things/{number}.png", drawing(number), f"Thing {number}.")
    by_split = {split: stamps.read_stamps(root, split) for split in ("test", "val", "train")}
    assert [len(pairs) for pairs in by_split.values()] == [4, 4, 4]
    number = {split: int(pairs[0].captions[0][6:-1]) for split, pairs in by_split.items()}
    # Under symbols, so that the draw of what is held out stays as it was.
    save(root, "symbols/copy.png", ImageOps.mirror(drawing(number["test"])), "A copy of a test stamp.")
    save(root, "symbols/turned.png", recoloured(on(drawing(number["val"]), "white"), 90), "A validation stamp, turned.")
    save(root, "symbols/new.png", drawing(50), "New.")
    save(root, by_split["val"][1].id, drawing(number["test"]).resize((90, 90)))
    found = stamps.read_stamps(root)
    assert [p for p in found if p.split == "test"] == by_split["test"] == load_pairs_of(root, "test", monkeypatch)
    assert [p for p in found if p.split == "val"] == [p for p in by_split["val"] if p != by_split["val"][1]]
    assert {p.captions[0] for p in found if p.split == "train"} == {*(p.captions[0] for p in by_split["train"]), "New."}
    for seed, name in ((number["test"], "copy"), (50, "other")):
        save(cards, f"animals/{name}.jpg", on(drawing(seed), "white"))
    assert [p.id for p in flashcards.read_flashcards(cards)] == ["animals/other.jpg"]


def load_pairs_of(root, split, monkeypatch):
    monkeypatch.setenv("HIVLP_STAMPS", str(root))
    return load_pairs("stamps", split)


KNOWN = {  # how the captions of those test and validation stamps begin whose drawing Openclipart has too
    "A scientist.": "woman_chemist_gerald_g._01",
    "A doctor.": "woman_doctor_gerald_g._01",
    "A nurse.": "woman_nurse_gerald_g._01",
    "A blue truck.": "truck_jarno_vasamaa1",
    "A compact disc": "compact_disc",
    "A top hat.": "tophat_benji_park_01",
    "A blue bicycle.": "vtt_02",
    "A bow tie.": "tie_-_clothing_nicu_bucu_01",
    "A formula one race car.": "formula_one_car_gerald_g_01",
}


@pytest.mark.slow
@pytest.mark.stamps
@pytest.mark.skipif(not HERE, reason="tuxpaint-stamps-default is not installed")
def test_what_the_real_stamps_share():
    pytest.importorskip("resvg_py")
    found = {p.id: p.split for p in stamps.read_stamps(stamps.DEFAULT_ROOT)}
    left_out = [p for p in stamps._split_by_caption(stamps.DEFAULT_ROOT) if p.id not in found]
    assert {p.id.split("/")[-1].split(".")[0] for p in left_out} == {
        "apple_red", "eye_blue_left", "santahat2", "dreydl", "dreydl-nun", "dreydl-shin", "dreydl-gimmel",
        "8_neptune", "yellowflag", "whiteflag", "stoplight_01_red", "stoplight_02_yellow",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.stamps
@pytest.mark.skipif(not (HERE and openclipart.DEFAULT_ROOT.is_dir()), reason="stamps or openclipart not installed")
def test_the_known_copies_in_the_real_openclipart_are_found():
    pytest.importorskip("resvg_py")
    held_out = [p for p in stamps._split_by_caption(stamps.DEFAULT_ROOT) if p.split != "train"]
    paths = {p.stem: p for p in openclipart.DEFAULT_ROOT.joinpath("png").rglob("*.png") if p.stem in KNOWN.values()}
    copies = [Pair(stem, paths[stem], ("x",)) for stem in KNOWN.values()]
    chosen = [next(p for p in held_out if p.captions[0].startswith(caption)) for caption in KNOWN]
    assert same_as(copies, looks_of(chosen)).tolist() == list(range(len(KNOWN)))


# --- any recipe


@pytest.mark.train
def test_a_recipe_does_not_train_on_copies_of_what_it_evaluates_on(tmp_path, caplog):
    pytest.importorskip("torch")
    from hivlp.errors import RecipeError
    from hivlp.train.inputs.held_out import rows_apart
    from hivlp.train.recipe.schema import Source, load_recipe

    for number in range(6):
        save(tmp_path / "train", f"{number}.png", drawing(number), f"Thing {number}.")
    save(tmp_path / "val", "a.png", drawing(40), "A")
    save(tmp_path / "val", "b.jpg", ImageOps.expand(on(drawing(2), "white").resize((120, 120)), 20, "white"), "B")
    save(tmp_path / "test", "c.png", ImageOps.mirror(drawing(5)), "C")
    save(tmp_path / "test", "d.png", drawing(40).resize((80, 80)), "D")
    pairs = load_pairs(tmp_path / "train", "train")

    def rows(**sets) -> list[int]:
        sources = {"validation": None, "test": None} | {name: str(tmp_path / folder) for name, folder in sets.items()}
        tiny = load_recipe(RECIPES / "tiny_cpu.yaml")
        train = (Source(str(tmp_path / "train")),)
        recipe = replace(tiny, train=train, limit=None, optim=replace(tiny.optim, batch_size=4), **sources)
        return rows_apart(recipe, [(pair, 1) for pair in pairs])

    with caplog.at_level(logging.WARNING):
        assert rows(validation="val", test="test") == [0, 1, 3, 4]
    assert "left out 2 of 6 training pictures" in caplog.text
    assert "1 of 2 validation pictures are test pictures too" in caplog.text
    assert rows(validation="val") == [0, 1, 3, 4, 5]
    assert rows() == list(range(6))
    assert rows(validation="train") == list(range(6))  # on purpose
    for number in range(3):
        save(tmp_path / "all", f"{number}.png", drawing(number).resize((100, 100)), "x")
    with pytest.raises(RecipeError, match="test: 3 of 6 training pictures"):
        rows(test="all")
    assert rows(validation="all") == list(range(6))
    assert "learned by heart" in caplog.text


@pytest.mark.train
@pytest.mark.parametrize("name", ["mini", "scenes_cpu", "scenes_hard_cpu"])
def test_data_sets_that_keep_themselves_apart_are_not_read_once_more(name, monkeypatch):
    pytest.importorskip("torch")
    from hivlp.train.inputs import held_out
    from hivlp.train.recipe.schema import load_recipe

    def refuse(*_, **__):
        raise AssertionError("pictures were compared")

    monkeypatch.setattr(held_out, "load_pairs", refuse)
    monkeypatch.setattr(held_out, "looks_of", refuse)
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert held_out.rows_apart(recipe, [(pair("x", b""), 1)] * 3) == [0, 1, 2]
