"""The commands evaluate, visualize and predict, from a checkpoint to files, through the real command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segtrain.cli.main import main
from segtrain.config import parse_config
from segtrain.data import scan_frequencies
from segtrain.engine.checkpoint import describe_run, save_checkpoint
from segtrain.models import build_model


@pytest.fixture
def trained(folder_dataset: Callable[..., Any], tmp_path: Path) -> Path:
    """The folder of a run whose model has random weights, as training leaves it."""
    dataset = folder_dataset()
    plain = dict(dataset.config)
    plain["model"] = {"arch": "fpn", "encoder": "mobilenet_v2", "encoder_weights": None}
    config = parse_config(plain)
    torch.manual_seed(0)
    model = build_model(config.model, len(config.data.classes), load_weights=False)
    payload = describe_run(config, scan_frequencies(config.data, workers=1, show_progress=False))
    payload |= {"step": 7, "epoch": 1.5, "scores": None, "model": model.state_dict()}
    folder = tmp_path / "runs" / "tiny"
    save_checkpoint(folder / "checkpoints" / "best.pt", payload)
    return folder


def test_evaluate_prints_the_table_and_writes_the_files(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(trained), "--split", "test", "--device", "cpu", "evaluate.batch_size=1"]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("background", "block", "dot *", "mean IoU, tail", "test: 2 images"))
    out = trained / "evaluation" / "test"
    assert sorted(path.name for path in out.iterdir()) == ["classes.csv", "confusion.png", "metrics.json"]
    content = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert (content["num_images"], content["step"], content["split"]) == (2, 7, "test")
    assert sum(map(sum, content["confusion"]["matrix"])) == 2 * 24 * 31


def test_what_still_has_an_effect_may_be_overridden(trained: Path) -> None:
    overrides = ["data.workers=0", "evaluate.batch_size=1", "train.precision=bf16", "train.channels_last=true"]
    assert main(["evaluate", str(trained), *overrides, "device=cpu"]) == 0


def test_evaluate_in_tiles_into_a_folder_of_choice(trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "checkpoints" / "best.pt"
    assert main(["evaluate", str(checkpoint), "--tile", "16", "24", "--out", str(tmp_path / "numbers")]) == 0
    assert json.loads((tmp_path / "numbers" / "metrics.json").read_text(encoding="utf-8"))["split"] == "val"


def test_visualize_writes_a_page(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["visualize", str(trained), "--split", "test", "--classes", "block,dot", "--worst", "1"]) == 0
    told = capsys.readouterr().out
    assert "1 of the 2 images that hold block, dot or were predicted to" in told
    page = trained / "visualization" / "test" / "index.html"
    assert str(page) in told.replace("\n", "")
    assert len(list((page.parent / "panels").iterdir())) == 1


def test_visualize_takes_the_rarest_class_by_itself(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["visualize", str(trained)]) == 0
    assert "images that hold dot or were predicted to" in capsys.readouterr().out


def test_visualize_takes_other_classes_where_the_split_lacks_the_rarest(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / "dataset" / "masks" / "val").iterdir():
        mask = np.array(Image.open(path))
        mask[mask == 2] = 0
        Image.fromarray(mask).save(path)
    assert main(["visualize", str(trained)]) == 0
    assert "split 'val' holds none of the rarest classes (dot): block instead" in capsys.readouterr().out


def test_predict_never_overwrites_unless_told_to(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = trained.parent.parent / "dataset" / "images" / "test", trained / "masks"
    command = ["predict", str(trained), str(images), "--out", str(out)]
    assert main(command) == 0
    index = out / "index" / "scene_00.png"
    assert np.asarray(Image.open(index)).shape == (24, 32)
    index.write_text("corrected by hand")
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert index.read_text() == "corrected by hand"
    assert main([*command, "--overwrite"]) == 0
    assert np.asarray(Image.open(index)).shape == (24, 32)


def test_predict_takes_settings_and_tiles(trained: Path, tmp_path: Path) -> None:
    image = tmp_path / "dataset" / "images" / "test" / "scene_00.png"
    command = ["predict", str(trained), str(image), "--out", str(tmp_path / "out"), "--tile", "16", "16"]
    assert main([*command, "--set", "data.max_pixels=10", "--set", "evaluate.batch_size=1"]) == 2
    assert main([*command, "--set", "evaluate.batch_size=1", "--overwrite"]) == 0
    assert (tmp_path / "out" / "index" / "scene_00.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "RUN", "--split", "tset"], "tset"),
        (["evaluate", "RUN", "--tile", "0", "8"], "whole number of at least 1, found '0'"),
        (["evaluate", "RUN", "--checkpoint", "first"], "invalid choice: 'first'"),
        (["evaluate", "RUN", "--device", "gpu"], "device"),
        (["evaluate", "RUN", "evaluate.batchsize=1"], "did you mean 'batch_size'?"),
        (
            ["evaluate", "RUN", "model.arch=unet"],
            "without effect on a finished run (those with one: data.*, evaluate.*,",
        ),
        (["evaluate", "RUN", "train.steps=5", "loss=auto"], "  train.steps\n  loss\n"),
        (["visualize", "RUN", "datas.root=x"], "datas.root"),
        (["evaluate", "nowhere"], "nowhere does not exist"),
        (
            ["visualize", "RUN", "--classes", "dots"],
            "'dots' is not a class; classes: background, block, dot; did you mean 'dot'?",
        ),
        (["visualize", "RUN", "--worst", "0"], "whole number of at least 1"),
        (["predict", "RUN", "nowhere.png", "--out", "OUT"], "nowhere.png: no such file or folder"),
        (["predict", "RUN", "EMPTY", "--out", "OUT"], "no images in this folder"),
        (["predict", "RUN", "EMPTY"], "required: --out"),
        (["predict", "RUN", "IMAGES", "--out", "OUT", "--set", "evaluate.batchsize=1"], "did you mean 'batch_size'?"),
        (["predict", "RUN", "IMAGES", "--out", "OUT", "--set", "seed=1"], "without effect on a finished run"),
    ],
)
def test_wrong_arguments_get_one_clear_answer(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    names = {"RUN": str(trained), "EMPTY": str(tmp_path / "empty"), "OUT": str(tmp_path / "out")}
    names["IMAGES"] = str(tmp_path / "dataset" / "images" / "test")
    assert main([names.get(word, word) for word in arguments]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()
