"""The exponential moving average of a model, taken on its device without waiting for it."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from segtrain.engine.ranks import broadcast_weights
from segtrain.engine.shards import local, shard


def shard_model(model: nn.Module, decay: float | None, device: torch.device) -> WeightAverage | None:
    """Spread a model over the ranks, with the first one's weights, and beside it its average where there is a decay."""
    broadcast_weights(model)
    average = None if decay is None else WeightAverage(model, decay)
    for each in [model] if average is None else [model, average.module]:
        shard(each, device)
    return average


class WeightAverage:
    """An exponential moving average of the weights and of BatchNorm's statistics.

    The decay starts low, as min(decay, (1 + n) / (10 + n)) after n updates and 0 at the first, so that a short run does
    not end near its random start. Integer buffers are copied.

    Attributes:
        module: the averaged model. num_averaged: updates until now, float64 on the device.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = deepcopy(model).requires_grad_(False)
        device = next((value.device for value in model.parameters()), torch.device("cpu"))
        self.num_averaged = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, model: nn.Module, *, leave_out: Tensor) -> None:
        """Take in the weights of `model`, unless `leave_out` (a bool scalar on the device) is true."""
        keep = leave_out.logical_not().to(self.num_averaged)
        count = self.num_averaged
        decay = ((1 + count) / (10 + count)).clamp(max=self.decay) * (count > 0)
        weight = keep * (1 - decay)
        # of sharded models each rank averages its part
        averaged = [local(value) for value in (*self.module.parameters(), *self.module.buffers())]
        current = [local(value.detach()) for value in (*model.parameters(), *model.buffers())]
        pairs = list(zip(averaged, current, strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        if floats:
            old, new = [pair[0] for pair in floats], [pair[1] for pair in floats]
            change = torch._foreach_sub(new, old)
            torch._foreach_mul_(change, weight)
            torch._foreach_add_(old, change)
        for whole, now in (pair for pair in pairs if not pair[0].is_floating_point()):
            whole.copy_(now)
        self.num_averaged += keep
