"""Fetching models through the hub's real client, from a hub on loopback: what is fetched, pinned and refused."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("huggingface_hub")

from hivlp.cli import main
from hivlp.encode import HiVLP
from hivlp.encode.pretrained import resolve_folder
from hivlp.errors import ModelError
from hivlp.formats.transformers import FILES
from hivlp.hub.names import parse_name
from hivlp.hub.table import MODELS
from hivlp.index import Index
from hub_server import Hub, serving
from synthetic import write_pictures

NAME = "someone/mini"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(Hub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setenv("HIVLP_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
        yield hub


@pytest.fixture
def folder(tmp_path):
    """hivlp-mini as a repository: graphs, and files that nobody needs beside them."""
    out = tmp_path / "repository"
    HiVLP.from_pretrained("hivlp-mini").save_pretrained(out)
    (out / "model.safetensors").write_bytes(b"weights" * 100)
    (out / "pickle.bin").write_bytes(b"\x80\x04")
    (out / "evil.py").write_text("raise SystemExit")
    return out


@pytest.mark.slow
def test_only_what_is_needed_is_fetched_once_and_then_works_offline(hub, folder, monkeypatch):
    hub.add(NAME, folder)
    first = HiVLP.from_pretrained(NAME)
    assert sorted(set(hub.fetched())) == sorted(hub.fetched()), "a file was fetched twice"
    assert set(hub.fetched()) == {"config.json", "image.onnx", "text.onnx", "text.coarse.onnx", "text.bin",
                                  "tokenizer.json", "README.md"}  # fmt: skip
    assert first.source == f"{NAME}@{hub.repositories[NAME].sha(0)}"
    np.testing.assert_array_equal(
        first.encode_text("a dog").fine, HiVLP.from_pretrained("hivlp-mini").encode_text("a dog").fine
    )
    asked = len(hub.requests)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (NAME, first.source):
        again = HiVLP.from_pretrained(name)
        assert again.fingerprint == first.fingerprint and again.source == first.source
    assert len(hub.requests) == asked


@pytest.mark.slow
def test_an_index_keeps_the_commit_that_it_was_made_with(hub, folder, tmp_path, capsys):
    repository = hub.add(NAME, folder)
    write_pictures(tmp_path / "pictures", 2)
    assert main(["index", str(tmp_path / "pictures"), "-o", str(tmp_path / "x"), "--model", NAME, "--json"]) == 0
    changed = dict(repository.commits[0])
    changed["config.json"] = changed["config.json"].replace(b'"hivlp-mini"', b'"hivlp-next"')
    repository.commits.append(changed)
    assert main(["search", str(tmp_path / "x"), "a dog"]) == 0
    assert HiVLP.from_pretrained(NAME).source.endswith(repository.sha(0)), "pinned by its first use"
    newer = HiVLP.from_pretrained(f"{NAME}@main")
    assert newer.name == "hivlp-next" and newer.source.endswith(repository.sha(1))
    capsys.readouterr()
    assert main(["search", str(tmp_path / "x"), "a dog", "--model", f"{NAME}@main"]) == 1
    assert "was made with model hivlp-mini" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "cache")  # another machine: the commit is fetched, not what the branch has become
    with Index.open(tmp_path / "x") as index:
        assert index.model_source == f"{NAME}@{repository.sha(0)}"
        assert len(index.search("a dog", k=1)) == 1


@pytest.mark.slow
def test_a_transfer_that_breaks_off_goes_on_where_it_was(hub, folder):
    repository = hub.add(NAME, folder)
    repository.cut["image.onnx"] = 1
    model = HiVLP.from_pretrained(NAME)
    ranges = [span for method, path, span in hub.requests if path.endswith("image.onnx") and span]
    assert len(ranges) == 1 and int(ranges[0].removeprefix("bytes=").rstrip("-")) > 0
    assert len(model.encode_text("a dog")) == 2


def test_a_transfer_that_keeps_breaking_off_is_said_and_kept(hub, folder, monkeypatch):
    repository = hub.add(NAME, folder)
    repository.cut["text.bin"] = 1000
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(ModelError, match=r"cannot be fetched from the hub.*try again") as said:
        HiVLP.from_pretrained(NAME)
    assert "\n" not in str(said.value)
    repository.cut.clear()
    before = len(hub.requests)
    HiVLP.from_pretrained(NAME)
    (span,) = [span for _, path, span in hub.requests[before:] if path.endswith("text.bin")]
    assert int(span.removeprefix("bytes=").rstrip("-")) > len(repository.commits[0]["text.bin"]) // 2
    assert hub.fetched().count("config.json") == 1, "what had come whole was fetched again"


def test_what_is_left_of_a_transfer_is_never_trusted(hub, folder, tmp_path):
    repository = hub.add(NAME, folder)
    place = tmp_path / "cache" / "hub" / NAME.replace("/", "--") / repository.sha(0)
    place.mkdir(parents=True)
    size = len(repository.commits[0]["text.bin"])
    (place / "text.bin.partial").write_bytes(b"x" * (size + 1))  # longer than the file: started anew
    (place / "image.onnx.partial").write_bytes(b"x" * 1000)  # another beginning: found out, and started anew
    with pytest.raises(ModelError, match=r"image\.onnx .* is not what the hub lists"):
        HiVLP.from_pretrained(NAME)
    assert HiVLP.from_pretrained(NAME).fingerprint == HiVLP.from_pretrained("hivlp-mini").fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("name", ["image.onnx", "tokenizer.json"])
def test_a_file_with_another_hash_is_refused_and_fetched_anew(hub, folder, name):
    repository = hub.add(NAME, folder)
    repository.wrong.add(name)
    for _ in range(2):
        with pytest.raises(ModelError, match=f"{name} of {NAME} is not what the hub lists.*was removed"):
            HiVLP.from_pretrained(NAME)
    repository.wrong.clear()
    assert HiVLP.from_pretrained(NAME).fingerprint == HiVLP.from_pretrained("hivlp-mini").fingerprint


@pytest.mark.slow
def test_gated_private_and_missing_models_are_told_apart(hub, folder, monkeypatch):
    hub.add("someone/gated", folder, gated=True)
    hub.add("someone/private", folder, private=True)
    for token in (None, "refused"):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(ModelError, match="someone/gated is gated: accept its terms"):
            HiVLP.from_pretrained("someone/gated")
    monkeypatch.delenv("HF_TOKEN")
    for name in ("someone/private", "someone/missing"):
        with pytest.raises(ModelError, match=f"the hub has no model '{name}'"):
            HiVLP.from_pretrained(name)
    hub.add(NAME, folder)
    with pytest.raises(ModelError, match=f"{NAME} has no revision v9"):
        HiVLP.from_pretrained(f"{NAME}@v9")
    monkeypatch.setenv("HF_TOKEN", "accepted")
    assert HiVLP.from_pretrained("someone/gated").levels[-1].dim == 768


def test_no_network_and_nothing_fetched_is_one_line(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="has not been fetched, and HF_HUB_OFFLINE is set"):
        HiVLP.from_pretrained(NAME)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="cannot be fetched from the hub") as said:
        HiVLP.from_pretrained(NAME)
    assert "\n" not in str(said.value)


def test_what_is_no_model_is_said_before_gigabytes_are_fetched(hub, tmp_path):
    repository = tmp_path / "bert"
    repository.mkdir()
    (repository / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (repository / "model.safetensors").write_bytes(b"x" * 1000)
    hub.add("someone/bert", repository)
    with pytest.raises(ModelError, match="someone/bert is a bert model; hivlp reads clip, siglip"):
        HiVLP.from_pretrained("someone/bert")
    assert hub.fetched() == ["config.json"]
    (repository / "config.json").unlink()
    hub.add("someone/weights", repository)
    with pytest.raises(ModelError, match="someone/weights is no model that hivlp knows: there are weights"):
        HiVLP.from_pretrained("someone/weights")


def test_pickled_weights_are_fetched_only_where_there_are_no_others(hub, folder, tmp_path):
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    hub.add(NAME, folder)
    resolve_folder(NAME, FILES)
    assert "model.safetensors" in hub.fetched() and "pytorch_model.bin" not in hub.fetched()


def test_what_the_hubs_own_cache_holds_is_not_fetched_again(hub, folder):
    from huggingface_hub import HfApi

    hub.add(NAME, folder)
    HfApi(endpoint=hub.url).snapshot_download(NAME, allow_patterns=["*.onnx"], cache_dir=os.environ["HF_HUB_CACHE"])
    there = set(hub.fetched())
    assert "image.onnx" in there
    hub.requests.clear()
    HiVLP.from_pretrained(NAME)
    assert set(hub.fetched()) == {"config.json", "text.bin", "tokenizer.json", "README.md"}


@pytest.mark.parametrize("name", ["../escape.json", "/etc/x.json", "a/../../b.json", "c:\\x.json"])
def test_a_repository_cannot_write_outside_of_its_folder(hub, folder, name, tmp_path):
    repository = hub.add(NAME, folder)
    repository.commits[0][name] = b"{}"
    resolve_folder(NAME, ["*.json"])
    assert name not in hub.fetched() and not (tmp_path / "cache" / "hub" / "escape.json").exists()


def test_a_commit_that_is_called_like_a_path_is_refused(hub, folder, monkeypatch, tmp_path):
    repository = hub.add(NAME, folder)
    monkeypatch.setattr(repository, "sha", lambda number: "../../../escaped")
    with pytest.raises(ModelError, match="no commit"):
        resolve_folder(NAME, ["*.json"])
    assert not [*tmp_path.rglob("escaped")]


@pytest.mark.slow
def test_another_process_finds_what_was_fetched(hub, folder):
    hub.add(NAME, folder)
    HiVLP.from_pretrained(NAME)
    code = f"from hivlp import HiVLP; print(HiVLP.from_pretrained({NAME!r}).source)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{NAME}@{hub.repositories[NAME].sha(0)}"


@pytest.mark.parametrize(
    ("written", "hub_id", "revision", "precision"),
    [
        ("clip-b32", MODELS["clip-b32"].hub_id, MODELS["clip-b32"].revision, ""),
        ("clip-b16:int8", MODELS["clip-b16"].hub_id, None, "int8"),
        ("a/b@main:float16", "a/b", "main", "float16"),
        ("a/b", "a/b", None, ""),
    ],
)
def test_names_are_taken_apart(written, hub_id, revision, precision):
    name = parse_name(written)
    assert (name.hub_id, name.revision, name.precision) == (hub_id, revision, precision)


@pytest.mark.parametrize("wrong", ["siglip2-b17", "nosuch", "a/b/c", "../x", "a/b@", "a/b:int4", "x" * 5000, "a\0b"])
def test_what_nothing_is_called_is_one_line(wrong, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # no folder of such a name is near
    with pytest.raises(ModelError) as said:
        parse_name(wrong)
    assert "\n" not in str(said.value)


def test_the_table_lists_every_model_with_where_its_figures_are_from(capsys):
    assert main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert set(rows) == {"hivlp-mini", *MODELS}
    for row in rows.values():
        assert (row["recall"] is None) == (not row["recall_source"])
        assert row["revision"] is None or len(row["revision"]) == 40
        assert (row["revision"] is None) == (not row["revision_source"])
        assert row["licence"] or not row["licence_source"]
    assert main(["models"]) == 0
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert MODELS["clip-b32"].revision[:7] in shown["clip-b32"] and "not verified" not in shown["clip-b32"]
    assert shown["align"].count("not verified") == 2, "what nobody has verified says so"
