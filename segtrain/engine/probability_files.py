"""Probability maps as files: a grey PNG of 16 bits for each class and image, which any image library reads."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from segtrain.config import Config
from segtrain.engine.label_files import class_folders
from segtrain.files import write_whole

FOLDER = "probabilities"
WHITE = 65535  # stands for 1


def activation_of(config: Config) -> Literal["softmax", "sigmoid"]:
    """Return what makes probabilities of a run's logits: sigmoids where it learnt each class as a yes or no."""
    sigmoid = config.data.multi_label or (config.loss != "auto" and config.loss.activation == "sigmoid")
    return "sigmoid" if sigmoid else "softmax"


def probability_paths(name: str, out: Path, class_names: Sequence[str]) -> dict[str, Path]:
    """Return where the maps of an image go, by class name: probabilities/<class>/<name>.png."""
    # Names may hold dots: a suffix is added, never replaced.
    folders = zip(class_names, class_folders(class_names), strict=True)
    return {label: out / FOLDER / folder / f"{name}.png" for label, folder in folders}


def write_probabilities(paths: Mapping[str, Path], logits: Tensor, *, activation: str) -> None:
    """Write the probabilities of one image, logits float [K, H, W], as round(probability x 65535), a file a class."""
    probabilities = logits.float().softmax(dim=0) if activation == "softmax" else logits.float().sigmoid()
    for path, one in zip(paths.values(), probabilities.cpu(), strict=True):
        buffer = io.BytesIO()
        Image.fromarray((one.double() * WHITE).round().numpy().astype(np.uint16)).save(buffer, "PNG")
        write_whole(path, buffer.getvalue())


def describe_probabilities(class_names: Sequence[str]) -> dict[str, Any]:
    """Return what classes.json says of the maps."""
    return {
        "note": f"{FOLDER}/<folder>/<image>.png, 16 bits: probability x {WHITE}; evaluate.prior_tau is not in it",
        "folders": [f"{FOLDER}/{folder}" for folder in class_folders(class_names)],
    }
