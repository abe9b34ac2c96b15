"""Synchronised batch normalisation on any device."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SharedBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with statistics over every process's pictures; torch's own ``SyncBatchNorm`` needs a GPU."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W), normalised with the statistics of all processes while training."""
        if not self.training:
            return super().forward(input)
        from torch.distributed.nn.functional import all_reduce

        # Two messages, since a mean of squares minus a squared mean loses digits that a small batch needs; in double
        # precision, as torch adds up on a CPU, so that it does not matter how many processes the sums came from.
        count = input.new_full((1,), input.numel() / input.shape[1], dtype=torch.float64)
        sums = all_reduce(torch.cat([input.sum((0, 2, 3), dtype=torch.float64), count]))  # type: ignore[no-untyped-call]
        total = sums[-1]
        mean = (sums[:-1] / total).to(input.dtype)
        centred = input - mean[:, None, None]
        squares = all_reduce(centred.square().sum((0, 2, 3), dtype=torch.float64))  # type: ignore[no-untyped-call]
        variance = (squares / total).to(input.dtype)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                factor = self.momentum if self.momentum is not None else 0.1
                self.running_mean.lerp_(mean, factor)
                self.running_var.lerp_(variance * total / (total - 1), factor)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        normalised: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normalised


def share_statistics(model: nn.Module) -> None:
    """Turn every ``BatchNorm2d`` of a model into a :class:`SharedBatchNorm2d`, in place, with the same state."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm2d
