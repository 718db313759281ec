"""Where data sets take image and target from: files, or what stands in for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from segtrain.config.data import DataConfig
from segtrain.data.formats import Sample, data_root, mask_reader
from segtrain.data.images import AnyArray, decode_image, read_checked
from segtrain.data.labels import label_rules
from segtrain.data.problems import FileProblem, Kind
from segtrain.data.samples import Indices, Samples
from segtrain.errors import DataError


@dataclass(frozen=True)
class Opened:
    """A pair of which a part is read, and `num_bytes` in memory: `read` gives what Pairs.read does, or raises it."""

    num_bytes: int
    read: Callable[[], tuple[AnyArray, AnyArray]]


class Pairs(ABC):
    """Images with their targets, by index; workers get a copy, so it can be pickled and holds nothing large.

    samples: names and files, for messages and results. name: of the whole, for messages.
    """

    samples: Samples[Sample]
    name: str

    def __len__(self) -> int:
        return len(self.samples)

    @abstractmethod
    def read(self, index: int, *, seed: int) -> tuple[AnyArray, AnyArray]:
        """Return image [H, W, C] and target [H, W] (multi-label: [C, H, W]), which the caller may change.

        `seed` is for sources that draw random numbers of their own; files give the same for any.

        Raises:
            FileProblem: the sample cannot be used.
        """

    def open(self, index: int, *, seed: int) -> Opened:
        """Do what comes before the image is decoded, where that is a step of its own; raises FileProblem."""
        return Opened(0, partial(self.read, index, seed=seed))

    def read_target(self, index: int, *, seed: int) -> AnyArray:
        """Return the target alone, as `read` does; sources that can do so leave the image alone."""
        return self.read(index, seed=seed)[1]

    @abstractmethod
    def select(self, indices: Indices) -> Pairs:
        """The pairs at these indices."""


class FilePairs(Pairs):
    """Image and mask files, as the layout and the label rules of a data section say."""

    def __init__(self, samples: Sequence[Sample], data: DataConfig, *, split: str) -> None:
        self.samples = Samples.pack(samples)
        self.data = data
        self.split = split
        self.name = f"{split!r} of {data_root(data)}"
        self.rules = label_rules(data)
        self._read_mask = mask_reader(data)
        self._decode_image = partial(
            decode_image,
            in_channels=len(data.normalize.mean),
            bands=data.bands,
            at_least=data.input_size if data.decode == "reduced" else None,
        )

    def read(self, index: int, *, seed: int = 0) -> tuple[AnyArray, AnyArray]:
        """Read image uint8 or uint16 [H, W, C] and target as stored; see Pairs.

        With data.decode: reduced the image may be smaller than the target, though not than data.input_size.
        """
        return self._opened(index).read()

    def open(self, index: int, *, seed: int = 0) -> Opened:
        """Read the target, and the bytes of the image, whose header is checked; see Pairs."""
        if type(self).read is not FilePairs.read:  # a subclass reads in a way of its own
            return super().open(index, seed=seed)
        return self._opened(index)

    def _opened(self, index: int) -> Opened:
        sample = self.samples[index]
        content, header = read_checked(sample.image, max_pixels=self.data.max_pixels)
        target = self._target(sample)
        if (header.height, header.width) != target.shape[-2:]:
            sizes = f"{target.shape[-1]}x{target.shape[-2]}, the image {header.size}"
            raise FileProblem(sample.mask or sample.image, f"the mask is {sizes}", Kind.SIZE_MISMATCH)
        decode = partial(self._decode_image, content, header, path=sample.image)
        return Opened(len(content) + target.nbytes, lambda: (decode(), target))

    def read_target(self, index: int, *, seed: int = 0) -> AnyArray:
        """Read the mask alone; see Pairs."""
        return self._target(self.samples[index])

    def _target(self, sample: Sample) -> AnyArray:
        if sample.mask is None:
            raise FileProblem(sample.image, "has no mask", Kind.MISSING)
        try:
            return self.rules.encode(self._read_mask(sample))
        except FileProblem:
            raise
        except DataError as error:
            raise FileProblem(sample.mask, str(error)) from error

    def select(self, indices: Indices) -> FilePairs:
        """The pairs at these indices."""
        return FilePairs(self.samples.select(indices), self.data, split=self.split)
