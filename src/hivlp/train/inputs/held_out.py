"""Exclusion of training pictures that a recipe's validation or test set shows too, found by comparing pictures."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from tqdm import tqdm

from hivlp.data.contents import Contents
from hivlp.data.load import family_of, load_pairs
from hivlp.data.pairs import Pair, Pairs
from hivlp.data.same_picture import BLOCK, KnownPictures, Looks, joined, looks_of, nearest, same_as
from hivlp.errors import PictureError, RecipeError
from hivlp.train.recipe.schema import Recipe, split_of

logger = logging.getLogger(__name__)
_NAMED = 3


def rows_apart(recipe: Recipe, visited: Sequence[tuple[Pair, int]]) -> list[int]:
    """Which training pairs show no picture of the recipe's validation and test sets; the others are counted in the log.

    Pictures are compared (:mod:`hivlp.data.same_picture`), so copies at another size, in another format, mirrored or
    with margins are found. That reads each training picture once more, at the size of a stamp. Data sets that keep
    themselves apart are not read: those of one family, as the stamps and the drawings that go with them. Where the
    training part of a data set is named for validation, or a copy of all of it, that is meant: nothing is left out for
    it.

    Args:
        recipe: names the sets.
        visited: from its training sources, each with how often an epoch visits it.

    Raises:
        RecipeError: if, for the test set, less than a batch is left.
        DataError: if a set cannot be read.
    """
    pairs = [pair for pair, _ in visited]
    everything = range(len(pairs))
    held_out = _sets(recipe, [source.source for source in recipe.train]) if visited else {}
    looks = _looks(recipe, held_out)
    copies: dict[int, str] = {}
    for source, found in held_out.items():
        same = same_as(pairs, looks[source], colours=True).tolist()
        copied = {row: f"{pairs[row].id} is {found[number].id}" for row, number in enumerate(same) if number >= 0}
        gone = copies.keys() | copied.keys()
        count = sum(repeat for row, (_, repeat) in enumerate(visited) if row not in gone)
        if copied and count < recipe.optim.batch_size:
            what = f"{len(copied)} of {len(pairs)} training pictures are in {source} too"
            if source == recipe.test:
                raise RecipeError(f"test: {what}; what is left is less than optim.batch_size")
            logger.warning("validation: %s: nothing is left out, and its recalls say what was learned by heart", what)
            continue
        copies |= copied
    if copies:
        some = ", ".join(list(copies.values())[:_NAMED])
        logger.warning(
            "left out %d of %d training pictures that validation or test hold too: %s%s",
            len(copies), len(pairs), some, ", ..." if len(copies) > _NAMED else "",
        )  # fmt: skip
    return [row for row in everything if row not in copies]


@dataclass(frozen=True)
class HeldOut:
    """Pictures of a recipe's validation and test sets, which pairs of a stream may not show.

    They are compared as by :func:`rows_apart`, but each when it comes. That takes half as much time again as to prepare
    it, and 17 KB of memory for each picture that is held out.

    Attributes:
        known: the pictures.
        pairs: theirs.
        sources: of which set each is.
    """

    known: KnownPictures
    pairs: Sequence[Pair]
    sources: Sequence[str]

    @classmethod
    def of(cls, recipe: Recipe) -> HeldOut | None:
        """Those of a recipe with a stream; None if there are none, or they are meant to be trained on.

        Raises:
            DataError: if a set cannot be read.
        """
        assert recipe.stream is not None
        sets = _sets(recipe, [source.source for source in recipe.stream.sources])
        looks = list(_looks(recipe, sets).values())
        if not looks:
            return None
        return cls(
            KnownPictures(joined(looks)),
            [pair for found in sets.values() for pair in found],
            [source for source, found in sets.items() for _ in found],
        )

    def check(self, image: Image.Image) -> None:
        """Raise if a picture shows one that is held out.

        Raises:
            PictureError: naming that.
        """
        number = self.known.find(image)
        if number >= 0:
            raise PictureError(f"is {self.pairs[number].id} of {self.sources[number]}, which is not to be trained on")

    @property
    def contents(self) -> Contents:
        """Of all of it, read anew: what is passed over depends on it."""
        return Contents.read(self.pairs)


def _sets(recipe: Recipe, trained: Sequence[str]) -> dict[str, Pairs]:
    """The validation and test sets that are held out of these sources, by name."""
    sets = [source for source in dict.fromkeys((recipe.validation, recipe.test)) if source is not None]
    families = {_family(source) for source in (*trained, *sets)}
    if len(families) == 1 and "" not in families:
        return {}
    held_out: dict[str, Pairs] = {}
    for source in sets:
        found = load_pairs(*split_of(source))
        if split_of(source)[0] not in trained or any(pair.split != "train" for pair in found):
            held_out[source] = found
    return held_out


def _looks(recipe: Recipe, held_out: Mapping[str, Pairs]) -> dict[str, Looks]:
    """Looks of each set; pictures that validation and test share are counted in the log."""
    looks = {}
    for source, found in held_out.items():
        starts = range(0, len(found), BLOCK)
        bar = tqdm(starts, f"look at {source}", unit_scale=BLOCK, unit="", delay=2, disable=None)
        looks[source] = joined([looks_of(found[start : start + BLOCK]) for start in bar])
    if recipe.validation in looks and recipe.test in looks and recipe.validation != recipe.test:
        validation, test = looks.values()
        if shared := int((nearest(validation, test, colours=True) >= 0).sum()):
            logger.warning("%d of %d validation pictures are test pictures too", shared, len(validation))
    return looks


def _family(source: str) -> str:
    """The family of data sets that hold nothing of each other's validation and test parts; empty if they may."""
    name, split = split_of(source)
    return "" if split == "train" else family_of(name)
