"""Class weights: each scheme's formula, power, cap, normalisation, absent classes, manual weights."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from segtrain.config.loss import ClassWeightsConfig
from segtrain.errors import ConfigError
from segtrain.losses.weights import SCHEMES, class_weights

NAMES = ["road", "car", "pole", "sign"]


def weights(frequencies: SimpleNamespace | None, **config: Any) -> NDArray[np.float64]:
    section = ClassWeightsConfig(**config)
    num_classes = 4 if frequencies is None else len(frequencies.pixels)
    result = class_weights(section, num_classes=num_classes, frequencies=frequencies, class_names=NAMES[:num_classes])
    assert result is not None
    return result.numpy()


def normalised(raw: NDArray[np.float64], pixels: NDArray[np.int64]) -> NDArray[np.float64]:
    return raw / (raw * pixels / pixels.sum()).sum()


def test_the_schema_names_exactly_the_schemes_that_exist() -> None:
    names = get_args(ClassWeightsConfig.model_fields["scheme"].annotation)
    assert set(names) == {"none", "manual", *SCHEMES}


def test_scheme_none_has_no_weights(frequencies: SimpleNamespace) -> None:
    assert class_weights(ClassWeightsConfig(scheme="none"), num_classes=4, frequencies=frequencies) is None


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_mean_weight_over_the_pixels_of_the_data_is_one(frequencies: SimpleNamespace, scheme: str) -> None:
    shares = frequencies.pixels / frequencies.pixels.sum()
    for extra in ({}, {"power": 0.5}, {"max_ratio": 3.0}, {"power": 2.0, "max_ratio": 5.0}):
        assert (weights(frequencies, scheme=scheme, **extra) * shares).sum() == pytest.approx(1, rel=1e-12)


def test_each_scheme_is_its_formula(frequencies: SimpleNamespace) -> None:
    pixels = frequencies.pixels
    shares = pixels / pixels.sum()
    within = pixels / frequencies.image_pixels
    counts = frequencies.images
    beta = 1 - 1 / np.median(counts)
    expected = {
        "inverse": 1 / shares,
        "sqrt_inverse": shares**-0.5,
        "median_frequency": np.median(within) / within,
        "enet": 1 / np.log(1.02 + shares),
        "effective_number": (1 - beta) / (1 - beta**counts),
    }
    assert set(expected) == set(SCHEMES)
    for scheme, raw in expected.items():
        np.testing.assert_allclose(weights(frequencies, scheme=scheme), normalised(raw, pixels), rtol=1e-12)


def test_inverse_weights_give_every_class_the_same_part_of_the_loss(frequencies: SimpleNamespace) -> None:
    parts = weights(frequencies, scheme="inverse") * frequencies.pixels
    np.testing.assert_allclose(parts, parts[0])


def test_median_frequency_of_identical_images_is_median_over_share(frequencies: SimpleNamespace) -> None:
    frequencies.image_pixels = np.full(4, 10000)
    shares = frequencies.pixels / 10000
    raw = np.median(shares) / shares
    np.testing.assert_allclose(
        weights(frequencies, scheme="median_frequency"), normalised(raw, frequencies.pixels), rtol=1e-12
    )


def test_effective_number_goes_from_uniform_to_inverse(frequencies: SimpleNamespace) -> None:
    uniform = weights(frequencies, scheme="effective_number", beta=0.0, count="pixels")
    np.testing.assert_allclose(uniform, 1)
    nearly_one = weights(frequencies, scheme="effective_number", beta=1 - 1e-12, count="pixels")
    np.testing.assert_allclose(nearly_one, weights(frequencies, scheme="inverse"), rtol=1e-6)


def test_effective_number_does_not_saturate_on_pixel_counts_by_default(frequencies: SimpleNamespace) -> None:
    frequencies.pixels = frequencies.pixels * 10**6
    saturated = weights(frequencies, scheme="effective_number", beta=0.9999, count="pixels")
    np.testing.assert_allclose(saturated, 1, rtol=1e-9)
    automatic = weights(frequencies, scheme="effective_number", count="pixels")
    assert automatic[3] > 5 * automatic[0]


def test_power_tempers_the_raw_weights(frequencies: SimpleNamespace) -> None:
    tempered = weights(frequencies, scheme="inverse", power=0.5)
    np.testing.assert_allclose(tempered, weights(frequencies, scheme="sqrt_inverse"), rtol=1e-12)


def test_max_ratio_cuts_the_high_weights_and_keeps_the_proportions_of_the_low(frequencies: SimpleNamespace) -> None:
    free = weights(frequencies, scheme="inverse", power=0.8)
    capped = weights(frequencies, scheme="inverse", power=0.8, max_ratio=20.0)
    assert capped.max() / capped.min() == pytest.approx(20)
    assert capped[1] / capped[0] == pytest.approx(free[1] / free[0])
    assert capped[2] == pytest.approx(capped[3])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_absent_classes_get_weight_zero_and_are_named(frequencies: SimpleNamespace, scheme: str) -> None:
    for counts in (frequencies.pixels, frequencies.images, frequencies.image_pixels):
        counts[2] = 0
    with pytest.warns(UserWarning, match=r"^no training pixel of pole: class weight 0, .* not to predict it\."):
        result = weights(frequencies, scheme=scheme)
    assert result[2] == 0
    assert np.isfinite(result).all()
    present = SimpleNamespace(
        pixels=frequencies.pixels[[0, 1, 3]],
        images=frequencies.images[[0, 1, 3]],
        image_pixels=frequencies.image_pixels[[0, 1, 3]],
    )
    np.testing.assert_allclose(result[[0, 1, 3]], weights(present, scheme=scheme), rtol=1e-12)


def test_data_without_a_labelled_pixel_is_refused(frequencies: SimpleNamespace) -> None:
    frequencies.pixels[:] = 0
    with pytest.raises(ConfigError, match="not one labelled pixel"):
        weights(frequencies, scheme="inverse")


def test_missing_frequencies_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"median_frequency needs the class frequencies.*scan_frequencies"):
        weights(None, scheme="median_frequency")


def test_manual_weights_stand_as_given() -> None:
    given = (0.5, 1.0, 0.0, 30.0)
    assert weights(None, scheme="manual", weights=given).tolist() == list(given)
    by_name = {"sign": 30.0, "road": 0.5, "car": 1.0, "pole": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert weights(None, scheme="manual", weights=by_name).tolist() == list(given)


@pytest.mark.parametrize("weights", [[0.0, 0.0], {"a": 0.0, "b": 0.0}])
def test_manual_weights_that_switch_everything_off_are_refused(weights: object) -> None:
    with pytest.raises(ValidationError, match="weights are all 0, so nothing would be learnt"):
        ClassWeightsConfig.model_validate({"scheme": "manual", "weights": weights})


def test_a_wrong_number_of_manual_weights_is_an_error_with_the_class_order() -> None:
    with pytest.raises(ConfigError, match=r"3 weights.*4 classes.*road, car, pole, sign"):
        weights(None, scheme="manual", weights=(1.0, 2.0, 3.0))


def test_misspelt_and_missing_names_in_manual_weights_are_all_reported() -> None:
    with pytest.raises(ConfigError, match=r"unknown class 'rode'; did you mean 'road'\?; no weight for 'road', 'sign'"):
        weights(None, scheme="manual", weights={"rode": 1.0, "car": 1.0, "pole": 2.0})


def test_manual_weights_by_name_need_the_class_names() -> None:
    section = ClassWeightsConfig(scheme="manual", weights={"road": 1.0})
    with pytest.raises(ConfigError, match="class_names"):
        class_weights(section, num_classes=1)
