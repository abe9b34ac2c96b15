"""Shards behind S3's protocol, from a server of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("s3fs", reason="needs the extra `compare`: s3fs and moto's server")
moto = pytest.importorskip("moto.server", reason="needs the extra `compare`: s3fs and moto's server")

from hivlp.data.streams.lane import Dealt, Lane, Position, Source  # noqa: E402
from hivlp.data.streams.opening import UnreachableError  # noqa: E402
from hivlp.data.streams.reading import pairs_of  # noqa: E402
from hivlp.data.streams.shards import find_shards, in_parts  # noqa: E402
from hivlp.errors import DataError  # noqa: E402
from synthetic import write_shards  # noqa: E402


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """``s3://pairs`` with four shards and a list of checksums, and the same shards on disk."""
    import hashlib

    import s3fs

    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }.items():  # fmt: skip
            patched.setenv(name, value)
        folder = write_shards(tmp_path_factory.mktemp("shards"), 4, 9)
        lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in folder.glob("*.tar")]
        (folder / "SHA256SUMS").write_text("\n".join(lines))
        system = s3fs.S3FileSystem()
        system.mkdir("pairs")
        for path in folder.iterdir():
            system.put(str(path), f"pairs/cc/{path.name}")
        yield folder, system
    server.stop()


@pytest.mark.parametrize("pattern", ["{000..003}.tar", "*.tar"])
def test_shards_in_a_bucket_are_read_as_those_on_disk(bucket, tmp_path, pattern):
    folder, _ = bucket

    def captions(source: str) -> list[str]:
        shards = find_shards(source, "train", tmp_path)
        assert all(shard.size > 0 and shard.checksum for shard in shards)
        stream = Dealt((Source(in_parts(shards, 3), 1.0, "train", source),), 3, 7, 0, 0)
        position = Position.start(1)
        found = []
        for _ in range(4):  # a new lane each time, as after a kill
            lane = Lane(stream, 1, position, pytest.fail)
            found += [lane.take()[0].captions[0] for _ in range(10)]
            position = lane.position
        return found

    assert captions(f"s3://pairs/cc/{pattern}") == captions(f"{folder}/{pattern}")


def test_what_is_missing_in_a_bucket_is_named(bucket, tmp_path):
    _, system = bucket
    with pytest.raises(DataError, match=r"1 of 5 shards are missing: s3://pairs/cc/004\.tar"):
        find_shards("s3://pairs/cc/{000..004}.tar", "train", tmp_path)
    shard = find_shards("s3://pairs/cc/*.tar", "train", tmp_path)[3]
    system.mv("pairs/cc/003.tar", "pairs/away.tar")
    with pytest.raises(UnreachableError, match=r"s3://pairs/cc/003\.tar cannot be read"):
        list(pairs_of(shard, "train", 0, pytest.fail, 0))
    system.mv("pairs/away.tar", "pairs/cc/003.tar")
    assert len(list(pairs_of(shard, "train", 0, pytest.fail, 0))) == 9


@pytest.mark.train
def test_workers_read_a_bucket(bucket, tmp_path):
    pytest.importorskip("torch")
    from test_stream_training import batches, streamed

    recipe = streamed(tmp_path)
    local, _, _ = batches(tmp_path, recipe)
    recipe["stream"]["sources"][0]["source"] = "s3://pairs/cc/*.tar"
    recipe["compute"]["workers"] = 2
    found, _, _ = batches(tmp_path, recipe)
    assert [len(batch[3]) for batch in found] == [len(batch[3]) for batch in local]
    assert os.environ["AWS_ENDPOINT_URL"].startswith("http") and Path(tmp_path).is_dir()
