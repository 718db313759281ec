"""Mask files of classes that may overlap: one picture for each class, and all of them on the image."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from segtrain.drawing import overlay_labels
from segtrain.files import write_whole

FOLDER = "labels"
PRESENT = 255  # what every viewer shows as white
JPEG_QUALITY = 90


def class_folders(names: Sequence[str]) -> tuple[str, ...]:
    """Return a folder name for each class: its own name where file systems take it, and distinct ones in any case."""
    plain = [re.sub(r"[^\w.-]+", "_", name).strip(".") for name in names]
    repeated = {name for name, count in Counter(name.casefold() for name in plain).items() if count > 1 or not name}
    return tuple(
        f"{number:03d}_{name}".rstrip("_") if name.casefold() in repeated else name for number, name in enumerate(plain)
    )


def label_paths(name: str, out: Path, class_names: Sequence[str]) -> dict[str, Path]:
    """Return where the masks of an image go, by class name: labels/<class>/<name>.png."""
    # Names may hold dots: a suffix is added, never replaced.
    folders = zip(class_names, class_folders(class_names), strict=True)
    return {label: out / FOLDER / folder / f"{name}.png" for label, folder in folders}


def write_labels(
    paths: Sequence[Path],
    overlay_path: Path,
    image: npt.NDArray[Any],
    labels: npt.NDArray[np.uint8],
    *,
    colors: npt.NDArray[np.uint8],
) -> None:
    """Write a grey PNG of 0 and 255 for each class, [K, H, W] of 0 and 1, and the classes' colours on the image."""
    for path, one in zip(paths, labels, strict=True):
        write_whole(path, _encoded(Image.fromarray(one * np.uint8(PRESENT)), "PNG"))
    mixed = overlay_labels(image, labels, colors=colors, classes=range(len(colors)))
    write_whole(overlay_path, _encoded(Image.fromarray(mixed), "JPEG", quality=JPEG_QUALITY))


def describe_labels(class_names: Sequence[str], colors: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Return the content of classes.json."""
    rows = enumerate(zip(class_names, class_folders(class_names), strict=True))
    return {
        "note": f"each class has a mask of its own, {FOLDER}/<folder>/<image>.png: {PRESENT} where it is present, 0 "
        "where not; classes may overlap",
        "classes": [
            {"id": index, "name": name, "color": colors[index].tolist(), "folder": f"{FOLDER}/{folder}"}
            for index, (name, folder) in rows
        ],
    }


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
