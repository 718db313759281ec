"""The drawn curves are the losses' own, and the command writes them as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segtrain.cli.main import main
from segtrain.report.loss_curves import curve_sections, label_curves

PROBABILITIES = np.array([0.01, 0.3, 0.5, 0.9, 0.99])


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_curves_are_those_of_the_papers(gamma: float) -> None:
    p, loss = PROBABILITIES, -np.log(PROBABILITIES)
    expected = {
        "cross entropy (γ = 0)": (loss, 1 - p),
        "cross entropy, weight 3": (3 * loss, 3 * (1 - p)),
        f"focal, γ = {gamma:g}": (
            (1 - p) ** gamma * loss,
            (1 - p) ** (gamma + 1) * (1 + gamma * p * loss / (1 - p)),  # Lin 2017, appendix B
        ),
    }
    sections = curve_sections([gamma], 3.0)
    assert list(sections) == list(expected)
    for name, section in sections.items():
        np.testing.assert_allclose(label_curves(section, p), expected[name], rtol=1e-9)


def test_the_command_draws_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures" / "curves.png"
    assert main(["curves", "--gamma", "1", "--weight", "2", "--out", str(out)]) == 0
    with Image.open(out) as picture:
        assert picture.size[0] > 800
    assert main(["curves", "--gamma", "-1"]) == 2
    assert "expected a number of at least 0, found '-1'" in capsys.readouterr().err
