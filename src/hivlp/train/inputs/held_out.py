"""Exclusion of training pictures that a recipe's validation or test set shows too, found by comparing pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hivlp.data.load import family_of, load_pairs
from hivlp.data.pairs import Pair, Pairs
from hivlp.data.same_picture import looks_of, nearest, same_as
from hivlp.errors import RecipeError
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
    sets = [source for source in dict.fromkeys((recipe.validation, recipe.test)) if source is not None]
    trained = [source.source for source in recipe.train]
    families = {_family(source) for source in (*trained, *sets)}
    if not visited or not sets or (len(families) == 1 and "" not in families):
        return list(everything)
    held_out: dict[str, Pairs] = {}
    for source in sets:
        found = load_pairs(*split_of(source))
        if split_of(source)[0] not in trained or any(pair.split != "train" for pair in found):
            held_out[source] = found
    looks = {source: looks_of(found) for source, found in held_out.items()}
    if len(looks) == len(sets) == 2:
        validation, test = looks.values()
        if shared := int((nearest(validation, test, colours=True) >= 0).sum()):
            logger.warning("%d of %d validation pictures are test pictures too", shared, len(validation))
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


def _family(source: str) -> str:
    """The family of data sets that hold nothing of each other's validation and test parts; empty if they may."""
    name, split = split_of(source)
    return "" if split == "train" else family_of(name)
