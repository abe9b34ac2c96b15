"""Ways to damage an index folder, or to make one that does harm; each the same for the same seed."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hivlp.ann.arrays import file_checksum
from hivlp.ann.manifest import MANIFEST, manifest_check
from hivlp.search.operating_points import FOLDER
from hivlp.store.database import FILE

HEADER = 128
INTEGERS = (0, 1, 2, 3, -1, 255, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**61, 2**63 - 1, -(2**63), -(2**31))
FLOATS = (0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e38, -1e38, 1e-45, 1e17, -1e17, 1e-30, 3e9)
VALUES: tuple[Any, ...] = (
    *INTEGERS, *FLOATS, None, True, False, "7", "", [], [1], {}, {"a": 1}, 10**40, 10**400, 1.5, -0.5, 2**53, 1e300,
)  # fmt: skip
DTYPES = (">f4", "<f8", "<f2", "<i8", ">i8", "<u4", "<i4", "|u1", "|i1", "<c8", "|b1", "<U3", "|S4", "|V4", "<M8[s]")


@dataclass(frozen=True)
class Mutation:
    """What was done to a folder.

    Attributes:
        what: in words.
        forged: whether the sums were made to fit, so that only what the values mean can tell.
        vectors: whether the vectors themselves were changed, so that there is no truth to compare with.
    """

    what: str
    forged: bool = False
    vectors: bool = False


Mutate = Callable[[random.Random, Path, Path, list[Path]], Mutation]


def mutate(index: Path, others: list[Path], seed: int) -> Mutation:
    """Do one thing to a copy of an index.

    Args:
        index: the copy.
        others: indexes to take files from.
        seed: of all choices.
    """
    rng = random.Random(seed)
    engine = index / FOLDER
    kind = rng.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]
    return KINDS[kind][0](rng, index, engine, others)


def forge(engine: Path) -> None:
    """Make the sums those of the files that are there."""
    manifest = json.loads((engine / MANIFEST).read_text())
    manifest["checks"] = {name: file_checksum(engine / name) or 0 for name in manifest["checks"]}
    _write_manifest(engine, manifest)


def _write_manifest(engine: Path, manifest: dict[str, Any]) -> None:
    manifest.pop("check", None)
    try:
        manifest["check"] = manifest_check(manifest)
    except (ValueError, RecursionError):
        manifest["check"] = 0
    (engine / MANIFEST).write_text(json.dumps(manifest))


def _file(rng: random.Random, folder: Path, pattern: str = "*.npy") -> Path:
    return rng.choice(sorted(folder.glob(pattern)))


def _bytes(rng: random.Random, path: Path, first: int = 0) -> str:
    """Damage the bytes of a file from ``first`` on; says how."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(min(first, max(0, len(data) - 1)), max(1, len(data)))
    how = rng.choice(["flip", "flip", "flip", "flip", "zero", "zero", "ones", "cut", "grow", "empty", "shift"])
    length = rng.choice([1, 2, 4, 8, 64, 4096])
    match how:
        case "flip":
            for place in (rng.randrange(at, len(data)) for _ in range(rng.choice([1, 1, 1, 8])) if at < len(data)):
                data[place] ^= 1 << rng.randrange(8)
        case "zero" | "ones":
            data[at : at + length] = (b"\0" if how == "zero" else b"\xff") * len(data[at : at + length])
        case "cut":
            del data[at:]
        case "grow":
            data += bytes(length)
        case "empty":
            data.clear()
        case _:
            del data[at : at + length]
    path.write_bytes(data)
    return f"{how} {path.name} at {at}"


def _damage(rng: random.Random, index: Path, engine: Path, others: list[Path]) -> Mutation:
    header = rng.random() < 0.3
    path = _file(rng, engine, rng.choice(["*.npy", "*.npy", "*.npy", "*"]))
    said = _bytes(rng, path, 0 if header else min(HEADER, path.stat().st_size))
    forged = path.suffix == ".npy" and rng.random() < 0.5
    if forged:
        forge(engine)
    return Mutation(said, forged)


def _odd_file(rng: random.Random, index: Path, engine: Path, others: list[Path]) -> Mutation:
    path = _file(rng, engine, "*")
    how = rng.choice(["gone", "folder", "pipe", "endless", "unreadable"])
    path.unlink()
    match how:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "endless":
            path.symlink_to("/dev/zero")
        case "unreadable":
            path.symlink_to(path.name)
    return Mutation(f"{how} {path.name}")


def _crafted(rng: random.Random, index: Path, engine: Path, others: list[Path]) -> Mutation:
    """A value that no engine holds, or an array of another shape, dtype or order; with sums that fit."""
    path = _file(rng, engine)
    array = np.load(path)
    how = rng.choice(["value", "value", "value", "value", "value", "dtype", "order", "rows", "axes", "scalar", "many"])
    with np.errstate(all="ignore"):
        match how:
            case "value" | "many":
                part = array[rng.choice(array.dtype.names)] if array.dtype.names else array
                whole = part.dtype.kind in "iu"
                value = rng.choice(INTEGERS if whole else FLOATS)
                if part.size:
                    place = slice(None) if how == "many" else rng.randrange(part.size)
                    part.flat[place] = np.array(value % 2**64 if whole else value).astype(part.dtype)
                how = f"{how} {value}"
            case "dtype":
                dtype = rng.choice(DTYPES)
                try:
                    array = array.astype(dtype) if rng.random() < 0.5 else np.zeros(array.shape, dtype)
                except (TypeError, ValueError):
                    array = np.zeros(array.shape, dtype)
                how = f"dtype {dtype}"
            case "order":
                array = np.asfortranarray(array)
            case "rows":
                array = array[:-1] if rng.random() < 0.5 else np.concatenate([array, array])
            case "axes":
                array = array[..., None] if rng.random() < 0.5 else array.reshape(-1)
            case _:
                array = array.reshape(-1)[0]
    np.save(path, array)
    forge(engine)
    return Mutation(f"{how} in {path.name}", forged=True)


def _lists(rng: random.Random, index: Path, engine: Path, others: list[Path]) -> Mutation:
    """Lists, or rows, in an order that wraps, goes back or leaves some out."""
    name = rng.choice(["list_offsets", "list_offsets", "row_ids", "counts", "sign_scales"])
    array = np.load(engine / f"{name}.npy")
    flat = array.reshape(-1)
    how = rng.choice(["swap", "wrap", "copy", "shuffle", "beyond"])
    one, other = rng.randrange(flat.size), rng.randrange(flat.size)
    most = np.iinfo(array.dtype).max
    match how:
        case "swap":
            flat[[one, other]] = flat[[other, one]]
        case "wrap":
            flat[one], flat[min(one + 1, flat.size - 1)] = most, np.iinfo(array.dtype).min
        case "copy":
            flat[one] = flat[other]
        case "shuffle":
            np.random.default_rng(one).shuffle(flat)
        case _:
            flat[one] = min(int(flat.max()) + 1, int(most))
    np.save(engine / f"{name}.npy", array)
    forge(engine)
    return Mutation(f"{how} {one}, {other} in {name}.npy", forged=True)


def _manifest(rng: random.Random, index: Path, engine: Path, others: list[Path]) -> Mutation:
    """Another value at any place of the manifest."""
    manifest = json.loads((engine / MANIFEST).read_text())
    node, path = manifest, []
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = rng.choice([each for each in keys if each not in ("checks", "check")] if rng.random() < 0.9 else keys)
        path.append(str(key))
        if not isinstance(node[key], (dict, list)) or not node[key] or rng.random() < 0.05:
            break
        node = node[key]
    value = rng.choice(VALUES)
    if rng.random() < 0.1:
        del node[key]
    else:
        node[key] = value
    _write_manifest(engine, manifest)
    if rng.random() < 0.05:
        deep = "[" * 100_000
        (engine / MANIFEST).write_text(deep)
    return Mutation(f"{'.'.join(path)} = {str(value)[:30]} in {MANIFEST}", forged=True)


def _another(rng: random.Random, index: Path, engine: Path, others: list[Path]) -> Mutation:
    """A file of another engine, or all of it."""
    other = rng.choice(others) / FOLDER
    if rng.random() < 0.2:
        shutil.rmtree(engine)
        shutil.copytree(other, engine)
        return Mutation(f"the engine of {other.parent.name}")
    path = _file(rng, other)
    shutil.copyfile(path, engine / path.name)
    forged = rng.random() < 0.7
    if forged:
        forge(engine)
    return Mutation(f"{path.name} of {other.parent.name}", forged)


def _payloads(rng: random.Random, index: Path, engine: Path, others: list[Path]) -> Mutation:
    return Mutation(_bytes(rng, _file(rng, index, "payloads.*")))


def _other_file(pattern: str) -> Mutate:
    """Damage to a file beside the engine."""
    return lambda rng, index, engine, others: Mutation(_bytes(rng, _file(rng, index, pattern)), vectors=True)


KINDS: dict[str, tuple[Mutate, int]] = {
    "damage": (_damage, 30),
    "odd file": (_odd_file, 5),
    "crafted": (_crafted, 25),
    "lists": (_lists, 10),
    "manifest": (_manifest, 18),
    "another": (_another, 7),
    "vectors": (_other_file("*.f16"), 4),
    "database": (_other_file(FILE), 8),
    "maps": (_other_file("*.npy"), 3),
    "payloads": (_payloads, 6),
}
"""Ways to damage a folder, and how often each is taken."""
