"""A data set of coloured shapes and a recipe that trains on it in seconds."""

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from tiny import BERT, write_tokenizer

WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def draw_shape(folder: Path, number: int) -> Path:
    """The picture of that number, and its caption beside it."""
    colour, shape = ("red", "green", "blue")[number % 3], ("circle", "square")[number % 2]
    image = Image.new("RGB", (48, 48), "white")
    draw = ImageDraw.Draw(image)
    box = (8 + number % 5, 8, 38, 38 - number % 7)
    (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=colour)
    path = folder / f"{number:02}.png"
    image.save(path)
    path.with_suffix(".txt").write_text(f"A {colour} {shape}.")
    return path


def shapes_recipe(folder: Path) -> dict[str, Any]:
    """Draw forty pictures into ``pictures/shapes``, write a tokenizer, and give a recipe as YAML has it."""
    pictures = folder / "pictures" / "shapes"
    pictures.mkdir(parents=True)
    for number in range(40):
        draw_shape(pictures, number)
    write_tokenizer(folder / "tokenizer")
    return {
        "name": "shapes",
        "levels": [
            {"name": "coarse", "dim": 4, "image_layer": 6, "text_layer": 1},
            {"name": "fine", "dim": 16, "image_layer": 8, "text_layer": 3},
        ],
        "image_tower": {"kind": "efficientnet_lite", "options": {"variant": "lite0"}},
        "text_tower": {"kind": "bert", "options": {**BERT, **WITHOUT_DROPOUT}},
        "picture": {"size": 32},
        "text": {"max_tokens": 12},
        "init": {"tokenizer": str(folder / "tokenizer")},
        "train": [{"source": str(folder / "pictures")}],
        "validation": str(folder / "pictures"),
        "augment": {"views": 2, "colour": 0.2},
        "optim": {"epochs": 3, "batch_size": 10, "lr": 1e-2, "feature_dropout": {"fine": 0.2}, "checkpoint_every": 3},
        "quantize": False,
    }
