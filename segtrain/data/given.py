"""One's own data in code: pairs of any torch data set, checked and counted as files are."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.console import progress
from segtrain.data.formats import Sample, bad_files
from segtrain.data.frequencies import ScanResult, count_target, frequencies_of
from segtrain.data.images import AnyArray
from segtrain.data.labels import count_labels, label_rules
from segtrain.data.loader import Loader
from segtrain.data.problems import FileProblem, Kind
from segtrain.data.samples import Indices, Samples
from segtrain.data.scan import Looks, of_all_ranks
from segtrain.data.sources import Pairs
from segtrain.distributed import rank, world_size
from segtrain.errors import ConfigError, DataError

BATCH = 8  # samples that a worker counts at a time


class MapDataset(Sized, Protocol):
    """A torch data set of (image, mask), or any sequence of such pairs."""

    def __getitem__(self, index: Any, /) -> Any: ...


class GivenPairs(Pairs):
    """The pairs of a data set given in code.

    Images are uint8, uint16, or floats as fractions of white: arrays and PIL images [H, W, C] or [H, W], tensors
    [C, H, W] or [H, W]; one channel is repeated where the model takes three. Masks are whole numbers [H, W] that
    data.label_map turns into classes, as those of files; or, where classes may overlap (data.multi_label), a yes or no
    of each class: [C, H, W] of 0, 1 and ignore_index.
    """

    def __init__(
        self, dataset: MapDataset, data: DataConfig, *, split: str, numbers: NDArray[np.int64] | None = None
    ) -> None:
        """Take the pairs `numbers` of `dataset`, default all; `split` is its name in messages.

        Raises:
            ConfigError: no map-style data set.
            DataError: it is empty.
        """
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise ConfigError(
                f"{split}_data is a {type(dataset).__name__} without a length or an index: give a map-style data set, "
                "with __len__ and __getitem__, whose items are (image, mask)"
            )
        if not len(dataset):
            raise DataError(f"{split}_data is empty: give at least one pair (image, mask)")
        self.numbers = np.arange(len(dataset)) if numbers is None else numbers
        self.samples = _samples(self.numbers, split)
        self.name = f"{split!r}, given in code as {split}_data"
        self.split = split
        self.data = data
        self.rules = label_rules(data)
        self._dataset = dataset
        self._in_channels = len(data.normalize.mean)

    def read(self, index: int, *, seed: int = 0) -> tuple[AnyArray, AnyArray]:
        """Return image [H, W, C] uint8, uint16 or float32 and target; see Pairs.

        The data set sees global generators (random, numpy, torch) seeded by `seed`, so that augmentations of its
        own differ from epoch to epoch and are the same for any number of workers.
        """
        number = int(self.numbers[index])
        with _seeded(seed):
            item = self._dataset[number]
        place = Path(f"{self.split}_data[{number}]")
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise FileProblem(place, f"expected (image, mask), found {_describe(item)}", Kind.PIXEL_TYPE)
        image = _as_image(item[0], place, in_channels=self._in_channels)
        target = self._as_target(item[1], place)
        if image.shape[:2] != target.shape[-2:]:
            sizes = f"{target.shape[-1]}x{target.shape[-2]}, the image {image.shape[1]}x{image.shape[0]}"
            raise FileProblem(place, f"the mask is {sizes} (width x height)", Kind.SIZE_MISMATCH)
        return image, target

    def select(self, indices: Indices) -> GivenPairs:
        """The pairs at these indices."""
        return GivenPairs(self._dataset, self.data, split=self.split, numbers=self.numbers[np.asarray(indices)])

    def _as_target(self, mask: Any, place: Path) -> AnyArray:
        raw = _as_array(mask)
        if raw.dtype == np.bool_:
            raw = raw.astype(np.uint8)
        if raw.dtype.kind not in "iu":
            raise FileProblem(place, f"the mask holds {raw.dtype}; expected whole numbers", Kind.PIXEL_TYPE)
        if self.data.multi_label and raw.ndim == 3 and len(raw) == len(self.data.classes) and raw.size:
            return self._as_labels(raw, place)
        if raw.ndim != 2 or not raw.size:
            raise FileProblem(place, f"the mask is {list(raw.shape)}; expected [H, W]", Kind.PIXEL_TYPE)
        if self.rules.ignore_index == -1:  # what files cannot say: they hold 65535 in its place
            raw = np.where(raw == -1, 65535, raw)
        try:
            return np.array(self.rules.encode(raw))  # a copy: it may be the user's own array
        except DataError as error:
            raise FileProblem(place, str(error), Kind.UNKNOWN_VALUES) from error

    def _as_labels(self, raw: AnyArray, place: Path) -> AnyArray:
        try:
            count_labels(raw, num_classes=len(raw), ignore_index=self.data.ignore_index)
        except DataError as error:
            raise FileProblem(place, f"the mask: {error}", Kind.UNKNOWN_VALUES) from error
        return raw.astype(np.uint8)  # a copy: it may be the user's own array


def check_given(pairs: GivenPairs, data: DataConfig, *, workers: int, show_progress: bool = True) -> ScanResult:
    """Read every pair once, in as many processes as training has, and count its classes; see check_split.

    Raises:
        DataError: bad pairs, all in one message (with data.on_bad: skip only if nothing else is left).
    """
    split = pairs.split
    looks = Looks.empty(len(pairs), len(_count(pairs.read(0)[1], data)))  # what fails at once, fails here
    mine = list(range(rank(), len(pairs), world_size()))
    batches = [mine[start : start + BATCH] for start in range(0, len(mine), BATCH)]
    loader = Loader(_Counting(pairs, data), batches, collate=list, workers=workers, pin_memory=False)
    shown = (
        progress(f"count {split}_data", len(mine)) if show_progress and rank() == 0 else nullcontext(lambda count: None)
    )
    try:
        with shown as advance:
            for batch in loader:
                for item in batch:
                    looks.counts[item["index"]], looks.good[item["index"]] = item["counts"], item["problem"] is None
                    looks.problems.extend([] if item["problem"] is None else [item["problem"]])
                advance(len(batch))
    finally:
        loader.close()
    looks = of_all_ranks(looks)
    if looks.problems and (data.on_bad == "error" or not looks.good.any()):
        raise bad_files(looks.problems, data, split=split, nothing_left=not looks.good.any())
    counts, good = looks.counts[looks.good], np.flatnonzero(looks.good)
    frequencies, counts = frequencies_of(counts, data)
    return ScanResult(frequencies, pairs.samples.select(good), counts, looks.problems, len(pairs), good)


class _Counting:
    """Counts in place of images: what the workers of check_given send."""

    def __init__(self, pairs: GivenPairs, data: DataConfig) -> None:
        self.name = pairs.name
        self._pairs = pairs
        self._data = data

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            image, target = self._pairs.read(index)
            if image.dtype == np.float32 and not np.isfinite(image).all():
                raise FileProblem(self._pairs.samples[index].image, "the image holds NaN or infinity", Kind.UNREADABLE)
        except FileProblem as error:
            return {"index": index, "counts": 0, "problem": error.problem}
        return {"index": index, "counts": _count(target, self._data), "problem": None}


def _count(target: AnyArray, data: DataConfig) -> NDArray[np.int64]:
    if data.multi_label:
        return count_labels(target, num_classes=len(data.classes), ignore_index=data.ignore_index)
    return count_target(target, len(data.classes), data.ignore_index)


def _samples(numbers: NDArray[np.int64], split: str) -> Samples[Sample]:
    digits = len(str(int(numbers.max())))
    return Samples.pack(
        Sample(f"{number:0{digits}}", Path(f"{split}_data[{number}]"), None) for number in numbers.tolist()
    )


def _as_array(values: Any) -> AnyArray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return np.asarray(values.float() if values.dtype == torch.bfloat16 else values)
    return np.asarray(values)


def _as_image(values: Any, place: Path, *, in_channels: int) -> AnyArray:
    pixels = _as_array(values)
    is_tensor = isinstance(values, torch.Tensor)
    if pixels.ndim == 3 and is_tensor:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    expected = f"[{in_channels}, H, W] of a tensor, or [H, W, {in_channels}] of an array"
    if pixels.ndim != 3 or not pixels.size or pixels.shape[2] not in (1, in_channels):
        kind = "tensor" if is_tensor else "array"
        reason = f"the image is a {kind} {list(np.shape(values))}; expected {expected}, as data.normalize has "
        raise FileProblem(place, f"{reason}{in_channels} channels", Kind.PIXEL_TYPE)
    if pixels.dtype.kind == "f":
        pixels = pixels.astype(np.float32)
    elif pixels.dtype not in (np.uint8, np.uint16):
        reason = f"the image holds {pixels.dtype}; expected uint8, uint16, or floats as fractions of white"
        raise FileProblem(place, reason, Kind.PIXEL_TYPE)
    channels = np.repeat(pixels, in_channels, axis=2) if pixels.shape[2] < in_channels else pixels
    return np.array(channels, order="C")  # a copy: it may be the user's own array


def _describe(item: Any) -> str:
    if isinstance(item, tuple | list):
        return f"{len(item)} values"
    return f"a {type(item).__name__}"


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, and put them back: in a process without workers they are those of training."""
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002 - the user's own
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.random.set_rng_state(before[2])
