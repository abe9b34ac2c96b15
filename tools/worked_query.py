"""The worked query of docs/ann.md: what one search of the approximate index reads, stage by stage.

`python tools/worked_query.py` indexes WordNet's words by hivlp-mini's fine level and asks with a gloss, in a minute
(the first time in a few, since words and glosses are encoded). It needs WordNet: `apt-get install wordnet-base`.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np

from hivlp import HiVLP
from hivlp.ann import AnnIndex, SearchParams
from hivlp.bench.ann.real import TESTED, TRAINED_FROM, read_real, read_wordnet

K = 10
PARAMS = SearchParams(nprobe=256, margin=8.0, slack=1.25, rerank=120, tolerance=4.0)
NUMBER = 3  # of the gloss that is asked


def read(index: AnnIndex, queries: np.ndarray, params: SearchParams) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Rows, scores, and a query's mean of: lists probed, sign codes, refinement codes and float16 vectors read."""
    names = ("lists", "sign_codes", "refine_codes", "vectors")
    before = [getattr(index.stats, name) for name in names]
    rows, scores = index.search(queries, K, params)
    read = [(getattr(index.stats, name) - first) / len(queries) for name, first in zip(names, before, strict=True)]
    return rows, scores, read


def main() -> None:
    """Build, ask, print."""
    real = read_real(HiVLP.from_pretrained("hivlp-mini"))
    words, glosses = read_wordnet()
    items = np.asarray(real.words, np.float16)
    print("building: a minute", file=sys.stderr)
    index = AnnIndex.build(items, queries=np.asarray(real.glosses[TRAINED_FROM:], np.float32))
    arrays = index.arrays
    print(f"{len(items):,} vectors of {items.shape[1]} dims, nlist {index.nlist}, codes of {index.dims} dims, "
          f"{len(arrays.sign_amplitude)} of them with a sign, {int(arrays.counts[1])} assignments a row, "
          f"{index.bytes_per_vector:.0f} bytes a vector beside float16")  # fmt: skip

    test = np.asarray(real.glosses[:TESTED], np.float32)
    one = test[NUMBER : NUMBER + 1]
    exact = one @ np.asarray(items, np.float32).T
    best = np.argsort(-exact[0], kind="stable")[:K]
    rows, scores, counts = read(index, one, PARAMS)
    print(f"\nquery: {glosses[NUMBER]!r}\n{PARAMS}")
    print(f"lists probed          {counts[0]:8,.0f} of {index.nlist:,}")
    print(f"sign codes read       {counts[1]:8,.0f} of {len(items) * int(arrays.counts[1]):,}")
    print(f"refinement codes read {counts[2]:8,.0f}")
    print(f"float16 vectors read  {counts[3]:8,.0f}")
    for rank, (row, score) in enumerate(zip(rows[0], scores[0], strict=True), 1):
        print(f"{rank:3} {words[row]!r} {score:.4f}{'' if row in best else '  (not among the exact ten best)'}")
    print(f"found {len({*rows[0]} & {*best})} of the exact ten best")

    truth = np.argsort(-(test @ np.asarray(items, np.float32).T), axis=1, kind="stable")[:, :K]
    tried = [PARAMS]
    tried += [replace(PARAMS, margin=value) for value in (4.0, 6.0, 10.0)]
    tried += [replace(PARAMS, slack=value) for value in (0.5, 2.0)]
    tried += [replace(PARAMS, tolerance=value) for value in (2.0, np.inf)]
    print(f"\nmeans of {len(test):,} queries")
    print("| margin | slack | rerank | tolerance", end=" | ")
    print("lists | sign codes | refinement codes | float16 vectors | recall@10 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for params in tried:
        rows, _, counts = read(index, test, params)
        recall = np.mean([len({*found} & {*right}) / K for found, right in zip(rows, truth, strict=True)])
        asked = (f"{value:g}" for value in (params.margin, params.slack, params.rerank, params.tolerance))
        print(f"| {' | '.join([*asked, *(f'{count:,.0f}' for count in counts)])} | {recall:.4f} |")


if __name__ == "__main__":
    main()
