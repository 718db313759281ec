"""Evaluation of a model on a split: every mask at its own size, every image once, exact counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from segtrain.config import Config
from segtrain.console import progress
from segtrain.data.dataset import EvalDataset
from segtrain.data.frequencies import ClassFrequencies, check_split
from segtrain.data.loader import build_eval_loader
from segtrain.distributed import gather_objects, rank, sum_over_ranks, world_size
from segtrain.engine.nan_outputs import CountNan
from segtrain.engine.predict import Predictor, resize_logits
from segtrain.engine.ranks import agreed
from segtrain.engine.thresholds import ThresholdTuner
from segtrain.kernels.upsample import CoarseLogits
from segtrain.metrics import ConfusionMatrix, MultiLabelConfusion, compute_scores
from segtrain.models import Normalize

OnImage = Callable[[int, Tensor, Tensor, Tensor], object]
Confusion = ConfusionMatrix | MultiLabelConfusion


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found.

    scores: flat {name: number}, NaN where undefined; see segtrain.metrics.Scores, also for `groups` (classes that
    each mean is over) and `counted` (how many of these have a defined IoU). loss: mean over the valid pixels of the
    loss of the images, None without a loss. frequencies: of the training data, None where not known. prior_tau: τ of
    the post-hoc logit adjustment behind the predictions (not behind the loss), None without. thresholds: of each class
    by name, the probability from which on it was taken for present; None where classes exclude each other. nan_outputs:
    images (with evaluate.tile: tiles) whose logits are not finite. Their pixels are counted as the argmax has them,
    which means nothing: the scores can be trusted if it is 0.
    """

    confusion: Confusion
    scores: dict[str, float]
    groups: dict[str, tuple[int, ...]]
    counted: dict[str, int]
    class_names: tuple[str, ...]
    num_images: int
    split: str
    loss: float | None
    frequencies: ClassFrequencies | None
    prior_tau: float | None = None
    thresholds: dict[str, float] | None = None
    nan_outputs: int = 0


def evaluate(
    config: Config,
    *,
    model: nn.Module,
    normalize: Callable[[Tensor], Tensor] | None = None,
    data: EvalDataset | None = None,
    split: str = "val",
    frequencies: ClassFrequencies | None = None,
    loss: Callable[..., Tensor] | None = None,
    device: torch.device | str | None = None,
    workers: int | None = None,
    on_image: OnImage | None = None,
    show_progress: bool = False,
    thresholds: Mapping[str, float] | None = None,
    tuner: ThresholdTuner | None = None,
) -> Evaluation:
    """Predict a split and compare it with its masks, at the size of the masks.

    In a process group every rank must call it: each evaluates its share of the images, and all get the whole result,
    the same numbers as one process gets. A failure on one rank is one on all.

    Args:
        model: normalised floats [N, C, H, W] -> logits [N, K, H, W]; every module's train/eval mode is as before
            at the end.
        normalize: images as stored -> normalised floats; default: as config.data.normalize says.
        data: items as EvalDataset gives them; default: the samples of `split` that pass its check.
        frequencies: of the training data: they choose the classes of miou_tail (default: the evaluated masks do),
            and config.evaluate.prior_tau needs them.
        loss: called as loss(logits, target) for one image at a time, both at the size of the mask; from a model built
            with loss.fused_upsample it gets `CoarseLogits` where images and masks have one size. Not with tiles: they
            are for images whose logits do not fit on the device whole.
        device: default: where the model is. The model is moved there, and stays.
        workers: processes that read images; default: config.data.workers.
        on_image: called for each image (of this rank's share), in order of the data, with (index, image as the model
            saw it [C, H, W], target [h, w], prediction [h, w]), all on the CPU; where classes do not exclude each other
            (config.data.multi_label), target and prediction are [K, h, w] of 0, 1 and ignore_index.
        thresholds: {class name: threshold} that were chosen on val: evaluate.tune_thresholds needs them.
        tuner: counts from which thresholds can be chosen; this evaluation then is at evaluate.threshold.
    """
    if data is None:
        samples = check_split(config.data, split, show_progress=show_progress).samples
        data = EvalDataset(samples, config.data, split=split)
    if device is not None:
        model = model.to(device)
    normalize = _normalize(config, normalize, device)
    names = config.data.class_names
    if tuner is not None:
        thresholds = dict(zip(names, config.evaluate.thresholds(names), strict=True))
    nan = CountNan()
    predictor = Predictor.from_config(
        config, model=model, normalize=normalize, frequencies=frequencies, thresholds=thresholds, nan=nan
    )
    confusion = make_confusion(config)
    mean_loss = None if loss is None or predictor.tile else _MeanLoss(loss, config.data.ignore_index)
    watchers = [watcher for watcher in (mean_loss, tuner) if watcher is not None]
    num_workers = config.data.workers if workers is None else workers
    share = range(rank(), len(data), world_size())
    loader = build_eval_loader(data, batch_size=config.evaluate.batch_size, workers=num_workers, indices=share)
    is_shown = show_progress and rank() == 0
    shown = progress(f"evaluating {split}", len(share)) if is_shown else nullcontext(lambda count: None)
    with agreed(), closing(loader), evaluation_mode(model), torch.no_grad(), shown as advance:
        for items in loader:
            for item, prediction in zip(items, _count(predictor, items, confusion, watchers), strict=True):
                if on_image is not None:
                    on_image(int(item["index"]), item["image"], item["target"], prediction)
            advance(len(items))
    mean = None if mean_loss is None else mean_loss.value()
    confusion = _of_all_ranks(confusion)
    if tuner is not None:
        tuner.counts = torch.from_numpy(sum_over_ranks(tuner.counts.numpy()))
    found = _evaluation(config, confusion, predictor, split=split, loss=mean, frequencies=frequencies)
    return replace(found, nan_outputs=int(sum_over_ranks(np.array([nan.count], np.int64))[0]))


def make_confusion(config: Config) -> Confusion:
    """Return the counts, empty, that fit the labels of config.data."""
    kind = MultiLabelConfusion if config.data.multi_label else ConfusionMatrix
    return kind(len(config.data.classes), ignore_index=config.data.ignore_index)


def _of_all_ranks(confusion: Confusion) -> Confusion:
    """Return the counts of all ranks together."""
    matrix, images = confusion.matrix, confusion.images
    own = torch.cat([matrix.flatten(), images, torch.tensor([confusion.num_images])])
    whole = torch.from_numpy(sum_over_ranks(own.numpy()))
    cells, held, number = torch.split(whole, [matrix.numel(), len(images), 1])
    state = {"matrix": cells.view(matrix.shape).tolist(), "images": held.tolist(), "num_images": int(number)}
    return type(confusion).from_state({"ignore_index": confusion.ignore_index, **state})


def _normalize(
    config: Config, given: Callable[[Tensor], Tensor] | None, device: torch.device | str | None
) -> Callable[[Tensor], Tensor]:
    normalize = Normalize(config.data.normalize.mean, config.data.normalize.std) if given is None else given
    return normalize.to(device) if isinstance(normalize, nn.Module) and device is not None else normalize


def _evaluation(
    config: Config,
    confusion: Confusion,
    predictor: Predictor,
    *,
    split: str,
    loss: float | None,
    frequencies: ClassFrequencies | None,
) -> Evaluation:
    """Make scores of the counts of all images."""
    names, settings = config.data.class_names, config.evaluate
    result = compute_scores(
        confusion, names, frequencies=frequencies, tail_fraction=settings.tail_fraction, exclude=settings.exclude
    )
    return Evaluation(
        confusion=confusion,
        scores=result.values,
        groups=result.groups,
        counted=result.counted,
        class_names=names,
        num_images=confusion.num_images,
        split=split,
        loss=loss,
        frequencies=frequencies,
        prior_tau=settings.prior_tau,
        thresholds=None if predictor.thresholds is None else dict(zip(names, predictor.thresholds, strict=True)),
    )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, and every module of it back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Watcher(Protocol):
    """What looks at the logits [1, K, h, w] and the target of each image besides the counts."""

    def add(self, logits: Any, target: Tensor, /) -> None: ...


class _MeanLoss:
    """Mean of a loss over images, each weighted by its valid pixels.

    The sum is exact until its end (fsum), so that it does not depend on which rank saw which image.
    """

    def __init__(self, loss: Callable[..., Tensor], ignore_index: int) -> None:
        self._loss = loss
        self._ignore_index = ignore_index
        self._parts: list[float] = []
        self._pixels = 0

    def add(self, logits: Tensor | CoarseLogits, target: Tensor) -> None:
        pixels = int((target != self._ignore_index).sum())
        if pixels:
            self._parts.append(float(self._loss(logits, target)) * pixels)
            self._pixels += pixels

    def value(self) -> float:
        """Return the mean over the images of all ranks, each of which must ask."""
        seen = gather_objects((self._parts, self._pixels))
        pixels = sum(one[1] for one in seen)
        return _sum([part for one in seen for part in one[0]]) / pixels if pixels else math.nan


def _sum(values: Sequence[float]) -> float:
    finite = all(math.isfinite(value) for value in values)  # fsum refuses infinities of both signs
    return math.fsum(values) if finite else sum(values)


def _count(
    predictor: Predictor, items: Sequence[dict[str, Any]], confusion: Confusion, watchers: Sequence[_Watcher]
) -> list[Tensor]:
    """Count each item, and return its prediction at the size of its target, on the CPU; equal shapes go together."""
    groups: dict[tuple[torch.Size, torch.Size], list[int]] = {}
    for position, item in enumerate(items):
        groups.setdefault((item["image"].shape, item["target"].shape), []).append(position)
    predictions: dict[int, Tensor] = {}
    for positions in groups.values():
        images, targets = (torch.stack([items[position][key] for position in positions]) for key in ("image", "target"))
        size = (targets.shape[-2], targets.shape[-1])
        if predictor.tile is not None and not watchers:
            found = predictor.classes(images, size=size)
            confusion.update(found, targets)
        elif isinstance(confusion, MultiLabelConfusion):
            logits = predictor.logits(images)
            _show(watchers, logits, targets.to(logits.device))
            found = torch.cat([predictor.decide(resize_logits(one[None], size)).cpu() for one in logits])
            confusion.update(found, targets)
        else:
            read = predictor.read_logits(images)
            _show(watchers, read, targets.to(read.device))
            # of logits below the size of the masks each strip is enlarged while it is read: no large logits exist
            found = confusion.update_and_predict(read, targets, shift=predictor.shift, size=size).cpu()
        predictions.update(zip(positions, found, strict=True))
    return [predictions[position] for position in range(len(items))]


def _show(watchers: Sequence[_Watcher], logits: Tensor | CoarseLogits, targets: Tensor) -> None:
    """Show images to the watchers one at a time: a batch of logits at the size of large masks would be the peak."""
    for index, target in enumerate(targets) if watchers else ():
        small = logits.image(index) if isinstance(logits, CoarseLogits) else logits[index : index + 1]
        size = (target.shape[-2], target.shape[-1])
        if isinstance(small, CoarseLogits) and small.crop != size:
            small = small.full()
        large = small if isinstance(small, CoarseLogits) else resize_logits(small, size)
        for watcher in watchers:
            watcher.add(large, target[None])
