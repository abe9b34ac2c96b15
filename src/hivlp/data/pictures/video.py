"""Videos: one key frame, a third of the way in, stands for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from hivlp.data import kinds
from hivlp.data.pictures.facts import Facts, when
from hivlp.data.pictures.limits import check_size
from hivlp.data.pictures.opened import Opened
from hivlp.data.pictures.source import Source
from hivlp.errors import PictureError

_FRAME_BYTES = 24
"""Bytes for each pixel beside the decoded image: the planes of frames that a decoder keeps."""
_MOST_PACKETS = 20_000
"""Packets among which a key frame is looked for."""


def open_video(source: Source) -> Opened:
    """Open a key frame of a video.

    Raises:
        PictureError: if the package av is missing, or the video has no picture.
    """
    if not kinds.readable("video"):
        raise PictureError(f"is a video, which {kinds.NEEDS_EXTRA}")
    import av

    with av.open(source.whole(), "r") as container:
        if not container.streams.video:
            raise PictureError("is a video without pictures")
        about = container.streams.video[0].codec_context
        claimed: Any = Image.Image()
        claimed._size, claimed._mode = (about.width, about.height), "RGB"
        taken = when(container.metadata.get("creation_time"))
    return Opened(claimed, "video", told=Facts(taken=taken), per_pixel=_FRAME_BYTES, pixels=lambda: _key_frame(source))


def _key_frame(source: Source) -> Image.Image:
    import av

    with av.open(source.whole(), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.skip_frame = "NONKEY"
        stream.thread_type = "NONE"
        if container.duration:
            container.seek(container.duration // 3)
        for count, packet in enumerate(container.demux(stream)):
            if count > _MOST_PACKETS:
                break
            frames: Sequence[Any] = packet.decode()  # of which parts are typed
            for frame in frames:
                check_size(frame.width, frame.height)
                image: Image.Image = frame.to_image()
                turned = round(getattr(frame, "rotation", 0) or 0)
                return image.rotate(turned, expand=True) if turned % 360 else image
    raise PictureError("is a video without a key frame that can be read")
