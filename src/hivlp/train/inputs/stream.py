"""Batches of a stream: worker processes read, decode, crop and tokenise ahead, and the position is exact.

Each worker has some of the process's lanes (:mod:`hivlp.data.streams.lane`) and makes their share of every step, in the
order of the steps. With the share comes the position of each lane behind it: that of the last step that was taken is
what a checkpoint keeps, however far ahead the workers are.

Pixels are written where the step reads them, into memory that all these processes share; it has room for the step's
batch and those that are made ahead, in turn.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hivlp.config import TextConfig
from hivlp.data.readers.skips import NAMED
from hivlp.data.streams.lane import Dealt, Lane, Position, Source, lanes_of, shares
from hivlp.data.streams.shards import ShardList, find_shards, in_parts
from hivlp.data.texts import TextTokenizer
from hivlp.errors import DataError, HivlpError, PictureError, RecipeError
from hivlp.objective import gather
from hivlp.train.inputs.batch import Batch, seed_of, workers_of
from hivlp.train.inputs.held_out import HeldOut
from hivlp.train.inputs.prepared import Preparation
from hivlp.train.log import step_of
from hivlp.train.pretext import Masked, MaskedLanguage
from hivlp.train.recipe.schema import Recipe

logger = logging.getLogger(__name__)
SKIPPED = "skipped.jsonl"
"""In the run's folder: a line for each part of the data that was passed over, and the step before which it was met."""
MOST_BROKEN = 10_000
"""Pictures in a row that cannot be used before a lane gives up."""
_AHEAD = 3  # shares that each worker makes ahead of the step


@dataclass
class Chunk:
    """One worker's share of a step; arrays, which cost less to send than tensors, each with a file of its own.

    Attributes:
        ids: (N, T) int64 tokens, T being the most that the model takes.
        mask: (N, T) int64.
        same: (N,) int64, equal for pairs that may be exchanged.
        positions: of each lane behind these pairs.
        notes: on what was passed over.
        error: why there are no more; empty if there are.
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    same: NDArray[np.int64]
    positions: dict[int, Position]
    notes: list[str]
    error: str = ""


@dataclass
class Chunks(IterableDataset[Chunk]):
    """What workers do: the shares of some lanes, step after step without end.

    Attributes:
        dealt: the stream.
        positions: lane -> where it begins; these are the process's lanes, in order.
        shares: lane -> pairs in a step.
        preparation: of each pair.
        tokenizer: file of the model's tokenizer.
        text: how texts are tokenised.
        pixels: (ahead + 1, B, S, S, 3) uint8, shared: the process's pictures of consecutive steps, again and again.
    """

    dealt: Dealt
    positions: Mapping[int, Position]
    shares: Mapping[int, int]
    preparation: Preparation
    tokenizer: Path
    text: TextConfig
    pixels: Tensor

    def __iter__(self) -> Iterator[Chunk]:
        """The chunks of this worker."""
        worker = get_worker_info()
        mine = list(self.positions)
        if worker is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other cores have workers of their own
            mine = [int(lane) for lane in np.array_split(mine, worker.num_workers)[worker.id]]
        before = sum(self.shares[lane] for lane in self.positions if lane < mine[0])
        own = slice(before, before + sum(self.shares[lane] for lane in mine))
        notes: list[str] = []
        lanes = [Lane(self.dealt, lane, self.positions[lane], notes.append) for lane in mine]
        tokenize = TextTokenizer(self.tokenizer, replace(self.text, pad_to_max=True))
        for step in count():
            try:
                yield self._chunk(lanes, tokenize, notes, self.pixels[step % len(self.pixels), own].numpy())
            except HivlpError as error:
                # What a worker raises would come without its kind; and the steps before are still to be taken.
                empty = np.empty(0, np.int64)
                yield Chunk(empty, empty, empty, {}, list(notes), str(error))
                return

    def _chunk(self, lanes: list[Lane], tokenize: TextTokenizer, notes: list[str], pixels: NDArray[np.uint8]) -> Chunk:
        same = np.empty(len(pixels), np.int64)
        texts: list[str] = []
        for lane in lanes:
            for _ in range(self.shares[lane.number]):
                row = len(texts)
                pixels[row], text, same[row] = self._next(lane, notes)
                texts.append(text)
        ids, mask = tokenize(texts)
        found = {lane.number: lane.position for lane in lanes}
        told, notes[:] = list(notes), []
        return Chunk(ids, mask, same, found, told)

    def _next(self, lane: Lane, notes: list[str]) -> tuple[NDArray[np.uint8], str, int]:
        for _ in range(MOST_BROKEN):
            pair, numbers = lane.take()
            try:
                prepared = self.preparation(pair, numbers)
            except PictureError as error:
                notes.append(f"{pair.id}: {error}")
                continue
            if prepared.note:
                notes.append(prepared.note)
            return prepared.pixels, prepared.text, prepared.same
        raise DataError(f"the last {MOST_BROKEN} pictures of lane {lane.number} cannot be used: {notes[-1]}")


class StreamBatches:
    """Batches of a stream for one process."""

    def __init__(
        self, recipe: Recipe, tokenizer: Path, accelerator: Accelerator, run: Path, held_out: HeldOut | None = None
    ) -> None:
        """Find the shards; nothing is read of them yet.

        Args:
            recipe: with a stream.
            tokenizer: file of the model's tokenizer.
            accelerator: processes.
            run: the run's folder.
            held_out: pictures that are passed over.

        Raises:
            RecipeError: naming the source whose shards are missing.
        """
        assert recipe.stream is not None
        self.words: MaskedLanguage | None = None
        self._recipe, self._stream, self._accelerator, self._run = recipe, recipe.stream, accelerator, run
        self._tokenizer = tokenizer
        found = []
        for number, source in enumerate(self._stream.sources):
            try:
                found.append(tuple(find_shards(source.source, source.split, run)))
            except DataError as error:
                raise RecipeError(f"stream.sources[{number}].source: {error}") from error
        self.contents = ShardList(tuple(found))
        sources = tuple(
            Source(in_parts(shards, self._stream.lanes), source.weight, source.split, source.source)
            for shards, source in zip(found, self._stream.sources, strict=True)
        )
        window = max(1, self._stream.shuffle // self._stream.lanes)
        self._dealt = Dealt(sources, self._stream.lanes, window, recipe.seed, recipe.compute.patience)
        self._positions = {lane: Position.start(len(sources)) for lane in range(self._stream.lanes)}
        self._preparation = Preparation(recipe.picture, recipe.augment, recipe.seed, self._stream.smallest, held_out)

    @property
    def epoch(self) -> int:
        """Pairs that count as an epoch."""
        return self._stream.epoch

    def batches(self, first: int, steps: int) -> Iterator[tuple[int, Batch]]:
        """This process's share of each step from ``first`` to before ``steps``; its pixels last until the next one.

        Raises:
            DataError: if a shard cannot be reached, or a source holds no pair.
        """
        recipe, accelerator = self._recipe, self._accelerator
        mine = lanes_of(accelerator.process_index, accelerator.num_processes, self._stream.lanes)
        each = shares(recipe.optim.batch_size, self._stream.lanes)
        size, batch = recipe.picture.size, sum(each[lane] for lane in mine)
        shape = (_AHEAD + 1, batch, size, size, 3)
        workers = min(workers_of(recipe, accelerator), len(mine))
        pixels = _shared(shape) if workers else torch.empty(shape, dtype=torch.uint8)
        chunks = Chunks(
            self._dealt,
            {lane: self._positions[lane] for lane in mine},
            {lane: each[lane] for lane in mine},
            self._preparation,
            self._tokenizer,
            recipe.text,
            pixels,
        )
        loader = DataLoader(chunks, batch_size=None, num_workers=workers, prefetch_factor=_AHEAD if workers else None)
        skipped = Skipped(self._run, first, accelerator)
        found = iter(loader)
        try:
            for step in range(first, steps):
                parts = [next(found) for _ in range(max(1, workers))]
                for part in parts:
                    skipped.write(step, part.notes)
                for part in parts:
                    if part.error:
                        raise DataError(f"step {step}: {part.error}; mend that, and go on with --resume")
                    self._positions.update(part.positions)
                yield step, self._batch(step, pixels[(step - first) % len(pixels)], parts)
        finally:
            skipped.close()

    def _batch(self, step: int, pixels: Tensor, parts: list[Chunk]) -> Batch:
        ids, mask, same = (
            torch.from_numpy(np.concatenate([getattr(part, name) for part in parts]))
            for name in ("ids", "mask", "same")
        )
        seed, masked = seed_of(self._recipe, step), None
        columns = self._columns(mask)
        if self.words is not None:
            masked = self._masked(ids, mask, seed)
            masked = masked[0][:, columns], masked[1][:, columns]
        return Batch(pixels, (ids[:, columns], mask[:, columns]), same, seed, masked)

    def _columns(self, mask: Tensor) -> slice:
        """The columns that the longest text needs: all of them where the model wants its padding."""
        config = self._recipe.text
        longest = int(mask.sum(1).max())
        if config.pad_to_max:
            return slice(None)
        return slice(longest) if config.padding_side == "right" else slice(mask.shape[1] - longest, None)

    def _masked(self, ids: Tensor, mask: Tensor, seed: int) -> Masked:
        """Of the draw over the whole batch, this process's rows."""
        assert self.words is not None
        device = self._accelerator.device
        sizes = gather.counts(len(ids), device)
        everyone = [gather.gather(each.to(device), sizes).cpu() for each in (ids, mask)]
        drawn, counts = self.words.draw(everyone[0], everyone[1], seed)
        own = gather.own_rows(sizes)
        return drawn[own], counts[own]

    def state(self) -> dict[str, Any]:
        """The position of each lane after the last batch that was given; each process must call this."""
        accelerator = self._accelerator
        mine = lanes_of(accelerator.process_index, accelerator.num_processes, self._stream.lanes)
        told = [[lane, self._positions[lane].to_json()] for lane in mine]
        return {str(lane): position for lane, position in (gather_object(told) if gather.processes() > 1 else told)}

    def go_on(self, state: Any) -> None:
        """Begin where an earlier run's :meth:`state` was taken, with any number of processes.

        Raises:
            RecipeError: if it is damaged.
        """
        try:
            sources = len(self._dealt.sources)
            self._positions = {lane: Position.of_json(state[str(lane)], sources) for lane in self._positions}
        except (KeyError, TypeError, ValueError) as error:
            raise RecipeError("the checkpoint is damaged: train into a new folder, or without --resume") from error

    def pictures(self, most: int) -> NDArray[np.uint8]:
        """(N, S, S, 3) uint8 of at most ``most`` pictures, from the beginning of the stream."""
        lane = Lane(self._dealt, 0, Position.start(len(self._dealt.sources)), lambda _: None)
        found: list[NDArray[np.uint8]] = []
        for _ in range(10 * most):
            pair, _ = lane.take()
            try:
                found.append(self._preparation.plain(pair))
            except PictureError:
                continue
            if len(found) == most:
                break
        return np.stack(found)


class Skipped:
    """``skipped.jsonl`` of this process; the first few different ones are in the log, too."""

    def __init__(self, run: Path, first: int, accelerator: Accelerator) -> None:
        self._path = run / (SKIPPED if accelerator.is_main_process else f"{accelerator.process_index}-{SKIPPED}")
        self._named: set[str] = set()
        kept = []
        if self._path.is_file():
            with self._path.open(encoding="utf-8") as file:
                kept = [line for line in file if step_of(line) < first]  # those after the checkpoint are met again
        self._path.write_text("".join(kept), encoding="utf-8")
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, step: int, notes: list[str]) -> None:
        """Add what was met on the way to a step."""
        for note in notes:
            self._file.write(json.dumps({"step": step, "skipped": note}) + "\n")
            if note in self._named or len(self._named) > NAMED:  # each pass, and each part of a shard, says it again
                continue
            self._named.add(note)
            if len(self._named) <= NAMED:
                logger.warning("skipped: %s", note)
            else:
                logger.warning("skipped: more, all of which %s names", self._path)
        if notes:
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _shared(shape: tuple[int, ...]) -> Tensor:
    """Room for pictures that workers write and the step reads, uint8.

    Raises:
        HivlpError: if the system has none, as in containers whose ``/dev/shm`` is small.
    """
    try:
        return torch.empty(shape, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call, no-any-return]
    except (RuntimeError, OSError) as error:
        raise HivlpError(
            f"no shared memory for {math.prod(shape) / 1e6:.0f} MB of pictures: give /dev/shm more room, or set "
            "compute.workers to 0"
        ) from error
