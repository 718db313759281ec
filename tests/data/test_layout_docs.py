"""Every example of data/README.md is a data section that is accepted, and every layout has one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import segtrain
from segtrain.config.data import DataConfig
from segtrain.data.formats import FORMATS

README = Path(segtrain.__file__).parent.parent / "data/README.md"
EXAMPLES = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_is_accepted(number: int) -> None:
    DataConfig.model_validate(YAML(typ="safe").load(EXAMPLES[number])["data"])


def test_every_layout_has_an_example() -> None:
    shown = {YAML(typ="safe").load(text)["data"].get("layout", "folders") for text in EXAMPLES}
    assert shown == set(FORMATS)
