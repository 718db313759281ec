"""How raw masks are read: from one image file for each sample."""

from __future__ import annotations

from dataclasses import dataclass

from segtrain.config.data import DataConfig
from segtrain.data.formats.base import HeaderCheck, MaskReader, Sample
from segtrain.data.masks import AnyArray, decode_mask, read_checked
from segtrain.data.problems import FileProblem, Kind


@dataclass(frozen=True)
class FileMasks:
    """Masks that are image files: palette indices and numbers of 8 or 16 bits as they are stored."""

    max_pixels: int

    def __call__(self, sample: Sample, *, check: HeaderCheck | None = None) -> AnyArray:
        """Return the raw values of the sample's mask file, [H, W]; see MaskReader."""
        if sample.mask is None:
            raise FileProblem(sample.image, "has no mask", Kind.MISSING)
        data, header = read_checked(sample.mask, max_pixels=self.max_pixels)
        if check is not None:
            check(header, sample.mask)
        return decode_mask(data, header, path=sample.mask)


def file_masks(data: DataConfig) -> MaskReader:
    """The reader of layouts whose masks are image files."""
    return FileMasks(data.max_pixels)
