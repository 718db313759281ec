"""Two ranks see one batch: each gets the loss of the whole batch, and DDP's mean is its exact gradient.

Run as a script (`python test_two_ranks.py RANK FOLDER`) this file is one of the ranks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from segtrain.data import ClassFrequencies
from segtrain.distributed import all_reduce_sum, world_size
from segtrain.losses import SegmentationLoss, build_loss

SECONDS = 60
NUM_CLASSES, IGNORED = 4, 255
WEIGHTS = {"scheme": "manual", "weights": [0.5, 1.0, 3.0, 7.0]}


def loss_of(*terms: dict[str, Any], **shared: Any) -> dict[str, Any]:
    return {"terms": list(terms), **shared}


CE, FOCAL, DICE = {"name": "cross_entropy"}, {"name": "focal"}, {"name": "dice"}
EXACT = {
    "cross_entropy": loss_of(CE),
    "cross_entropy, weighted": loss_of(CE, class_weights=WEIGHTS, reduction="weighted"),
    "cross_entropy, valid": loss_of(CE, class_weights=WEIGHTS),
    "label smoothing": loss_of({**CE, "label_smoothing": 0.1}, class_weights=WEIGHTS, reduction="weighted"),
    "focal": loss_of(FOCAL),
    "focal, gamma by class": loss_of({**FOCAL, "gamma": [0.0, 0.5, 2.0, 3.0]}, class_weights=WEIGHTS),
    "balanced softmax": loss_of(CE, prior={"tau": 1.0}),
    "margin": loss_of(CE, margin={"scale": 2.0}),
    "dice": loss_of(DICE),
    "dice per image": loss_of({**DICE, "per": "image", "smooth": 1.0}),
    "dice, squared, weighted": loss_of({**DICE, "squared": True, "class_weights": True}, class_weights=WEIGHTS),
    "dice, absent classes counted": loss_of({**DICE, "absent_classes": "count"}),
    "jaccard": loss_of({"name": "jaccard"}),
    "tversky": loss_of({"name": "tversky"}),
    "tversky per image": loss_of({"name": "tversky", "per": "image"}),
    "focal_tversky": loss_of({"name": "focal_tversky"}),
    "generalized_dice": loss_of({"name": "generalized_dice"}),
    "generalized_dice per image": loss_of({"name": "generalized_dice", "per": "image"}),
    "lovasz per image": loss_of({"name": "lovasz", "per": "image"}),
    "boundary": loss_of(DICE, {"name": "boundary"}),
    "cl_dice": loss_of({"name": "cl_dice", "classes": [1, 3]}),
    "cl_dice per image": loss_of({"name": "cl_dice", "per": "image"}),
    "distillation": loss_of(CE, {"name": "distillation", "teacher": "given in code", "temperature": 3.0}),
    "auxiliary heads": loss_of(CE, DICE, auxiliary={"weights": [1.0, 0.4]}),
    "auxiliary heads, small targets": loss_of(CE, DICE, auxiliary={"weights": [1.0, 0.4], "resize": "target"}),
    "sigmoid": loss_of(CE, FOCAL, DICE, activation="sigmoid", class_weights=WEIGHTS),
    "sigmoid, balanced": loss_of({"name": "balanced_cross_entropy"}, activation="sigmoid"),
    "sigmoid, balanced per image": loss_of({"name": "balanced_cross_entropy", "per": "image"}, activation="sigmoid"),
    "all together": loss_of(
        CE, {**FOCAL, "weight": 2.0}, DICE, {"name": "tversky", "per": "image"}, class_weights=WEIGHTS
    ),
}
INEXACT = {
    "mining": loss_of(CE, DICE, ohem={"top_k": 0.3}),
    "lovasz": loss_of({"name": "lovasz"}),
}
# images on each rank, and whether the second rank has any valid pixel
LAYOUTS = {"even": ((2, 2), True), "uneven": ((3, 1), True), "nothing on one rank": ((2, 2), False)}


class TwoHeads(nn.Module):
    """Two convolutions without BatchNorm; a second head at half the size where it is wanted."""

    def __init__(self, *, heads: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Conv2d(3, 6, 3, padding=1)
        self.heads = nn.ModuleList(nn.Conv2d(6, NUM_CLASSES, 1) for _ in range(heads))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4, generator=generator)
        self.double()

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        features = torch.tanh(self.body(images))
        main = self.heads[0](features)
        if len(self.heads) == 1:
            return main
        return [main, self.heads[1](nn.functional.avg_pool2d(features, 2))]


def whole_batch(*, second_rank_valid: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Images, targets and teacher logits of four images; ignored pixels and classes differ between the ranks."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 12, 10, generator=generator, dtype=torch.float64)
    target = torch.randint(0, NUM_CLASSES, (4, 12, 10), generator=generator)
    target[2:][target[2:] == 3] = 0  # class 3 on the first rank alone
    target[0, :7] = IGNORED
    target[3, :, 8:] = IGNORED
    if not second_rank_valid:
        target[2:] = IGNORED
    teacher = torch.randn(4, NUM_CLASSES, 12, 10, generator=generator, dtype=torch.float64)
    return images, target, teacher


def build(section: dict[str, Any]) -> SegmentationLoss:
    target = whole_batch(second_rank_valid=True)[1]
    frequencies = ClassFrequencies.from_targets(list(target.numpy()), num_classes=NUM_CLASSES, ignore_index=IGNORED)
    return build_loss(section, num_classes=NUM_CLASSES, ignore_index=IGNORED, frequencies=frequencies)


def more(loss: SegmentationLoss, teacher: Tensor) -> dict[str, Tensor]:
    return {"teacher_logits": teacher} if loss.needs_teacher else {}


def gradients(
    model: nn.Module, loss: SegmentationLoss, batch: tuple[Tensor, ...], **hooks: Any
) -> tuple[Tensor, float]:
    """Return the flat gradient of the model's parameters, and the loss."""
    images, target, teacher = batch
    value = loss(model(images), target, **more(loss, teacher), **hooks)
    value.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]), float(value.detach())


def compare(rank: int, section: dict[str, Any], layout: str) -> dict[str, float]:
    """Return how far this rank's gradient and loss are from those of one process that sees the whole batch."""
    (first, second), valid = LAYOUTS[layout]
    batch = whole_batch(second_rank_valid=valid)
    own = slice(0, first) if rank == 0 else slice(first, first + second)
    heads = len(section.get("auxiliary", {"weights": [1.0]})["weights"])
    loss = build(section)
    expected, whole = gradients(TwoHeads(heads=heads), loss, batch)
    model = DistributedDataParallel(TwoHeads(heads=heads))
    found, value = gradients(model, loss, tuple(part[own] for part in batch), reduce=all_reduce_sum)
    return {
        "gradient": float((found - expected).abs().max()),
        "loss": abs(value - whole),
        "size": float(expected.norm()),
    }


def accumulate(rank: int, section: dict[str, Any], *, two_passes: bool) -> dict[str, float]:
    """Return the same for two micro-batches of one image on each rank: with the rest of the window, or counts of it."""
    batch = whole_batch(second_rank_valid=True)
    window = [tuple(part[index : index + 1] for part in batch) for index in (2 * rank, 2 * rank + 1)]
    heads = len(section.get("auxiliary", {"weights": [1.0]})["weights"])
    loss = build(section)
    expected, whole = gradients(TwoHeads(heads=heads), loss, batch)
    model = DistributedDataParallel(TwoHeads(heads=heads))
    if two_passes:
        with torch.no_grad():
            statistics = [
                loss.statistics(model(images), target, **more(loss, teacher)) for images, target, teacher in window
            ]
        hooks = [{"rest": statistics[1]}, {"rest": statistics[0]}]
    else:
        hooks = [{"normalizer": loss.normalizer([micro[1] for micro in window]).reduced(all_reduce_sum)}] * 2
    with model.no_sync():
        _, first = gradients(model, loss, window[0], reduce=all_reduce_sum, **hooks[0])
    found, second = gradients(model, loss, window[1], reduce=all_reduce_sum, **hooks[1])
    value = second if two_passes else first + second
    return {
        "gradient": float((found - expected).abs().max()),
        "loss": abs(value - whole),
        "size": float(expected.norm()),
    }


def work(rank: int, folder: Path) -> None:
    """Be one of the two ranks; write what `compare` found for every case."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2, timeout=timedelta(seconds=SECONDS)
    )
    assert world_size() == 2
    values = torch.full((3,), float(rank + 1), dtype=torch.float64, requires_grad=True)
    summed = all_reduce_sum(values)
    (summed.sum() * (rank + 1)).backward()
    found: dict[str, Any] = {"sum": summed.tolist(), "sum_gradient": values.grad.tolist(), "before": values.tolist()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, section in (EXACT | INEXACT).items():
            for layout in LAYOUTS:
                found[f"{name} | {layout}"] = compare(rank, section, layout)
        for name, section in EXACT.items():
            found[f"{name} | two passes"] = accumulate(rank, section, two_passes=True)
            if build(section).inexact_under_accumulation is None:
                found[f"{name} | one pass"] = accumulate(rank, section, two_passes=False)
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=2 * SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(told)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


pytestmark = pytest.mark.distributed


def test_the_sum_and_its_gradient_are_those_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    assert [rank["sum"] for rank in ranks] == [[3.0] * 3] * 2
    assert [rank["sum_gradient"] for rank in ranks] == [[3.0] * 3] * 2
    assert [rank["before"] for rank in ranks] == [[1.0] * 3, [2.0] * 3]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", EXACT)
def test_gradient_and_loss_are_those_of_the_whole_batch(ranks: list[dict[str, Any]], name: str, layout: str) -> None:
    for rank in ranks:
        found = rank[f"{name} | {layout}"]
        assert found["gradient"] < 1e-12
        assert found["loss"] < 1e-12
        assert found["size"] > 1e-3


@pytest.mark.parametrize("name", EXACT)
def test_windows_of_micro_batches_are_exact_over_ranks_too(ranks: list[dict[str, Any]], name: str) -> None:
    for rank in ranks:
        found = [rank[key] for key in (f"{name} | two passes", f"{name} | one pass") if key in rank]
        assert found
        assert max(max(one["gradient"], one["loss"]) for one in found) < 1e-12


@pytest.mark.parametrize("name", EXACT)
def test_what_is_exact_says_nothing_else(name: str) -> None:
    assert build(EXACT[name]).inexact_with_rest is None


@pytest.mark.parametrize("name", INEXACT)
def test_what_differs_between_ranks_is_said_by_the_loss(ranks: list[dict[str, Any]], name: str) -> None:
    assert build(INEXACT[name]).inexact_with_rest
    found = [rank[f"{name} | even"] for rank in ranks]
    assert min(one["gradient"] for one in found) > 1e-6
    assert abs(found[0]["loss"] - found[1]["loss"]) < 1e-12


def test_without_a_group_the_sum_is_the_tensor_itself() -> None:
    values = torch.ones(3, requires_grad=True)
    assert world_size() == 1
    assert all_reduce_sum(values) is values


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
