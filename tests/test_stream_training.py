"""Training from a stream: the same samples however it is read or killed, and what is wrong with data, named."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
yaml = pytest.importorskip("yaml")

from hivlp.cli import main  # noqa: E402
from hivlp.errors import DataError, RecipeError  # noqa: E402
from hivlp.train.inputs.corpus import CorpusBatches, Inputs  # noqa: E402
from hivlp.train.inputs.held_out import HeldOut  # noqa: E402
from hivlp.train.inputs.prepared import same_number  # noqa: E402
from hivlp.train.inputs.stream import SKIPPED, StreamBatches  # noqa: E402
from hivlp.train.recipe.check import check_data, check_recipe  # noqa: E402
from hivlp.train.recipe.schema import Recipe  # noqa: E402
from hivlp.typed import build  # noqa: E402
from synthetic import shapes_recipe, shard_members, write_shards, write_tar  # noqa: E402

pytestmark = pytest.mark.train
SOURCE = Path(__file__).resolve().parent.parent / "src"


def process(number: int = 0, of: int = 1) -> SimpleNamespace:
    """What a process knows of the others."""
    return SimpleNamespace(
        process_index=number, num_processes=of, is_main_process=number == 0, device=torch.device("cpu")
    )


def streamed(folder: Path, **stream) -> dict:
    """A recipe that trains on five shards of pictures, mixed with the forty drawings of a folder."""
    recipe = shapes_recipe(folder)
    write_shards(folder / "shards", 5, 12)
    del recipe["train"]
    sources = [{"source": f"{folder}/shards/{{000..004}}.tar"}, {"source": str(folder / "pictures"), "weight": 2.0}]
    recipe["stream"] = {"sources": sources, "epoch": 40, "lanes": 4, "shuffle": 16, **stream}
    recipe["optim"] |= {"tower_lr": 1e-3, "feature_dropout": {}}
    # Of a map of one pixel, batch statistics make much of how a sum was rounded.
    recipe["image_tower"] = {"kind": "convnet", "options": {"channels": [8, 16], "grid": 2}}
    for level, layer in zip(recipe["levels"], (1, 2), strict=True):
        level["image_layer"] = layer
    recipe["compute"] = {"workers": 0, "patience": 0.0, "trackers": []}
    return recipe


def batches(folder: Path, recipe: dict, first: int = 0, steps: int = 6, state=None, number: int = 0, of: int = 1):
    """Batches of one process, and the state behind them."""
    run = folder / f"run{number}"
    run.mkdir(exist_ok=True)
    reader = StreamBatches(build(Recipe, recipe), folder / "tokenizer" / "tokenizer.json", process(number, of), run)
    if state is not None:
        reader.go_on(state)
    found = [(batch.image.clone(), *batch.text, batch.ids, batch.seed) for _, batch in reader.batches(first, steps)]
    return found, json.loads(json.dumps(reader.state())), run / SKIPPED


def assert_equal_batches(found, expected) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one[-1] == other[-1]
        for part, same in zip(one[:-1], other[:-1], strict=True):
            assert torch.equal(part, same)


def test_batches_depend_on_neither_workers_nor_where_a_run_stopped(tmp_path):
    recipe = streamed(tmp_path)
    whole, _, _ = batches(tmp_path, recipe, steps=12)
    assert {len(batch[3]) for batch in whole} == {10} and whole[0][0].dtype == torch.uint8
    _, state, _ = batches(tmp_path, recipe, steps=7)
    assert_equal_batches(batches(tmp_path, recipe, 7, 12, state)[0], whole[7:])
    recipe["compute"]["workers"] = 3
    ahead, kept, _ = batches(tmp_path, recipe, steps=7)
    assert_equal_batches(ahead, whole[:7])
    assert kept == state, "the position is that of the step, however far ahead the workers are"


def test_processes_share_the_batches_of_one(tmp_path):
    recipe = streamed(tmp_path)
    recipe["optim"]["batch_size"] = 12
    recipe["text"]["pad_to_max"] = True
    whole, _, _ = batches(tmp_path, recipe)
    shares = [batches(tmp_path, recipe, number=number, of=2)[0] for number in range(2)]
    for step, batch in enumerate(whole):
        for part in range(4):
            assert torch.equal(batch[part], torch.cat([share[step][part] for share in shares]))
        assert [len(share[step][3]) for share in shares] == [6, 6]


def test_pairs_with_one_caption_may_be_exchanged(tmp_path):
    found, _, _ = batches(tmp_path, streamed(tmp_path), steps=10)
    ids = torch.cat([batch[3] for batch in found]).tolist()
    assert 4 < len(set(ids)) < len(ids), "of the drawings' six captions some repeat"


def damaged_shards(folder: Path) -> None:
    def png(side: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (side, side), "red").save(buffer, "PNG")
        return buffer.getvalue()

    members = shard_members(range(12))
    members["000003.png"] = png(1)
    members["000005.png"] = members["000005.png"][:60]
    members["000007.txt"] = ("word " * 20_000).encode()
    write_tar(folder / "shards" / "000.tar", members)
    whole = (folder / "shards" / "001.tar").read_bytes()
    (folder / "shards" / "001.tar").write_bytes(whole[: len(whole) // 2])


def test_what_is_broken_is_named_and_passed_over_and_no_batch_is_smaller(tmp_path):
    recipe = streamed(tmp_path)
    damaged_shards(tmp_path)
    recipe["stream"]["sources"] = recipe["stream"]["sources"][:1]
    found, _, skipped = batches(tmp_path, recipe, steps=10)
    assert [len(batch[3]) for batch in found] == [10] * 10
    told = [json.loads(line)["skipped"] for line in skipped.read_text().splitlines()]
    for words in (
        "000/000003: has 1 x 1 pixels, less than stream.smallest: 16",
        "000/000005: is damaged or cannot be read",
        "000/000007: of a caption of 99999 characters, all but the first 65536",
        "001.tar is not a readable, uncompressed tar file: it ends at byte",
    ):
        assert any(words in each for each in told), words


def test_a_stream_of_nothing_but_broken_pictures_ends_in_a_sentence(tmp_path, monkeypatch):
    recipe = streamed(tmp_path)
    members = {name: b"x" if name.endswith("png") else text for name, text in shard_members(range(12)).items()}
    recipe["stream"]["sources"] = [{"source": str(write_tar(tmp_path / "bad" / "0.tar", members))}]
    monkeypatch.setattr("hivlp.train.inputs.stream.MOST_BROKEN", 30)
    with pytest.raises(DataError, match=r"the last 30 pictures of lane 0 cannot be used: 0/0000.*--resume"):
        batches(tmp_path, recipe)


def test_shards_that_vanish_end_the_run_which_goes_on_when_they_are_back(tmp_path):
    recipe = streamed(tmp_path)
    whole, _, _ = batches(tmp_path, recipe, steps=40)
    run = tmp_path / "run0"
    reader = StreamBatches(build(Recipe, recipe), tmp_path / "tokenizer" / "tokenizer.json", process(), run)
    found = []
    with pytest.raises(DataError, match=r"step \d+: .*\.tar cannot be read: No such file or directory; mend that"):
        for step, batch in reader.batches(0, 40):
            found.append((batch.image.clone(), *batch.text, batch.ids, batch.seed))
            if step == 3:
                (tmp_path / "shards").rename(tmp_path / "away")
    assert 4 <= len(found) < 40
    (tmp_path / "away").rename(tmp_path / "shards")
    again, _, _ = batches(tmp_path, recipe, len(found), 40, json.loads(json.dumps(reader.state())))
    assert_equal_batches(found + again, whole)


def held_out_photographs(folder: Path) -> dict:
    """A recipe whose shards hold, scaled and in another format, three of the four pictures that it is validated on."""
    recipe = streamed(folder)
    rng, members = np.random.default_rng(0), {}
    (folder / "seen").mkdir()
    for number in range(12):
        noise = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        noise.resize((200, 150), 3).save(buffer, "JPEG")
        members |= {f"{number:06}.jpg": buffer.getvalue(), f"{number:06}.txt": f"noise {number}".encode()}
        if number < 3:
            noise.resize((320, 240), 3).save(folder / "seen" / f"copy{number}.png")
            (folder / "seen" / f"copy{number}.txt").write_text("some noise")
    Image.new("RGB", (40, 40), "red").save(folder / "seen" / "other.png")
    (folder / "seen" / "other.txt").write_text("red")
    write_tar(folder / "photos" / "0.tar", members)
    recipe["stream"]["sources"] = [{"source": str(folder / "photos")}]
    return recipe | {"validation": str(folder / "seen")}


def test_what_a_recipe_is_validated_on_is_passed_over_in_its_stream_by_what_pictures_show(tmp_path):
    recipe = build(Recipe, held_out_photographs(tmp_path))
    held_out = HeldOut.of(recipe)
    assert held_out is not None and held_out.contents.ids == ("copy0.png", "copy1.png", "copy2.png", "other.png")
    reader = StreamBatches(recipe, tmp_path / "tokenizer" / "tokenizer.json", process(), tmp_path, held_out)
    seen = [batch.ids for _, batch in reader.batches(0, 4)]
    assert [len(ids) for ids in seen] == [10] * 4
    ids = {same_number(f"noise {number}") for number in range(3, 12)}
    assert set(torch.cat(seen).tolist()) == ids
    told = {json.loads(line)["skipped"] for line in (tmp_path / SKIPPED).read_text().splitlines()}
    source = recipe.validation
    assert told == {f"0/{n:06}: is copy{n}.png of {source}, which is not to be trained on" for n in range(3)}


def test_a_stream_of_nothing_but_what_is_tested_on_is_refused_and_one_validated_on_itself_is_meant(
    tmp_path, monkeypatch
):
    data = held_out_photographs(tmp_path)
    monkeypatch.setattr("hivlp.train.inputs.stream.MOST_BROKEN", 30)
    recipe = build(Recipe, data | {"test": f"{tmp_path}/photos/0.tar"})
    reader = StreamBatches(recipe, tmp_path / "tokenizer" / "tokenizer.json", process(), tmp_path, HeldOut.of(recipe))
    with pytest.raises(DataError, match=r"the last 30 pictures .*0.tar, which is not to be trained on; .*--resume"):
        next(iter(reader.batches(0, 4)))
    assert HeldOut.of(build(Recipe, data | {"validation": f"{tmp_path}/photos"})) is None
    assert HeldOut.of(build(Recipe, data | {"validation": None})) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": [{"source": "demo"}]}, "one of the two"),
        ({"stream": None}, "train names no data"),
        ({"limit": 5}, "stream goes without limit"),
        ({"optim": {"tower_lr": 0.0}}, "stream goes without limit, and with towers that learn"),
        ({"stream": {"lanes": 3}}, r"stream.lanes is 3, no multiple of the 2 processes"),
        ({"stream": {"lanes": 64}}, r"stream.lanes is 64, more than the pairs of a batch"),
        ({"stream": {"epoch": 5}}, "optim.batch_size is 10, more than the 5 pairs of an epoch"),
        ({"stream": {"sources": []}}, "sources names no data"),
    ],
)  # fmt: skip
def test_a_stream_that_cannot_be_is_refused(tmp_path, change, message):
    data = streamed(tmp_path)
    for key, value in change.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    with pytest.raises(RecipeError, match=message):
        recipe = build(Recipe, data)
        check_recipe(recipe)
        check_data(recipe, 2)


def test_a_damaged_position_is_refused(tmp_path):
    for state in (None, {}, {"0": [0, 0, [0, 0], [0, 0]]}, {str(lane): [0, -1, [0, 0], [0, 0]] for lane in range(4)}):
        with pytest.raises(RecipeError, match="checkpoint is damaged"):
            (reader,) = [StreamBatches(build(Recipe, streamed_once(tmp_path)), tmp_path, process(), tmp_path)]
            reader.go_on(state)


def streamed_once(folder: Path) -> dict:
    known = folder / "recipe.json"
    if not known.exists():
        known.write_text(json.dumps(streamed(folder)))
    return json.loads(known.read_text())


def test_a_corpus_is_cropped_ahead_as_it_is_at_once():
    """Threads that make later batches change nothing."""
    corpus = SimpleNamespace(
        pixels=np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), dtype=np.uint8),
        repeat=np.ones(30, np.int64), ids=torch.arange(60).reshape(30, 2), mask=torch.ones(30, 2, dtype=torch.int64),
        lengths=torch.full((30,), 2), variants=[[row] for row in range(30)], caption_ids=np.arange(30),
        texts=[], contents=None,
    )  # fmt: skip

    class Corpus(SimpleNamespace):
        def __len__(self) -> int:
            return 30

    recipe = build(Recipe, {
        "name": "x", "levels": [{"name": "fine", "dim": 4, "image_layer": 1, "text_layer": 1}], "quantize": False,
        "image_tower": {"kind": "convnet"}, "text_tower": {"kind": "bert"}, "train": [{"source": "demo"}],
        "picture": {"size": 32}, "optim": {"batch_size": 8, "epochs": 3},
    })  # fmt: skip
    found = []
    for workers in (0, 3):
        some = replace(recipe, compute=replace(recipe.compute, workers=workers))
        reader = CorpusBatches(some, Inputs(Corpus(**vars(corpus))), process())
        found.append([(step, batch.image, *batch.text, batch.ids) for step, batch in reader.batches(2, 11)])
    assert [step for step, *_ in found[0]] == list(range(2, 11))
    for one, other in zip(*found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[1:], other[1:], strict=True))


# --- the whole job


def run_train(folder: Path, recipe: dict, out: str, *more: str, processes: int = 1, limit: int = 0):
    path = folder / f"{out}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "hivlp", "train", str(path), "-o", str(folder / out), "--json", *more]
    if processes > 1:
        command[1:2] = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None,
    )


def rows(folder: Path, out: str) -> list[dict]:
    path = folder / out / "run" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_killed_and_on_a_full_disk_a_run_goes_on_with_the_same_losses(tmp_path):
    recipe = streamed(tmp_path)
    damaged_shards(tmp_path)
    recipe["compute"]["workers"] = 2
    recipe["optim"]["checkpoint_every"] = 2
    whole = run_train(tmp_path, recipe, "whole")
    _, err = whole.communicate(timeout=240)
    assert whole.returncode == 0, err
    reference = rows(tmp_path, "whole")
    assert [row["step"] for row in reference] == list(range(12))

    victim = run_train(tmp_path, recipe, "killed")
    while len(rows(tmp_path, "killed")) < 4 and victim.poll() is None:
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    kept = (tmp_path / "killed" / "run" / "checkpoint" / "checkpoint.safetensors").read_bytes()

    alone = {**recipe, "compute": {**recipe["compute"], "workers": 0}}  # the limit is one of shared memory, too
    full = run_train(tmp_path, alone, "killed", "--resume", limit=len(kept) // 2)
    _, err = full.communicate(timeout=240)
    assert full.returncode == 1 and "cannot be written: " in err and "--resume" in err and "Traceback" not in err
    assert (tmp_path / "killed" / "run" / "checkpoint" / "checkpoint.safetensors").read_bytes() == kept

    recipe["compute"]["workers"] = 0
    resumed = run_train(tmp_path, recipe, "killed", "--resume")
    _, err = resumed.communicate(timeout=240)
    assert resumed.returncode == 0, err
    assert rows(tmp_path, "killed") == reference
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    skipped = [(tmp_path / name / "run" / SKIPPED).read_text().splitlines() for name in ("whole", "killed")]
    assert {*skipped[0]} == {*skipped[1]} and any("1 x 1 pixels" in line for line in skipped[0])

    write_tar(tmp_path / "shards" / "004.tar", shard_members(range(3)))
    other = run_train(tmp_path, recipe, "killed", "--resume")
    _, err = other.communicate(timeout=60)
    assert other.returncode == 1 and "the training data changed (shards: 1 changed" in err


@pytest.mark.slow
def test_two_processes_train_on_a_stream_as_one_does(tmp_path):
    from tokenizers import Tokenizer

    recipe = streamed(tmp_path)
    path = tmp_path / "tokenizer" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(["[MASK]"])
    tokenizer.save(str(path))
    recipe["text_tower"]["options"]["vocab_size"] += 1
    recipe["pretext"] = {"matching": 0.5, "masked_language": 0.5, "masked_share": 0.4}
    recipe["optim"]["epochs"] = 1
    for name, count in (("one", 1), ("two", 2)):
        job = run_train(tmp_path, recipe, name, processes=count)
        _, err = job.communicate(timeout=240)
        assert job.returncode == 0, err
    for one, two in zip(rows(tmp_path, "one"), rows(tmp_path, "two"), strict=True):
        for name, value in one.items():
            assert two[name] == pytest.approx(value, rel=1e-4), (one["step"], name)


def test_a_plan_knows_the_steps_of_a_stream(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(streamed(tmp_path)))
    assert main(["train", str(tmp_path / "r.yaml"), "--plan", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["steps"] == 12 and plan["pairs_per_epoch"] == 40
