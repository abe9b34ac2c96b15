"""Published speed-ups, with where they were read. What is not published, or was not read, says so."""

from __future__ import annotations

from typing import Any

POOLS = {"small": (1_000, 5_000, 31_014, 123_287), "full": (1_000, 5_000, 31_014, 123_287, 1_000_000)}
"""Pictures of Flickr30k's and COCO's test splits, of all Flickr30k, of all COCO; and a million."""
PUBLISHED: dict[str, Any] = {
    "hivlp_over_uniter": {"1000": 1427, "123287": 120649},
    "hivlp_over_lightningdot": "2 to 5 times, in different candidate scenarios",
    "hivlp_over_meter": "not published",
    "hardware": "not published",
    "lightningdot_over_uniter": "published in its paper, which was not read here; its repository holds no timer",
    "source": "HiVLP, arXiv 2205.12105. It gives the least and the greatest speed-up; that these are of 1,000 and of "
    "123,287 pictures follows from LightningDOT's pools, which it compares with.",
}
