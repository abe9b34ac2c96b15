"""A small convolutional image tower for training from scratch, pooled in a grid so that positions are kept."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from hivlp.errors import ModelError
from hivlp.model.tower import Features, Tower
from hivlp.typed import Count


@dataclass(frozen=True)
class ConvOptions:
    """Size of a convolutional tower.

    Attributes:
        channels: that each layer puts out.
        grid: cells along a side of the raster that a layer's map is averaged in.
        strides: by which each layer divides the sides; 2 for all if none are given.
    """

    channels: tuple[Count, ...] = (32, 64, 128, 192)
    grid: Count = 4
    strides: tuple[Count, ...] = ()


class ConvTower(Tower):
    """3×3 convolutions, which may halve the sides; layer ``i`` is the output of the ``i``-th.

    A layer's features are its map averaged in each cell of a ``grid`` × ``grid`` raster: mean pooling over the whole
    picture, as classifiers have it, forgets what is left of what.
    """

    numbered = re.compile(r"^layers\.(\d+)\.")
    first = ()
    options = ConvOptions

    def __init__(self, options: ConvOptions) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self._strides = options.strides or (2,) * len(options.channels)
        if len(self._strides) != len(options.channels):
            raise ModelError(f"{len(self._strides)} strides for {len(options.channels)} layers: one for each")
        inputs = 3
        for outputs, stride in zip(options.channels, self._strides, strict=True):
            convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
            self.layers.append(nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU()))
            inputs = outputs
        self.grid = options.grid
        self.depth = len(self.layers)
        self.widths = [width * self.grid**2 for width in options.channels]

    def check_size(self, size: int, layer: int) -> None:
        """See :meth:`Tower.check_size`: every cell of the raster holds the same number of positions."""
        shrunk = math.prod(self._strides[:layer])
        if -(-size // shrunk) % self.grid:
            raise ValueError(
                f"a multiple of {self.grid * shrunk}, so that its map has whole cells in a grid of {self.grid}"
            )

    def forward(self, pixels: Tensor, layers: tuple[int, ...]) -> Features:
        """(B, 3, H, W) float -> layer -> (B, channels × grid²) float; sides: see :meth:`check_size`."""
        features: Features = {}
        x = pixels
        for number, layer in enumerate(self.layers[: max(layers)], start=1):
            x = layer(x)
            if number in layers:
                features[number] = F.adaptive_avg_pool2d(x, self.grid).flatten(1)
        return features
