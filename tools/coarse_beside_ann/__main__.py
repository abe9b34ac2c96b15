"""What a coarse level does beside an approximate index: docs/experiments/2026-11-28-coarse-level-beside-ann.md.

    OMP_NUM_THREADS=1 python tools/coarse_beside_ann PART     # one of PARTS, one thread, JSON lines on stdout

WordNet's words are the items and its glosses the queries (``hivlp bench ann`` encodes and keeps them); the pictures are
Tux Paint's stamps and Debian's clip-art with their captions.
"""

from __future__ import annotations

import sys

import numpy as np
from cold import part_cold
from folders import part_folder
from measures import ASKED, int8, p50, say, scan_ms, text_ms, truth_of, unit
from ways import ann, ann_of_coarse, cascade, eighth
from words import coarse_levels, of_model, words

from hivlp.data.load import load_pairs
from hivlp.data.pictures import load_pixels
from hivlp.encode import HiVLP
from hivlp.encode.stream import encode_stream
from hivlp.evaluate import score
from hivlp.levels import Embeddings

SIZES = (10_000, 50_000, 148_730)


def part_ranking(model: HiVLP) -> None:
    """Ways to the same recall, by number of rows."""
    all_items, test, train = words(model)
    own = of_model(model)
    for count in SIZES:
        items = np.ascontiguousarray(all_items[:count])
        truth = truth_of(items, test)
        levels = [("hivlp-mini's own", 0.0, np.ascontiguousarray(own[0][:count]), own[1], own[2])]
        levels += coarse_levels(model, items, test, train, ("lean", "distill"))
        say(way="exact", rows=count, p50_ms=scan_ms(items, test), mb_touched=items.nbytes / 1e6)
        for name, seconds, coarse, asked, learnt in levels:
            cascade(coarse, asked, items, test, truth, rows=count, level=name, fit_s=seconds)
            if count != 50_000 and name != "fitted: lean":
                ann_of_coarse(coarse, asked, learnt, items, test, truth, rows=count, level=name)
        ann(items, test, train, truth, rows=count)


def part_width(model: HiVLP) -> None:
    """CLIP's width."""
    items, test, train = words(model, 512)
    truth = truth_of(items, test)
    for name, seconds, coarse, asked, _ in coarse_levels(model, items, test, train, ("lean",)):
        cascade(coarse, asked, items, test, truth, rows=len(items), level=name, fit_s=seconds, width=512)
    ann(items, test, train, truth, rows=len(items), width=512)


def part_pictures(model: HiVLP) -> None:
    """Captions look for pictures, by hivlp-mini's own levels; int8 rows; what encoding takes."""
    pairs = load_pairs("stamps") + load_pairs("openclipart")
    stream = encode_stream(model, pairs, lambda pair: load_pixels(pair.read(), model.picture))
    batches = list(stream)
    pictures = Embeddings.concatenate([batch.embeddings for batch in batches])
    captions = [job.captions[0] for batch in batches for job in batch.jobs]
    texts = model.encode_text(captions)
    items, test = pictures.fine.astype(np.float16), texts.fine[:: len(captions) // ASKED][:ASKED]
    truth = truth_of(items, test)
    cascade(
        pictures.coarse.astype(np.float16),
        texts.coarse[:: len(captions) // ASKED][:ASKED],
        items,
        test,
        truth,
        rows=len(items),
        level="hivlp-mini's own",
        what="pictures",
    )
    ann(items, test, texts.fine, truth, rows=len(items), what="pictures")
    eighth(items, test, truth, "pictures")
    stamps = [pair for pair in load_pairs("stamps") if pair.split == "test"]
    seen = Embeddings.concatenate(
        [b.embeddings for b in encode_stream(model, stamps, lambda pair: load_pixels(pair.read(), model.picture))]
    )
    asked, owner = model.encode_text([pair.captions[0] for pair in stamps]), np.arange(len(stamps))
    for name, changed_rows in (
        ("float32", seen.fine),
        ("float16", seen.fine.astype(np.float16)),
        ("int8", int8(seen.fine)),
    ):
        changed = Embeddings({"coarse": seen.coarse, "fine": unit(changed_rows.astype(np.float32))})
        say(way="stamps", rows=name, test=len(stamps), **score(changed, asked, owner)["levels"]["fine"])
    some = captions[:100]
    for level in ("coarse", "fine"):
        say(way="encode a text", level=level, p50_ms=text_ms(model, some, level))
    data = [pair.read() for pair in pairs[:100]]
    pixels = [load_pixels(each, model.picture) for each in data]
    say(way="decode a picture", p50_ms=p50(lambda n: load_pixels(data[n], model.picture), 100, 1))
    say(way="encode a picture", p50_ms=p50(lambda n: model.encode_pixels(pixels[n][None]), 100, 1))


def part_int8(model: HiVLP) -> None:
    """int8 rows of the words."""
    for width in (None, 512):
        items, test, _ = words(model, width)
        eighth(items, test, truth_of(items, test), "words")


PARTS = {
    "ranking": part_ranking,
    "width": part_width,
    "pictures": part_pictures,
    "int8": part_int8,
    "cold": part_cold,
    "folder": part_folder,
}

if __name__ == "__main__":
    PARTS[sys.argv[1]](HiVLP.from_pretrained("hivlp-mini"))
