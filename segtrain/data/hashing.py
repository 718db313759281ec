"""A hash of what an image shows: 256 bits that hardly change when it is recompressed, resized, turned or flipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from segtrain.data.headers import Header
from segtrain.data.images import read_checked
from segtrain.data.problems import FileProblem

Hash = NDArray[np.uint8]
HASH_BYTES: Final = 32
NUM_BITS: Final = 252  # four bits of the 256 are always 0
NUM_ORIENTATIONS: Final = 8
THUMBNAIL: Final = 32
LEAST_SIDE: Final = 2 * THUMBNAIL  # of the reduced decode
LEAST_DETAIL: Final = 1.0  # grey levels: below this an image is as good as plain, and noise alone makes its hash


def _places() -> NDArray[np.int64]:
    """Row and column of the cosine coefficients behind the bits, int64 [2, 252]: coarse ones first, the mean left out.

    Whole diagonals, so that turning by 90 degrees maps the set of them onto itself.
    """
    places = [(row, diagonal - row) for diagonal in range(1, 22) for row in range(diagonal + 1)]
    return np.array(places, np.int64).T


_ROWS, _COLUMNS = _places()
# Neighbouring coefficients go into different words of 16 bits: each word then sees coarse and fine structure, and
# images that are alike in the coarse one alone do not fill the same bucket of the search.
_POSITIONS = (np.arange(NUM_BITS) % 16) * 16 + np.arange(NUM_BITS) // 16


def perceptual_hash(gray: NDArray[Any]) -> Hash | None:
    """Hash a grey image, any real type [H, W]: uint8 [32], or None where it has no detail to hash.

    The bits are the signs of the coarsest 252 coefficients, without the mean, of the discrete cosine transform of the
    image at 32 x 32 pixels: brightness and contrast do not matter, and turning or flipping the image changes known
    bits (see orientations). After Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions (2010),
    with signs for its comparison with the median.
    """
    small = cv2.resize(gray, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).astype(np.float32)
    if not float(small.std()) >= LEAST_DETAIL:  # nor where it is NaN, as in rasters with holes
        return None
    coefficients = cv2.dct(small)[_ROWS, _COLUMNS]
    bits = np.zeros(8 * HASH_BYTES, np.uint8)
    bits[_POSITIONS] = coefficients > 0
    return np.packbits(bits)


def orientations(hashes: Hash) -> Hash:
    """The hashes of the images turned and flipped in all eight ways, uint8 [8, N, 32] from uint8 [N, 32].

    Flipping from left to right negates the coefficients of odd columns, upside down those of odd rows, and swapping
    rows and columns swaps theirs. The first of the eight are the hashes as they are.
    """
    bits = np.unpackbits(hashes.reshape(-1, HASH_BYTES), axis=1)[:, _POSITIONS]
    number = np.zeros((THUMBNAIL, THUMBNAIL), np.int64)
    number[_ROWS, _COLUMNS] = np.arange(NUM_BITS)
    swapped = bits[:, number[_COLUMNS, _ROWS]]
    odd_rows, odd_columns = (_ROWS % 2).astype(np.uint8), (_COLUMNS % 2).astype(np.uint8)
    flips = [np.zeros_like(odd_rows), odd_columns, odd_rows, odd_rows ^ odd_columns]
    turned = np.stack([base ^ flip for base in (bits, swapped) for flip in flips])
    full = np.zeros((NUM_ORIENTATIONS, len(bits), 8 * HASH_BYTES), np.uint8)
    full[:, :, _POSITIONS] = turned
    return np.packbits(full, axis=2)


def hash_file(path: Path, *, max_pixels: int) -> Hash | None:
    """Hash an image file, decoding no more of it than is needed; None where it is plain.

    Raises:
        FileProblem: unreadable file, or more than `max_pixels` pixels.
    """
    data, header = read_checked(path, max_pixels=max_pixels)
    try:
        gray = cv2.imdecode(np.frombuffer(data, np.uint8), _reading(header))
    except cv2.error as error:
        raise FileProblem(path, f"the pixels cannot be decoded ({error})") from error
    if gray is None:
        raise FileProblem(path, "the pixels cannot be decoded: the file is damaged")
    return perceptual_hash(gray)


def _reading(header: Header) -> int:
    """How OpenCV is to decode: JPEG at a fraction of its size, which saves most of the work; others in full."""
    as_stored = cv2.IMREAD_IGNORE_ORIENTATION
    if header.kind != "JPEG":
        return int(cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | as_stored)
    side = min(header.height, header.width)
    for factor, flag in (
        (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
        (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
        (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
    ):
        if side >= factor * LEAST_SIDE:
            return int(flag | as_stored)
    return int(cv2.IMREAD_GRAYSCALE | as_stored)
