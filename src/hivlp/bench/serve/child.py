"""One engine in a process of its own: it is built, and its search parameters are chosen, before it is served."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from hivlp.bench.ann.truth import recall as recall_at
from hivlp.bench.child import say
from hivlp.bench.products.child import affordable, each_once, seconds
from hivlp.bench.products.choose import choose
from hivlp.bench.products.collection import FILTERED, ITEMS, LEARN, VALIDATION, Collection, K
from hivlp.bench.products.rivals import Product
from hivlp.bench.products.rivals.base import Effort, rows_of
from hivlp.bench.serve.services import SERVICES

WANTED = (0.99, 0.95)


def child(name: str, model: str, folder: Path, collection: Collection) -> None:
    """Say ``build_s``, and ``efforts``: by recall, the search parameters that are fastest at it.

    Args:
        name: of the service's class.
        model: that makes vectors of texts, by name.
        folder: of what is built; an empty one.
        collection: what is indexed and asked.
    """
    product = next(each for each in SERVICES if each.__name__ == name)().product(model)
    assert product is not None
    try:
        product.load()
    except ModuleNotFoundError as error:
        say({"status": f"not installed: {error.name}"})
        return
    count, started = collection.later(), time.perf_counter()
    product.build(folder, collection.read(ITEMS)[:count], collection.payloads()[:count], collection.read(LEARN))
    say({"build_s": round(time.perf_counter() - started, 1)})
    product.open(folder)
    say({"efforts": efforts(product, collection)})
    product.close()


def efforts(product: Product, collection: Collection) -> dict[str, Effort]:
    """By recall, the search parameters with which an open product is fastest, one query at a time."""
    queries, truth = np.array(collection.read(VALIDATION)), collection.truth(VALIDATION)

    @each_once
    def recall(effort: Effort) -> float:
        few = affordable(product, queries, effort)
        found = product.search_many(queries[:few], K, effort)
        return recall_at(np.array([rows_of(hits, K) for hits in found]), truth[:few])

    @each_once
    def cost(effort: Effort) -> float:
        return min(float(np.median(seconds(product, queries[:FILTERED], effort))) for _ in range(2))

    chosen = {str(wanted): choose(product.efforts(), wanted, recall, cost) for wanted in WANTED}
    return {wanted: effort for wanted, effort in chosen.items() if effort is not None}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("service")
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("collection", type=Path)
    given = parser.parse_args()
    child(given.service, given.model, given.folder, Collection(given.collection))
