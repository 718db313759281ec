"""From image files to mask files: what goes where, nothing lost, nothing overwritten, nothing silently left out."""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from segtrain.config import Config
from segtrain.console import progress
from segtrain.data.formats import image_files
from segtrain.data.headers import SUFFIXES
from segtrain.data.images import read_image
from segtrain.data.problems import FileProblem
from segtrain.data.transforms import resize_image
from segtrain.drawing import class_palette, colorize, overlay
from segtrain.engine import label_files, probability_files
from segtrain.engine.nan_outputs import NanError
from segtrain.engine.predict import Predictor, resize_logits
from segtrain.errors import ConfigError, DataError, listing
from segtrain.files import write_json, write_whole

JPEG_QUALITY = 90
OUTPUTS = ("index", "palette", "overlay")
OWN_FOLDERS = (*OUTPUTS, label_files.FOLDER, probability_files.FOLDER)
EXTRAS = ("probabilities",)  # what `save` may ask for


@dataclass(frozen=True)
class Source:
    """An image to predict; `name` is its path below the folder that was given, without suffix."""

    path: Path
    name: str

    def outputs(self, out: Path) -> tuple[Path, Path, Path]:
        """Return the index PNG, the palette PNG and the overlay JPEG of this image."""
        # Names may hold dots: a suffix is added, never replaced.
        return (
            out / "index" / f"{self.name}.png",
            out / "palette" / f"{self.name}.png",
            out / "overlay" / f"{self.name}.jpg",
        )


def find_images(paths: Sequence[Path], *, out: Path) -> list[Source]:
    """Return the images that files and folders name, sorted within each folder; own outputs are left out.

    Raises:
        DataError: nothing there, a folder without images, or two images that would be written to one name.
    """
    sources: dict[Path, Source] = {}
    for path in paths:
        if path.is_dir():
            found = _images_below(path, out)
            if not found:
                own = f" ({out} is left out, as it holds this command's output)" if out.is_dir() else ""
                raise DataError(f"{path}: no images in this folder; looked for {' '.join(SUFFIXES)}{own}")
        elif path.is_file():
            found = [Source(path, path.stem)]
        else:
            raise DataError(f"{path}: no such file or folder (seen from {Path.cwd()})")
        for source in found:
            sources.setdefault(source.path.resolve(), source)
    _check_names(list(sources.values()))
    return list(sources.values())


def _images_below(folder: Path, out: Path) -> list[Source]:
    # `out` may be this folder, or lie in it: a second run must not take the masks of the first for images.
    own = [(out / name).resolve() for name in OWN_FOLDERS]
    paths = [
        path for path in sorted(image_files(folder)) if not any(path.resolve().is_relative_to(output) for output in own)
    ]
    return [Source(path, path.relative_to(folder).with_suffix("").as_posix()) for path in paths]


def _check_names(sources: Sequence[Source]) -> None:
    by_name: dict[str, list[Path]] = defaultdict(list)
    for source in sources:
        by_name[source.name].append(source.path)
    clashes = [" and ".join(map(str, paths)) for paths in by_name.values() if len(paths) > 1]
    if clashes:
        raise DataError(
            listing(
                f"names under which two images would be written: {len(clashes)}; "
                "predict them into different --out folders",
                clashes,
            )
        )


def check_outputs(
    sources: Sequence[Source], out: Path, *, config: Config | None = None, save: Sequence[str] = ()
) -> None:
    """Raise DataError, naming them, if any file that would be written exists.

    config: of the run, once it is known: classes that may overlap have a file each, and so have probabilities.
    """
    wanted = [path for source in sources for path in source.outputs(out)]
    if config is not None:
        names = config.data.class_names
        kinds = [label_files.label_paths] if config.data.multi_label else []
        kinds += [probability_files.probability_paths] if "probabilities" in save else []
        wanted = [path for source in sources for kind in kinds for path in kind(source.name, out, names).values()]
    existing = [str(path) for path in [*wanted, out / "classes.json", out / "manifest.json"] if path.exists()]
    if existing:
        advice = "nothing was written; choose another --out, or replace them with --overwrite"
        raise DataError(listing(f"files that exist in {out}: {len(existing)}; {advice}", existing))


def write_predictions(
    sources: Sequence[Source],
    out: Path,
    *,
    config: Config,
    predictor: Predictor,
    checkpoint: Path,
    save: Sequence[str] = (),
) -> int:
    """Write the masks of all readable images, classes.json and manifest.json; return the number of images.

    Each image gets an index PNG (class numbers, 8 bits, 16 above 256 classes), a palette PNG (the same with the
    classes' colours; RGB above 256 classes) and an overlay JPEG, all at its own stored size: EXIF orientation is
    not applied, as in training. Where classes may overlap, each has a grey PNG of its own, 255 where it is present, and
    the overlay shows them all; see `segtrain.engine.label_files`. With probabilities in `save` each class also gets a
    map of its probability; see `segtrain.engine.probability_files`.

    Raises:
        ConfigError: `save` names none of EXTRAS.
        DataError: images that could not be read, or of which the model makes NaN, all in one message, after the
            others have been written.
    """
    if unknown := [name for name in save if name not in EXTRAS]:
        raise ConfigError(f"nothing of that name can be saved: {', '.join(unknown)}; known: {', '.join(EXTRAS)}")
    colors = class_palette(config.data)
    problems: list[str] = []
    entries: list[dict[str, Any]] = []
    names = config.data.class_names
    several = config.data.multi_label
    about = label_files.describe_labels(names, colors) if several else describe_classes(config, colors)
    if "probabilities" in save:
        about["probabilities"] = probability_files.describe_probabilities(names)
    write_json(out / "classes.json", about)
    with progress("predicting", len(sources)) as advance:
        for batch in _batches(sources, config, predictor.batch_size, problems):
            maps = {
                source.name: probability_files.probability_paths(source.name, out, names)
                for source, _ in batch
                if "probabilities" in save
            }
            for (source, image), prediction in _predicted(batch, config, predictor, maps=maps, problems=problems):
                labels = label_files.label_paths(source.name, out, names) if several else None
                files = _write_masks(source.outputs(out), image, prediction, colors=colors, labels=labels)
                files |= {"probabilities": maps[source.name]} if maps else {}
                entries.append(_entry(source, image.shape[:2], files, out))
                advance(1)
    write_json(
        out / "manifest.json",
        {
            "checkpoint": str(checkpoint),
            "prior_tau": config.evaluate.prior_tau,
            "thresholds": None if predictor.thresholds is None else dict(zip(names, predictor.thresholds, strict=True)),
            "images": entries,
        },
    )
    if problems:
        done = f"the other {len(entries)} were written" if entries else "nothing was written"
        raise DataError(listing(f"images that could not be read or predicted: {len(problems)}; {done}", problems))
    return len(entries)


def describe_classes(config: Config, colors: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Return the content of classes.json."""
    names = config.data.class_names
    content: dict[str, Any] = {
        "note": "index PNGs hold these ids",
        "classes": [{"id": index, "name": name, "color": colors[index].tolist()} for index, name in enumerate(names)],
    }
    if config.data.label_map is not None:
        content["note"] = (
            "index PNGs hold these ids, the numbers used in training; label_map tells from which values of the masks "
            "they were made (raw value: class or 'ignore')"
        )
        content["label_map"] = {str(raw): label for raw, label in config.data.label_map.items()}
    return content


Pair = tuple[Source, npt.NDArray[Any]]


def _batches(sources: Sequence[Source], config: Config, size: int, problems: list[str]) -> Iterator[list[Pair]]:
    """Yield up to `size` neighbours of one shape and type together; reasons of unreadable images go to `problems`."""
    batch: list[Pair] = []
    data, in_channels = config.data, config.model.in_channels
    read = partial(read_image, in_channels=in_channels, max_pixels=data.max_pixels, bands=data.bands)
    for source in sources:
        try:
            image = read(source.path)
        except FileProblem as problem:
            problems.append(str(problem))
            continue
        if batch and (len(batch) == size or (batch[0][1].shape, batch[0][1].dtype) != (image.shape, image.dtype)):
            yield batch
            batch = []
        batch.append((source, image))
    if batch:
        yield batch


def _predicted(
    batch: Sequence[Pair],
    config: Config,
    predictor: Predictor,
    *,
    maps: Mapping[str, Mapping[str, Path]],
    problems: list[str],
) -> list[tuple[Pair, npt.NDArray[Any]]]:
    """Return each image with its prediction; those of which no class can be told go to `problems`."""
    try:
        found = _predict_with_maps(batch, config, predictor, maps) if maps else _predict(batch, config, predictor)
        return list(zip(batch, found, strict=True))
    except NanError as error:
        if len(batch) == 1:
            problems.append(f"{batch[0][0].path}: {error}")
            return []
    return [pair for one in batch for pair in _predicted([one], config, predictor, maps=maps, problems=problems)]


def _predict(batch: Sequence[Pair], config: Config, predictor: Predictor) -> list[npt.NDArray[Any]]:
    return list(predictor.classes(_stacked(batch, config), size=batch[0][1].shape[:2]).numpy())


def _predict_with_maps(
    batch: Sequence[Pair], config: Config, predictor: Predictor, maps: Mapping[str, Mapping[str, Path]]
) -> list[npt.NDArray[Any]]:
    """Predict as `_predict` does, and write the probabilities on the way: their logits are not kept."""
    predictions, activation = [], probability_files.activation_of(config)
    for (source, image), logits in zip(batch, predictor.logits(_stacked(batch, config)), strict=True):
        resized = resize_logits(logits[None], image.shape[:2])
        probability_files.write_probabilities(maps[source.name], resized[0], activation=activation)
        predictions.append(predictor.decide(resized)[0].cpu().numpy())
    return predictions


def _stacked(batch: Sequence[Pair], config: Config) -> torch.Tensor:
    """The images as the network is to see them, [N, C, H, W] as stored."""
    images = [image for _, image in batch]
    if config.data.input_size is not None:
        images = [resize_image(image, config.data.input_size) for image in images]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def _write_masks(
    paths: tuple[Path, Path, Path],
    image: npt.NDArray[Any],
    prediction: npt.NDArray[Any],
    *,
    colors: npt.NDArray[np.uint8],
    labels: Mapping[str, Path] | None,
) -> dict[str, Any]:
    """Write the pictures of one image, and return their paths as the manifest names them; `labels` are by class."""
    index_path, palette_path, overlay_path = paths
    if labels is not None:
        label_files.write_labels(list(labels.values()), overlay_path, image, prediction, colors=colors)
        return {"labels": labels, "overlay": overlay_path}
    if len(colors) <= 256:
        index = Image.fromarray(prediction.astype(np.uint8))
        painted = index.copy()
        painted.putpalette(colors.tobytes())
    else:
        index = Image.fromarray(prediction.astype(np.uint16))
        painted = Image.fromarray(colorize(prediction, colors, ignore_index=-1))
    mixed = Image.fromarray(overlay(image, prediction, colors=colors, ignore_index=-1))
    write_whole(index_path, _encoded(index, "PNG"))
    write_whole(palette_path, _encoded(painted, "PNG"))
    write_whole(overlay_path, _encoded(mixed, "JPEG", quality=JPEG_QUALITY))
    return dict(zip(OUTPUTS, paths, strict=True))


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _below(files: Any, out: Path) -> Any:
    """The paths below `out`, as text, of one file or of several by name."""
    if isinstance(files, Mapping):
        return {key: _below(path, out) for key, path in files.items()}
    return files.relative_to(out).as_posix()


def _entry(source: Source, size: tuple[int, ...], files: Mapping[str, Any], out: Path) -> dict[str, Any]:
    with source.path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "name": source.name,
        "source": str(source.path),
        "sha256": digest,
        "height": size[0],
        "width": size[1],
        **_below(files, out),
    }
