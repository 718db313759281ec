"""Writes panels of images and a page that shows them: plain files with relative links, to be opened as they are."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from segtrain.config import Config
from segtrain.console import make_console, progress, say
from segtrain.data.dataset import EvalDataset
from segtrain.data.transforms import resize_image
from segtrain.drawing import ERROR_COLORS, ERROR_NAMES, class_palette, panel_of
from segtrain.errors import some
from segtrain.files import write_json, write_whole
from segtrain.report.worst import Worst, WorstImage

ERROR_MEANINGS = {
    "hit": "the class is there, and was found",
    "missed": "the class is there, and was not found",
    "invented": "the class was predicted, and is not there",
}
RECORD = "panels.json"
MAX_NAMED = 10


def write_gallery(worst: Worst, out: Path, *, data: EvalDataset, config: Config, checkpoint: Path, step: int) -> Path:
    """Write a panel PNG for each image, index.html and panels.json to `out`; return the path of the page.

    Panels that an earlier call left in `out` (panels.json lists them) are removed first.
    """
    _remove_earlier(out)
    entries = []
    with progress("drawing", len(worst.images)) as advance:
        for rank, image in enumerate(worst.images, start=1):
            file = f"panels/{rank:03d}_{_file_name(image.name)}.png"
            size = _write_panel(out / file, image, worst, data=data, config=config)
            entries.append(_entry(image, rank, file, size))
            advance(1)
    record = {"checkpoint": str(checkpoint), "step": step, "split": worst.split, "panels": entries}
    write_json(out / RECORD, record)
    page = out / "index.html"
    text = _page(worst, entries, config=config, checkpoint=checkpoint, step=step)
    write_whole(page, text.encode("utf-8", "backslashreplace"))
    return page


def describe(image: WorstImage) -> str:
    """Return the caption of a panel: name and IoU of the named classes that the image holds, or was predicted to."""
    each = [
        f"{name} {value:.3f}" + (" (invented)" if name in image.invented else "")
        for name, value in image.class_iou.items()
    ]
    return f"{image.name} · IoU {some(each, limit=MAX_NAMED)}" + (
        f" · mean {image.iou:.3f}" if len(image.class_iou) > 1 else ""
    )


def _write_panel(path: Path, image: WorstImage, worst: Worst, *, data: EvalDataset, config: Config) -> tuple[int, int]:
    pixels, target = data.read(image.index)
    pixels = resize_image(pixels, (target.shape[-2], target.shape[-1]))  # it may have been decoded at a smaller size
    picture = panel_of(
        pixels,
        target,
        image.prediction,
        colors=class_palette(config.data),
        class_names=config.data.class_names,
        classes=worst.classes,
        caption=describe(image),
        ignore_index=config.data.ignore_index,
    )
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    write_whole(path, buffer.getvalue())
    return picture.shape[1], picture.shape[0]


def _entry(image: WorstImage, rank: int, file: str, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "rank": rank,
        "name": image.name,
        "iou": image.iou,
        "class_iou": image.class_iou,
        "invented": list(image.invented),
        "wrong_pixels": image.num_wrong,
        "file": file,
        "width": size[0],
        "height": size[1],
    }


def _page(worst: Worst, entries: list[dict[str, Any]], *, config: Config, checkpoint: Path, step: int) -> str:
    environment = Environment(loader=PackageLoader("segtrain.report", "."), autoescape=True, undefined=StrictUndefined)
    # Links to files: names may hold blanks, # and ?, which mean something else in an address.
    environment.filters["link"] = quote
    errors = [
        {
            "name": ERROR_NAMES[code],
            "color": "#{:02x}{:02x}{:02x}".format(*ERROR_COLORS[code]),
            "meaning": ERROR_MEANINGS[ERROR_NAMES[code]],
        }
        for code in (1, 3, 2)
    ]
    template = environment.get_template("gallery.html.j2")
    return template.render(
        run=config.name,
        worst=worst,
        named=some(worst.class_names, limit=MAX_NAMED),
        entries=entries,
        errors=errors,
        checkpoint=str(checkpoint),
        step=step,
    )


def _file_name(name: str) -> str:
    """Return a name without folders and without what file systems or addresses trip over, at most 80 characters."""
    return re.sub(r"[^\w.-]+", "_", name.replace("/", "__"))[-80:]


def _remove_earlier(out: Path) -> None:
    record = out / RECORD
    if not record.is_file():
        return
    try:
        files = [str(entry["file"]) for entry in json.loads(record.read_text(encoding="utf-8"))["panels"]]
    except (ValueError, LookupError, TypeError):
        say(
            make_console(stderr=True),
            f"{record} is damaged: what an earlier call left in {out / 'panels'} is unknown, and stays there",
        )
        return
    for file in files:
        (out / "panels" / Path(file).name).unlink(missing_ok=True)
