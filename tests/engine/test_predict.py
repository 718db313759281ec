"""Tiles leave no seam, hold no whole image of logits, and predictions keep the size that was asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from segtrain.config.schema import TileConfig
from segtrain.engine.predict import Predictor, predict_logits, resize_logits


def scaled(images: Tensor) -> Tensor:
    return images.float() / 255


class Recorder(nn.Module):
    """A 1x1 convolution that remembers the shapes it has seen."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, num_classes, 1)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        logits: Tensor = self.conv(images)
        return logits


def images_of(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("size", [(16, 16), (7, 20), (100, 100)])
def test_tiled_equals_untiled_where_each_position_stands_alone(overlap: float, size: tuple[int, int]) -> None:
    model, images = Recorder(), images_of(2, 3, 37, 53)
    tile = TileConfig(size=size, overlap=overlap)
    tiled = predict_logits(model, scaled, images, tile=tile)
    assert tiled.shape == (2, 3, 37, 53)
    torch.testing.assert_close(tiled, predict_logits(model, scaled, images), atol=1e-5, rtol=0)
    predictor = Predictor(model, scaled, tile)
    assert torch.equal(predictor.classes(images).long(), predict_logits(model, scaled, images).argmax(dim=1))


def test_blending_is_smooth_across_tiles_that_disagree() -> None:
    class Disagrees(Recorder):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * 0 + len(self.shapes)

    tile = TileConfig(size=(8, 32), overlap=0.5)
    logits = predict_logits(Disagrees(), scaled, images_of(1, 3, 8, 64), tile=tile, batch_size=1)[0, 0, 0]
    assert logits[0] == pytest.approx(1)
    assert logits[-1] == pytest.approx(3)
    assert float(logits.diff().abs().max()) < 0.15
    assert float(logits.diff().min()) > -1e-5


def test_a_batch_of_tiles_is_all_that_passes_at_once() -> None:
    model = Recorder()
    predict_logits(model, scaled, images_of(1, 3, 50, 40), tile=TileConfig(size=(16, 16), overlap=0.25), batch_size=4)
    assert all(count <= 4 and (height, width) == (16, 16) for count, _, height, width in model.shapes)
    assert len(model.shapes) > 1


def test_bands_hold_no_more_than_a_tile_row_of_logits() -> None:
    predictor = Predictor(Recorder(), scaled, TileConfig(size=(16, 16), overlap=0.25), batch_size=3)
    bands = list(predictor.bands(images_of(3, 100, 40)))
    assert max(band.shape[1] for _, band in bands) <= 16
    assert [top for top, _ in bands][1:] == torch.tensor([band.shape[1] for _, band in bands]).cumsum(0).tolist()[:-1]
    assert sum(band.shape[1] for _, band in bands) == 100


def test_images_smaller_than_the_tile_are_not_padded() -> None:
    model = Recorder()
    predict_logits(model, scaled, images_of(1, 3, 5, 9), tile=TileConfig(size=(64, 8)))
    assert {shape[2:] for shape in model.shapes} == {(5, 8)}


def test_classes_come_at_the_size_asked_for_through_the_logits() -> None:
    model, images = Recorder(), images_of(2, 3, 8, 8)
    for tile in (None, TileConfig(size=(4, 4))):
        found = Predictor(model, scaled, tile).classes(images, size=(19, 11))
        expected = resize_logits(predict_logits(model, scaled, images), (19, 11)).argmax(dim=1)
        assert torch.equal(found.long(), expected)


def test_uint16_images_are_cut_into_tiles_too() -> None:
    images = images_of(1, 3, 20, 20).to(torch.uint16)
    whole = predict_logits(Recorder(), scaled, images)
    torch.testing.assert_close(predict_logits(Recorder(), scaled, images, tile=TileConfig(size=(8, 8))), whole)


def test_lower_precision_answers_float32() -> None:
    logits = predict_logits(Recorder(), scaled, images_of(1, 3, 8, 8), precision="bf16")
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, predict_logits(Recorder(), scaled, images_of(1, 3, 8, 8)), atol=0.02, rtol=0)
    assert not torch.equal(logits, predict_logits(Recorder(), scaled, images_of(1, 3, 8, 8)))


def test_a_model_that_answers_at_another_size_is_refused() -> None:
    model = nn.Conv2d(3, 2, 2, stride=2)
    with pytest.raises(ValueError, match="at the size of the images"):
        predict_logits(model, scaled, images_of(1, 3, 8, 8))


def test_more_than_256_classes_fit() -> None:
    predictor = Predictor(Recorder(300), scaled, TileConfig(size=(4, 4)))
    assert predictor.classes(images_of(1, 3, 6, 6)).dtype == torch.int16


def test_predictor_follows_the_config() -> None:
    tile = TileConfig(size=(4, 4))
    config = SimpleNamespace(
        evaluate=SimpleNamespace(tile=tile, batch_size=3, prior_tau=None),
        train=SimpleNamespace(precision="bf16", channels_last=True),
        data=SimpleNamespace(multi_label=False),
    )
    predictor = Predictor.from_config(config, model=Recorder(), normalize=scaled)  # type: ignore[arg-type]
    assert (predictor.tile, predictor.batch_size) == (tile, 3)
    assert (predictor.precision, predictor.channels_last) == ("bf16", True)
