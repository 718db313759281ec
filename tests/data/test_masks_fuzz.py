"""Whatever a mask file is, reading it gives the very numbers that were saved, or says that it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from segtrain.config.data import DataConfig
from segtrain.data.formats import Sample, mask_reader
from segtrain.data.inspection import Inspector
from segtrain.data.masks import read_mask
from segtrain.data.problems import FileProblem, Kind

LIMIT = 10**6
MODES = ("1", "L", "P", "I;16", "I", "F", "RGB", "RGBA", "LA", "colours", "see-through")
OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    ".png": ({}, {"optimize": True}, {"bits": 4}, {"compress_level": 0}),
    ".tif": ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "packbits"}),
    ".bmp": ({},),
    ".webp": ({"lossless": True, "exact": True}, {"quality": 100}),
    ".jpg": ({"quality": 100, "subsampling": 0},),
}
CALM = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def draw_numbers(seed: int, mode: str, height: int, width: int) -> Any:
    """Numbers that the mode can hold, few of them or many."""
    rng = np.random.default_rng(seed)
    largest = {"1": 1, "I;16": 65535, "I": 65535}.get(mode, 255)
    known = rng.integers(0, largest + 1, rng.integers(1, 6)) if seed % 2 else np.arange(min(largest, 14) + 1)
    return rng.choice(known, (height, width))


def as_image(numbers: Any, mode: str, seed: int) -> Image.Image:
    """An image of this mode whose numbers are those given: its values, or its palette's indices."""
    rng = np.random.default_rng(seed)
    values = numbers.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}.get(mode, np.uint8))
    if mode == "1":
        return Image.fromarray(values.astype(bool))
    if mode == "P":
        image = Image.frombytes("P", values.shape[::-1], values.tobytes())
        grey = np.repeat(np.arange(256), 3) if seed % 3 == 0 else rng.integers(0, 256, 768)
        image.putpalette(grey.tolist())
        return image
    if mode in ("RGB", "RGBA", "LA"):
        alpha = np.full_like(values, 255)
        return Image.fromarray(
            np.dstack({"RGB": [values] * 3, "RGBA": [*[values] * 3, alpha], "LA": [values, alpha]}[mode])
        )
    if mode == "colours":
        return Image.fromarray(np.dstack([values, 255 - values, rng.integers(0, 256, values.shape).astype(np.uint8)]))
    if mode == "see-through":
        return Image.fromarray(np.dstack([*[values] * 3, rng.integers(0, 255, values.shape).astype(np.uint8)]))
    return Image.fromarray(values)


files = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "mode": st.sampled_from(MODES),
        "suffix": st.sampled_from(sorted(OPTIONS)),
        "option": st.integers(0, 3),
        "height": st.integers(1, 20),
        "width": st.integers(1, 20),
    }
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def write(place: Path, file: dict[str, Any]) -> tuple[Path, Any] | None:
    """Save the file; returns it and its numbers, or None where Pillow cannot save such an image in such a file."""
    numbers = draw_numbers(file["seed"], file["mode"], file["height"], file["width"])
    options = OPTIONS[file["suffix"]]
    if file["suffix"] in (".webp", ".jpg") and file["mode"] in ("I;16", "I"):
        return None  # Pillow would cut the numbers off at 255
    path = place / f"mask{file['suffix']}"
    path.unlink(missing_ok=True)
    try:
        as_image(numbers, file["mode"], file["seed"]).save(path, **options[file["option"] % len(options)])
    except (OSError, SystemError, ValueError, KeyError):
        return None
    # Pillow saves 0 and 1 as black and white where a file has no two-valued pixels.
    return path, numbers * 255 if file["mode"] == "1" and file["suffix"] in (".webp", ".jpg") else numbers


def read_or_refuse(path: Path) -> Any:
    try:
        return read_mask(path, max_pixels=LIMIT)
    except FileProblem:
        return None


@CALM
@given(files)
def test_a_whole_file_gives_its_numbers_or_says_why_not(place: Path, file: dict[str, Any]) -> None:
    written = write(place, file)
    if written is None:
        return
    path, numbers = written
    saved_as_is = not (file["suffix"] == ".png" and "bits" in OPTIONS[".png"][file["option"] % 4])
    mask = read_or_refuse(path)
    if mask is not None and saved_as_is:
        np.testing.assert_array_equal(mask, numbers)
    must_be_read = file["mode"] in ("1", "L", "P", "I;16", "RGB") and file["suffix"] in (".png", ".tif")
    assert mask is not None or not (must_be_read and saved_as_is)


@CALM
@given(files, st.floats(0, 1))
def test_a_cut_file_gives_its_numbers_or_says_why_not(place: Path, file: dict[str, Any], share: float) -> None:
    written = write(place, {**file, "option": 0})
    if written is None:
        return
    path, numbers = written
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    mask = read_or_refuse(path)
    if mask is not None:
        np.testing.assert_array_equal(mask, numbers)


@CALM
@given(files, st.integers(0, 2**31), st.integers(1, 255))
def test_a_png_with_a_changed_byte_gives_its_numbers_or_says_why_not(
    place: Path, file: dict[str, Any], where: int, change: int
) -> None:
    written = write(place, {**file, "suffix": ".png", "option": 0})
    if written is None:
        return
    path, numbers = written
    content = bytearray(path.read_bytes())
    content[where % len(content)] ^= change
    path.write_bytes(bytes(content))
    mask = read_or_refuse(path)
    if mask is not None:
        np.testing.assert_array_equal(mask, numbers)


@CALM
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"BM", b"RIFF____WEBP"]),
)
def test_any_bytes_are_refused(place: Path, content: bytes, start: bytes) -> None:
    path = place / "noise.png"
    path.write_bytes(start + content)
    assert read_or_refuse(path) is None


@CALM
@given(files)
def test_the_scan_counts_only_classes_that_were_saved_and_no_wrong_suffix_passes(
    place: Path, file: dict[str, Any]
) -> None:
    written = write(place, {**file, "option": 0})
    if written is None:
        return
    path, numbers = written
    image = place / "image.png"
    Image.fromarray(np.zeros(numbers.shape, np.uint8)).save(image)
    config = DataConfig.model_validate({"root": str(place), "classes": [f"class{n}" for n in range(9)]})
    counts, problems = Inspector(config)(Sample("a", image, path))
    known = (numbers < 9) | (numbers == 255)
    if problems:
        assert not counts.any()
    else:
        assert known.all()
        expected = [*(int((numbers == n).sum()) for n in range(9)), int((numbers == 255).sum())]
        assert counts.tolist() == expected
    renamed = path.rename(path.with_suffix(".bmp" if path.suffix != ".bmp" else ".png"))
    _, problems = Inspector(config)(Sample("a", image, renamed))
    assert [problem.kind for problem in problems] == [Kind.MISNAMED]


def test_the_fuzz_writes_files_of_all_kinds(place: Path) -> None:
    assert features.check("webp")
    file = {"seed": 1, "option": 0, "height": 3, "width": 4}
    refused = [
        (mode, suffix)
        for mode in MODES
        for suffix in OPTIONS
        if write(place, {**file, "mode": mode, "suffix": suffix}) is None
    ]
    assert len(refused) < 25, refused


def test_the_reader_that_training_uses_is_as_strict(data_config: Callable[..., DataConfig], save: Any) -> None:
    path = save("mask.jpg", np.zeros((4, 4), np.uint8))
    with pytest.raises(FileProblem, match="JPEG changes the values of pixels, and so the classes"):
        mask_reader(data_config())(Sample("a", path, path))
