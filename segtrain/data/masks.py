"""Turns mask files into arrays: raw values or colours as they are stored, and raw values as training targets."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from segtrain.config.data import DataConfig
from segtrain.data.headers import MANY_BANDS, Header
from segtrain.data.images import COLOR_MODES, AnyArray, check_whole, decode_pixels, decode_with_pillow, read_checked
from segtrain.data.problems import FileProblem, Kind
from segtrain.errors import DataError, some

MAX_VALUES_SHOWN = 10
LARGEST_RAW_VALUE = 65535
PIXELS_PER_RUN = 16  # with fewer on average, counting by runs is the slower way
SPREAD_MODES = frozenset((*COLOR_MODES, "LA", "La")) - {"P"}  # one number may stand in several channels
CALC_HIST_LIMIT = 2**24  # cv2.calcHist counts in float32, which is exact below this

COLOR_MASK = (
    "colour masks are not index masks: a mask has one channel whose values are class numbers. Say in data.colors what "
    "the colours mean, or save the palette indices (PNG mode P)"
)


def read_mask(path: Path, *, max_pixels: int) -> AnyArray:
    """Read the raw values of a mask: palette indices and 16-bit numbers unchanged.

    Grey that is stored as colour (R, G and B equal everywhere, as in every WebP file) is one number for each pixel too.

    Returns:
        uint8 or uint16 (int32 for 32-bit TIFF) [H, W].

    Raises:
        FileProblem: unreadable or truncated file, colours, transparent pixels, more than `max_pixels` pixels.
    """
    data, header = read_checked(path, max_pixels=max_pixels)
    return decode_mask(data, header, path=path)


def decode_mask(data: bytes, header: Header, *, path: Path) -> AnyArray:
    """Decode the bytes of a mask file whose header is known; see read_mask."""
    _check_exact(data, header, path)
    if header.mode in SPREAD_MODES:
        return _one_channel(decode_pixels(data, header, path), header, path)
    if header.mode not in ("P", "1", "I"):
        pixels = decode_pixels(data, header, path)
        if pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.uint16):
            raise FileProblem(
                path, f"{header.mode} {header.kind}: a mask holds whole numbers of 8 or 16 bits", Kind.PIXEL_TYPE
            )
        return _unscale(pixels, data, header)
    # OpenCV turns palette indices into the palette's colours, and 0/1 into 0/255.
    pixels = decode_with_pillow(data, path)
    return pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels


def _check_exact(data: bytes, header: Header, path: Path) -> None:
    """Raise FileProblem for files whose values are not surely those that were saved."""
    check_whole(header, path)
    reason = ""
    if header.lossy:
        reason = (
            f"{header.kind} changes the values of pixels, and so the classes: save masks as PNG, from the originals"
        )
    elif header.mode == MANY_BANDS:
        reason = f"{header.bands} bands: a mask has one"
    elif header.white_is_zero:
        reason = "a TIFF in which white is 0, which some programs invert: save it with black as 0"
    if reason:
        raise FileProblem(path, reason, Kind.PIXEL_TYPE)
    if header.kind == "PNG" and not _intact_png(data):
        raise FileProblem(path, "the pixels cannot be decoded: the checksums of the PNG do not fit its content")


def _intact_png(data: bytes) -> bool:
    """Whether all chunks have the checksums they should: Pillow passes over those of pixels."""
    place = 8
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 8 + length
        if end + 4 > len(data) or zlib.crc32(data[place + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return False
        if data[place + 4 : place + 8] == b"IEND":
            return True
        place = end + 4
    return False


def decode_colors(data: bytes, header: Header, *, path: Path) -> NDArray[np.uint8]:
    """Decode the colours of a mask file whose header is known; those of the palette, where it has one.

    Returns:
        uint8 [H, W, 3], RGB; grey is a colour whose three parts are equal.

    Raises:
        FileProblem: unreadable or truncated file, more than 8 bits, transparent pixels.
    """
    _check_exact(data, header, path)
    if header.mode not in ("1", "L", "P", "RGB", "RGBA"):
        reason = f"{header.mode} {header.kind}: a mask of colours is RGB or has a palette, with 8 bits"
        raise FileProblem(path, reason, Kind.PIXEL_TYPE)
    pixels = decode_pixels(data, header, path)
    if pixels.dtype != np.uint8 or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise FileProblem(path, f"{header.mode} {header.kind} of {pixels.dtype}: colours have 8 bits", Kind.PIXEL_TYPE)
    if pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], 3, axis=2)
    if pixels.shape[2] == 4 and not (pixels[:, :, 3] == 255).all():
        reason = "some pixels are transparent; save the mask without an alpha channel"
        raise FileProblem(path, f"{header.mode} {header.kind}: {reason}", Kind.PIXEL_TYPE)
    return np.ascontiguousarray(pixels[:, :, 2::-1])


def _one_channel(pixels: AnyArray, header: Header, path: Path) -> AnyArray:
    """The common value of the channels of an opaque mask, [H, W]; raises FileProblem where they differ."""
    kind = f"{header.mode} {header.kind}"
    if header.mode not in ("RGB", "RGBA", "LA") or pixels.dtype not in (np.uint8, np.uint16):
        raise FileProblem(path, f"{kind}: {COLOR_MASK}", Kind.PIXEL_TYPE)
    blue, green, red = (pixels[:, :, channel] for channel in range(3))
    if not (np.array_equal(blue, green) and np.array_equal(blue, red)):
        raise FileProblem(path, f"{kind}: {COLOR_MASK}", Kind.PIXEL_TYPE)
    if pixels.shape[2] == 4 and not (pixels[:, :, 3] == np.iinfo(pixels.dtype).max).all():
        reason = "some pixels are transparent; save the mask without an alpha channel"
        raise FileProblem(path, f"{kind}: {reason}", Kind.PIXEL_TYPE)
    return np.ascontiguousarray(blue)


def _unscale(pixels: AnyArray, data: bytes, header: Header) -> AnyArray:
    """Undo the stretching of 2 and 4-bit grey PNG to 0..255 that every decoder applies."""
    bits = data[24] if header.kind == "PNG" else 8  # the depth stands at byte 24 of every PNG
    return pixels // np.uint8(255 // (2**bits - 1)) if bits < 8 else pixels


def histogram(raw: AnyArray) -> NDArray[np.int64]:
    """Count each value of uint8 or uint16 [H, W]: int64 [256] or [65536]."""
    found = _count_runs(raw.ravel())
    if found is not None:
        return found
    if raw.dtype == np.uint16:
        return np.bincount(raw.ravel(), minlength=LARGEST_RAW_VALUE + 1)
    flat = np.ascontiguousarray(raw).reshape(1, -1)
    counts = np.zeros(256, np.int64)
    for start in range(0, flat.shape[1], CALC_HIST_LIMIT - 1):
        part = flat[:, start : start + CALC_HIST_LIMIT - 1]
        # The shape of the result differs between OpenCV 4 and 5.
        counts += np.rint(cv2.calcHist([part], [0], None, [256], [0, 256])).astype(np.int64).ravel()
    return counts


def _count_runs(flat: AnyArray) -> NDArray[np.int64] | None:
    """Count values by their runs, of which masks have few: faster than pixel by pixel; None where there are many."""
    changes = flat[1:] != flat[:-1]
    num_changes = int(np.count_nonzero(changes))
    if not flat.size or num_changes > flat.size // PIXELS_PER_RUN:
        return None
    bounds = np.empty(num_changes + 2, np.int64)
    bounds[0], bounds[1:-1], bounds[-1] = 0, np.flatnonzero(changes) + 1, flat.size
    num_values = np.iinfo(flat.dtype).max + 1
    # sums of whole numbers in float64 are exact up to 2^53
    return np.bincount(flat[bounds[:-1]], weights=np.diff(bounds), minlength=num_values).astype(np.int64)


@dataclass(frozen=True)
class LabelRules:
    """What the raw values of masks mean: `mapping` raw -> class or ignore_index, or None for values as they are."""

    num_classes: int
    ignore_index: int
    mapping: dict[int, int] | None
    names: tuple[str, ...]

    @classmethod
    def from_config(cls, data: DataConfig) -> LabelRules:
        """Resolve the names in data.label_map, or in what the layout has in its place."""
        names = data.class_names
        numbers = {name: number for number, name in enumerate(names)} | {"ignore": data.ignore_index}
        mapping = None
        labels = data.raw_labels()
        if labels is not None:
            mapping = {raw: numbers[label] if isinstance(label, str) else label for raw, label in labels.items()}
        return cls(num_classes=len(names), ignore_index=data.ignore_index, mapping=mapping, names=names)

    @property
    def num_counts(self) -> int:
        """How many numbers `count` returns: C + 1."""
        return self.num_classes + 1

    @property
    def target_dtype(self) -> np.dtype[Any]:
        """uint8, or int16 for more than 255 classes."""
        return np.dtype(np.uint8 if self.num_classes <= 255 else np.int16)

    @cached_property
    def _slots(self) -> NDArray[np.int32]:
        """For each raw value its class, num_classes where ignored, num_classes + 1 where unknown: [65536]."""
        ignored, unknown = self.num_classes, self.num_classes + 1
        slots = np.full(LARGEST_RAW_VALUE + 1, unknown, np.int32)
        if self.mapping is None:
            slots[: self.num_classes] = np.arange(self.num_classes)
            slots[self.ignore_index if self.ignore_index >= 0 else LARGEST_RAW_VALUE] = ignored
            return slots
        for raw, label in self.mapping.items():
            if 0 <= raw <= LARGEST_RAW_VALUE:
                slots[raw] = ignored if label == self.ignore_index else label
        return slots

    @cached_property
    def _targets(self) -> AnyArray:
        """The target of each raw value [65536]; unknown values never get this far."""
        known = np.where(self._slots < self.num_classes, self._slots, self.ignore_index)
        return known.astype(self.target_dtype)

    @cached_property
    def _unknown(self) -> tuple[NDArray[np.uint8], int]:
        """For each value of bytes whether it has no meaning, [256], and the least that has none; 256 where all have."""
        unknown = (self._slots[:256] > self.num_classes).view(np.uint8)
        return unknown, int(unknown.argmax()) if unknown.any() else 256

    @cached_property
    def _moved(self) -> int | None:
        """The one known value of bytes that does not stay, and becomes 255; -1 where all stay; else None."""
        if self.target_dtype != np.uint8:
            return None
        known = np.flatnonzero(self._slots[:256] <= self.num_classes)
        moved = known[self._targets[known] != known]
        if not moved.size:
            return -1
        return int(moved[0]) if moved.size == 1 and self._targets[moved[0]] == 255 else None

    def encode(self, raw: AnyArray) -> AnyArray:
        """Turn raw mask values [H, W] into targets [H, W] of target_dtype.

        Raises:
            DataError: values without a meaning, with the number of their pixels.
        """
        raw = narrow(raw)
        if self._may_be_unknown(raw):
            reason = self.explain_unknown(histogram(raw))
            if reason:
                raise DataError(reason)
        if raw.dtype == np.uint8 and self._moved is not None:
            # most often all values stay but one, which becomes 255: a comparison is quicker than to look up each pixel
            return raw if self._moved < 0 else _raised(raw, self._moved)
        if raw.dtype == np.uint8 and self.target_dtype == np.uint8:
            return cv2.LUT(raw, self._targets[:256])
        return np.asarray(self._targets[raw])

    def _may_be_unknown(self, raw: AnyArray) -> bool:
        """Whether some value has no meaning, by quicker ways than counting all; wider masks are always counted."""
        if raw.dtype != np.uint8 or not raw.size:
            return True
        unknown, least = self._unknown
        return int(raw.max()) >= least and cv2.countNonZero(cv2.LUT(raw, unknown)) > 0

    def count(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Fold a histogram of raw values into int64 [num_classes + 1]; the last entry counts ignored pixels."""
        values = np.flatnonzero(counts)
        # sums of whole numbers in float64 are exact up to 2^53
        folded = np.bincount(self._slots[values], weights=counts[values], minlength=self.num_classes + 2)
        return folded[:-1].astype(np.int64)

    def explain_unknown(self, counts: NDArray[np.int64]) -> str:
        """Say which counted raw values have no meaning, and what to do; empty when all have one."""
        values = np.flatnonzero(counts)
        unknown = values[self._slots[values] > self.num_classes]
        if not unknown.size:
            return ""
        listed = some([f"{value} ({counts[value]} pixels)" for value in unknown], limit=MAX_VALUES_SHOWN)
        return f"unknown mask values: {listed}; {self._advice(values)}"

    def _advice(self, values: NDArray[np.intp]) -> str:
        if self.mapping is not None:
            known = some(sorted(self.mapping), limit=MAX_VALUES_SHOWN)
            return f"data.label_map knows {known}: add them as a class or 'ignore'"
        if set(values.tolist()) <= {0, 255}:
            return f"write data.label_map: {suggest_binary_map(self.names)}"
        if 0 not in values and values[0] == 1 and self.num_classes in values:
            return "classes are numbered from 0: if these masks start at 1, say so in data.label_map: {1: ..., 2: ...}"
        return (
            f"classes are 0 to {self.num_classes - 1} and ignore_index is {self.ignore_index}: "
            "say what they mean in data.label_map"
        )


def _raised(raw: NDArray[np.uint8], value: int) -> NDArray[np.uint8]:
    """A copy in which `value` has become 255, all bits of it."""
    bits = np.equal(raw, value).view(np.uint8)
    np.negative(bits, out=bits)
    return np.bitwise_or(raw, bits, out=bits)


def narrow(raw: AnyArray) -> AnyArray:
    """Bring wider integers to uint16; raises DataError when values do not fit."""
    if raw.dtype in (np.uint8, np.uint16):
        return raw
    low, high = int(raw.min()), int(raw.max())
    if low < 0 or high > LARGEST_RAW_VALUE:
        raise DataError(f"mask values run from {low} to {high}; expected 0 to {LARGEST_RAW_VALUE}")
    return raw.astype(np.uint16)


def suggest_binary_map(names: tuple[str, ...]) -> str:
    """The label map for masks stored as 0 and 255."""
    return "{" + f"0: {names[0]}, 255: {names[1]}" + "}"
