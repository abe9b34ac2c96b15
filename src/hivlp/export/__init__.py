"""A trained model as a folder that runs without torch: graphs, their quantization, and the card."""

from hivlp.export.graphs import export

__all__ = ["export"]
