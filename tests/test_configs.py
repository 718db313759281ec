"""The shipped configurations load, say how they are run, and work on the real data."""

from __future__ import annotations

from pathlib import Path

import pytest

from segtrain.cli.main import main
from segtrain.config import load_config

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
REMEDIES = sorted((FOLDER / "remedies").glob("*.yaml"))


@pytest.mark.parametrize("path", [*CONFIGS, *REMEDIES], ids=lambda path: path.stem)
def test_each_configuration_loads_and_its_header_gives_the_command_and_the_result(path: Path) -> None:
    load_config(path)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    place = path.relative_to(FOLDER).as_posix()
    assert any(f"python tools/train.py configs/{place}" in line for line in header)
    assert any(line.startswith("# Result") for line in header)
    assert not any("to be measured" in line for line in header)


def test_the_shipped_configurations_are_the_promised_ones() -> None:
    assert [path.stem for path in CONFIGS] == ["camvid", "camvid_cpu", "camvid_mini", "quickstart", "quickstart_binary"]


def test_the_remedies_differ_in_their_loss_alone_or_in_what_is_shown() -> None:
    assert REMEDIES
    base = load_config(FOLDER / "camvid_mini.yaml")
    for path in REMEDIES:
        config = load_config(path)
        assert config.name == f"remedy_{path.stem}"
        if path.stem.startswith("rare_class"):
            shown = {"sampling": base.data.sampling, "train_transforms": base.data.train_transforms}
            assert config.data != base.data
            config = config.model_copy(update={"data": config.data.model_copy(update=shown)})
        assert config.model_copy(update={"name": base.name, "loss": base.loss}) == base, path.name


@pytest.mark.slow
@pytest.mark.camvid
def test_camvid_goes_from_training_to_reviewable_masks(
    camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = next(path for path in CONFIGS if path.stem == "camvid_mini")
    run, masks = tmp_path / "runs" / "mini", tmp_path / "masks"
    small = ["train.steps=3", "train.batch_size=2", "data.input_size=[48,64]", "data.train_transforms=[]"]
    places = [f"data.root={camvid}", f"output={tmp_path / 'runs'}", "name=mini", "optimizer.schedule.warmup_steps=0"]
    assert main(["train", str(config), *small, *places]) == 0
    assert main(["evaluate", str(run), "--split", "test"]) == 0
    assert "233 images" in capsys.readouterr().out
    assert main(["visualize", str(run), "--split", "test", "--classes", "bicyclist,pole", "--worst", "3"]) == 0
    assert len(list((run / "visualization" / "test" / "panels").glob("*.png"))) == 3
    images = sorted((camvid / "images" / "test").iterdir())[:2]
    assert main(["predict", str(run), *map(str, images), "--out", str(masks)]) == 0
    assert len(list((masks / "index").glob("*.png"))) == 2
