"""Videos: one key frame stands for each, where the package av is installed; without it, they are named."""

from __future__ import annotations

import io

import numpy as np
import pytest

from hivlp.data import kinds
from hivlp.data.pictures import decode, picture_facts
from hivlp.errors import PictureError
from hivlp.index import Index


def video(colours: list[tuple[int, int, int]], seconds_each: int = 1) -> bytes:
    """An MP4 of one colour after another, a key frame for each."""
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        container.metadata["creation_time"] = "2021-05-06T07:08:09.000000Z"
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 10 * seconds_each
        for colour in colours:
            for _ in range(10 * seconds_each):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), colour, np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def test_a_key_frame_a_third_of_the_way_in_stands_for_a_video(tmp_path, encoder):
    data = video([(250, 0, 0), (0, 250, 0), (0, 0, 250)])
    red, green, blue = np.asarray(decode(data)).mean((0, 1))
    assert green > 150 and red < 100 and blue < 100
    facts = picture_facts(data)
    assert {"format": "video", "width": 64, "height": 48, "taken": "2021-05-06T07:08:09"}.items() <= facts.items()
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "clip.mp4").write_bytes(data)
    with Index.create(tmp_path / "x", model=encoder) as index:
        assert index.add(tmp_path / "p").added == 1
        assert len(index.search("x", where="metadata ->> '$.format' = 'video'")) == 1


@pytest.mark.parametrize("damage", ["cut", "zeros", "head"])
def test_a_damaged_video_is_refused_or_shown(damage):
    data = video([(9, 9, 9)] * 3)
    data = {"cut": data[: len(data) // 3], "zeros": data[:64] + bytes(len(data) - 64), "head": data[:40]}[damage]
    try:
        assert decode(data).size == (64, 48)
    except PictureError as error:
        assert "\n" not in str(error)


def test_without_the_package_a_video_is_named(monkeypatch):
    monkeypatch.setattr(kinds, "readable", lambda kind: kind not in kinds.EXTRA)
    with pytest.raises(PictureError, match="is a video, which needs more than is installed: pip install "):
        decode(b"\0\0\0\x18ftypisom\0\0\2\0isommp41" + bytes(100))
