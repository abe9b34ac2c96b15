"""Adam on numpy arrays, for what is learnt without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOMENTUM, DECAY, EPSILON = 0.9, 0.99, 1e-12


class Adam:
    """Adam optimiser (Kingma & Ba, 2015), with a learning rate for each parameter.

    Attributes:
        parameters: float32 arrays, changed in place.
    """

    def __init__(self, parameters: Sequence[NDArray[np.floating] | np.floating]) -> None:
        """Copy the parameters to start from."""
        self.parameters = [np.array(each, np.float32) for each in parameters]
        self._means = [np.zeros_like(each) for each in self.parameters]
        self._squares = [np.zeros_like(each) for each in self.parameters]
        self._steps = 0

    def step(self, gradients: Sequence[NDArray[np.floating] | np.floating], rates: Sequence[float]) -> None:
        """One step down these gradients, at these learning rates."""
        self._steps += 1
        correction = math.sqrt(1 - DECAY**self._steps) / (1 - MOMENTUM**self._steps)
        moments = zip(self.parameters, self._means, self._squares, gradients, rates, strict=True)
        for values, mean, square, gradient, rate in moments:
            mean += (1 - MOMENTUM) * (gradient - mean)
            square += (1 - DECAY) * (gradient * gradient - square)
            values -= rate * correction * mean / (np.sqrt(square) + EPSILON)
