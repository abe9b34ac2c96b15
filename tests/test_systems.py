"""UNITER, LightningDOT and METER: published names, shapes and counts, and outputs against numpy."""

import io
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hivlp.errors import DataError, ModelError  # noqa: E402
from hivlp.systems.checkpoints import parameter_count  # noqa: E402
from hivlp.systems.clip_vit import resize_positions  # noqa: E402
from hivlp.systems.lightningdot import (  # noqa: E402
    LightningDot,
    as_cosine,
    contrastive_loss,
    load_image_tower,
    load_lightningdot,
)
from hivlp.systems.meter import CLIP_B16, SWIN_B, Meter, load_meter  # noqa: E402
from hivlp.systems.regions import Kept, RegionFolder, RegionLmdb  # noqa: E402
from hivlp.systems.swin import resize_bias  # noqa: E402
from hivlp.systems.uniter import BASE, LARGE, Regions, UniterConfig, UniterRanker, load_uniter  # noqa: E402
from systems_oracle import (  # noqa: E402
    Oracle,
    clip,
    lightningdot,
    meter,
    numbers,
    random_state,
    swin,
    uniter_ranker,
)

pytestmark = pytest.mark.train

SMALL = (2, 128, 96, 120, 40, 24)
"""Layers, width, feed-forward, vocabulary, positions, features of a small UNITER."""
METER_CLIP = meter(clip(2, 128, 8, 4), 128, 2, 2, 128, 96, 60, 30)
METER_SWIN = meter(swin((2, 2), 32, 4, 4), 64, 2, 2, 128, 96, 60, 30)


def save(path, state):
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, path)
    return path


def pictures(rng, counts, features=24):
    """Regions of pictures, padded with numbers that must not be looked at."""
    most = max(counts)
    seen, placed = rng.normal(size=(len(counts), most, features)), rng.random((len(counts), most, 7))
    mask = np.arange(most) < np.array(counts)[:, None]
    return (
        seen,
        placed,
        Regions(*(torch.from_numpy(part) for part in (seen, placed)), torch.from_numpy(mask)),
    )


def padded(texts, pad=0):
    most = max(map(len, texts))
    tokens = torch.tensor([[*text, *[pad] * (most - len(text))] for text in texts])
    return tokens, torch.tensor([[n < len(text) for n in range(most)] for text in texts])


@pytest.mark.parametrize(
    ("build", "shapes", "count"),
    [
        (lambda: UniterRanker(BASE), uniter_ranker(12, 768, 3072, 28996, 512, 2048), 109_901_059),
        (lambda: UniterRanker(LARGE), uniter_ranker(24, 1024, 4096, 28996, 512, 2048), 335_698_947),
        (LightningDot, lightningdot(12, 768, 3072, 28996, 512, 2048), 222_938_368),
        (lambda: Meter(CLIP_B16), meter(clip(11, 768, 16, 24), 768, 12, 6, 768, 3072, 50265, 514), 319_438_851),
        (
            lambda: Meter(SWIN_B),
            meter(swin((2, 2, 18, 2), 128, 4, 12), 1024, 12, 6, 768, 3072, 50265, 514),
            327_510_651,
        ),
    ],
    ids=["uniter-base", "uniter-large", "lightningdot", "meter-clip", "meter-swin"],
)
def test_names_shapes_and_counts_are_the_published_ones(build, shapes, count):
    with torch.device("meta"):
        model = build()
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == shapes
    assert parameter_count(model) == numbers(shapes) == count


@pytest.mark.parametrize("seed", range(3))
def test_uniter_scores_a_pair_in_a_batch_as_by_itself(tmp_path, seed):
    rng, state = np.random.default_rng(seed), random_state(uniter_ranker(*SMALL), seed)
    model = load_uniter(save(tmp_path / "uniter.pt", state)).double()
    counts, texts = [3, 9, 5], [[2, 7, 9, 3], [2, 3], [2, 11, 12, 13, 14, 3]]
    seen, placed, regions = pictures(rng, counts)
    with torch.no_grad():
        scores = model(*padded(texts), model.uniter.embed_regions(regions), regions.mask).numpy()
    for row, (text, count) in enumerate(zip(texts, counts, strict=True)):
        alone = Oracle(state).uniter_score(text, seen[row, :count], placed[row, :count], 2)
        assert scores[row] == pytest.approx(alone, abs=1e-9)


def test_sequences_are_compacted_to_the_longest_pair():
    model = UniterRanker(UniterConfig(1, 64, 64, 50, 30, 8)).eval().double()
    _, _, regions = pictures(np.random.default_rng(0), [9, 2], 8)
    tokens, mask = padded([[1, 2], [1] * 8])
    states = model.uniter(tokens, mask, model.uniter.embed_regions(regions), regions.mask)
    assert states.shape[1] == max(2 + 9, 8 + 2)


def test_a_pretrained_uniter_ranks_by_row_one_of_its_matching_head(tmp_path):
    state = random_state(uniter_ranker(*SMALL))
    for part in ("weight", "bias"):
        del state[f"rank_output.{part}"]
    state["cls.predictions.bias"] = state["feat_regress.weight"] = np.ones(3, "f4")
    model = load_uniter(save(tmp_path / "uniter.pt", state))
    assert np.array_equal(model.rank_output.weight.detach().numpy(), state["itm_output.weight"][1:])
    assert np.array_equal(model.rank_output.bias.detach().numpy(), state["itm_output.bias"][1:])


def test_a_fine_tuned_uniter_keeps_its_own_ranking_head(tmp_path):
    state = random_state(uniter_ranker(*SMALL))
    model = load_uniter(save(tmp_path / "uniter.pt", state))
    assert np.array_equal(model.rank_output.weight.detach().numpy(), state["rank_output.weight"])
    assert not np.array_equal(state["rank_output.weight"], state["itm_output.weight"][1:])


def test_older_names_of_uniter_are_the_same_model(tmp_path):
    state = random_state(uniter_ranker(*SMALL))
    older = {name.replace("uniter.", "bert.", 1): value for name, value in state.items()}
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in older.items()
    }
    new, old = (load_uniter(save(tmp_path / f"{n}.pt", each)) for n, each in enumerate((state, older)))
    assert all(torch.equal(value, old.state_dict()[name]) for name, value in new.state_dict().items())


def test_lightningdot_makes_the_vectors_of_both_towers(tmp_path):
    rng, size = np.random.default_rng(1), (2, 128, 96, 120, 40, 24)
    state = random_state(lightningdot(*size))
    held = {"model_dict": {name: torch.from_numpy(value) for name, value in state.items()}, "epoch": 3, "offset": 0}
    held["model_dict"]["txt_model.bert.embeddings.position_ids"] = torch.arange(40)[None]
    torch.save(held, tmp_path / "biencoder.pt")
    model = load_lightningdot(tmp_path / "biencoder.pt").double()
    counts, texts = [4, 7], [[101, 5, 102], [101, 5, 6, 7, 102]]
    seen, placed, regions = pictures(rng, counts)
    with torch.no_grad():
        images, words = model.encode_regions(regions).numpy(), model.encode_text(*padded(texts)).numpy()
    for row, (text, count) in enumerate(zip(texts, counts, strict=True)):
        alone = Oracle(state).lightningdot_image(seen[row, :count], placed[row, :count], 2)
        assert images[row] == pytest.approx(alone, abs=1e-9)
        assert words[row] == pytest.approx(Oracle(state).lightningdot_text(text, 2), abs=1e-9)


def test_a_pretrained_lightningdot_gives_its_image_tower_alone(tmp_path):
    state = random_state(lightningdot(*SMALL))
    tower = {
        name.removeprefix("img_model."): value for name, value in state.items() if name.startswith("img_model.bert.")
    }
    save(tmp_path / "pre.pt", tower | {"cls.predictions.bias": np.ones(3, "f4"), "itm_output.bias": np.ones(2, "f4")})
    loaded = load_image_tower(tmp_path / "pre.pt")
    name = "encoder.layer.1.output.dense.weight"
    assert np.array_equal(loaded.state_dict()[name].numpy(), state[f"img_model.bert.{name}"])
    with pytest.raises(ModelError, match="pre-trained image tower"):
        load_lightningdot(tmp_path / "pre.pt")


def test_the_loss_of_lightningdot_is_symmetric_cross_entropy_over_the_batch():
    images, texts = np.random.default_rng(0).normal(size=(2, 5, 8))
    scores = texts @ images.T
    both = [-np.log(np.exp(each).diagonal() / np.exp(each).sum(1)).mean() for each in (scores, scores.T)]
    assert float(contrastive_loss(torch.from_numpy(images), torch.from_numpy(texts))) == pytest.approx(np.mean(both))


def test_cosines_with_one_more_coordinate_rank_as_inner_products():
    rng = np.random.default_rng(0)
    items = (rng.normal(size=(50, 8)) * rng.random((50, 1)) * 5).astype("f4")
    queries = rng.normal(size=(7, 8)).astype("f4")
    wide, asked = as_cosine(items, queries)
    assert np.linalg.norm(wide, axis=1) == pytest.approx(1, abs=1e-6)
    assert np.array_equal(np.argsort(-asked @ wide.T), np.argsort(-queries @ items.T))
    lengths = np.linalg.norm(queries, axis=1, keepdims=True) * np.linalg.norm(items, axis=1).max()
    assert asked @ wide.T == pytest.approx(queries @ items.T / lengths, abs=1e-6)


@pytest.mark.parametrize(("vision", "shapes"), [("clip", METER_CLIP), ("swin", METER_SWIN)])
def test_meter_scores_a_pair_in_a_batch_as_by_itself(tmp_path, vision, shapes):
    rng, state = np.random.default_rng(2), random_state(shapes, 3)
    held = {name: torch.from_numpy(value) for name, value in state.items()}
    # What the published files have besides.
    held |= {"mlm_score.bias": torch.ones(60), "text_transformer.embeddings.position_ids": torch.arange(30)[None]}
    if vision == "clip":
        held |= {"vit_model.positional_embedding": torch.ones(77, 512), "vit_model.ln_final.weight": torch.ones(512)}
    else:
        held["vit_model.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
        held["vit_model.layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    torch.save({"state_dict": held, "epoch": 9}, tmp_path / "meter.ckpt")
    model = load_meter(tmp_path / "meter.ckpt", size=32).double()
    texts = [[0, 5, 6, 2], [0, 7, 2], [0, 8, 9, 10, 11, 2]]
    pixels = rng.normal(size=(3, 3, 32, 32))
    with torch.no_grad():
        scores = model(*padded(texts, 1), torch.from_numpy(pixels)).numpy()
    for row, text in enumerate(texts):
        if vision == "clip":
            alone = Oracle(state).meter_score(text, Oracle(state).clip(pixels[row], 2), 2, 2, "first")
        else:
            seen = Oracle(state, 32).swin(pixels[row], (2, 2), 4)
            alone = Oracle(state).meter_score(text, seen, 2, 2, "mean")
        assert scores[row] == pytest.approx(alone, abs=1e-9)


def test_a_pretrained_meter_ranks_by_row_one_of_its_matching_head(tmp_path):
    state = random_state(METER_CLIP)
    del state["rank_output.weight"], state["rank_output.bias"]
    model = load_meter(save(tmp_path / "meter.ckpt", state), size=32)
    assert np.array_equal(model.rank_output.weight.detach().numpy(), state["itm_score.fc.weight"][1:])


def test_meter_has_eleven_of_clips_twelve_blocks():
    assert CLIP_B16.vision_depths == (11,)


def test_another_picture_size_resizes_the_position_grid(tmp_path):
    state = random_state(METER_CLIP)
    model = load_meter(save(tmp_path / "meter.ckpt", state), size=48)
    rows = model.state_dict()["vit_model.visual.positional_embedding"].numpy()
    assert rows.shape == (1 + 36, 128)
    published = state["vit_model.visual.positional_embedding"]
    assert np.array_equal(rows[0], published[0]), "the class token's row stays"
    flat = resize_positions(torch.cat([torch.zeros(1, 2), torch.ones(196, 2)]), 577)
    assert flat.shape == (577, 2) and flat[1:] == pytest.approx(1)
    assert model.encode_image(torch.zeros(1, 3, 48, 48)).shape == (1, 37, 128)


def test_another_window_of_swin_resizes_its_biases(tmp_path):
    model = load_meter(save(tmp_path / "meter.ckpt", random_state(METER_SWIN)), size=48)
    assert model.state_dict()["vit_model.layers.0.blocks.0.attn.relative_position_bias_table"].shape == (11**2, 1)
    assert model.encode_image(torch.zeros(1, 3, 48, 48)).shape == (1, 36, 128)
    assert resize_bias(torch.ones(49, 4), 121) == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("uniter.pooler.dense.bias"), "lacks 1 tensors, the first of them uniter.pooler.dense.bias"),
        (
            lambda s: s.update({"extra.weight": np.ones(1, "f4")}),
            "has unknown 1 tensors, the first of them extra.weight",
        ),
        (lambda s: s.update({"itm_output.bias": np.ones(3, "f4")}), r"itm_output.bias is \(3,\), not \(2,\)"),
        (lambda s: s.pop("uniter.embeddings.word_embeddings.weight"), "has no matrix"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path, change, said):
    state = random_state(uniter_ranker(*SMALL))
    change(state)
    with pytest.raises(ModelError, match=said):
        load_uniter(save(tmp_path / "uniter.pt", state))


def test_nothing_is_unpickled(tmp_path):
    import pickle

    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps({"a": print}, protocol=2))
    with pytest.raises(ModelError, match="cannot be read without unpickling"):
        load_uniter(path)


def test_safetensors_are_read_too(tmp_path):
    from safetensors.numpy import save_file

    state = random_state(uniter_ranker(*SMALL))
    save_file(state, tmp_path / "uniter.safetensors")
    assert isinstance(load_uniter(tmp_path / "uniter.safetensors"), UniterRanker)


# Region features.


def detections(seed=0, count=40):
    rng = np.random.default_rng(seed)
    confidence = np.sort(rng.random(count).astype("f2"))[::-1]
    return {"features": rng.random((count, 16)).astype("f2"), "norm_bb": rng.random((count, 6)).astype("f2"),
            "conf": confidence, "soft_labels": rng.random((count, 5)).astype("f2")}  # fmt: skip


def npz_bytes(arrays):
    with io.BytesIO() as buffer:
        # As UNITER's script does, which so stores an array named allow_pickle.
        np.savez_compressed(buffer, **arrays, allow_pickle=True)
        return buffer.getvalue()


def packed(arrays):
    """As msgpack-numpy does."""
    import msgpack

    value = {
        name: {b"nd": True, b"type": each.dtype.str, b"kind": b"", b"shape": list(each.shape), b"data": each.tobytes()}
        for name, each in arrays.items()
    }
    return msgpack.packb(value, use_bin_type=True)


def write_lmdb(folder, name, values, counts=None):
    import lmdb

    (folder / name).mkdir(parents=True)
    with lmdb.open(str(folder / name), map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
        transaction.put(b"__keys__", json.dumps(list(values)).encode())
    if counts is not None:
        (folder / f"nbb_{name.removeprefix('feat_').removesuffix('_compressed')}.json").write_text(json.dumps(counts))


def expected(arrays, count):
    boxes = arrays["norm_bb"][:count].astype("f4")
    return arrays["features"][:count].astype("f4"), np.concatenate([boxes, boxes[:, 4:5] * boxes[:, 5:6]], 1)


NAME = "flickr30k_000000000001.npz"


@pytest.mark.parametrize("layout", ["folder", "compressed", "msgpack", "all"])
def test_regions_are_the_same_in_every_published_layout(tmp_path, layout):
    arrays = detections()
    if layout == "folder":
        (tmp_path / NAME).write_bytes(npz_bytes(arrays))
        source = RegionFolder(tmp_path)
    else:
        name = {"compressed": "feat_th0.2_max100_min10_compressed", "msgpack": "feat_th0.2_max100_min10", "all": "all"}
        value = npz_bytes(arrays) if layout == "compressed" else packed(arrays)
        write_lmdb(tmp_path, name[layout], {NAME: value})
        source = RegionLmdb(tmp_path)
    count = int((arrays["conf"] > 0.2).sum())
    found, (features, boxes) = source[NAME], expected(arrays, count)
    assert np.array_equal(found.features, features) and np.array_equal(found.boxes, boxes)
    assert list(source) == [NAME] and len(source) == 1
    with pytest.raises(KeyError):
        source["another.npz"]


@pytest.mark.parametrize(("above", "kept"), [(0, 10), (3, 10), (17, 17), (40, 40), (100, 100), (120, 100)])
def test_ten_to_a_hundred_regions_are_kept(above, kept):
    assert Kept().of(np.array([0.9] * above + [0.1] * 20)) == kept
    assert Kept(None).of(np.ones(50)) == 36


def test_counts_beside_the_database_are_used(tmp_path):
    arrays = detections()
    write_lmdb(tmp_path, "feat_th0.2_max100_min10", {NAME: packed(arrays)}, {NAME: 12})
    assert len(RegionLmdb(tmp_path)[NAME].features) == 12


def test_a_fixed_number_of_regions_is_thirty_six(tmp_path):
    write_lmdb(tmp_path, "feat_numbb36_compressed", {NAME: npz_bytes(detections())})
    assert len(RegionLmdb(tmp_path, Kept(None))[NAME].features) == 36


def test_objects_in_region_files_are_refused(tmp_path):
    import msgpack

    evil = np.array([print, 1], object)
    (tmp_path / NAME).write_bytes(npz_bytes({"features": evil, "norm_bb": np.ones((2, 6))}))
    with pytest.raises(DataError, match="not a readable"):
        RegionFolder(tmp_path)[NAME]
    held = {b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [2], b"data": b"\x80\x02"}
    write_lmdb(tmp_path / "x", "all", {NAME: msgpack.packb({"features": held}, use_bin_type=True), "cut": b"\x81"})
    source = RegionLmdb(tmp_path / "x")
    for name in (NAME, "cut"):
        with pytest.raises(DataError, match="not a readable record"):
            source[name]


@pytest.mark.parametrize("name", ["../secret.npz", "/etc/passwd"])
def test_a_name_outside_of_the_folder_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="leaves its folder"):
        RegionFolder(tmp_path)[name]


def test_regions_that_do_not_belong_together_are_refused(tmp_path):
    (tmp_path / NAME).write_bytes(npz_bytes({"features": np.ones((3, 16)), "norm_bb": np.ones((2, 6))}))
    with pytest.raises(DataError, match="do not belong together"):
        RegionFolder(tmp_path)[NAME]


def test_no_database_says_which_were_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"has no database feat_th0\.2_max100_min10_compressed or"):
        RegionLmdb(tmp_path)


@pytest.mark.parametrize("size", [0, 100, 8192, 12288, -4096])
def test_a_database_that_is_cut_short_is_refused_before_it_is_read(tmp_path, size):
    """Reading beyond the end of a mapped file would kill the process."""
    write_lmdb(tmp_path, "all_compressed", {f"{number}.npz": npz_bytes(detections()) for number in range(3)})
    with (tmp_path / "all_compressed" / "data.mdb").open("r+b") as file:
        file.truncate(size if size >= 0 else file.seek(0, 2) + size)
    with pytest.raises(DataError, match="cannot be read"):
        RegionLmdb(tmp_path)


@pytest.mark.parametrize("keys", [b"5", b"null", b"[" * 100_000, b"\xff\xfe", b'["a"', b"[5]"])
def test_a_database_without_a_list_of_names_is_refused(tmp_path, keys):
    import lmdb

    write_lmdb(tmp_path, "all", {})
    with lmdb.open(str(tmp_path / "all"), map_size=1 << 24) as env, env.begin(write=True) as transaction:
        transaction.put(b"__keys__", keys)
    with pytest.raises(DataError):
        RegionLmdb(tmp_path)


def test_names_that_no_key_can_have_are_not_there(tmp_path):
    write_lmdb(tmp_path, "all", {NAME: packed(detections())})
    source = RegionLmdb(tmp_path)
    for name in ("", "x" * 600, "\ud800", "__keys__"):
        with pytest.raises(KeyError):
            source[name]


def test_a_damaged_stream_within_an_archive_is_refused(tmp_path):
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **detections())
    data = bytearray(arrays.getvalue())
    for at in range(60, 400):
        (tmp_path / NAME).write_bytes(bytes(data[:at]) + b"\xff" * 8 + bytes(data[at + 8 :]))
        with pytest.raises(DataError, match="not a readable"):
            RegionFolder(tmp_path)[NAME]


@pytest.mark.parametrize("kind", ["(2,f4", "|O", "|V8", "<U4", 5, ["<f4"]])
def test_types_that_are_no_numbers_are_refused(tmp_path, kind):
    import msgpack

    held = {b"nd": True, b"type": kind, b"kind": b"", b"shape": [2], b"data": b"12345678"}
    write_lmdb(tmp_path, "all", {NAME: msgpack.packb({"features": held}, use_bin_type=True)})
    with pytest.raises(DataError, match="not a readable record"):
        RegionLmdb(tmp_path)[NAME]


@pytest.mark.parametrize("name", ["99999999", "9" * 5000])
def test_a_layer_of_any_number_is_unknown_and_none_is_made_for_it(tmp_path, name):
    state = random_state(uniter_ranker(*SMALL))
    state[f"uniter.encoder.layer.{name}.output.dense.bias"] = np.ones(1, "f4")
    with pytest.raises(ModelError, match=r"lacks|unknown"):
        load_uniter(save(tmp_path / "uniter.pt", state))


@pytest.mark.parametrize("shape", [(1, 200_000), (0, 1 << 40)])
def test_a_size_that_the_rest_does_not_have_is_refused_before_it_is_allocated(tmp_path, shape):
    state = random_state(uniter_ranker(*SMALL)) | {"uniter.embeddings.word_embeddings.weight": np.zeros(shape, "f2")}
    with pytest.raises(ModelError):
        load_uniter(save(tmp_path / "uniter.pt", state))


def test_a_tensor_of_more_values_than_the_file_holds_is_refused(tmp_path):
    torch.save({"uniter.pooler.dense.weight": torch.zeros(1, 1).expand(1 << 20, 1 << 20)}, tmp_path / "uniter.pt")
    with pytest.raises(ModelError, match="more values than the file holds"):
        load_uniter(tmp_path / "uniter.pt")
