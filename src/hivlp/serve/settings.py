"""Settings of a service: where it listens, who may ask, and how much."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hivlp.encode.stream import default_workers

MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Settings of a service.

    Attributes:
        token: that requests must bear; None for none, which suits the loopback alone.
        roots: folders below which originals may be shown and pictures may be indexed by their paths.
        watch: folders that the first index is kept in step with; roots as well.
        hosts: names that requests may call this service by, beside ``localhost`` and plain addresses.
        origins: of other pages that may use the service (CORS), such as ``https://photos.example``.
        allow_urls: whether pictures may be given as ``http`` and ``https`` addresses, which are then fetched.
        read_only: refuse whatever changes an index.
        upload_bytes: of one uploaded picture.
        body_bytes: of a request that carries pictures, all of them together.
        json_bytes: of any other request.
        k_max: hits of one page.
        seconds: that a request may take.
        connections: that may be open at once.
        queue: searches, texts or pictures that may wait; the next one is told to come again (429).
        batch: queued ones that are answered together.
        threads: that search.
        decoders: processes that decode pictures.
        thumbnail_bytes: of the thumbnails that are kept on disk.
    """

    token: str | None = None
    roots: tuple[Path, ...] = ()
    watch: tuple[Path, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    allow_urls: bool = False
    read_only: bool = False
    upload_bytes: int = 32 * MIB
    body_bytes: int = 256 * MIB
    json_bytes: int = 8 * MIB
    k_max: int = 1000
    seconds: float = 30.0
    connections: int = 1000
    queue: int = 256
    batch: int = 32
    threads: int = 0
    decoders: int = 0
    thumbnail_bytes: int = 1 << 30

    @property
    def search_threads(self) -> int:
        """Threads that search: as many as were asked for, or one a core that may be used, eight at most."""
        return self.threads or min(8, default_workers())

    @property
    def decoder_processes(self) -> int:
        """Processes that decode: as many as were asked for, or one a core that may be used, four at most."""
        return self.decoders or min(4, default_workers())
