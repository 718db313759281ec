"""Distillation in a run: the teacher is an earlier run, sees what the student sees, and stays as it is."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from segtrain.config import Config, config_to_dict, parse_config
from segtrain.config.loss import LossConfig
from segtrain.data import ClassFrequencies
from segtrain.engine import train
from segtrain.engine.checkpoint import describe_run, load_checkpoint, save_checkpoint
from segtrain.engine.teacher import check_sight, load_teacher
from segtrain.errors import CheckpointError, ConfigError
from segtrain.models import Normalize, build_model

MakeConfig = Callable[..., Config]
SMALL = {"arch": "fpn", "encoder": "mobilenet_v2", "encoder_weights": None}
CPU = torch.device("cpu")


def distil(teacher: Path | str, **term: Any) -> dict[str, Any]:
    return {"terms": [{"name": "cross_entropy"}, {"name": "distillation", "teacher": str(teacher), **term}]}


def run(config: Config, model: nn.Module | None = None, **options: Any) -> tuple[Any, str]:
    text = io.StringIO()
    result = train(config, model=model, console=Console(file=text, width=200), **options)
    return result, text.getvalue()


def lines(config: Config, kind: str) -> list[dict[str, Any]]:
    text = (Path(config.output) / config.name / "metrics.jsonl").read_text()
    return [entry for entry in map(json.loads, text.splitlines()) if entry["kind"] == kind]


def checkpoint(config: Config, name: str = "last.pt") -> dict[str, Any]:
    return load_checkpoint(Path(config.output) / config.name / "checkpoints" / name)


@pytest.fixture
def save_teacher(tmp_path: Path, tiny_config: MakeConfig) -> Callable[..., Path]:
    """A factory of run folders that hold a model with random weights."""

    def save(**sections: Any) -> Path:
        config = tiny_config(model=SMALL, **sections)
        num_classes = len(config.data.classes)
        torch.manual_seed(3)
        model = build_model(config.model, num_classes, load_weights=False)
        frequencies = ClassFrequencies.from_targets([], num_classes=num_classes, ignore_index=255)
        payload = describe_run(config, frequencies) | {"step": 1, "epoch": 1.0, "model": model.state_dict()}
        folder = tmp_path / "teachers" / "large"
        save_checkpoint(folder / "checkpoints" / "best.pt", payload)
        return folder

    return save


def test_a_student_learns_and_goes_on_as_if_never_stopped(
    tiny_config: MakeConfig, tiny_net: type[nn.Module], save_teacher: Callable[..., Path]
) -> None:
    loss = distil(save_teacher(), weight=3.0)
    options = {"batch_size": 2, "log_every": 1, "evaluate_unit": "steps", "evaluate_every": 2}
    configs = {
        (name, steps): tiny_config(
            name=name,
            loss=loss,
            train={**options, "steps": steps, "resume": "auto"},
            optimizer={"name": "adamw", "lr": 0.01, "schedule": {"name": "constant"}},
        )
        for name, steps in (("whole", 4), ("half", 2), ("half", 4))
    }
    for config in configs.values():
        _, text = run(config, tiny_net())
        assert "teacher: " in text
    whole, half = configs["whole", 4], configs["half", 4]
    one, other = checkpoint(whole)["model"], checkpoint(half)["model"]
    assert all(torch.equal(one[key], other[key]) for key in one)
    found = lines(whole, "train")
    assert all(entry["loss_distillation"] > 0 for entry in found)
    assert found[0]["loss"] == pytest.approx(
        found[0]["loss_cross_entropy"] + 3 * found[0]["loss_distillation"], rel=1e-5
    )
    assert checkpoint(whole)["model"].keys() == tiny_net().state_dict().keys()
    assert checkpoint(whole)["config"]["loss"]["terms"][1]["teacher"] == loss["terms"][1]["teacher"]


def test_evaluations_measure_the_loss_against_the_labels(
    tiny_config: MakeConfig, tiny_net: type[nn.Module], save_teacher: Callable[..., Path]
) -> None:
    plain = tiny_config(name="plain", loss={"terms": [{"name": "cross_entropy"}]}, train={"steps": 1})
    taught = tiny_config(name="taught", loss=distil(save_teacher()), train={"steps": 1})
    for config in (plain, taught):
        run(parse_config({**config_to_dict(config), "optimizer": {"name": "sgd", "lr": 1e-9}}), tiny_net())
    assert lines(taught, "val")[0]["loss"] == pytest.approx(lines(plain, "val")[0]["loss"], rel=1e-5)
    alone = {"terms": distil(save_teacher())["terms"][1:]}
    config = tiny_config(name="alone", loss=alone, train={"steps": 1})
    run(config, tiny_net())
    assert "loss" not in lines(config, "val")[0]
    with pytest.raises(ConfigError, match="against the labels"):
        run(tiny_config(name="best", loss=alone, train={"steps": 1, "best_metric": "val/loss"}), tiny_net())


def test_a_window_of_batches_is_exact_with_a_teacher_too(
    tiny_config: MakeConfig, tiny_net: type[nn.Module], save_teacher: Callable[..., Path]
) -> None:
    folder, found = save_teacher(), []
    for batch_size, section in ((10, {}), (2, {}), (2, {"exact_accumulation": True})):
        loss = distil(folder)
        loss["terms"].append({"name": "dice"})
        config = tiny_config(
            name=f"run-{len(found)}",
            loss=loss,
            data={"train_transforms": []},
            train={"steps": 1, "log_every": 1, "batch_size": batch_size, "accumulate": 10 // batch_size, **section},
        )
        run(config, tiny_net(norm=False, dropout=0.0))
        found.append(lines(config, "train")[0]["loss_distillation"])
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-5)


def test_the_teacher_stays_still_and_keeps_its_own_normalisation(
    tiny_config: MakeConfig, save_teacher: Callable[..., Path]
) -> None:
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    folder = save_teacher(data={"normalize": own})
    config = tiny_config(loss=distil(folder))
    assert isinstance(config.loss, LossConfig)
    teacher = load_teacher(config, config.loss, device=CPU)
    assert teacher is not None
    images = torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8)
    before = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    logits = teacher.logits(images)
    assert not logits.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not any(module.training for module in teacher.model.modules())
    expected: Tensor = teacher.model(Normalize(own["mean"], own["std"])(images))
    assert torch.equal(logits, expected)
    assert all(torch.equal(value, before[key]) for key, value in teacher.model.state_dict().items())


def test_no_distillation_no_teacher(tiny_config: MakeConfig) -> None:
    section = LossConfig.model_validate({"terms": [{"name": "dice"}]})
    assert load_teacher(tiny_config(), section, device=CPU) is None


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"classes": ["background", "dot", "block"]}}, r"terms\[1\].teacher: .*\(1: 'dot' and 'block', 2: "),
        ({"data": {"classes": ["background", "block", "dot", "more"]}}, "4 and 3 classes"),
    ],
)
def test_a_teacher_of_other_classes_is_refused(
    tiny_config: MakeConfig, save_teacher: Callable[..., Path], sections: dict[str, Any], message: str
) -> None:
    config = tiny_config(loss=distil(save_teacher(**sections)))
    with pytest.raises(ConfigError, match=message):
        load_teacher(config, config.loss, device=CPU)  # type: ignore[arg-type]


def test_a_teacher_that_is_not_there_is_named_with_its_key(
    tiny_config: MakeConfig, tiny_net: type[nn.Module], tmp_path: Path
) -> None:
    config = tiny_config(loss=distil("runs/nowhere"))
    with pytest.raises(CheckpointError, match=r"loss.terms\[1\].teacher: runs/nowhere does not exist") as caught:
        run(config, tiny_net())
    assert str(Path.cwd()) in str(caught.value)
    assert not (Path(config.output) / config.name).exists()


def test_a_run_is_not_its_own_teacher(tiny_config: MakeConfig) -> None:
    config = tiny_config(name="itself")
    own = LossConfig.model_validate(distil(Path(config.output) / "itself"))
    with pytest.raises(ConfigError, match="folder of this run"):
        load_teacher(config, own, device=CPU)


def test_a_teacher_of_the_other_activation_is_refused(
    tiny_config: MakeConfig, save_teacher: Callable[..., Path]
) -> None:
    folder = save_teacher(loss={"terms": [{"name": "dice"}], "activation": "sigmoid"})
    config = tiny_config(loss=distil(folder))
    with pytest.raises(ConfigError, match=r"loss\.activation: sigmoid"):
        load_teacher(config, config.loss, device=CPU)  # type: ignore[arg-type]


def test_another_scale_of_images_is_told(
    tiny_config: MakeConfig, tiny_net: type[nn.Module], save_teacher: Callable[..., Path]
) -> None:
    folder = save_teacher(data={"input_size": [48, 64]})
    _, text = run(tiny_config(loss=distil(folder), train={"steps": 1}), tiny_net())
    assert "note: the teacher was trained on images of 48x64 (data.input_size), and sees" in text


def test_what_the_teacher_cannot_see_is_refused(tiny_config: MakeConfig, save_teacher: Callable[..., Path]) -> None:
    config = tiny_config(loss=distil(save_teacher()))
    teacher = load_teacher(config, config.loss, device=CPU)  # type: ignore[arg-type]
    assert teacher is not None
    with pytest.raises(ConfigError, match="cannot see the training images"):
        check_sight(teacher, torch.zeros(1, 24, 32, dtype=torch.uint8))
