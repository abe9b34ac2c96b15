"""EfficientNet-Lite as an image tower that can be tapped at any stage.

The registry's own code for these weights unpickles its checkpoint, prints while it runs and bakes the
padding of one input size into its convolutions. This is the same network (Tan & Le, 2019, without
squeeze-and-excitation and with ReLU6) in a form that a level needs: stage by stage, any input size,
exportable.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hivlp.model.tower import Tower


@dataclass(frozen=True)
class Stage:
    """One row of the EfficientNet-B0 table: ``repeats`` blocks, the first of which may stride."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


B0_STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
STEM_CHANNELS, HEAD_CHANNELS, CLASSES = 32, 1280, 1000

# variant -> (width, depth) multipliers
VARIANTS = {
    "lite0": (1.0, 1.0),
    "lite1": (1.0, 1.1),
    "lite2": (1.1, 1.2),
    "lite3": (1.2, 1.4),
    "lite4": (1.4, 1.8),
}


@dataclass(frozen=True)
class EfficientNetOptions:
    """Which of the five networks."""

    variant: Literal["lite0", "lite1", "lite2", "lite3", "lite4"] = "lite2"


def _round_channels(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding, which is lopsided when it strides."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        pads: list[int] = []
        for axis in (1, 0):
            # int: constant in an exported graph, so that the padding can become the convolution's own.
            size, kernel, stride = int(x.shape[2 + axis]), self.kernel_size[axis], self.stride[axis]
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        if pads[0] == pads[1] and pads[2] == pads[3]:
            return F.conv2d(x, self.weight, self.bias, self.stride, (pads[2], pads[0]), 1, self.groups)
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, 1, self.groups)


def _conv_bn(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01),
    )


class InvertedBottleneck(nn.Module):
    """Expand, convolve each channel by itself, project; with a residual where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.expand = _conv_bn(inputs, hidden) if expand != 1 else None
        self.depthwise = _conv_bn(hidden, hidden, kernel, stride, groups=hidden)
        self.project = _conv_bn(hidden, outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        y = F.relu6(self.expand(x)) if self.expand is not None else x
        y = self.project(F.relu6(self.depthwise(y)))
        result: Tensor = x + y if self.residual else y
        return result


class EfficientNetLite(Tower):
    """The seven stages and the 1280-channel head; layer ``i`` is the pooled output of stage ``i``.

    Layers are counted as in :class:`hivlp.levels.Level`: 1…7 are the stages; 8 is the head, 1,280 features followed by
    the classifier's 1,000 logits, the only words that these weights know (see :mod:`hivlp.mini.warm_start`).
    """

    numbered = re.compile(r"^stages\.(\d+)\.")
    first = ("stem.",)
    classes = CLASSES
    options = EfficientNetOptions

    def __init__(self, options: EfficientNetOptions) -> None:
        super().__init__()
        width, depth = VARIANTS[options.variant]
        channels = STEM_CHANNELS
        self.stem = _conv_bn(3, channels, 3, 2)
        self.stages = nn.ModuleList()
        self.widths = []
        for number, stage in enumerate(B0_STAGES):
            outputs = _round_channels(stage.channels * width)
            # The Lite family does not deepen its first and last stage.
            edge = number in (0, len(B0_STAGES) - 1)
            repeats = stage.repeats if edge else math.ceil(stage.repeats * depth)
            blocks = []
            for block in range(repeats):
                stride = stage.stride if block == 0 else 1
                blocks.append(InvertedBottleneck(channels, outputs, stage.kernel, stride, stage.expand))
                channels = outputs
            self.stages.append(nn.Sequential(*blocks))
            self.widths.append(outputs)
        self.head = _conv_bn(channels, HEAD_CHANNELS)
        self.widths.append(HEAD_CHANNELS + CLASSES)
        self.depth = len(self.widths)
        self.classifier = nn.Linear(HEAD_CHANNELS, CLASSES)

    def forward(self, pixels: Tensor, layers: tuple[int, ...]) -> dict[int, Tensor]:
        """Pooled features of the named layers; nothing deeper than the last of them is computed.

        Args:
            pixels: (B, 3, H, W) float, normalised.
            layers: layer numbers, each in 1…8.

        Returns:
            layer -> (B, widths[layer - 1]) float.
        """
        features: dict[int, Tensor] = {}
        x = F.relu6(self.stem(pixels))
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            if number in layers:
                features[number] = x.mean((2, 3))
            if number == max(layers):
                return features
        pooled = F.relu6(self.head(x)).mean((2, 3))
        features[self.depth] = torch.cat([pooled, self.classifier(pooled)], 1)
        return features
