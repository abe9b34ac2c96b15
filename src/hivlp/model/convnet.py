"""A small convolutional tower that is trained from nothing in minutes, and keeps where in the picture things are."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from hivlp.model.tower import Features, Tower


class ConvTower(Tower):
    """3×3 convolutions, each of which halves the sides; layer ``i`` is the output of the ``i``-th.

    A layer's features are its map averaged in each cell of a ``grid`` × ``grid`` raster: mean pooling over the whole
    picture, as classifiers have it, forgets what is left of what.
    """

    numbered = re.compile(r"^layers\.(\d+)\.")
    first = ()

    def __init__(self, channels: Sequence[int] = (32, 64, 128, 192), grid: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        inputs = 3
        for outputs in channels:
            convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
            self.layers.append(nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU()))
            inputs = outputs
        self.grid = grid
        self.depth = len(self.layers)
        self.widths = [width * grid * grid for width in channels]

    def forward(self, pixels: Tensor, layers: tuple[int, ...]) -> Features:
        """(B, 3, H, W) float -> layer -> (B, channels × grid²) float; sides are multiples of ``grid · 2^layer``."""
        features: Features = {}
        x = pixels
        for number, layer in enumerate(self.layers[: max(layers)], start=1):
            x = layer(x)
            if number in layers:
                features[number] = F.adaptive_avg_pool2d(x, self.grid).flatten(1)
        return features
