"""What people see of classes that may overlap: the scan's table, the panel of each class, the picture of the counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from segtrain.config.data import DataConfig
from segtrain.data import ClassFrequencies
from segtrain.data.frequencies import ScanResult
from segtrain.data.samples import Samples
from segtrain.drawing import class_palette, label_panel, overlay_labels, panel_of
from segtrain.drawing.maps import ERROR_COLORS
from segtrain.metrics import MultiLabelConfusion
from segtrain.report.confusion_plot import save_plot
from segtrain.report.scan import frequency_table, summary_lines

COLORS = np.array([[200, 0, 0], [0, 200, 0]], np.uint8)
NAMES = ("crack", "rust")


@pytest.fixture
def labels() -> tuple[np.ndarray, np.ndarray]:
    """Target and prediction of two classes on 8 x 10 pixels: a crack found, rust missed on its right half."""
    target = np.zeros((2, 8, 10), np.uint8)
    target[0, 2], target[1, 2:4] = 1, 1
    target[1, 7] = 255
    prediction = target % 255
    prediction[1, :, 5:] = 0
    prediction[1, 6, 0] = 1
    return target, prediction


def test_the_scan_shows_the_labelled_pixels_of_each_class(labels: tuple[np.ndarray, np.ndarray]) -> None:
    frequencies = ClassFrequencies.from_label_targets([labels[0]], 2, ignore_index=255)
    console = Console(width=100, record=True, color_system=None)
    console.print(frequency_table(frequencies, NAMES))
    rows = [line.split() for line in console.export_text().splitlines()]
    assert rows[1] == ["0", "crack", "10", "12.50", "1", "100.00", "80"]
    assert rows[2] == ["1", "rust", "20", "28.57", "1", "100.00", "70"]
    result = ScanResult(frequencies, Samples.pack([]), np.zeros((1, 3), np.int64), [], 1, np.zeros(1, np.int64))
    text = "\n".join(summary_lines(result, NAMES))
    assert "ignored: 10 pairs of pixel and class, 6.25 % of all" in text
    assert "imbalance ratio: 7.0 (pixels without to pixels with" in text


def test_frequencies_survive_a_checkpoint(labels: tuple[np.ndarray, np.ndarray]) -> None:
    frequencies = ClassFrequencies.from_label_targets([labels[0]], 2, ignore_index=255)
    again = ClassFrequencies.from_dict(frequencies.to_dict())
    assert again.to_dict() == frequencies.to_dict()
    assert again.valid is not None
    assert again.valid.tolist() == [80, 70]


def test_a_panel_has_a_row_for_each_class_with_its_hits_and_misses(labels: tuple[np.ndarray, np.ndarray]) -> None:
    target, prediction = labels
    image = np.full((8, 10, 3), 90, np.uint8)
    options = {"colors": COLORS, "class_names": NAMES, "classes": (0, 1)}
    both = panel_of(image, target, prediction, **options)
    one = label_panel(image, target, prediction, **options | {"classes": (0,)})
    assert both.shape[1] == one.shape[1]
    assert both.shape[0] > one.shape[0] + 250
    hit, invented, missed = (np.array(ERROR_COLORS[code], np.uint8) for code in (1, 2, 3))
    for color in (hit, invented, missed):
        assert (both[80:-30] == color).all(axis=2).any()
    assert not (one[80:-30] == missed).all(axis=2).any()


def test_a_class_in_neither_map_gets_no_row(labels: tuple[np.ndarray, np.ndarray]) -> None:
    target, prediction = labels
    target[1], prediction[1] = 0, 0
    options = {"colors": COLORS, "class_names": NAMES}
    image = np.zeros((8, 10, 3), np.uint8)
    both = label_panel(image, target, prediction, classes=(0, 1), **options)
    assert both.shape == label_panel(image, target, prediction, classes=(0,), **options).shape


def test_overlapping_colours_are_mixed_and_the_rest_is_the_image() -> None:
    labels = np.array([[[1, 1, 0]], [[0, 1, 0]]], np.uint8)
    image = np.full((1, 3, 3), 100, np.uint8)
    mixed = overlay_labels(image, labels, colors=COLORS, classes=(0, 1), alpha=0.5)
    assert mixed[0].tolist() == [[150, 50, 50], [100, 100, 50], [100, 100, 100]]


def test_a_class_of_its_own_is_not_gray() -> None:
    alone = DataConfig.model_validate({"root": "d", "classes": ["crack"]})
    assert class_palette(alone).tolist() == [[230, 159, 0]]
    given = DataConfig.model_validate({"root": "d", "classes": [{"name": "crack", "color": [1, 2, 3]}]})
    assert class_palette(given).tolist() == [[1, 2, 3]]


def test_the_counts_are_drawn(labels: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    confusion = MultiLabelConfusion(2)
    confusion.update(torch.from_numpy(labels[1])[None], torch.from_numpy(labels[0])[None])
    save_plot(tmp_path / "counts.png", confusion, class_names=NAMES, title="run")
    assert np.array(Image.open(tmp_path / "counts.png")).std() > 0
