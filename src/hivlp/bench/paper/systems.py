"""Names of what is timed, and the protocol's constants."""

from __future__ import annotations

BEST, FEW = 100, 10
"""Items that are asked for: as many as LightningDOT's script does, and as many as R@10 needs."""
BATCH = 400
"""Queries of a batch, as LightningDOT's."""
CANDIDATES = 100
"""Of a re-ranking."""
LEAST_SAVED = 5.0
"""Times as fast as without that a re-ranking with kept picture tokens is to be."""
AIMS = {"1000": 2.0, "123287": 5.0, "1000000": 25.0}
"""Pool -> how many times as fast as LightningDOT HiVLP with the same tower is to be."""
LIGHTNINGDOT = "LightningDOT, PyTorch + FAISS flat"
LIGHTNINGDOT_HNSW = "LightningDOT, PyTorch + FAISS HNSW"
CLIP = "CLIP ViT-B/32, PyTorch + FAISS flat"
UNITER, METER = "UNITER-base", "METER, CLIP-B/16 at 384"
ALBEF = "ALBEF, ViT-B/16 at 384"
SAME, INT8, SHIPPED = "HiVLP, same tower", "HiVLP, same tower in int8", "HiVLP as shipped"
TO_IMAGE, TO_TEXT = "text_to_image", "image_to_text"
