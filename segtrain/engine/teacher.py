"""The teacher of a distillation term: an earlier run, loaded whole, that looks at the same images and never learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from segtrain.config import Config
from segtrain.config.loss import LossConfig
from segtrain.config.loss_terms import DistillationTerm
from segtrain.engine.checkpoint import LoadedRun, load_run
from segtrain.engine.device import autocast
from segtrain.errors import CheckpointError, ConfigError, some


@dataclass(frozen=True)
class Teacher:
    """A model in evaluation mode, without gradients, and how it wants its images.

    model: normalised floats [N, C, H, W] -> logits [N, K, H, W]. normalize: images as stored -> normalised floats, as
    the teacher was trained on them. input_size: that its images were resized to. precision, channels_last: of the run
    that is being trained.
    """

    path: Path
    model: nn.Module
    normalize: Callable[[Tensor], Tensor]
    input_size: tuple[int, int] | None
    precision: str = "fp32"
    channels_last: bool = False

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return logits [N, K, H, W] of images [N, C, H, W] as stored, on the device of the teacher."""
        inputs = self.normalize(images)
        if self.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with autocast(images.device, self.precision):
            logits: Tensor = self.model(inputs)
        return logits


def load_teacher(config: Config, loss: LossConfig, *, device: torch.device) -> Teacher | None:
    """Load the teacher that a distillation term of `loss` names, None where there is no such term.

    Its path is taken from the working directory. The teacher is no part of the run's checkpoints: it must still be
    there when the run goes on.

    Raises:
        ConfigError: the run itself as its own teacher, or one of other classes or channels.
        CheckpointError: no checkpoint there, or one that cannot be used.
    """
    terms = [(index, term) for index, term in enumerate(loss.terms) if isinstance(term, DistillationTerm)]
    if not terms:
        return None
    index, term = terms[0]  # there is one at most
    where = f"loss.terms[{index}].teacher"
    own = (Path(config.output) / config.name).resolve()
    if Path(term.teacher).resolve().is_relative_to(own):
        raise ConfigError(f"{where}: {term.teacher} is the folder of this run: give the run another name=...")
    try:
        found = load_run(term.teacher, device=str(device))
    except (CheckpointError, ConfigError) as error:
        raise type(error)(f"{where}: {error} (a relative path starts at {Path.cwd()})") from error
    _check(found, config, where=where)
    return Teacher(
        path=found.path,
        model=found.model.requires_grad_(False),
        normalize=found.normalize,
        input_size=found.config.data.input_size,
        precision=config.train.precision,
        channels_last=config.train.channels_last,
    )


def _check(teacher: LoadedRun, config: Config, *, where: str) -> None:
    taught, wanted = teacher.config.data.class_names, config.data.class_names
    if taught != wanted:
        both = enumerate(zip(taught, wanted, strict=False))
        pairs = [f"{index}: {one!r} and {other!r}" for index, (one, other) in both if one != other]
        differ = some(pairs, limit=3) if pairs else f"{len(taught)} and {len(wanted)} classes"
        raise ConfigError(
            f"{where}: {teacher.path} tells other classes apart than data.classes does ({differ}): a teacher needs the "
            "same classes in the same order"
        )
    student, learnt = config.loss, teacher.config.loss
    if student != "auto" and learnt != "auto" and student.activation != learnt.activation:
        raise ConfigError(
            f"{where}: {teacher.path} was trained with loss.activation: {learnt.activation}, and its logits do not "
            f"mean what those of {student.activation} do: train both with one activation"
        )
    if teacher.config.model.in_channels != config.model.in_channels:
        raise ConfigError(
            f"{where}: {teacher.path} takes images of {teacher.config.model.in_channels} channels, and "
            f"model.in_channels is {config.model.in_channels}"
        )


def size_note(teacher: Teacher, config: Config) -> str | None:
    """Return in a line that the teacher sees images of another scale than it was trained on, None where it does not."""
    if teacher.input_size == config.data.input_size:
        return None
    sizes = (teacher.input_size, config.data.input_size)
    was, now = ("their stored size" if size is None else f"{size[0]}x{size[1]}" for size in sizes)
    return f"the teacher was trained on images of {was} (data.input_size), and sees those of this run, of {now}"


def check_sight(teacher: Teacher, image: Tensor) -> None:
    """Let the teacher see one training image [C, H, W] as stored, so that what fails does so before step 1.

    Raises:
        ConfigError: the teacher's model takes images of one size only, and this is not it.
    """
    try:
        logits = teacher.logits(image[None])
    except ConfigError as error:
        raise ConfigError(f"the teacher {teacher.path} cannot see the training images: {error}") from error
    assert logits.shape[2:] == image.shape[1:], (logits.shape, image.shape)
