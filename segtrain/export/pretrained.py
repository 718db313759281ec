"""Trained models for use in anyone's code: loaded from a run, a checkpoint or an exported folder, called on images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segtrain.data.images import AnyArray, read_image
from segtrain.data.steps import resize_image
from segtrain.engine.checkpoint import load_checkpoint, load_run, load_weights
from segtrain.engine.device import select_device
from segtrain.engine.predict import Predictor, device_of, resize_logits
from segtrain.errors import CheckpointError, ConfigError, DataError
from segtrain.export.description import Description, describe
from segtrain.export.folder import is_pretrained, read_folder
from segtrain.metrics.prediction import prior_shift
from segtrain.models import Normalize, build_model
from segtrain.models.weights import read_file


@dataclass(frozen=True)
class TrainedModel:
    """A trained model with all that it needs to answer for images as they are.

    description: classes, pre-processing, results on val. predictor: the engine's, with the network in eval mode.
    """

    description: Description
    predictor: Predictor

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers."""
        return self.description.class_names

    @property
    def thresholds(self) -> dict[str, float] | None:
        """{class name: probability from which on it is present}; None where classes exclude each other."""
        if self.description.thresholds is None:
            return None
        return dict(zip(self.class_names, self.description.thresholds, strict=True))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return device_of(self.predictor.model)

    def predict(self, image: str | Path | AnyArray) -> NDArray[Any]:
        """Return the class of each pixel of one image.

        Args:
            image: a file, or an array [H, W, C] of uint8 or uint16 as stored: RGB with three channels (OpenCV reads
                BGR: turn it around), [H, W] with one.

        Returns:
            [H, W] uint8 (int16 above 256 classes) of class numbers; where classes may overlap [K, H, W] uint8, 1 where
            a class is present.

        Raises:
            DataError: the file cannot be read, or the array has another shape or type.
        """
        array = self._read(Path(image)) if isinstance(image, str | Path) else self._checked(image)
        height, width = array.shape[:2]
        stacked = self._resized(torch.from_numpy(array).permute(2, 0, 1)[None])
        prediction: NDArray[Any] = self.predictor.classes(stacked, size=(height, width))[0].numpy()
        return prediction

    def logits(self, images: Tensor) -> Tensor:
        """Return float32 logits [N, K, H, W] of images [N, C, H, W] as stored: uint8, uint16 or floats of 0 to 1.

        They are at the size of the images, and `predict` chooses by them. Floats cannot be resized the way that
        data.input_size asks for. On the device of the network; with tiles on the CPU.

        Raises:
            ConfigError: floats, and the run resized its images; or another number of channels.
        """
        if images.is_floating_point() and self.description.preprocessing.input_size is not None:
            raise ConfigError("images of floats: this model resizes its images as stored, give uint8 or uint16")
        return resize_logits(self.predictor.logits(self._resized(images)), images.shape[2:])

    def probabilities(self, images: Tensor) -> Tensor:
        """Return float32 probabilities [N, K, H, W] of images as `logits` takes them.

        Softmax over the classes, or a sigmoid for each where the run was trained so. A prior shift (evaluate.prior_tau)
        is not in them: it belongs to the choice of the class.
        """
        logits = self.logits(images)
        return logits.softmax(dim=1) if self.description.activation == "softmax" else logits.sigmoid()

    def _read(self, path: Path) -> AnyArray:
        about = self.description.preprocessing
        if not path.is_file():
            raise DataError(f"{path}: no such file (seen from {Path.cwd()})")
        channels = self.description.in_channels
        return read_image(path, in_channels=channels, max_pixels=about.max_pixels, bands=about.bands)

    def _checked(self, image: AnyArray) -> AnyArray:
        channels = self.description.in_channels
        array = image[:, :, None] if getattr(image, "ndim", 0) == 2 and channels == 1 else image
        shape = tuple(getattr(array, "shape", ()))
        if len(shape) != 3 or shape[2] != channels or 0 in shape or array.dtype not in (np.uint8, np.uint16):
            found = f"{type(image).__name__} of {getattr(image, 'dtype', 'no dtype')} {list(shape)}"
            raise DataError(f"an image is a path or an array uint8 or uint16 [H, W, {channels}], found {found}")
        # arrays of PIL are read-only, which torch does not take
        return np.require(array, requirements=["C", "W"])

    def _resized(self, images: Tensor) -> Tensor:
        size = self.description.preprocessing.input_size
        if size is None:
            return images
        arrays = [np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()) for image in images]
        return torch.from_numpy(np.stack([resize_image(array, size) for array in arrays])).permute(0, 3, 1, 2)


def load_model(path: str | Path, *, device: str = "auto") -> TrainedModel:
    """Load a trained model to use it: three lines from a folder to a prediction.

        import segtrain
        model = segtrain.load_model("runs/quickstart")
        prediction = model.predict("image.png")

    Nothing in the files can run code: names are looked up in our own dictionaries, weights are tensors alone.

    Args:
        path: a run's folder (its best checkpoint is taken), a checkpoint file, or a folder that `segtrain export
            --format folder` wrote.
        device: auto, cpu, cuda or cuda:<number>.

    Raises:
        CheckpointError: nothing usable there, or a damaged file.
        ConfigError: a device that is not there.
    """
    path = Path(path)
    return _from_folder(path, device) if is_pretrained(path) else _from_run(path, device)


def _from_run(path: Path, device: str) -> TrainedModel:
    loaded = load_run(path, device=device)
    predictor = Predictor.from_config(
        loaded.config,
        model=loaded.model,
        normalize=loaded.normalize,
        frequencies=loaded.frequencies,
        thresholds=loaded.thresholds,
    )
    pixels = tuple(int(count) for count in loaded.frequencies.pixels)
    content = load_checkpoint(loaded.path)
    description = describe(loaded.config, predictor, step=loaded.step, pixels=pixels, checkpoint=content, in_code=False)
    return TrainedModel(description, predictor)


def _from_folder(path: Path, device: str) -> TrainedModel:
    target = select_device(device)
    about, weights = read_folder(path)
    if about.model is None:
        raise CheckpointError(f"{path} describes a network that was given in code, and cannot be rebuilt")
    try:
        model = build_model(about.model, len(about.classes), load_weights=False, coarse=about.upsampling_outside)
    except ConfigError as error:
        raise CheckpointError(f"{path}: the model in it cannot be built: {error}") from error
    load_weights(model, read_file(weights), path=weights)
    norm = about.preprocessing.normalize
    prior = about.prior
    fits = about.precision != "fp16" or target.type == "cuda"
    predictor = Predictor(
        model=model.to(target).eval(),
        normalize=Normalize(norm.mean, norm.std).to(target),
        tile=about.tile,
        precision=about.precision if fits else "fp32",
        channels_last=about.channels_last,
        batch_size=about.batch_size,
        shift=None if prior is None else prior_shift(prior.pixels, prior.tau),
        thresholds=about.thresholds,
    )
    return TrainedModel(about, predictor)
