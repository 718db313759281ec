"""Exported folders and load_model: the same answers to the last bit, a card that tells all, and nothing that runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import segtrain
from segtrain.engine.checkpoint import load_run
from segtrain.engine.predict import Predictor
from segtrain.errors import CheckpointError, ConfigError, DataError, SegtrainError
from segtrain.export import save_pretrained
from segtrain.export.folder import CARD, CONFIG, WEIGHTS

MakeRun = Callable[..., Path]
LABELS = {"classes": ["crack", "rust"], "labels": "multi_label", "label_map": {0: "none", 1: "crack"}}
KINDS: dict[str, dict[str, Any]] = {
    "exclusive": {"evaluate": {"prior_tau": 0.7}, "train": {"channels_last": True, "precision": "bf16"}},
    "resized in tiles": {"data": {"input_size": [20, 28]}, "evaluate": {"tile": {"size": [16, 16]}}},
    "multi-label": {"data": LABELS, "evaluate": {"threshold": {"crack": 0.45, "rust": 0.55}}},
    "fused": {
        "model": {"arch": "fpn", "params": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32}},
        "loss": {"terms": [{"name": "cross_entropy"}], "fused_upsample": True},
    },
}


@pytest.fixture(scope="module")
def shipped(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The plainest run, and its folder; tests that break things copy it."""
    run = make_run(tmp_path_factory.mktemp("shipped"))
    return run, save_pretrained(run)


@pytest.fixture
def folder(shipped: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the exported folder."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in shipped[1].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    change(content)
    (folder / CONFIG).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_folder_answers_as_the_run_does_to_the_last_bit(kind: str, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path, **KINDS[kind])
    folder = save_pretrained(run, tmp_path / "out" / "model")
    model, of_run = segtrain.load_model(folder, device="cpu"), segtrain.load_model(run, device="cpu")
    loaded = load_run(run, device="cpu")
    predictor = Predictor.from_config(
        loaded.config, model=loaded.model, normalize=loaded.normalize, frequencies=loaded.frequencies
    )
    path = tmp_path / "data" / "images" / "val" / "0.png"
    image = np.asarray(Image.open(path))
    images = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    prediction = model.predict(path)
    assert prediction.dtype == np.uint8
    assert prediction.shape[-2:] == image.shape[:2]
    assert len(np.unique(prediction)) > 1
    assert np.array_equal(prediction, model.predict(image))
    assert np.array_equal(prediction, of_run.predict(path))
    if loaded.config.data.input_size is None:
        assert np.array_equal(prediction, predictor.classes(images)[0].numpy())
    assert torch.equal(model.logits(images), of_run.logits(images))
    assert torch.equal(predictor.decide(model.logits(images))[0], torch.from_numpy(prediction))
    assert model.description == of_run.description


def test_probabilities_are_those_of_the_activation(make_run: MakeRun, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (2, 3, 9, 17), dtype=torch.uint8)
    for name, sections in (("one", {}), ("two", KINDS["multi-label"])):
        model = segtrain.load_model(make_run(tmp_path / name, **sections), device="cpu")
        found, logits = model.probabilities(images), model.logits(images)
        assert torch.equal(found, logits.sigmoid() if name == "two" else logits.softmax(dim=1))
    assert model.thresholds == {"crack": 0.45, "rust": 0.55}


def test_the_averaged_weights_are_shipped_where_the_run_kept_them(
    shipped: tuple[Path, Path], make_run: MakeRun, tmp_path: Path
) -> None:
    weights = safetensors.torch.load_file(shipped[1] / WEIGHTS)
    averaged = {name: value * 0.5 if value.is_floating_point() else value for name, value in weights.items()}
    run = make_run(tmp_path, payload={"ema": averaged})
    written = safetensors.torch.load_file(save_pretrained(run) / WEIGHTS)
    assert written.keys() == averaged.keys()
    assert all(torch.equal(written[name], averaged[name]) for name in averaged)


def test_the_same_checkpoint_gives_the_same_bytes_without_paths(shipped: tuple[Path, Path], tmp_path: Path) -> None:
    run, first = shipped
    second = save_pretrained(run, tmp_path / "second")
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name
        assert str(run.parents[1]).encode() not in file.read_bytes(), file.name


def test_the_card_holds_the_table_of_classes(shipped: tuple[Path, Path], make_run: MakeRun, tmp_path: Path) -> None:
    card = (shipped[1] / CARD).read_text(encoding="utf-8")
    assert "| class | IoU | Dice | recall | precision | pixels in val | share of train pixels |" in card
    assert "| block | 0.2500 | – | – | – | 1001 | 9.01 % |" in card
    assert "- mean IoU: 0.5000" in card
    assert "step 7" in card
    assert "encoder: tu-regnetx_002" in card
    sections = {**KINDS["multi-label"], "data": {**LABELS, "classes": ["cr|ack", "rust"], "label_map": {0: "none"}}}
    sections["evaluate"] = {"threshold": 0.3}
    labels = (save_pretrained(make_run(tmp_path, **sections)) / CARD).read_text(encoding="utf-8")
    assert "| cr\\|ack | 0.2500 | – | – | – | 1000 | 50.00 % | 0.3 |" in labels


def test_what_stands_at_out_is_kept_unless_it_is_an_older_export(shipped: tuple[Path, Path], tmp_path: Path) -> None:
    run, out = shipped[0], tmp_path / "model"
    save_pretrained(run, out)
    with pytest.raises(ConfigError, match="exists: choose another --out, or replace it with --overwrite"):
        save_pretrained(run, out)
    (out / CARD).write_text("edited")
    save_pretrained(run, out, overwrite=True)
    assert (out / CARD).read_text(encoding="utf-8").startswith("---\nlibrary_name: segtrain")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(SegtrainError, match=r"holds more than an exported model \(notes.txt\)"):
        save_pretrained(run, out, overwrite=True)
    assert sorted(file.name for file in out.iterdir()) == [CARD, CONFIG, WEIGHTS, "notes.txt"]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (lambda folder: _flip(folder / WEIGHTS), "is not the file that config.json belongs to"),
    "cut weights": (lambda folder: (folder / WEIGHTS).write_bytes(b"{}"), "is not the file that config.json belongs"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "model.safetensors is missing in it"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), "config.json is missing in it"),
    "no json": (lambda folder: (folder / CONFIG).write_text("{"), "is damaged, it is no JSON"),
    "another json": (lambda folder: (folder / CONFIG).write_text("[1]"), "does not describe a segtrain model"),
    "a later format": (lambda folder: _edit(folder, lambda c: c.update(format=2)), "has format 2, this segtrain"),
    "an unknown key": (lambda folder: _edit(folder, lambda c: c.update(run="x")), "run: Extra inputs"),
    "thresholds": (lambda folder: _edit(folder, lambda c: c.update(thresholds=[0.5])), "thresholds has 1 values"),
    "unknown arch": (lambda folder: _edit(folder, lambda c: c["model"].update(arch="unett")), "did you mean 'unet'"),
    "unknown encoder": (
        lambda folder: _edit(folder, lambda c: c["model"].update(encoder="os.system")),
        "model.encoder: 'os.system' is unknown",
    ),
    "another size": (
        lambda folder: _edit(folder, lambda c: c["model"]["params"].update(decoder_channels=[8, 8, 8])),
        "does not fit the model",
    ),
    "an import path": (
        lambda folder: _edit(folder, lambda c: c["model"]["params"].update(checkpoint_path="/etc/passwd")),
        "has no such argument",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_with_what_is_wrong(damage: str, folder: Path) -> None:
    change, message = DAMAGE[damage]
    change(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        segtrain.load_model(folder, device="cpu")
    assert str(folder) in str(caught.value)


def test_what_is_no_image_is_refused(shipped: tuple[Path, Path], tmp_path: Path) -> None:
    model = segtrain.load_model(shipped[1], device="cpu")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"missing.png: no such file"):
        model.predict(tmp_path / "missing.png")
    with pytest.raises(DataError, match=r"text.png"):
        model.predict(tmp_path / "text.png")
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(DataError, match=r"uint8 or uint16 \[H, W, 3\]"):
            model.predict(wrong)


def test_import_segtrain_alone_loads_nothing_heavy() -> None:
    code = "import sys, segtrain; print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'load_modell'"):
        _ = segtrain.load_modell
