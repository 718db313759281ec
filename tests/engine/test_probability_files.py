"""Probability maps that predict writes: every class of every image, to a 65535th, beside the same predictions."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from segtrain.cli.predict import add_arguments
from segtrain.config import Config, parse_config
from segtrain.engine.predict import Predictor
from segtrain.engine.predict_files import EXTRAS, check_outputs, find_images, write_predictions
from segtrain.errors import ConfigError, DataError
from segtrain.models import Normalize

MULTI = {"classes": ["crack", "a/b"], "labels": "multi_label", "label_map": {0: "none", 1: "crack"}}
KINDS: dict[str, dict[str, Any]] = {
    "multi-label": {"data": MULTI},
    "multi-label, resized, in tiles": {
        "data": {**MULTI, "input_size": [12, 10]},
        "evaluate": {"tile": {"size": [8, 8]}, "threshold": {"crack": 0.3}},
    },
    "binary": {"data": {"classes": ["crack"]}},
    "exclusive": {"data": {"classes": ["background", "crack", "rust"]}},
    "exclusive, sigmoid": {
        "data": {"classes": ["background", "crack"]},
        "loss": {"terms": [{"name": "cross_entropy"}], "activation": "sigmoid"},
    },
}


@pytest.fixture
def predicted(tmp_path: Path) -> Callable[..., tuple[Config, Predictor, Path]]:
    """Write the predictions of two images with `save`; return the config, the predictor and the folder."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for index, size in enumerate([(9, 14), (16, 11)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / "in" / f"{index}.png")

    def make(sections: dict[str, Any], save: tuple[str, ...], name: str = "out") -> tuple[Config, Predictor, Path]:
        plain = {"name": "maps", **sections, "train": {"steps": 1}}
        config = parse_config({**plain, "data": {"root": "nowhere", **sections["data"]}})
        torch.manual_seed(0)
        model = nn.Conv2d(3, len(config.data.classes), 3, padding=1).eval()
        norm = config.data.normalize
        predictor = Predictor.from_config(config, model=model, normalize=Normalize(norm.mean, norm.std))
        sources = find_images([tmp_path / "in"], out=tmp_path / name)
        write_predictions(
            sources, tmp_path / name, config=config, predictor=predictor, checkpoint=Path("best.pt"), save=save
        )
        return config, predictor, tmp_path / name

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_maps_hold_the_probabilities_and_predictions_stay_the_same(
    kind: str, predicted: Callable[..., tuple[Config, Predictor, Path]]
) -> None:
    config, predictor, out = predicted(KINDS[kind], ("probabilities",))
    _, _, plain = predicted(KINDS[kind], (), "plain")
    about = json.loads((out / "classes.json").read_text())["probabilities"]
    assert len(about["folders"]) == len(config.data.classes)
    entries = json.loads((out / "manifest.json").read_text())["images"]
    for entry in entries:
        maps = np.stack(
            [np.asarray(Image.open(out / entry["probabilities"][name])) for name in config.data.class_names]
        )
        assert maps.dtype == np.uint16
        image = torch.from_numpy(np.asarray(Image.open(entry["source"])).copy()).permute(2, 0, 1)[None]
        assert maps.shape[1:] == image.shape[2:]
        if config.data.input_size is None:
            logits = predictor.logits(image)[0].double()
            wanted = logits.softmax(dim=0) if kind == "exclusive" else logits.sigmoid()
            assert np.abs(maps / 65535 - wanted.numpy()).max() < 2e-5
        if predictor.thresholds is not None:
            for name, one, threshold in zip(config.data.class_names, maps, predictor.thresholds, strict=True):
                mask = np.asarray(Image.open(out / entry["labels"][name])) == 255
                clear = np.abs(one / 65535 - threshold) > 1e-4
                assert np.array_equal(mask[clear], one[clear] / 65535 > threshold)
    written = [path.relative_to(plain) for path in plain.rglob("*.png")]
    assert written
    assert all((plain / path).read_bytes() == (out / path).read_bytes() for path in written)
    assert not (plain / "probabilities").exists()


def test_maps_are_not_taken_for_images_nor_overwritten(
    predicted: Callable[..., tuple[Config, Predictor, Path]], tmp_path: Path
) -> None:
    config, _, out = predicted(KINDS["binary"], ("probabilities",), "in")
    sources = find_images([tmp_path / "in"], out=out)
    assert [source.name for source in sources] == ["0", "1"]
    for path in out.iterdir():
        if path.suffix == ".json":
            path.unlink()
    with pytest.raises(DataError, match=r"(?s)probabilities/crack/0.png"):
        check_outputs(sources, out, config=config, save=EXTRAS)
    with pytest.raises(DataError) as caught:
        check_outputs(sources, out, config=config)
    assert "probabilities" not in str(caught.value)


def test_the_command_takes_what_can_be_saved_and_nothing_else(
    predicted: Callable[..., tuple[Config, Predictor, Path]],
) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    (action,) = [action for action in parser._actions if action.dest == "save"]
    assert action.choices == EXTRAS
    with pytest.raises(ConfigError, match="nothing of that name can be saved: logits; known: probabilities"):
        predicted(KINDS["binary"], ("logits",))
