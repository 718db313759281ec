"""The parity check: a file that would not do what the run does is refused and removed, whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from segtrain.config import Config
from segtrain.data.steps import resize_image
from segtrain.engine.predict import Predictor
from segtrain.errors import CheckpointError, ConfigError
from segtrain.export import GraphOptions, export_model, pt2_file, shipping
from segtrain.export.description import describe
from segtrain.export.graph import ServingGraph, check_parts
from segtrain.export.parity import ODD_SIZES, Reference, batches, check_parity
from segtrain.export.program import Shapes
from segtrain.export.resize import resize
from segtrain.models import Normalize, SegmentationModel

Scenes = Callable[..., list[NDArray[Any]]]


@pytest.fixture
def reference(plain_config: Callable[..., Config], coarse_model: Callable[..., SegmentationModel]) -> Reference:
    """A model with its graph, not exported."""
    config, norm = plain_config(), plain_config().data.normalize
    predictor = Predictor(coarse_model(), Normalize(norm.mean, norm.std))
    about = describe(config, predictor, step=1, pixels=(), checkpoint={}, in_code=True)
    return Reference(predictor, ServingGraph(predictor, about, check_parts(["preprocess", "postprocess"])), about)


@torch.no_grad()
def test_the_graph_itself_is_in_parity_on_images_crops_and_a_batch(reference: Reference, scenes: Scenes) -> None:
    graph = reference.graph
    parity = check_parity(graph, graph, reference, scenes(), shapes=Shapes(), place="file")
    assert (parity.agreement, parity.max_difference, parity.own_agreement) == (1.0, 0.0, None)
    assert parity.num_images == 3
    assert [size for size in parity.sizes if size[0] == 1] == [
        *((1, *image.shape[:2]) for image in scenes()),
        *((1, *size) for size in ODD_SIZES),
    ]
    assert parity.sizes[-1][0] == 3


def _shifted(outputs: dict[str, Tensor], by: float) -> dict[str, Tensor]:
    return {**outputs, "logits": outputs["logits"] + by}


@pytest.mark.parametrize("by", [0.5, float("nan"), float("inf")])
@torch.no_grad()
def test_other_logits_are_refused_even_where_the_classes_agree(reference: Reference, scenes: Scenes, by: float) -> None:
    graph = reference.graph
    with pytest.raises(CheckpointError, match=r"file would not do what the run does, and was not kept: parity over 3"):
        check_parity(
            graph, lambda images: _shifted(graph(images), by), reference, scenes(), shapes=Shapes(), place="file"
        )


@torch.no_grad()
def test_other_classes_are_refused_even_where_the_logits_agree(reference: Reference, scenes: Scenes) -> None:
    graph = reference.graph

    def wrong(images: Tensor) -> dict[str, Tensor]:
        outputs = graph(images)
        outputs["prediction"][..., : images.shape[-1] // 8 + 1] += 1
        return dict(outputs)

    with pytest.raises(CheckpointError, match=r"\d % of the pixels get the same class; allowed are .* and 99.9 %"):
        check_parity(wrong, graph, reference, scenes(), shapes=Shapes(), place="file")


def test_fixed_shapes_are_what_is_tried(scenes: Scenes) -> None:
    tried = list(batches(scenes(), Shapes(batch=2, size=(30, 20))))
    assert {tuple(batch.shape) for batch in tried} == {(2, 3, 30, 20)}
    assert torch.equal(tried[0][0], torch.from_numpy(resize_image(scenes()[0], (30, 20))).permute(2, 0, 1))
    sizes = {tuple(batch.shape[2:]) for batch in batches(scenes(), Shapes(batch=2))}
    assert {*ODD_SIZES} < sizes


def test_a_changed_weight_is_found_and_the_file_removed_while_an_older_one_stays(
    plain_config: Callable[..., Config],
    two_heads: nn.Module,
    scenes: Scenes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = pt2_file.write_pt2

    def write_changed(program: ExportedProgram, path: Path, **options: Any) -> None:
        name = next(key for key in program.state_dict if key.endswith("main.weight"))
        program.state_dict[name] = nn.Parameter(program.state_dict[name] * 1.2)
        write(program, path, **options)

    monkeypatch.setattr(shipping, "write_pt2", write_changed)
    out = tmp_path / "model.pt2"
    out.write_bytes(b"an older one")
    with pytest.raises(CheckpointError, match="would not do what the run does"):
        export_model(plain_config(), model=two_heads, images=scenes(), format="pt2", out=out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert out.read_bytes() == b"an older one"


def test_images_of_several_types_are_refused(
    plain_config: Callable[..., Config], two_heads: nn.Module, scenes: Scenes, tmp_path: Path
) -> None:
    mixed = [*scenes(), *scenes(dtype=np.uint16)]
    with pytest.raises(ConfigError, match=r"several kinds .uint16 with 3 channels and uint8 with 3 channels"):
        export_model(plain_config(), model=two_heads, images=mixed, format="pt2", out=tmp_path / "model.pt2")


@pytest.mark.parametrize("shape", [(48, 64), (33, 47), (24, 90), (24, 32), (25, 31), (7, 9), (1, 1), (24, 100)])
def test_resizing_in_a_graph_is_opencvs_to_a_grey_value(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = resize(torch.from_numpy(image).permute(2, 0, 1)[None], (24, 32))[0].permute(1, 2, 0).numpy()
    wanted = resize_image(image, (24, 32)).astype(np.float32)
    assert np.abs(found - wanted).max() <= 1
    assert np.abs(found - wanted).mean() < 0.2


def test_unknown_and_doubled_parts_are_refused() -> None:
    assert check_parts(["preprocess"]) == ("preprocess", "logits")
    assert check_parts(["postprocess", "preprocess"]) == ("preprocess", "postprocess")
    with pytest.raises(ConfigError, match="did you mean 'postprocess'"):
        check_parts(["postproces"])
    with pytest.raises(ConfigError, match="twice"):
        check_parts(["logits", "logits"])


def test_a_graph_option_of_onnx_is_refused_for_pt2(
    plain_config: Callable[..., Config], two_heads: nn.Module, scenes: Scenes, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--opset is of ONNX"):
        export_model(
            plain_config(),
            model=two_heads,
            images=scenes(),
            format="pt2",
            out=tmp_path / "model.pt2",
            options=GraphOptions(opset=18),
        )
