"""Where data sets take image and target from: files, or what stands in for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from segtrain.config.data import DataConfig
from segtrain.data.formats import Sample, data_root, mask_reader
from segtrain.data.formats.readers import FileMasks
from segtrain.data.headers import Header
from segtrain.data.images import AnyArray, decode_image, read_checked
from segtrain.data.labels import label_rules
from segtrain.data.problems import FileProblem, Kind
from segtrain.data.samples import Indices, Samples
from segtrain.errors import DataError

ReadMask = Callable[[], AnyArray]


@dataclass(frozen=True)
class Opened:
    """A pair of which some bytes are in memory, this many: `read` gives what Pairs.read does, and raises the same."""

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
        """Do what comes before decoding, where that is a step of its own; raises FileProblem."""
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
        return self.open(index).read()

    def open(self, index: int, *, seed: int = 0) -> Opened:
        """Read the bytes of the image, and of masks that are files, and check their headers; see Pairs."""
        sample = self.samples[index]
        content, header = read_checked(sample.image, max_pixels=self.data.max_pixels)
        mask_bytes, read_mask = self._open_mask(sample)
        return Opened(len(content) + mask_bytes, partial(self._decode, sample, content, header, read_mask))

    def _decode(self, sample: Sample, content: bytes, header: Header, read_mask: ReadMask) -> tuple[AnyArray, AnyArray]:
        image = self._decode_image(content, header, path=sample.image)
        target = self._target(sample, read_mask)
        if (header.height, header.width) != target.shape[-2:]:
            sizes = f"{target.shape[-1]}x{target.shape[-2]}, the image {header.size}"
            raise FileProblem(sample.mask or sample.image, f"the mask is {sizes}", Kind.SIZE_MISMATCH)
        return image, target

    def read_target(self, index: int, *, seed: int = 0) -> AnyArray:
        """Read the mask alone; see Pairs."""
        sample = self.samples[index]
        return self._target(sample, partial(self._read_mask, sample))

    def _open_mask(self, sample: Sample) -> tuple[int, ReadMask]:
        if isinstance(self._read_mask, FileMasks):
            return self._read_mask.open(sample)
        return 0, partial(self._read_mask, sample)

    def _target(self, sample: Sample, read_mask: ReadMask) -> AnyArray:
        if sample.mask is None:
            raise FileProblem(sample.image, "has no mask", Kind.MISSING)
        try:
            return self.rules.encode(read_mask())
        except FileProblem:
            raise
        except DataError as error:
            raise FileProblem(sample.mask, str(error)) from error

    def select(self, indices: Indices) -> FilePairs:
        """The pairs at these indices."""
        return FilePairs(self.samples.select(indices), self.data, split=self.split)
