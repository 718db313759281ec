"""Training keeps its promises: exact resume, exact accumulation, guards, and what a run leaves behind."""

from __future__ import annotations

import importlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from segtrain.config import Config, parse_config
from segtrain.engine import train
from segtrain.engine.checkpoint import load_checkpoint, load_run
from segtrain.errors import CheckpointError, ConfigError, SegtrainError

MakeConfig = Callable[..., Config]


def run(config: Config, model: nn.Module | None = None, **options: Any) -> tuple[Any, str]:
    text = io.StringIO()
    result = train(config, model=model, console=Console(file=text, width=200), **options)
    return result, text.getvalue()


def weights(config: Config, name: str = "last.pt") -> dict[str, Any]:
    return load_checkpoint(Path(config.output) / config.name / "checkpoints" / name)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def lines(config: Config) -> list[dict[str, Any]]:
    text = (Path(config.output) / config.name / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(("workers", "accumulate"), [(0, 1), (2, 1), (0, 2)])
def test_twelve_steps_equal_six_and_six(
    tiny_config: MakeConfig, tiny_net: type[nn.Module], workers: int, accumulate: int
) -> None:
    options = {"batch_size": 2, "ema": 0.9, "log_every": 1, "accumulate": accumulate, "evaluate_unit": "steps"}
    schedule = {"name": "constant", "warmup_steps": 2}
    common = {"data": {"workers": workers}, "optimizer": {"name": "adamw", "lr": 0.01, "schedule": schedule}}
    whole = tiny_config(name="whole", train={**options, "steps": 12, "evaluate_every": 6}, **common)
    run(whole, tiny_net())
    half = tiny_config(name="half", train={**options, "steps": 6, "evaluate_every": 6}, **common)
    run(half, tiny_net())
    rest = tiny_config(name="half", train={**options, "steps": 12, "evaluate_every": 6, "resume": "auto"}, **common)
    _, text = run(rest, tiny_net())
    assert "going on from step 6 of 12" in text
    one, two = weights(whole), weights(half)
    assert same(one["model"], two["model"])
    assert same(one["ema"], two["ema"])
    ignored = {"time", "images_per_second", "data_wait", "seconds"}
    kept = [[{k: v for k, v in line.items() if k not in ignored} for line in lines(cfg)] for cfg in (whole, half)]
    assert kept[0] == kept[1]


def test_accumulated_batches_make_the_step_of_one_large_batch(
    tiny_config: MakeConfig, tiny_net: type[nn.Module]
) -> None:
    results = []
    terms = [{"name": "cross_entropy"}, {"name": "focal"}]
    loss = {"terms": terms, "class_weights": {"scheme": "sqrt_inverse"}, "reduction": "weighted"}
    for name, batch_size, accumulate in (("large", 10, 1), ("small", 2, 5)):
        config = tiny_config(
            name=name,
            loss=loss,
            data={"train_transforms": []},
            optimizer={"name": "sgd", "lr": 0.1},
            train={"steps": 1, "batch_size": batch_size, "accumulate": accumulate},
        )
        run(config, tiny_net(norm=False, dropout=0.0))
        results.append(weights(config)["model"])
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], rtol=1e-5, atol=1e-7)


def test_a_run_leaves_config_logs_curves_pictures_and_both_checkpoints(
    tiny_config: MakeConfig, tiny_net: type[nn.Module]
) -> None:
    config = tiny_config(loss="auto", train={"epochs": 2, "log_every": 1, "validation_samples": 2})
    result, text = run(config, tiny_net())
    assert "loss: auto stands for" in text
    assert "sqrt_inverse" in text
    kinds = [line["kind"] for line in lines(config)]
    assert kinds.count("val") == 2
    assert kinds.count("train") == 10
    values = [line for line in lines(config) if line["kind"] == "val"][-1]
    assert {"miou", "miou_tail", "iou/block", "iou/dot", "loss"} <= values.keys()
    accumulator = EventAccumulator(str(result.folder / "tensorboard"))
    accumulator.Reload()
    tags = accumulator.Tags()
    assert {"train/loss", "train/loss_dice", "val/miou", "val/iou/dot"} <= set(tags["scalars"])
    assert len(tags["images"]) == 2
    saved = (result.folder / "config.yaml").read_text()
    assert "sqrt_inverse" in saved
    assert result.best_checkpoint == result.folder / "checkpoints" / "best.pt"
    assert (result.folder / "checkpoints" / "last.pt").is_file()
    assert math.isclose(result.evaluation.scores["miou"], weights(config, "best.pt")["scores"]["miou"])


def test_the_saved_config_trains_the_same_run_again(tiny_config: MakeConfig, tiny_net: type[nn.Module]) -> None:
    from segtrain.config import load_config

    config = tiny_config(loss="auto")
    result, _ = run(config, tiny_net())
    again = load_config(result.folder / "config.yaml", ["name=again"])
    run(again, tiny_net())
    assert same(weights(config)["model"], weights(again)["model"])


def test_the_best_checkpoint_holds_the_averaged_weights(tiny_config: MakeConfig, tiny_net: type[nn.Module]) -> None:
    config = tiny_config(train={"ema": 0.99, "steps": 3})
    run(config, tiny_net())
    last = weights(config)
    assert same(weights(config, "best.pt")["model"], last["ema"])
    assert not same(last["model"], last["ema"])


def test_a_checkpoint_becomes_a_model_again_without_pretrained_weights(tiny_config: MakeConfig, tmp_path: Path) -> None:
    params = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    config = tiny_config(model={"params": params})
    run(config)
    # a file that is gone since: nothing may look for it (trap 36)
    path = Path(config.output) / config.name / "checkpoints" / "best.pt"
    payload = load_checkpoint(path)
    payload["config"]["model"]["encoder_weights"] = str(tmp_path / "gone.pt")
    torch.save(payload, path)
    loaded = load_run(Path(config.output) / config.name, device="cpu")
    assert loaded.config.data.class_names == ("background", "block", "dot")
    assert loaded.step == 2
    images = torch.zeros(1, 3, 21, 35, dtype=torch.uint8)
    assert loaded.model(loaded.normalize(images)).shape == (1, 3, 21, 35)
    assert loaded.frequencies is not None
    assert loaded.frequencies.pixels.sum() > 0


def test_a_second_run_of_the_same_name_is_refused_until_told_what_to_do(
    tiny_config: MakeConfig, tiny_net: type[nn.Module]
) -> None:
    config = tiny_config()
    run(config, tiny_net())
    before = weights(config)["model"]
    with pytest.raises(ConfigError, match=r"already holds a run: .*train\.resume=auto.*train\.overwrite=true"):
        run(config, tiny_net())
    assert same(before, weights(config)["model"])
    run(tiny_config(train={"overwrite": True, "steps": 1}), tiny_net())
    assert weights(config)["step"] == 1


def test_overwrite_deletes_nothing_before_the_new_run_is_known_to_be_valid(
    tiny_config: MakeConfig, tiny_net: type[nn.Module]
) -> None:
    config = tiny_config()
    run(config, tiny_net())
    before = weights(config)["model"]
    with pytest.raises(ConfigError, match="resnet81"):
        run(tiny_config(train={"overwrite": True}, model={"encoder": "resnet81"}))
    too_long = {"name": "adamw", "lr": 0.1, "schedule": {"name": "poly", "warmup_steps": 99}}
    with pytest.raises(ConfigError, match="warmup_steps"):
        run(tiny_config(train={"overwrite": True}, optimizer=too_long), tiny_net())
    assert same(before, weights(config)["model"])


def test_a_run_is_never_continued_in_the_folder_of_another(tiny_config: MakeConfig, tiny_net: type[nn.Module]) -> None:
    first, second = tiny_config(name="first"), tiny_config(name="second")
    run(first, tiny_net())
    run(second, tiny_net())
    source = Path(first.output) / "first" / "checkpoints" / "last.pt"
    with pytest.raises(ConfigError, match="would mix with the run in"):
        run(tiny_config(name="second", train={"resume": str(source)}), tiny_net())
    result, _ = run(tiny_config(name="third", train={"steps": 3, "resume": str(source)}), tiny_net())
    assert result.step == 3


def test_a_run_resumed_in_a_folder_of_its_own_finds_a_best_checkpoint_of_its_own(
    tiny_config: MakeConfig, tiny_net: type[nn.Module]
) -> None:
    common = {"optimizer": {"name": "adamw", "lr": 1e-9}}
    run(tiny_config(name="first", train={"steps": 2, "best_metric": "val/loss"}, **common), tiny_net())
    source = str(Path(tiny_config().output) / "first" / "checkpoints" / "last.pt")
    worse = {"steps": 3, "best_metric": "val/loss", "resume": source}
    second = tiny_config(name="second", train=worse, optimizer={"name": "adamw", "lr": 1.0})
    result, _ = run(second, tiny_net())
    assert result.best_checkpoint.is_file()


def test_the_last_checkpoint_is_also_written_between_evaluations(
    tiny_config: MakeConfig, tiny_net: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = importlib.import_module("segtrain.engine.train")
    saved: list[Path] = []
    monkeypatch.setattr("segtrain.engine.saving.save_checkpoint", lambda path, payload: saved.append(path))
    monkeypatch.setattr(loop, "load_checkpoint", lambda path: pytest.fail("nothing was saved"))
    options = {"steps": 4, "evaluate_every": 4, "evaluate_unit": "steps", "save_every_seconds": 1e-6}
    run(tiny_config(train=options), tiny_net())
    # after each step, and after the evaluation; before it the disk holds this very state
    assert [path.name for path in saved].count("last.pt") == 4 + 1


def test_resume_reports_changed_settings_and_refuses_another_optimizer(
    tiny_config: MakeConfig, tiny_net: type[nn.Module]
) -> None:
    run(tiny_config(), tiny_net())
    faster = tiny_config(train={"steps": 3, "resume": "auto"}, optimizer={"lr": 0.5})
    _, text = run(faster, tiny_net())
    assert "changed since then: optimizer.lr: 0.001 -> 0.5" in text
    assert "changed since then: train.steps: 2 -> 3" in text
    assert weights(faster)["training"]["optimizer"]["param_groups"][0]["initial_lr"] == 0.5
    other = tiny_config(train={"steps": 4, "resume": "auto"}, optimizer={"name": "sgd", "lr": 0.1})
    with pytest.raises(CheckpointError, match=r"optimizer\.name was 'adamw' and is 'sgd'"):
        run(other, tiny_net())


def test_resume_refuses_data_of_another_size(
    tiny_config: MakeConfig, tiny_net: type[nn.Module], folder_dataset: Callable[..., Any]
) -> None:
    run(tiny_config(), tiny_net())
    other = folder_dataset(splits={"train": 7, "val": 1}, name="other")
    moved = tiny_config(data={"root": str(other.root)}, train={"steps": 3, "resume": "auto"})
    with pytest.raises(CheckpointError, match="has 7 samples, and had 10"):
        run(moved, tiny_net())


def test_the_saved_config_neither_resumes_nor_overwrites(tiny_config: MakeConfig, tiny_net: type[nn.Module]) -> None:
    from segtrain.config import load_config

    result, _ = run(tiny_config(train={"overwrite": True}), tiny_net())
    saved = load_config(result.folder / "config.yaml")
    assert saved.train.overwrite is False
    assert saved.train.resume == "none"


def test_given_data_takes_the_place_of_the_configured_splits(
    tiny_config: MakeConfig, tiny_net: type[nn.Module], folder_dataset: Callable[..., Any]
) -> None:
    from segtrain.data.dataset import EvalDataset, TrainDataset
    from segtrain.data.formats import find_samples

    other = parse_config(folder_dataset(splits={"train": 3, "val": 1}, name="other").config)
    train_data = TrainDataset(find_samples(other.data, "train").samples, other.data)
    val_data = EvalDataset(find_samples(other.data, "val").samples, other.data)
    config = tiny_config(loss="auto", data={"root": "/nowhere"})
    result, text = run(config, tiny_net(), train_data=train_data, val_data=val_data)
    assert "3 training and 1 validation images" in text
    assert result.evaluation.num_images == 1
    assert weights(config)["frequencies"]["num_images"] == 3


def test_resume_refuses_another_model_and_names_the_keys(tiny_config: MakeConfig, tiny_net: type[nn.Module]) -> None:
    run(tiny_config(), tiny_net())
    changed = tiny_config(train={"resume": "auto", "batch_size": 5}, seed=3)
    with pytest.raises(CheckpointError, match=r"seed was 0 and is 3; train\.batch_size was 2 and is 5"):
        run(changed, tiny_net())


def test_resume_auto_without_a_checkpoint_starts_from_the_beginning(
    tiny_config: MakeConfig, tiny_net: type[nn.Module]
) -> None:
    result, _ = run(tiny_config(train={"resume": "auto"}), tiny_net())
    assert result.step == 2


def test_weights_alone_cannot_be_resumed(tiny_config: MakeConfig, tiny_net: type[nn.Module]) -> None:
    result, _ = run(tiny_config(), tiny_net())
    with pytest.raises(CheckpointError, match=r"without the optimizer.*model\.init_from"):
        run(tiny_config(name="other", train={"resume": str(result.best_checkpoint)}), tiny_net())


class Poisoned(nn.Module):
    """A model whose logits are NaN in the forward passes of training that are listed."""

    def __init__(self, inner: nn.Module, passes: range) -> None:
        super().__init__()
        self.inner, self.passes, self.count = inner, passes, 0

    def forward(self, images: Tensor) -> Tensor:
        logits = self.inner(images)
        if not self.training:
            return logits
        self.count += 1
        return logits * math.nan if self.count in self.passes else logits


def test_a_step_that_is_not_finite_is_left_out_and_counted(tiny_config: MakeConfig, tiny_net: type[nn.Module]) -> None:
    config = tiny_config(train={"steps": 3, "log_every": 1})
    run(config, Poisoned(tiny_net(), range(2, 3)))
    assert weights(config)["training"]["state"]["skipped_steps"] == 1
    assert all(torch.isfinite(value).all() for value in weights(config)["model"].values())


class Spike(nn.Module):
    """Multiplies its input by a number that can be set to infinity for one forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = 1.0

    def forward(self, features: Tensor) -> Tensor:
        return features * self.factor


def test_a_step_left_out_leaves_no_trace_in_batchnorm(tiny_config: MakeConfig, tiny_net: type[nn.Module]) -> None:
    spike, count = Spike(), [0]
    model = tiny_net()
    model.norm = nn.Sequential(spike, nn.BatchNorm2d(8))

    def set_factor(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        count[0] += int(module.training)
        spike.factor = math.inf if module.training and count[0] == 2 else 1.0

    spike.register_forward_pre_hook(set_factor)
    config = tiny_config(train={"steps": 4, "ema": 0.9})
    run(config, model)
    last = weights(config)
    assert last["training"]["state"]["skipped_steps"] == 1
    for part in ("model", "ema"):
        assert all(torch.isfinite(value).all() for value in last[part].values())


def test_a_loss_that_stays_not_finite_stops_and_names_the_images(
    tiny_config: MakeConfig, tiny_net: type[nn.Module]
) -> None:
    config = tiny_config(train={"steps": 50})
    with pytest.raises(SegtrainError, match=r"not finite in 10 steps in a row.*scene_\d\d.*Lower optimizer\.lr"):
        run(config, Poisoned(tiny_net(), range(1, 99)))


def test_images_without_a_labelled_pixel_do_not_stop_training(
    folder_dataset: Callable[..., Any], tiny_net: type[nn.Module]
) -> None:
    from PIL import Image

    dataset = folder_dataset(splits={"train": 4, "val": 1})
    for path in sorted((dataset.root / "masks" / "train").iterdir())[:2]:
        Image.new("L", (32, 24), 255).save(path)
    config = parse_config(dataset.config | {"train": {"steps": 8, "batch_size": 1}})
    run(config, tiny_net())
    assert weights(config)["training"]["state"]["skipped_steps"] == 0
    assert all(torch.isfinite(value).all() for value in weights(config)["model"].values())


class OutOfMemory(nn.Module):
    """A model that never fits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_out_of_memory_names_the_settings_to_change(tiny_config: MakeConfig) -> None:
    with pytest.raises(SegtrainError, match=r"train\.batch_size.*train\.accumulate.*bf16"):
        run(tiny_config(), OutOfMemory())


def test_fp16_on_a_cpu_is_refused(tiny_config: MakeConfig, tiny_net: type[nn.Module]) -> None:
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device"):
        run(tiny_config(train={"precision": "fp16"}), tiny_net())


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"channels_last": True}])
def test_bf16_and_channels_last_train(
    tiny_config: MakeConfig, tiny_net: type[nn.Module], options: dict[str, Any]
) -> None:
    config = tiny_config(train=options)
    run(config, tiny_net())
    assert weights(config)["training"]["state"]["skipped_steps"] == 0


def test_early_stopping_ends_the_run(tiny_config: MakeConfig, tiny_net: type[nn.Module]) -> None:
    options = {"steps": 20, "evaluate_every": 1, "evaluate_unit": "steps"}
    stopping = {"patience": 2, "min_delta": 1.0}
    result, text = run(tiny_config(train={**options, "early_stopping": stopping}), tiny_net())
    assert result.step == 3
    assert "stopped early" in text


def test_training_learns_the_small_class(tiny_config: MakeConfig, tiny_net: type[nn.Module]) -> None:
    config = tiny_config(
        loss="auto",
        optimizer={"name": "adamw", "lr": 0.03},
        train={"epochs": 30, "evaluate_every": 10, "best_metric": "val/iou/dot"},
    )
    result, _ = run(config, tiny_net(dropout=0.0))
    assert result.evaluation.scores["iou/dot"] > 0.8


def test_a_loss_of_ones_own_trains(tiny_config: MakeConfig, tiny_net: type[nn.Module]) -> None:
    config = tiny_config(train={"steps": 2, "accumulate": 2, "log_every": 1})
    run(config, tiny_net(), loss=nn.CrossEntropyLoss(ignore_index=255))
    train_lines = [line for line in lines(config) if line["kind"] == "train"]
    assert all(0 < line["loss"] < 3 for line in train_lines)


def test_a_checkpoint_of_a_model_given_in_code_says_how_to_use_it(
    tiny_config: MakeConfig, tiny_net: type[nn.Module]
) -> None:
    result, text = run(tiny_config(), tiny_net())
    assert ": TinyNet, 0.00 M parameters" in text
    with pytest.raises(CheckpointError, match=r"weights of a TinyNet that was given in code.*evaluate\(config, model"):
        load_run(result.folder)
