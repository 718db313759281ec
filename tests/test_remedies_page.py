"""The page on remedies: every block of configuration is valid, every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from segtrain.config import parse_config
from segtrain.data import ClassFrequencies
from segtrain.losses import build_loss

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "remedies.md"
TEXT = PAGE.read_text(encoding="utf-8")
CLASSES = ["background", "plate", "crack"]  # which the page says that its blocks are for
HEADINGS = re.findall(r"^#+ (.*)$", TEXT, flags=re.MULTILINE)
BLOCKS = {
    f"{number} {re.findall(r'^#+ (.*)$', TEXT[: match.start()], flags=re.MULTILINE)[-1]}": match[1]
    for number, match in enumerate(re.finditer(r"^```yaml\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL))
}


def _config(block: str) -> Any:
    minimal: dict[str, Any] = {
        "name": "page",
        "data": {"root": "data/page", "classes": CLASSES},
        "train": {"epochs": 100},
    }
    given = YAML(typ="safe").load(block)
    return parse_config({**minimal, **given, "data": {**minimal["data"], **given.get("data", {})}})


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_each_block_is_a_valid_configuration_whose_loss_can_be_built(block: str) -> None:
    config = _config(block)
    frequencies = ClassFrequencies.from_counts(np.array([[900, 90, 10, 0], [950, 50, 0, 0]]))
    counted = {"frequencies": frequencies, "realised": frequencies}
    loss = build_loss(config.loss, num_classes=len(CLASSES), class_names=CLASSES, **counted)
    assert isinstance(loss, torch.nn.Module)


def test_every_remedy_says_its_paper_or_formula_and_when_to_use_it() -> None:
    sections = re.split(r"^#### ", TEXT, flags=re.MULTILINE)[1:]
    assert len(sections) > 20
    for section in sections:
        name = section.partition("\n")[0]
        assert "```yaml" in section, name
        assert re.search(r"\bUse\s+(it|them|either|the pair)\b", section), name
        assert re.search(r"\b[Nn]ot\b|[Nn]o remedy|both\s+together\s+bring\s+nothing", section), name


def test_every_link_leads_to_a_file_or_a_heading() -> None:
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADINGS}
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert links
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors, link
        else:
            assert (PAGE.parent / link).is_file(), link


def test_the_remedies_that_were_run_are_on_the_page() -> None:
    for path in sorted((REPOSITORY / "configs" / "remedies").glob("*.yaml")):
        assert f"(../configs/remedies/{path.name})" in TEXT
