"""The command export: from a run's folder to files that carry what they are, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import segtrain
from segtrain.cli.export import FORMATS, OF_GRAPHS
from segtrain.cli.main import main
from segtrain.data import extras
from segtrain.export import GraphOptions, Shapes
from segtrain.export.onnx_file import OnnxSession
from segtrain.export.pt2_file import Pt2Program, read_metadata
from segtrain.export.shipping import GRAPH_FORMATS, METADATA_KEY

MakeRun = Callable[..., Path]


@pytest.fixture(scope="module")
def run(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in bf16 and channels_last, of a U-Net of smp."""
    return make_run(tmp_path_factory.mktemp("command"), train={"precision": "bf16", "channels_last": True})


def _val_image(run: Path) -> Path:
    return run.parents[1] / "data" / "images" / "val" / "0.png"


def _input(run: Path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(Image.open(_val_image(run))).copy()).permute(2, 0, 1)[None]


def test_formats_are_those_that_can_be_written() -> None:
    assert {*FORMATS} == {*GRAPH_FORMATS, "folder"}
    fields = {*GraphOptions.__dataclass_fields__, *Shapes.__dataclass_fields__} - {"parts", "shapes"}
    assert {*OF_GRAPHS} - {"include"} == fields


def test_pt2_of_a_run_answers_as_the_run_and_says_what_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--format", "pt2", "--size", "24x40", "--batch", "1"]) == 0
    out = capsys.readouterr().out
    assert "parity over 2 images and 0 crops or batches: logits differ by" in out
    assert "with the run's own precision" in out
    path = run / "export" / "tiny.pt2"
    assert str(path) in out
    outputs = Pt2Program(path)(_input(run))
    exact = segtrain.load_model(run, device="cpu").predictor.model(
        segtrain.load_model(run, device="cpu").predictor.normalize(_input(run))
    )
    assert torch.allclose(outputs["logits"], exact, atol=1e-5)
    about = json.loads(read_metadata(path, METADATA_KEY)[METADATA_KEY])
    assert about["segtrain"] == segtrain.__version__
    assert about["classes"] == ["background", "block", "dot"]
    assert about["preprocessing"]["normalize"]["mean"] == [0.485, 0.456, 0.406]
    assert about["graph"]["input"]["dtype"] == "uint8"
    assert main(["export", str(run), "--format", "pt2"]) == 2
    assert "exists: choose another --out" in capsys.readouterr().err


@pytest.mark.slow
def test_onnx_of_a_run_answers_as_the_run_and_says_what_it_is(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra onnx)")
    path = tmp_path / "model.onnx"
    images = ["--images", str(_val_image(run)), "--num-images", "1"]
    code = main(["export", str(run), "--format", "onnx", "--out", str(path), "--opset", "19", *images])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "parity over 1 image and 3 crops or batches" in captured.out
    session = OnnxSession(path)
    found = session(_input(run))
    assert set(found) == {"prediction"}
    wanted = segtrain.load_model(run, device="cpu").predictor
    exact = wanted.model(wanted.normalize(_input(run))).argmax(dim=1)
    assert (found["prediction"] == exact).float().mean() > 0.999
    about = json.loads(session.metadata()[METADATA_KEY])
    assert about["graph"]["parts"] == ["preprocess", "postprocess"]


REFUSED = {
    "folder with graph options": (["--format", "folder", "--size", "32x32", "--opset", "18"], "drop --opset, --size"),
    "size": (["--format", "pt2", "--size", "32"], "expected height and width, such as 512x1024"),
    "part": (["--format", "pt2", "--include", "argmax"], "--include: 'argmax' is unknown"),
    "device": (["--format", "pt2", "device=cuda"], "models are exported on the CPU"),
    "no effect": (["--format", "pt2", "optimizer.lr=1"], "overrides without effect on a finished run"),
    "tiles": (["--format", "pt2", "evaluate.tile={size: [16, 16]}"], "a graph sees whole images: export with evaluate"),
    "size of the network": (
        ["--format", "pt2", "--include", "logits", "--size", "32x32", "data.input_size=[16, 16]"],
        "without the part preprocess: the network was trained on images of 16x16",
    ),
    "no data": (["--format", "pt2", "data.root=/nowhere/at/all"], "or give images with --images"),
    "no images": (["--format", "pt2", "--images", "nowhere.png"], "--images: nowhere.png: no such file"),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_cannot_be_done_is_refused_and_nothing_written(
    wrong: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = REFUSED[wrong]
    assert main(["export", str(run), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_its_extra(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import_module = extras.importlib.import_module

    def fail(name: str) -> Any:
        if name.startswith("onnx"):
            raise ImportError(f"No module named {name!r}")
        return import_module(name)

    monkeypatch.setattr(extras.importlib, "import_module", fail)
    assert main(["export", str(run), "--format", "onnx"]) == 2
    error = capsys.readouterr().err
    assert "takes onnx" in error
    assert "segtrain with its extra onnx" in error


def test_a_run_whose_model_was_given_in_code_says_where_its_code_is(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, payload={"custom_model": "TinyNet"})
    assert main(["export", str(run), "--format", "folder"]) == 2
    assert "TinyNet that was given in code" in capsys.readouterr().err
