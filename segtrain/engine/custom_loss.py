"""A loss of the user's own, `loss(logits, target) -> scalar`, seen by the loop like one of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor, nn

from segtrain.distributed import world_size


class TrainingLoss(Protocol):
    """What the loop asks of a loss; `segtrain.losses.SegmentationLoss` has it all.

    `more` are `teacher_logits` and `distances` where the loss wants them, `rest`, and `reduce` under several ranks.
    """

    @property
    def inexact_under_accumulation(self) -> str | None: ...

    def __call__(self, logits: Any, target: Tensor, **more: Any) -> Tensor: ...

    def normalizer(self, targets: Iterable[Tensor]) -> Any: ...

    def terms(self, logits: Any, target: Tensor, *, normalizer: Any = None, **more: Any) -> dict[str, Tensor]: ...

    def statistics(self, logits: Any, target: Tensor, **more: Any) -> Tensor:
        """Asked for with train.exact_accumulation only."""
        ...

    def set_progress(self, step: int, epoch: float) -> None: ...


class CustomLoss(nn.Module):
    """Wraps a plain loss module: one term, averaged over the batches of an accumulation window and over the ranks."""

    inexact_under_accumulation = (
        "the given loss is averaged over the batches of an accumulation window, each with the same weight"
    )

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Any, target: Tensor) -> Tensor:
        """Return the loss of logits `[N, C, H, W]` and target `[N, H, W]`, handed on as int64 as torch's losses ask.

        A model that returns a list of logits has that list handed on while it trains.
        """
        value: Tensor = self.loss(logits, target.long())
        return value

    def normalizer(self, targets: Iterable[Tensor]) -> int:
        """Return the number of batches of the window."""
        return len(list(targets))

    def terms(
        self,
        logits: Any,
        target: Tensor,
        *,
        normalizer: int | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss as the `total`: with `reduce` its mean over the ranks, with this rank's gradient.

        The mean of the ranks' gradients, which DDP takes, is then that of the mean.
        """
        value = self(logits, target) / (normalizer or 1)
        if reduce is None:
            return {"total": value}
        own = value.detach()
        return {"total": value - own + reduce(own) / world_size()}

    def set_progress(self, step: int, epoch: float) -> None:
        """Tell a loss that wants to know how far training is."""
        tell = getattr(self.loss, "set_progress", None)
        if tell is not None:
            tell(step, epoch)


def as_training_loss(loss: nn.Module) -> nn.Module:
    """Return `loss` itself where it has `terms` and `normalizer`, else wrapped."""
    return loss if hasattr(loss, "terms") and hasattr(loss, "normalizer") else CustomLoss(loss)
