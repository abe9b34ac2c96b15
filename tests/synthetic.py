"""Synthetic data for the tests, all of it: encoders, models, pictures, vectors, queries, indexes and recipes.

Nothing here needs torch to be imported; what builds a model imports it inside.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sqlite3
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hivlp.ann import AnnIndex
from hivlp.coarse.closed import prefix
from hivlp.config import HiVLPConfig, PictureConfig, TextConfig, TowerConfig
from hivlp.data.pictures import load_pixels
from hivlp.index import Index
from hivlp.index.from_embeddings import index_embeddings
from hivlp.levels import Embeddings, Level
from hivlp.search import calibration
from hivlp.store import database
from hivlp.store.folder import Store, reading
from hivlp.store.records import NewItem, Stamp

# Vectors.


def unit(vectors: Any) -> np.ndarray:
    """Rows (..., width) at length 1, float32."""
    vectors = np.asarray(vectors)
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)).astype(np.float32)


def random_unit(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """Isotropic unit vectors (rows, dim)."""
    return unit(rng.normal(size=(rows, dim)))


def stored_unit(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """Isotropic unit vectors rounded to float16, as an index stores them, so that an oracle sees the same numbers."""
    return random_unit(rng, rows, dim).astype(np.float16).astype(np.float32)


def cloud(count: int, width: int, seed: int) -> np.ndarray:
    """Unit vectors (count, width) in groups of about forty, with an offset: a little like embeddings."""
    rng = np.random.default_rng(seed)
    groups = rng.normal(size=(max(2, count // 40), width))
    return unit(groups[rng.integers(len(groups), size=count)] + 0.7 * rng.normal(size=(count, width)) + 0.5)


def clusters(count: int, width: int, seed: int, centres: int = 300) -> np.ndarray:
    """Unit vectors (count, width) around the same centres for every seed, as pictures and texts of a subject lie.

    The centres span 16 dimensions only.
    """
    middles = np.random.default_rng(99).normal(size=(centres, 16)) @ np.random.default_rng(98).normal(size=(16, width))
    rng = np.random.default_rng(seed)
    return unit(unit(middles)[rng.integers(centres, size=count)] + 0.08 * rng.normal(size=(count, width)))


def queries_of_every_kind(items: np.ndarray, asked: np.ndarray, seed: int = 5) -> dict[str, np.ndarray]:
    """Queries as wide as the items, by what they are like: ``asked`` itself, items, noise, other models, generic words.

    Args:
        items: unit vectors (items, width).
        asked: unit vectors (queries, width) as people ask them.
        seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    count = len(asked)
    mean = items.mean(0)
    return {
        "the sample's": asked,
        "items": items[rng.integers(len(items), size=count)],
        "noisy": unit(asked + random_unit(rng, *asked.shape)),
        "random": random_unit(rng, *asked.shape),
        "negated": -asked,
        "another model's": asked[:, rng.permutation(asked.shape[1])],
        "generic": unit(mean / np.linalg.norm(mean) + 0.05 * random_unit(rng, *asked.shape)),
        "mixtures": unit(items[rng.integers(len(items), size=(5, count))].sum(0)),
    }


# Encoders and pictures.

SIZE = 16
"""The fake encoder's pictures, pixels a side."""


class FakeEncoder:
    """Deterministic: pictures by a fixed random projection of their pixels, texts by their words."""

    def __init__(self, name: str = "fake", dims: Sequence[int] = (16, 64), seed: int = 0) -> None:
        self.name = name
        names = ("coarse", "fine")[-len(dims) :] if len(dims) <= 2 else [f"level{n}" for n in range(len(dims))]
        self.levels = tuple(Level(name, dim, n, n) for n, (name, dim) in enumerate(zip(names, dims, strict=True), 1))
        self.picture = PictureConfig(size=SIZE)
        self.fingerprint = hashlib.sha256(f"{name} {dims} {seed}".encode()).hexdigest()
        rng = np.random.default_rng(seed)
        self._maps = {level.name: rng.normal(size=(SIZE * SIZE * 3, level.dim)) for level in self.levels}
        self.encoded = 0

    def encode_pixels(self, pixels, *, levels=None):
        self.encoded += len(pixels)
        flat = pixels.reshape(len(pixels), 1, SIZE * SIZE * 3) / 255.0 - 0.5
        maps = {name: matrix for name, matrix in self._maps.items() if levels is None or name in levels}
        # Row by row, so that no rounding depends on the rows beside.
        return self._unit({name: (flat @ matrix)[:, 0] for name, matrix in maps.items()})

    def encode_image(self, pictures):
        return self.encode_pixels(np.stack([load_pixels(picture, self.picture) for picture in pictures]))

    def encode_text(self, texts, *, levels=None):
        asked = [level for level in self.levels if levels is None or level.name in levels]
        out = {level.name: np.zeros((len(texts), level.dim)) for level in asked}
        for row, text in enumerate(texts):
            for word in text.split():
                seed = int.from_bytes(hashlib.sha256(word.encode("utf-8", "replace")).digest()[:4])
                for level in asked:
                    out[level.name][row] += np.random.default_rng(seed).normal(size=level.dim)
        return self._unit(out)

    @staticmethod
    def _unit(vectors):
        return Embeddings({name: unit(rows) for name, rows in vectors.items()})


def write_pictures(folder: Path, count: int, start: int = 0) -> list[Path]:
    """Small pictures, each of its own content."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(start, start + count):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        path = folder / f"{number:05}.png"
        Image.fromarray(pixels).save(path)
        paths.append(path)
    return paths


# Indexes.

STAMP = Stamp(1, 2, 3, 4)


def index_pictures(folder: Path, count: int) -> Path:
    """An index of so many pictures in ``folder/pictures``, made by :class:`FakeEncoder`: where it is."""
    write_pictures(folder / "pictures", count)
    with Index.create(folder / "index", model=FakeEncoder()) as index:
        index.add(folder / "pictures")
    return folder / "index"


def new_items(count: int, first: int = 0, captions: Sequence[str] | None = None) -> list[NewItem]:
    """Items of as many paths, ``/p/0.png`` on, each with its number n as its content's hash and in its metadata."""
    return [
        NewItem(f"/p/{n}.png", n.to_bytes(32), None if captions is None else captions[n - first], {"n": n}, STAMP)
        for n in range(first, first + count)
    ]


def random_levels(levels: Sequence[Level], rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Isotropic unit vectors (rows, dim) of each level, by its name."""
    rng = np.random.default_rng(seed)
    return {level.name: random_unit(rng, rows, level.dim) for level in levels}


def fill(index: Index, vectors: Mapping[str, np.ndarray], captions: Sequence[str] | None = None) -> Index:
    """Append an item for each row of vectors (rows, dim) of each level; item n has id n + 1 in an empty index."""
    rows = len(next(iter(vectors.values())))
    if rows:
        index.store.append(new_items(rows, captions=captions), Embeddings(dict(vectors)))
    return index


def make_index(place: Path, vectors: np.ndarray, dims: int | None = None) -> Index:
    """An open index of given vectors, ``hivlp index --embeddings`` without its fitting.

    Args:
        place: the folder to make, beside which the vectors are saved as ``PLACE.npy``.
        vectors: (rows, width).
        dims: of the coarse level, the first of the vectors' own; default a third of them.
    """
    file = place.with_suffix(".npy")
    np.save(file, vectors)
    index = Index.create_from_embeddings(place, prefix(vectors.shape[1], dims or vectors.shape[1] // 3))
    index.add_embeddings(file)
    return index


def make_tuned_index(
    place: Path, vectors: np.ndarray, queries: np.ndarray | Path, dims: int = 16, **options: Any
) -> Path:
    """A closed index of given vectors with a coarse level by PCA and an approximate index, tuned in a hurry."""
    file = place.with_suffix(".npy")
    np.save(file, vectors)
    index_embeddings(place, file, dims=dims, method="pca")
    with Index.open(place) as index, quick_tuning():
        index.tune(queries, **options)
    return place


@contextmanager
def quick_tuning(timed: int = 10, every: int = 4) -> Iterator[None]:
    """Tune with one in so many of the search parameters, timed a few times: for tests that do not depend on them."""
    grid = AnnIndex.params_grid
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "TIMED", timed)
        patch.setattr(AnnIndex, "params_grid", lambda index: grid(index)[1::every])
        yield


# What a folder on disk says.


# Models of the real classes, small enough to build in a test.

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "green", "circle", "square", "on", "white", "the"]

BERT = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}


def tiny_config(**changes) -> HiVLPConfig:
    settings = {
        "name": "tiny",
        "levels": (Level("coarse", 4, 6, 1), Level("fine", 16, 8, 3)),
        "image_tower": TowerConfig("efficientnet_lite", {"variant": "lite0"}, {"fine": "linear"}),
        "text_tower": TowerConfig("bert", BERT, {"coarse": "mlp", "fine": "residual"}),
        "picture": PictureConfig(size=32),
        "text": TextConfig(max_tokens=12),
    }
    return HiVLPConfig(**{**settings, **changes})


def write_tokenizer(folder: Path) -> Path:
    """A word-level tokenizer with BERT's special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def save_tiny(folder: Path, seed: int = 0, **changes) -> Path:
    """A tiny model folder with weights, graphs and tokenizer."""
    import torch

    from hivlp.export.graphs import export
    from hivlp.model.hivlp_model import HiVLPModel

    torch.manual_seed(seed)
    model = HiVLPModel(tiny_config(**changes))
    model.save_pretrained(folder, write_tokenizer(folder))
    export(folder)
    return folder


def save_checkpoint(folder: Path, family: str):
    """A CLIP or SigLIP model of the real class with random weights, on disk as the hub has it, and its processor."""
    import torch
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    text = {"vocab_size": len(VOCABULARY), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 12, "eos_token_id": 3, "bos_token_id": 2,
            "pad_token_id": 0}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    torch.manual_seed(0)
    if family == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        processor = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, "do_center_crop": True,
                     "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}  # fmt: skip
    else:
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        processor = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    model.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    write_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    return model, processor


# A data set of coloured shapes and a recipe that trains on it in seconds.

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


class Stored:
    """What a folder's last commit says: the methods of a reader, each asked of a store that is opened for it."""

    def __init__(self, index) -> None:
        self.path = Path(getattr(index, "path", index))

    def __getattr__(self, name):
        def ask(*given, **more):
            with reading(self.path) as reader:
                found = getattr(reader, name)
                found = found(*given, **more) if callable(found) else found
                return list(found) if isinstance(found, Iterator) else found

        return ask

    def changing(self):
        return closing_after(Store(self.path), "changing")

    def sql(self, *statements: str):
        """Change ``items.db`` behind the library's back; the rows of the last statement."""
        with closing(sqlite3.connect(self.path / "items.db", isolation_level=None)) as db:
            return [db.execute(statement).fetchall() for statement in statements][-1]


PLAIN = database.connect


@contextmanager
def tuned_connections(*statements: str):
    """Every connection to an ``items.db`` that is opened meanwhile begins with these."""

    def connect(file):
        db = PLAIN(file)
        for statement in statements:
            db.execute(statement)
        return db

    database.connect = connect
    try:
        yield
    finally:
        database.connect = PLAIN


@contextmanager
def closing_after(store: Store, what: str):
    with closing(store), getattr(store, what)() as transaction:
        yield transaction


# Data sets: pictures with captions, and vectors, in every format that hivlp reads, as the formats' own libraries write.


def picture_bytes(number: int) -> bytes:
    """A PNG of its own content."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


CAPTIONED = (
    ("train/0.png", ("a red circle", "a circle, red"), "train"),
    ("train/1.png", ("ein grünes Quadrat",), "train"),
    ("val/2.png", ('a "blue" square',), "val"),
    ("test/3.png", ("two rings", "rings"), "test"),
    ("test/4.png", (), "test"),
)
"""Name, captions and split of each picture; the last has no caption, and is to be skipped."""


def write_pairs(folder: Path, kind: str) -> Path:
    """Write :data:`CAPTIONED` into a folder; gives what ``load_pairs`` is to be asked for.

    Args:
        folder: a new one.
        kind: a key of :data:`PAIR_FORMATS`.
    """
    for number, (name, _, _) in enumerate(CAPTIONED):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture_bytes(number))
    return PAIR_FORMATS[kind](folder)


def _sidecars(folder: Path) -> Path:
    for name, captions, _ in CAPTIONED:
        (folder / name).with_suffix(".txt").write_text("\n".join(captions), encoding="utf-8")
    return folder


def _rows() -> list[dict[str, str]]:
    return [
        {"file_name": name, "text": caption, "split": split}
        for name, captions, split in CAPTIONED
        for caption in captions or ("",)
    ]


def _separated(folder: Path, name: str, delimiter: str) -> Path:
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file_name", "text", "split"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(_rows())
    return folder / name


def _json_lines(folder: Path, name: str = "pairs.jsonl") -> Path:
    lines = [
        json.dumps({"image": name, "captions": list(captions), "split": split}) for name, captions, split in CAPTIONED
    ]
    (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return folder / name


def _flickr(folder: Path, name: str) -> Path:
    rows = [f"{name}#{n}\t{text}" for name, captions, _ in CAPTIONED for n, text in enumerate(captions or ("",))]
    (folder / name).write_text("\n".join(rows), encoding="utf-8")
    return folder / name


def _karpathy(folder: Path) -> Path:
    images = [
        {
            "filename": Path(name).name,
            "filepath": str(Path(name).parent),
            "split": split,
            "sentences": [{"raw": text, "tokens": text.split()} for text in captions],
        }
        for name, captions, split in CAPTIONED
    ]
    (folder / "dataset.json").write_text(json.dumps({"images": images, "dataset": "tiny"}), encoding="utf-8")
    return folder / "dataset.json"


def _parquet(folder: Path, inside: bool) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [name for name, _, _ in CAPTIONED]
    pictures = [picture_bytes(number) for number in range(len(names))] if inside else names
    columns = {"image": pictures, "caption": [list(each[1]) for each in CAPTIONED], "split": [c[2] for c in CAPTIONED]}
    pq.write_table(pa.table(columns), folder / "pairs.parquet", row_group_size=2)
    return folder / "pairs.parquet"


def _parquet_shards(folder: Path) -> Path:
    """As ``datasets`` writes them: a file a split, pictures as structs of bytes and path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "shards" / "data").mkdir(parents=True)
    for split in ("train", "val", "test"):
        rows = [(n, c[1]) for n, c in enumerate(CAPTIONED) if c[2] == split]
        image = [{"bytes": picture_bytes(number), "path": None} for number, _ in rows]
        columns = {"image": image, "caption": [list(captions) for _, captions in rows]}
        pq.write_table(pa.table(columns), folder / "shards" / "data" / f"{split}-00000-of-00001.parquet")
    return folder / "shards"


def _tars(folder: Path, texts: str) -> Path:
    """Webdataset: a tar a split, in each sample a picture and a ``txt`` or a ``json``."""
    (folder / "shards").mkdir()
    for split in ("train", "val", "test"):
        with tarfile.open(folder / "shards" / f"{split}-000.tar", "w") as tar:
            for number, (_, captions, own) in enumerate(CAPTIONED):
                said = json.dumps({"caption": list(captions)}) if texts == "json" else "\n".join(captions)
                for suffix, content in (("png", picture_bytes(number)), (texts, said.encode())):
                    if own == split:
                        member = tarfile.TarInfo(f"{number:05}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
    return folder / "shards"


def write_tars(folder: Path, shards: int, pairs: int) -> None:
    """Webdataset as ``img2dataset`` writes it: numbered tars with a picture, its caption and a JSON in each sample."""
    folder.mkdir(parents=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for number in range(shard * pairs, (shard + 1) * pairs):
                said = f"thing{number} in {folder.name}"
                about = json.dumps({"caption": said, "key": f"{number:09}", "status": "success"})
                for suffix, content in (
                    ("jpg", picture_bytes(number)),
                    ("txt", said.encode()),
                    ("json", about.encode()),
                ):
                    member = tarfile.TarInfo(f"{number:09}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


PAIR_FORMATS = {
    "folder": _sidecars,
    "folder with a table": lambda folder: _json_lines(folder, "metadata.jsonl").parent,
    ".csv": lambda folder: _separated(folder, "pairs.csv", ","),
    ".tsv": lambda folder: _separated(folder, "pairs.tsv", "\t"),
    ".jsonl": _json_lines,
    ".txt": lambda folder: _flickr(folder, "pairs.txt"),
    ".token": lambda folder: _flickr(folder, "pairs.token"),
    ".json": _karpathy,
    ".parquet": lambda folder: _parquet(folder, inside=True),
    ".parquet of paths": lambda folder: _parquet(folder, inside=False),
    ".parquet in a folder": _parquet_shards,
    ".tar": lambda folder: _tars(folder, "txt"),
    ".tar with json": lambda folder: _tars(folder, "json"),
}
"""What writes :data:`CAPTIONED` in each format; every suffix that is registered has to be here."""


def write_vectors(folder: Path, kind: str, vectors: np.ndarray) -> tuple[Path, bool]:
    """Write (rows, dims) vectors in a format; gives what to open, and whether each row has a path and a caption.

    Row n is of ``n.jpg`` with the caption ``caption n``; two files hold half of the rows each where there are several.
    """
    folder.mkdir(parents=True, exist_ok=True)
    halves = (slice(0, len(vectors) // 2), slice(len(vectors) // 2, len(vectors)))
    if kind == ".npy":
        np.save(folder / "vectors.npy", vectors)
        return folder / "vectors.npy", False
    if kind == "folder of .npy":
        for number, rows in enumerate(halves):
            np.save(folder / f"part-{number}.npy", vectors[rows])
        return folder, False
    import pyarrow as pa
    import pyarrow.parquet as pq

    def told(rows: slice) -> dict[str, Any]:
        numbers = range(*rows.indices(len(vectors)))
        return {"path": [f"{n}.jpg" for n in numbers], "caption": [f"caption {n}" for n in numbers]}

    if kind == "clip-retrieval":
        for name in ("img_emb", "metadata"):
            (folder / name).mkdir()
        for number, rows in enumerate(halves):
            np.save(folder / "img_emb" / f"img_emb_{number}.npy", vectors[rows])
            pq.write_table(pa.table(told(rows)), folder / "metadata" / f"metadata_{number}.parquet")
        return folder, True
    for number, rows in enumerate(halves if kind == "folder of .parquet" else (slice(0, len(vectors)),)):
        values = pa.array(vectors[rows].ravel())
        lists = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
        pq.write_table(pa.table({"embedding": lists, **told(rows)}), folder / f"part-{number}.parquet")
    return folder if kind == "folder of .parquet" else folder / "part-0.parquet", True


VECTOR_FORMATS = (".npy", "folder of .npy", ".parquet", "folder of .parquet", "clip-retrieval")


# Benchmarks, as their authors publish them.


def write_benchmark(
    root: Path, name: str, pictures: Sequence[tuple[str, int]], *, ids: bool = True, written: bool = True
) -> list[dict[str, Any]]:
    """Karpathy's JSON and the pictures of a small benchmark; gives the JSON's entries.

    Args:
        root: folder to write to.
        name: ``flickr30k`` or ``coco``.
        pictures: split and number of captions of each.
        ids: whether the captions have theirs.
        written: whether the pictures are written.
    """
    entries: list[dict[str, Any]] = []
    sentence = 0
    for number, (split, captions) in enumerate(pictures):
        coco = 1000 + 7 * number
        folder = {"flickr30k": "flickr30k-images", "coco": "train2014" if split == "train" else "val2014"}[name]
        file = f"COCO_{folder}_{coco:012}.jpg" if name == "coco" else f"{coco}.jpg"
        if written:
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / file).write_bytes(picture_bytes(number))
        sentences = []
        for _ in range(captions):
            raw = f"thing{number} seen {'again' if sentence % 3 else 'once'}"
            sentences.append({"raw": raw, "tokens": raw.split(), "imgid": number, "sentid": 50_000 + sentence})
            sentence += 1
        if not ids:
            sentences = [{"raw": each["raw"], "tokens": each["tokens"]} for each in sentences]
        entry = {"filename": file, "imgid": number, "split": split, "sentences": sentences}
        entry["sentids"] = [each["sentid"] for each in sentences] if ids else []
        entries.append(entry | ({"filepath": folder, "cocoid": coco} if name == "coco" else {}))
    write_karpathy(root, name, entries)
    return entries


def write_karpathy(root: Path, name: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """Karpathy's JSON of a benchmark."""
    root.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"images": list(entries), "dataset": name})
    (root / f"dataset_{name}.json").write_text(text, encoding="utf-8")


# Shards of a stream.


def shard_members(numbers: Sequence[int]) -> dict[str, bytes]:
    """Webdataset samples: drawings of :func:`draw_shape`'s kind, the caption of each with its number."""
    members: dict[str, bytes] = {}
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (24, 30, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        members[f"{number:06}.png"] = buffer.getvalue()
        members[f"{number:06}.txt"] = f"picture {number} red circle".encode()
    return members


def write_tar(path: Path, members: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> Path:
    """An uncompressed tar of these files, whose names may repeat."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder: Path, shards: int, each: int, first: int = 0) -> Path:
    """Tars ``000.tar``, ``001.tar``, … of ``each`` samples, numbered from ``first`` on."""
    for shard in range(shards):
        start = first + shard * each
        write_tar(folder / f"{shard:03}.tar", shard_members(range(start, start + each)))
    return folder
