"""The buffers of a model, above all BatchNorm's statistics: kept for a step that is left out, alike on all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from segtrain.distributed import mean_over_ranks, world_size


class Buffers:
    """All buffers of a model, handled in one tensor of each kind: a model has hundreds, and each takes a launch."""

    def __init__(self, model: nn.Module) -> None:
        # by place and not by tensor: a module may put another tensor there
        self._places = [
            (module, name)
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def copy(self) -> list[Tensor]:
        """Return what all buffers hold: flat tensors, one of each type and device."""
        return [_flat(group) for group in self._groups()]

    def put_back(self, copy: Sequence[Tensor], *, where: Tensor | None = None) -> None:
        """Give the buffers what `copy` returned earlier; with `where`, a bool scalar on the device, only if it is true.

        Nothing waits for the device; a CPU is asked, which costs nothing.
        """
        if where is not None and where.device.type == "cpu":
            if not bool(where):
                return
            where = None
        for group, before in zip(self._groups(), copy, strict=True):
            _fill(group, before if where is None else torch.where(where.to(before.device), before, _flat(group)))

    def average(self) -> None:
        """Make the floats the mean of all ranks': of BatchNorm's statistics that is what all ranks saw.

        Ranks hold the same bits then; where they did before, nothing changes. Whole numbers count batches, and are
        equal anyway.
        """
        if world_size() == 1:
            return
        for group in self._groups():
            if group[0].is_floating_point():
                _fill(group, mean_over_ranks(_flat(group)))

    def _groups(self) -> Iterator[list[Tensor]]:
        groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for module, name in self._places:
            buffer = module._buffers[name]
            if buffer is not None and buffer.numel():
                groups.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        yield from groups.values()


def _flat(group: Sequence[Tensor]) -> Tensor:
    return torch.cat([buffer.detach().reshape(-1) for buffer in group])


@torch.no_grad()
def _fill(group: Sequence[Tensor], flat: Tensor) -> None:
    parts = torch.split(flat, [buffer.numel() for buffer in group])
    shaped = [part.view(buffer.shape) for part, buffer in zip(parts, group, strict=True)]
    torch._foreach_copy_(list(group), shaped)
