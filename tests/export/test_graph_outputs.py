"""Exported graphs, pt2 and ONNX: what they answer for images of any size is what the run's predictor answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segtrain.config import Config
from segtrain.data import ClassFrequencies
from segtrain.data.steps import resize_image
from segtrain.engine.predict import Predictor
from segtrain.errors import CheckpointError
from segtrain.export import GraphOptions, Shapes, export_model
from segtrain.export.description import describe
from segtrain.export.graph import ServingGraph
from segtrain.export.onnx_file import PACKAGES, OnnxSession
from segtrain.export.parity import Reference, check_parity
from segtrain.export.pt2_file import Pt2Program
from segtrain.models import Normalize, SegmentationModel

ODD = [(1, 33, 47), (3, 33, 47), (1, 1, 1), (2, 8, 8), (1, 130, 9)]


@dataclass(frozen=True)
class Case:
    """A model in code, its settings, and what its images are."""

    config: Config
    model: nn.Module
    frequencies: ClassFrequencies
    images: list[NDArray[Any]]
    parts: tuple[str, ...] = ("preprocess", "postprocess", "probabilities", "logits")
    shapes: Shapes = field(default_factory=Shapes)

    def predictor(self) -> Predictor:
        """Return the engine's predictor, in float32."""
        norm = self.config.data.normalize
        normalize = Normalize(norm.mean, norm.std)
        return Predictor.from_config(
            self.config, model=self.model, normalize=normalize, frequencies=self.frequencies, thresholds=None
        )

    def export(self, out: Path) -> None:
        """Write the file that `out` names the format of."""
        export_model(
            self.config,
            model=self.model,
            images=self.images,
            format=out.suffix[1:],
            out=out,
            options=GraphOptions(parts=self.parts, shapes=self.shapes),
            frequencies=self.frequencies,
        )

    def draw(self, shape: tuple[int, int, int]) -> Tensor:
        """Return images [N, C, H, W] of the type of the case."""
        count, height, width = shape
        generator = np.random.default_rng(height)
        values = generator.integers(0, np.iinfo(self.images[0].dtype).max, (count, height, width, 3), endpoint=True)
        channels = np.concatenate([values, values[..., :1] // 2], axis=-1)[..., : self.images[0].shape[2]]
        return torch.from_numpy(channels.astype(self.images[0].dtype)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def cases(
    plain_config: Callable[..., Config],
    coarse_model: Callable[..., SegmentationModel],
    two_heads: nn.Module,
    frequencies: Callable[..., ClassFrequencies],
    scenes: Callable[..., list[NDArray[Any]]],
) -> dict[str, Case]:
    """All kinds of models, by name."""
    bands = {"normalize": {"mean": [0.2, 0.3, 0.4, 0.5], "std": [0.2, 0.3, 0.2, 0.3]}}
    labels = {"classes": ["crack", "rust"], "labels": "multi_label", "label_map": {0: "none", 1: "crack"}, **bands}
    return {
        "prior, fused, uint16": Case(
            plain_config(evaluate={"prior_tau": 1.0}),
            coarse_model(fused=True),
            frequencies(),
            scenes(dtype=np.uint16),
        ),
        "multi_label": Case(
            plain_config(data=labels, model={"in_channels": 4}, evaluate={"threshold": {"crack": 0.9, "rust": 0.2}}),
            coarse_model(in_channels=4, num_classes=2),
            frequencies(2, several=True),
            scenes(4),
        ),
        "binary": Case(
            plain_config(data={"classes": ["crack"]}, evaluate={"threshold": 0.3}),
            coarse_model(num_classes=1),
            frequencies(1, several=True),
            scenes(),
        ),
        "two_heads": Case(plain_config(), two_heads, frequencies(), scenes()),
        "resized": Case(plain_config(data={"input_size": [24, 36]}), coarse_model(), frequencies(), scenes()),
        "fixed": Case(
            plain_config(evaluate={"prior_tau": 1.0}),
            coarse_model(),
            frequencies(),
            scenes(),
            parts=("postprocess",),
            shapes=Shapes(2, (30, 21)),
        ),
    }


Outputs = Callable[[Tensor], Mapping[str, Tensor]]


@pytest.fixture(scope="module")
def exported(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Outputs]:
    """The exported file of a case, made once."""
    folder, made = tmp_path_factory.mktemp("graphs"), dict[tuple[str, str], Outputs]()

    def open_file(name: str, suffix: str) -> Outputs:
        if suffix == "onnx":
            for package in PACKAGES:
                pytest.importorskip(package, reason=f"{package} is not installed (extra onnx)")
        if (name, suffix) not in made:
            path = folder / f"{name}.{suffix}"
            cases[name].export(path)
            made[name, suffix] = OnnxSession(path) if suffix == "onnx" else Pt2Program(path)
        return made[name, suffix]

    return open_file


PT2 = [(name, "pt2") for name in ("prior, fused, uint16", "binary", "two_heads")]
ONNX = [("multi_label", "onnx")]


@pytest.mark.parametrize(("name", "suffix"), [*PT2, *ONNX])
def test_images_of_any_size_and_number_get_the_predictors_answer(
    name: str, suffix: str, cases: dict[str, Case], exported: Callable[[str, str], Outputs]
) -> None:
    case, outputs = cases[name], exported(name, suffix)
    predictor = case.predictor()
    for shape in ODD:
        images = case.draw(shape)
        found, logits = outputs(images), predictor.logits(images)
        assert found["prediction"].dtype == torch.uint8
        assert torch.equal(found["prediction"], predictor.classes(images)), shape
        assert torch.allclose(found["logits"], logits, atol=1e-4, rtol=1e-5), shape
        wanted = logits.sigmoid() if case.config.data.multi_label else logits.softmax(dim=1)
        assert torch.allclose(found["probabilities"], wanted, atol=1e-5), shape


def test_what_decides_changes_the_answer(cases: dict[str, Case]) -> None:
    """Else the cases above would pass without prior shift, thresholds and first head."""
    prior, labels, binary = (cases[name] for name in ("prior, fused, uint16", "multi_label", "binary"))
    images = prior.draw((1, 33, 47))
    assert not torch.equal(prior.predictor().classes(images), prior.predictor().logits(images).argmax(1).byte())
    for case in (labels, binary):
        images = case.draw((1, 33, 47))
        found = case.predictor().classes(images)
        assert 0 < found.float().mean() < 1
        assert not torch.equal(found, (case.predictor().logits(images) >= 0).byte())


def test_images_are_resized_in_the_graph_as_opencv_does_and_answered_at_their_own_size(
    cases: dict[str, Case], exported: Callable[[str, str], Outputs]
) -> None:
    case, outputs = cases["resized"], exported("resized", "onnx")
    size = case.config.data.input_size
    assert size is not None
    for shape in [(2, 48, 72), (1, 33, 47), (1, 20, 90), (1, 1, 1)]:
        images = case.draw(shape)
        arrays = [resize_image(image.permute(1, 2, 0).numpy(), size) for image in images]
        stacked = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
        wanted = case.predictor().classes(stacked, size=shape[1:])
        found = outputs(images)["prediction"]
        assert found.shape == images[:, 0].shape
        assert (found == wanted).float().mean() > 0.98, shape


def test_without_preprocessing_normalised_floats_come_in_and_fixed_shapes_are_fixed(
    cases: dict[str, Case], exported: Callable[[str, str], Outputs]
) -> None:
    case, outputs = cases["fixed"], exported("fixed", "pt2")
    images = case.draw((2, 30, 21))
    found = outputs(case.predictor().normalize(images))
    assert torch.equal(found["prediction"], case.predictor().classes(images))
    other = case.predictor().normalize(case.draw((2, 31, 21)))
    with pytest.raises(Exception, match=r"size\(\)\[2\] == 30"):
        outputs(other)


def test_the_axes_of_an_onnx_file_that_may_have_any_length_are_named(exported: Callable[[str, str], Outputs]) -> None:
    session = exported("multi_label", "onnx")
    assert isinstance(session, OnnxSession)
    assert session.input_shape() == ["batch", 4, "height", "width"]


def test_a_changed_weight_of_an_onnx_file_is_found(
    exported: Callable[[str, str], Outputs], cases: dict[str, Case]
) -> None:
    whole, case = exported("multi_label", "onnx"), cases["multi_label"]
    onnx = pytest.importorskip("onnx")
    assert isinstance(whole, OnnxSession)
    assert isinstance(whole.source, Path)
    about = describe(case.config, case.predictor(), step=1, pixels=(), checkpoint={}, in_code=True)
    reference = Reference(case.predictor(), ServingGraph(case.predictor(), about, case.parts).eval(), about)
    check_parity(whole, whole, reference, case.images, shapes=Shapes(), place="file")
    model = onnx.load(whole.source)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("segmentation_head.weight"))
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.1), weight.name))
    changed = OnnxSession(model.SerializeToString())
    with pytest.raises(CheckpointError, match="file would not do what the run does"):
        check_parity(changed, changed, reference, case.images, shapes=Shapes(), place="file")
