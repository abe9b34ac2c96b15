"""A service: the indexes that it serves, and the queues, threads and processes that answer for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from hivlp.index import Index
from hivlp.levels import Vectors
from hivlp.serve.answering import Answerer, Search
from hivlp.serve.batching import Batcher
from hivlp.serve.decoding import Decoders
from hivlp.serve.errors import not_found
from hivlp.serve.jobs import ENDED, Jobs
from hivlp.serve.map import Maps
from hivlp.serve.metrics import Metrics
from hivlp.serve.served import Served
from hivlp.serve.settings import Settings
from hivlp.serve.thumbnails import Thumbnails
from hivlp.serve.writer import Writer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """A picture that is to be encoded for an index."""

    served: Served
    data: bytes


@dataclass(frozen=True)
class Said:
    """A text that is to be encoded for an index, for whoever wants its vectors."""

    served: Served
    text: str


class Service:
    """A service.

    Attributes:
        settings: of it.
        indexes: by name; the first one answers where no name is given.
        metrics: what it counts of itself.
        searches: queue of searches that take a millisecond or two.
        slow: queue of the others: filters that SQLite answers, deep pages, exact ranking.
        texts: queue of texts to encode.
        pictures: queue of pictures to decode and encode.
        maps: of the collections.
        threads: for what waits for the disk.
        answerer: what answers them.
        ready: whether every index's model is loaded.
        requests: that are being answered; empty where the server does not tell.
    """

    def __init__(self, indexes: Mapping[str, Index], settings: Settings) -> None:
        """A service of open indexes, which it closes in the end."""
        self.settings = settings
        self.indexes = {name: Served(name, index, settings) for name, index in indexes.items()}
        self.metrics = Metrics()
        self.decoders = Decoders(settings.decoder_processes)
        self.thumbnails = Thumbnails(self.decoders, settings.thumbnail_bytes)
        self.answerer = Answerer(self.metrics)
        threads, most, room = settings.search_threads, settings.batch, settings.queue
        self._one = threads == 1
        self.searches: Batcher[Search, bytes] = Batcher(
            "searches", self.answerer.answer, self.metrics, workers=threads, most=most, room=room
        )
        self.slow: Batcher[Search, bytes] = Batcher(
            "slow searches", self.answerer.answer, self.metrics, workers=threads, most=1, room=max(1, room // 8)
        )
        self.texts: Batcher[Said, Mapping[str, Vectors]] = Batcher(
            "texts", self._said, self.metrics, most=most, room=room
        )
        self.pictures: Batcher[Seen, Mapping[str, Vectors]] = Batcher(
            "pictures", self._seen, self.metrics, workers=settings.decoder_processes, most=most, room=max(1, room // 4)
        )
        self.threads = ThreadPoolExecutor(4 + 2 * threads, thread_name_prefix="hivlp-io")
        self.maps = Maps()
        self.ready = False
        self.requests: Sized = ()
        self._asker: object = None
        self._writers: dict[str, Writer] = {}
        self._jobs: dict[str, Jobs] = {}
        queues = (self.searches, self.slow, self.texts, self.pictures)
        self.metrics.gauge(
            "hivlp_waiting", "Tasks that wait.", ("queue",), lambda: {(queue.name,): queue.waiting for queue in queues}
        )
        self.metrics.gauge(
            "hivlp_items", "Items that searches can find.", ("index",),
            lambda: {(served.name,): served.count() for served in self.indexes.values()},
        )  # fmt: skip
        self.metrics.gauge("hivlp_in_flight", "Requests that are being answered.", (), lambda: {(): len(self.requests)})
        self.metrics.gauge("hivlp_ready", "Whether the models are loaded.", (), lambda: {(): int(self.ready)})
        self.metrics.gauge("hivlp_jobs", "Jobs that have not ended.", ("index",), lambda: {
            (name,): sum(job.state not in ENDED for job in jobs.all()) for name, jobs in list(self._jobs.items())
        })  # fmt: skip

    def served(self, name: str | None) -> Served:
        """An index by its name; the first one where there is none.

        Raises:
            RequestError: if there is no such index.
        """
        if name is None:
            return next(iter(self.indexes.values()))
        found = self.indexes.get(name)
        if found is None:
            raise not_found(f"there is no index {name!r:.80}; there are: {', '.join(self.indexes)}")
        return found

    def writer(self, served: Served) -> Writer:
        """What changes an index."""
        if served.name not in self._writers:
            first = served is next(iter(self.indexes.values()))
            self._writers[served.name] = Writer(served.index.path, self.settings.watch if first else ())
        return self._writers[served.name]

    def jobs(self, served: Served) -> Jobs:
        """The jobs of an index."""
        if served.name not in self._jobs:
            self._jobs[served.name] = Jobs(served.home / "jobs", self.writer(served), served.is_beneath_roots)
        return self._jobs[served.name]

    async def start(self) -> None:
        """Go on with the jobs that have not ended, and begin to watch folders."""
        for served in self.indexes.values():
            if served.writable:
                self.jobs(served).resume()
        if self.settings.watch and not self.settings.read_only:
            await self.writer(next(iter(self.indexes.values()))).start()

    async def search(self, served: Served, search: Search) -> bytes:
        """The answer to a search as JSON."""
        if not search.plain:
            return await self.slow.do(search)
        inline = self.inline(brief=search.is_vector, small=served.is_small)
        if inline and self.is_lone:
            return self.searches.at_once(search)
        return await self.searches.do(search, inline=inline)

    async def text(self, said: Said, *, single: bool) -> Mapping[str, Vectors]:
        """The vectors of a text, which is encoded with others that wait unless it is a request's ``single`` one."""
        if single and self.inline(brief=False):
            return self.texts.at_once(said)
        return await self.texts.do(said)

    def inline(self, *, brief: bool, small: bool = False) -> bool:
        """Whether a search or a text may hold up the event loop, as it would hold up the others in any case.

        Args:
            brief: whether it takes some tenths of a millisecond, as vectors do; a text takes some milliseconds.
            small: whether most of a brief one holds the interpreter's lock, for which threads would take turns with it.
        """
        return self.ready and (self.is_lone or self._one or small if brief else self.is_lone and self._one)

    def may_be_direct(self, served: Served, connection: object) -> bool:
        """Whether a search by vectors of an index may be answered on its connection, before any others are looked at.

        That is so where few items make it brief, and for the only connection that asks: others that ask meanwhile are
        better answered together. Of several none asks twice in a row for long, so the last one is remembered.
        """
        lone, self._asker = self._asker is connection and not self.requests, connection
        return self.ready and (lone or served.is_small)

    @property
    def is_lone(self) -> bool:
        """Whether one request alone is being answered."""
        return len(self.requests) == 1

    def warm_up(self) -> None:
        """Load the models and the last commits, so that the first search does not wait for them."""
        for served in self.indexes.values():
            try:
                served.follow_uploads()
                if served.has_model:
                    served.text_vectors(["a photo"])
                served.count()
                served.index.snapshot()
            except Exception as error:  # said again to whoever asks; what needs no model works
                logger.warning("%s: %s", served.name, error)
        self.ready = True

    async def reload(self) -> None:
        """Open every index anew; searches that run go on in the one that was open before."""
        for served in self.indexes.values():
            try:
                after = await asyncio.to_thread(served.opened_anew)
            except Exception as error:
                logger.error("%s stays as it was: %s", served.name, error)
                continue
            before, served.index = served.index, after
            writer = self._writers.get(served.name)
            if writer is not None and not before.store.in_place:  # at once: no change of the new one is told to the old
                await writer.restart()
            await asyncio.to_thread(served.follow_uploads)
            asyncio.get_running_loop().call_later(2 * self.settings.seconds, before.close)

    def end(self) -> None:
        """Take no part any more: not ready for requests, and no progress told to those who wait for the next of it."""
        self.ready = False
        for jobs in self._jobs.values():
            jobs.end_events()

    async def close(self) -> None:
        """Let go of everything."""
        for jobs in self._jobs.values():
            await jobs.close()
        for writer in self._writers.values():
            await writer.close()
        for queue in (self.searches, self.slow, self.texts, self.pictures):
            queue.close()
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.decoders.close()
        for served in self.indexes.values():
            served.index.close()

    def _said(self, said: Sequence[Said]) -> list[Mapping[str, Vectors] | Exception]:
        return _by_index(said, lambda served, some: served.text_vectors([each.text for each in some]))

    def _seen(self, seen: Sequence[Seen]) -> list[Mapping[str, Vectors] | Exception]:
        answers: list[Any] = [None] * len(seen)
        pixels: dict[int, Any] = {}
        for place, picture in enumerate(seen):
            try:
                pixels[place] = self.decoders.pixels(picture.data, picture.served.model().picture)
            except Exception as error:
                answers[place] = error
        good = list(pixels)
        made = _by_index(
            [seen[place] for place in good],
            lambda served, some: served.picture_vectors(
                np.stack([pixels[place] for place in good if any(seen[place] is each for each in some)])
            ),
        )
        for place, answer in zip(good, made, strict=True):
            answers[place] = answer
        return answers


def _by_index(tasks: Sequence[Any], encode: Any) -> list[Any]:
    """What ``encode`` makes of the tasks of each index, in the order of the tasks; an error goes to each of them."""
    answers: list[Any] = [None] * len(tasks)
    for served in {id(task.served): task.served for task in tasks}.values():
        places = [place for place, task in enumerate(tasks) if task.served is served]
        try:
            made = encode(served, [tasks[place] for place in places])
        except Exception as error:
            made = [error] * len(places)
        for place, answer in zip(places, made, strict=True):
            answers[place] = answer
    return answers
