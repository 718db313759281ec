"""Evaluation: at the size of the masks, every image once, the data set's numbers, nothing left changed behind."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segtrain.config import Config, parse_config
from segtrain.data.dataset import EvalDataset
from segtrain.data.formats import Sample
from segtrain.engine.evaluate import Evaluation, evaluate, evaluation_mode
from segtrain.metrics import ConfusionMatrix


class Items(EvalDataset):
    """Items from memory, in place of files."""

    def __init__(self, items: list[tuple[Tensor, Tensor]], config: Config) -> None:
        super().__init__([Sample(f"frame{index}", Path(), Path()) for index in range(len(items))], config.data)
        self.items = items

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, target = self.items[index]
        return {"image": image, "target": target, "index": index}


class ByBrightness(nn.Module):
    """Class 1 where the first channel is bright, else class 0; class 2 never."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(0.5))
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        bright = images[:, :1] - self.threshold
        return torch.cat([-bright, bright, torch.full_like(bright, -9.0)], dim=1)


def scaled(images: Tensor) -> Tensor:
    return images.float() / 255


def config_of(**evaluate_section: Any) -> Config:
    return parse_config(
        {
            "name": "test",
            "data": {"root": "nowhere", "classes": ["ground", "crack", "stain"], "workers": 0},
            "train": {"steps": 1},
            "evaluate": evaluate_section,
        }
    )


def frame(target: Tensor, *, wrong: int = 0) -> tuple[Tensor, Tensor]:
    """Return an image that is bright where the target is class 1, but for the first `wrong` such pixels."""
    bright = (target == 1).flatten()
    bright[bright.nonzero().flatten()[:wrong]] = False
    image = bright.reshape(target.shape).to(torch.uint8)[None].repeat(3, 1, 1) * 255
    return image, target.to(torch.uint8)


def run(items: list[tuple[Tensor, Tensor]], config: Config, **options: Any) -> Evaluation:
    model = options.pop("model", None) or ByBrightness()
    return evaluate(config, model=model, normalize=scaled, data=Items(items, config), **options)


LINE = torch.tensor([[0, 1, 0, 255]] * 5)


def test_counts_each_image_once_whatever_the_batch_size() -> None:
    items = [frame(LINE, wrong=index % 3) for index in range(5)]
    results = [run(items, config_of(batch_size=size)) for size in (1, 2, 5, 8)]
    assert {result.num_images for result in results} == {5}
    assert results[0].confusion.matrix.tolist() == [[50, 0, 0], [4, 21, 0], [0, 0, 0]]
    assert all(torch.equal(result.confusion.matrix, results[0].confusion.matrix) for result in results)


def test_score_of_a_rare_class_is_the_data_sets_not_the_mean_of_images() -> None:
    found = torch.zeros(4, 4, dtype=torch.int64)
    found[0, 0] = 1
    missed = torch.ones(4, 4, dtype=torch.int64)
    result = run([frame(found), frame(missed, wrong=16)], config_of())
    assert result.scores["iou/crack"] == pytest.approx(1 / 17)
    assert math.isnan(result.scores["iou/stain"])
    assert result.counted["miou"] == 2


def test_logits_are_brought_to_the_mask_and_mask_values_stay_what_they_are() -> None:
    # Masks larger, smaller and differently shaped than the image; values 0 and 2 would average to 1.
    target = torch.zeros(12, 10, dtype=torch.uint8)
    target[::2] = 2
    small = torch.full((3, 3), 2, dtype=torch.uint8)
    image = torch.zeros(3, 6, 8, dtype=torch.uint8)
    seen: list[Tensor] = []
    result = run(
        [(image, target), (image, small)],
        config_of(),
        on_image=lambda index, shown, mask, prediction: seen.extend([mask, prediction]),
    )
    assert torch.equal(seen[0], target)
    assert [tuple(one.shape) for one in seen] == [(12, 10), (12, 10), (3, 3), (3, 3)]
    assert result.confusion.support.tolist() == [60, 0, 69]


def test_resized_logits_are_interpolated_before_the_argmax() -> None:
    image = torch.zeros(3, 1, 2, dtype=torch.uint8)
    image[:, :, 1] = 255
    predictions: list[Tensor] = []
    target = torch.zeros(1, 8, dtype=torch.uint8)
    model = ByBrightness()
    model.threshold.data.fill_(0.2)
    run([(image, target)], config_of(), model=model, on_image=lambda *given: predictions.append(given[3]))
    # Bilinear: brightness passes 0.2 before the middle; a resized class map would switch at the middle.
    assert predictions[0].tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]]


def test_images_of_one_shape_share_a_forward_pass_and_order_is_kept() -> None:
    items = [frame(LINE), frame(LINE.T), frame(LINE), frame(LINE.T)]
    model, order = ByBrightness(), []
    run(items, config_of(batch_size=4), model=model, on_image=lambda index, *_: order.append(index))
    assert sorted(model.shapes) == [(2, 3, 4, 5), (2, 3, 5, 4)]
    assert order == [0, 1, 2, 3]


def test_tiles_give_the_same_numbers() -> None:
    items = [frame(LINE, wrong=2), frame(LINE)]
    tiled = run(items, config_of(tile={"size": [2, 3], "overlap": 0.5}))
    assert torch.equal(tiled.confusion.matrix, run(items, config_of()).confusion.matrix)


def test_loss_is_weighted_by_valid_pixels() -> None:
    class Share(nn.Module):
        """Share of valid pixels that are class 1."""

        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            assert logits.shape[2:] == target.shape[1:]
            return (target == 1).sum() / (target != 255).sum()

    ignored = torch.full((5, 4), 255)
    small, large = torch.ones(2, 2, dtype=torch.int64), torch.zeros(6, 6, dtype=torch.int64)
    frames = [frame(small), frame(large), frame(ignored)]
    assert run(frames, config_of(), loss=Share()).loss == pytest.approx(4 / 40)
    # tiles are for images whose logits do not fit on the device whole
    assert run(frames, config_of(tile={"size": [2, 2]}), loss=Share()).loss is None
    assert run([frame(small)], config_of()).loss is None
    nothing = run([frame(ignored)], config_of(), loss=Share()).loss
    assert nothing is not None
    assert math.isnan(nothing)


def test_every_module_gets_its_own_mode_back_even_after_an_error() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3))
    model.train()
    model[1].eval()

    def fail() -> None:
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [module.training for module in model.modules()] == [True, True, False]


def test_normalisation_statistics_do_not_move() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9))
    model.train()
    items = [frame(LINE)]
    first = run(items, config_of(), model=model)
    assert torch.equal(model[0].running_mean, torch.zeros(3))
    assert torch.equal(run(items, config_of(), model=model).confusion.matrix, first.confusion.matrix)


def test_no_tensors_pile_up_over_the_images() -> None:
    alive: dict[int, int] = {}

    def count(index: int, *_: object) -> None:
        if index in (5, 23):
            gc.collect()
            alive[index] = sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    run([frame(LINE)] * 24, config_of(batch_size=2), on_image=count)
    assert alive[23] <= alive[5]


def test_a_split_of_a_config_is_found_by_itself(tiny_config: Callable[..., Config], tiny_net: type[nn.Module]) -> None:
    result = evaluate(tiny_config(), model=tiny_net(), split="test")
    assert isinstance(result.confusion, ConfusionMatrix)
    assert (result.split, result.num_images) == ("test", 2)
    assert result.class_names == ("background", "block", "dot")
