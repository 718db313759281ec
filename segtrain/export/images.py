"""Real images for the parity check: of the run's val split, or files of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segtrain.config import Config
from segtrain.data.formats import find_samples, image_files
from segtrain.data.images import AnyArray, read_image
from segtrain.data.problems import FileProblem
from segtrain.data.sources import FilePairs
from segtrain.errors import ConfigError, DataError, SegtrainError

DEFAULT_NUMBER = 4


def read_given(paths: Sequence[Path], config: Config, *, number: int) -> list[AnyArray]:
    """Read images [H, W, C] as stored: up to `number` of the files, and of those in folders, evenly spread.

    Raises:
        DataError: nothing there, or a file that cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"--images: {path}: no such file or folder (seen from {Path.cwd()})")
        files += sorted(image_files(path)) if path.is_dir() else [path]
    if not files:
        raise DataError(f"--images: no images in {', '.join(map(str, paths))}")
    data = config.data
    chosen = [files[index] for index in spread(len(files), number)]
    try:
        return [
            read_image(file, in_channels=config.model.in_channels, max_pixels=data.max_pixels, bands=data.bands)
            for file in chosen
        ]
    except FileProblem as problem:
        raise DataError(f"--images: {problem}") from problem


def read_val(config: Config, *, number: int) -> list[AnyArray]:
    """Read images [H, W, C] of the run's val split as stored, evenly spread.

    Raises:
        DataError: the split is not there, or a file cannot be read: images must be given then.
    """
    data = config.data.model_copy(update={"decode": "exact"})
    try:
        samples = find_samples(data, "val").samples
        pairs = FilePairs(samples, data, split="val")
        return [pairs.read(index)[0] for index in spread(len(samples), number)]
    except (SegtrainError, FileProblem) as error:
        raise DataError(
            f"the images of the run's val split, on which the export is checked, cannot be read: {error}\n"
            "Run from the folder where you trained, or give images with --images"
        ) from error


def one_dtype(images: Sequence[AnyArray]) -> AnyArray:
    """Return the first image; all have its type of pixels and its number of channels.

    Raises:
        ConfigError: they differ, and a graph takes one type.
    """
    kinds = {(image.dtype.name, image.shape[2]) for image in images}
    if len(kinds) > 1:
        found = " and ".join(f"{name} with {channels} channels" for name, channels in sorted(kinds))
        raise ConfigError(f"the images are of several kinds ({found}), and a graph takes one: choose with --images")
    return images[0]


def spread(count: int, number: int) -> list[int]:
    """Return up to `number` indices below `count`, evenly spread, the first among them."""
    number = min(count, number)
    return [index * count // number for index in range(number)]
