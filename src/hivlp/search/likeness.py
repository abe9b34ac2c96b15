"""Likeness of a query to those that an approximate index was tuned with, and what to do where there is none.

The recall of search parameters is measured with a sample of queries, and says little of others: an index that finds 99%
for texts may find 75% for random directions, 95% for the items themselves. How hard a query is shows in the scores of
what was found. The ten best of a query that the collection has no answer to are hardly better than the rest, and lie in
lists that nobody would probe for that; a query that is an item, or nearly one, has one far better answer than others;
one that says what all items have in common has many good answers, spread over all lists.

So queries of many kinds are made from the sample and the items, and sorted into *regions* by their best and tenth
scores: like the sample, nearer to one item than the sample ever is, nearer to many, and further from everything, in
steps. In each region the recall of the tuned search parameters is measured. A search that lands in another region than
the sample's is done again with parameters that reach the recall there, or exactly where none are known to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hivlp.levels import Vectors

K = 10
RARE = 0.01  # of the sample's queries, those with the most extreme scores, are taken to be unlike it
MOST_USUAL = 64  # that are remembered, of the filters asked last
MOST_REGIONS = 100  # in a manifest
STEPS = 5  # regions of those that are further from everything than the sample
LEAST_PROBES = 20  # from which the mean of a region says something
LEAST_OF_KIND = 10  # from which the mean of a kind in a region says something
LENIENCE = 0.01  # a kind among several of a region may be so far below what the region finds
NOISE_OF_QUERIES = (0.5, 1.0, 2.0, 4.0)
NOISE_OF_ITEMS = (0.0, 0.35, 0.7, 2.0)
NOISE_OF_COMMON = (0.05, 0.35)
SEVERAL = 6  # items in a mixture
OTHER_MODELS = 4
LIKE, NEAR, MANY, FAR = -1, 0, 1, 2  # regions; from the last one on, ever further
FURTHEST = 1 << 30  # a search that found fewer than ten
ALMOST_ALL = 0.9  # of the items: what passes less is told apart by shares alone
SAMPLED = 20_000  # items whose scores say how far down a filter reaches


@dataclass(frozen=True)
class Region:
    """Where queries that are unlike the sample are, and and recall@10 of the ladder's search parameters for them.

    Attributes:
        least: the tenth best score of those that belong here; of the two near regions, 0.
        recalls: recall@10 of each rung of the ladder: the least of the region's mean and of its kinds' (see
            :data:`LENIENCE`); 0 where too few queries were there to tell.
    """

    least: float
    recalls: tuple[float, ...]


@dataclass(frozen=True)
class Likeness:
    """What the scores of measured queries look like.

    Attributes:
        best: a query with a better best hit is nearer to items than the sample.
        gap: one whose best hit is so much better than its tenth is nearer to one item.
        shares: ascending; of the items, how many are at least as good as ...
        scores: ... this score, for all of the sample but the :data:`RARE`.
        regions: nearer to one item, nearer to many, then ever further ones.
    """

    best: float
    gap: float
    shares: tuple[float, ...]
    scores: tuple[float, ...]
    regions: tuple[Region, ...]
    _usual: dict[tuple[int, float], UsualScores] = field(default_factory=dict, init=False, repr=False, compare=False)

    def at(self, items: int, passing: float) -> UsualScores:
        """What scores are usual in a search.

        Args:
            items: that are searched.
            passing: share of them that a filter lets through.
        """
        usual = self._usual.get((items, passing))
        if usual is None:
            usual = self._usual[items, passing] = self._work_out(items, passing)
            if len(self._usual) > MOST_USUAL:
                del self._usual[next(iter(self._usual))]
        return usual

    def _work_out(self, items: int, passing: float) -> UsualScores:
        # Of what passes a filter, the tenth best is as good as one further down among all.
        share = min(1.0, K / max(1.0, items * passing))
        here = np.interp(np.log([share, self.shares[0]]), np.log(self.shares), self.scores)
        usual, all_usual = here.tolist()
        gap = self.gap if passing >= ALMOST_ALL else np.inf
        return UsualScores(
            self.best, gap, usual, all_usual - usual, tuple(region.least for region in self.regions[FAR:])
        )

    def rung(self, region: int, recall: float) -> int | None:
        """The first rung of the ladder that finds so much there; None if only an exact search does."""
        if region >= len(self.regions):
            return None
        recall = (1 + recall) / 2  # there are more kinds of queries than one can think of
        good = (place for place, found in enumerate(self.regions[region].recalls) if found >= recall)
        return next(good, None)

    def to_json(self) -> dict[str, Any]:
        """For the manifest and for people."""
        numbers = {name: [round(value, 5) for value in getattr(self, name)] for name in ("shares", "scores")}
        numbers["shares"] = list(self.shares)
        regions = [
            {"least": round(region.least, 5), "recalls": [round(value, 4) for value in region.recalls]}
            for region in self.regions
        ]
        return {"best": round(self.best, 5), "gap": round(self.gap, 5), **numbers, "regions": regions}

    @classmethod
    def of_json(cls, data: Any) -> Likeness:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: if it is not what that gives.
        """
        try:
            shares, scores = _numbers(data["shares"]), _numbers(data["scores"])
            regions = tuple(Region(_numbers([each["least"]])[0], _numbers(each["recalls"])) for each in data["regions"])
            best, gap = _numbers([data["best"], data["gap"]])
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"the likeness of queries is not whole: {error}") from error
        ascending = len(shares) == len(scores) > 0 and shares[0] > 0 and bool((np.diff(shares) > 0).all())
        if not ascending or not FAR <= len(regions) <= MOST_REGIONS:
            raise ValueError("the likeness of queries has shares out of order, or too few regions")
        return cls(best, gap, shares, scores, regions)


def _numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list) or any(type(value) not in (int, float) for value in values):
        raise TypeError("a list of numbers is missing")
    found = tuple(float(value) for value in values)
    if not np.isfinite(found).all():
        raise ValueError("the likeness of queries has a number that is not finite")
    return found


@dataclass(frozen=True)
class UsualScores:
    """What scores are usual in one kind of search.

    Attributes:
        best: as of :class:`Likeness`.
        gap: as of :class:`Likeness`; infinite where a filter makes gaps.
        usual: the least usual tenth score.
        lift: what the tenth score is compared with the regions' after: a filter leaves worse ones.
        edges: of the further regions.
    """

    best: float
    gap: float
    usual: float
    lift: float
    edges: tuple[float, ...]

    def region(self, best: float, tenth: float) -> int:
        """Which region a search has landed in, by its best and its tenth score: :data:`LIKE`, or a region's number."""
        if tenth < self.usual:
            return FAR + sum(tenth + self.lift < edge for edge in self.edges)
        if best - tenth > self.gap:
            return NEAR
        if tenth > self.best:
            return MANY
        return NEAR if best > self.best else LIKE


@dataclass(frozen=True)
class Probes:
    """Queries of kinds that nobody has asked yet: (n, dim) unit vectors, and the kind of each."""

    queries: Vectors
    kinds: NDArray[np.int64]


def make_probes(sample: Vectors, items: Vectors, each: int, seed: int = 0) -> Probes:
    """Items, mixtures, what items have in common, noise on items and on queries, opposites, random directions.

    Args:
        sample: (m, dim) measured queries.
        items: (n, dim) some of the items.
        each: how many of each kind.
        seed: of everything.
    """
    rng, dim = np.random.default_rng(seed), sample.shape[1]

    def some(of: Vectors) -> Vectors:
        return np.asarray(of[rng.integers(len(of), size=each)], np.float32)

    def noise() -> Vectors:
        return _unit(rng.normal(size=(each, dim)).astype(np.float32))

    # Generic ones: what many items, or all of them, have in common.
    several = sum((some(items) for _ in range(SEVERAL)), np.zeros((each, dim), np.float32))
    common = _unit(items.mean(0, keepdims=True))
    # Directions in which the items spread, as much as they do; their mean is what all have in common.
    centred = items - items.mean(0)
    spread = rng.normal(size=(each, len(items))).astype(np.float32) @ centred
    kinds = [
        *(some(sample) + strength * noise() for strength in NOISE_OF_QUERIES),
        *(some(items) + strength * noise() for strength in NOISE_OF_ITEMS),
        some(items) + some(items),
        some(items) + some(sample),
        several,
        *(common + strength * noise() for strength in NOISE_OF_COMMON),
        some(sample) + 2 * common,
        -some(sample),
        -some(items),
        spread,
        noise(),
        # As of other models: the same numbers, of no meaning here.
        some(sample)[:, ::-1],
        *(some(sample)[:, rng.permutation(dim)] for _ in range(OTHER_MODELS)),
        some(sample) @ np.linalg.qr(rng.normal(size=(dim, dim)))[0].astype(np.float32),
    ]
    queries = np.concatenate([_unit(kind) for kind in kinds])
    return Probes(queries, np.repeat(np.arange(len(kinds)), each))


def learn(
    sample: Vectors,
    sample_best: Vectors,
    probes: Probes,
    probes_best: Vectors,
    measured: Sequence[tuple[int, Sequence[NDArray[np.float64]]]],
    items: Vectors,
    count: int,
) -> list[Likeness]:
    """Draw the regions, and measure each by what some ladders of search parameters find there.

    Args:
        sample: (m, dim) measured queries.
        sample_best: (m, 10) their best scores, best first.
        probes: of other kinds.
        probes_best: (n, 10) their best scores, best first.
        measured: for each ladder, one in how many of the probes it was measured with, and for each rung, the share of
            each of these probes' best that it finds.
        items: (n, dim) some of the items.
        count: of all items.

    Returns:
        For each ladder, the same regions with what its rungs find there.
    """
    best, tenth = sample_best[:, 0], sample_best[:, K - 1]
    shares = [min(1.0, K / count)]
    scores = [float(np.quantile(tenth, RARE))]
    ordered = np.sort(sample @ items.T, 1)[:, ::-1]
    for rank in np.unique(np.geomspace(K, len(items), 24).astype(int)):
        if rank / len(items) > shares[-1]:
            shares.append(rank / len(items))
            scores.append(float(np.quantile(ordered[:, rank - 1], RARE)))
    drawn = Likeness(
        float(np.quantile(best, 1 - RARE)),
        float(np.quantile(best - tenth, 1 - RARE)),
        tuple(shares),
        tuple(np.minimum.accumulate(scores).tolist()),
        (Region(0.0, ()), Region(0.0, ()), Region(-np.inf, ())),
    )
    usual = drawn.at(count, 1.0)
    where = np.array([usual.region(first, last) for first, last in probes_best[:, [0, K - 1]].tolist()])
    low = np.sort(probes_best[where >= FAR, K - 1])[::-1]
    edges = [float(part[-1]) for part in np.array_split(low, STEPS) if len(part)]
    tenth = probes_best[:, K - 1, None]
    where = np.where(where >= FAR, FAR + np.count_nonzero(tenth < np.array(edges), axis=1), where)
    least = [0.0, 0.0, *edges]
    return [
        replace(drawn, regions=tuple(
            Region(least[number], _recalls(where[::step] == number, probes.kinds[::step], found))
            for number in range(len(least))
        ))
        for step, found in measured
    ]  # fmt: skip


def _recalls(
    inside: NDArray[np.bool_], of_kind: NDArray[np.int64], found: Sequence[NDArray[np.float64]]
) -> tuple[float, ...]:
    if np.count_nonzero(inside) < LEAST_PROBES:
        return (0.0,) * len(found)
    kinds = [inside & (of_kind == kind) for kind in np.unique(of_kind[inside])]
    kinds = [kind for kind in kinds if np.count_nonzero(kind) >= LEAST_OF_KIND]
    return tuple(
        float(min([shares[inside].mean(), *(shares[kind].mean() + LENIENCE for kind in kinds)])) for shares in found
    )


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-20)
    return unit.astype(np.float32)
