"""What is written loads back equal: compact, in full, and as plain dictionaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segtrain.config import Config, config_to_dict, dump_config, load_config, parse_config

RICH: dict[str, Any] = {
    "name": "rich",
    "seed": 3,
    "data": {
        "root": "no",
        "classes": ["background", {"name": "crack", "color": [1, 2, 3]}, "1e-3"],
        "label_map": {0: "background", 255: "crack", 7: 2, 9: "ignore"},
        "train_transforms": [{"name": "crop", "size": [3, 4]}, {"name": "blur", "p": 0.1}, {"name": "color"}],
        "normalize": {"mean": [0.5], "std": [0.25]},
        "splits": {"train": "a", "val": "b"},
    },
    "model": {"in_channels": 1, "params": {"decoder_channels": [1, 2], "flag": None, "deep": {"x": [{"y": 1}]}}},
    "loss": {
        "terms": [{"name": "cross_entropy", "weight": 0.1}, {"name": "dice", "label": "region", "per": "image"}],
        "class_weights": {"scheme": "effective_number", "beta": 0.99},
        "ohem": {"top_k": 0.25},
    },
    "optimizer": {"name": "sgd", "lr": 1e-7, "schedule": {"name": "cosine"}},
    "train": {"steps": 5, "early_stopping": {"patience": 2}, "ema": 0.999},
    "evaluate": {"tile": {"size": [64, 64]}, "exclude": ["background"]},
}
SMALL: dict[str, Any] = {"name": "s", "data": {"root": "r", "classes": ["a", "b"]}, "train": {"epochs": 1}}


@pytest.mark.parametrize("mapping", [RICH, SMALL], ids=["rich", "small"])
@pytest.mark.parametrize("full", [False, True], ids=["compact", "full"])
def test_a_dumped_configuration_loads_back_equal(tmp_path: Path, mapping: dict[str, Any], full: bool) -> None:
    config = parse_config(mapping)
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_config(config, full=full), encoding="utf-8")
    assert load_config(path) == config


@pytest.mark.parametrize("mapping", [RICH, SMALL], ids=["rich", "small"])
def test_a_plain_dictionary_parses_back_equal_and_holds_only_plain_types(mapping: dict[str, Any]) -> None:
    config = parse_config(mapping)
    plain = config_to_dict(config)
    assert parse_config(plain) == config
    assert _types(plain) <= {dict, list, str, int, float, bool, type(None)}


def _types(value: Any) -> set[type]:
    children = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return {type(value)}.union(*(_types(child) for child in children))


def test_the_compact_dump_holds_what_differs_from_the_defaults() -> None:
    assert dump_config(parse_config(SMALL)) == "name: s\ndata: {root: r, classes: [a, b]}\ntrain: {epochs: 1}\n"


def test_terms_stand_in_one_line_each() -> None:
    config = parse_config(RICH)
    assert config.loss != "auto"
    lines = dump_config(config.loss).splitlines()
    assert lines == [
        "terms:",
        "  - {name: cross_entropy, weight: 0.1}",
        "  - {name: dice, label: region, per: image}",
        "class_weights: {scheme: effective_number, beta: 0.99}",
        "ohem: {top_k: 0.25}",
    ]


def test_the_full_dump_names_every_setting() -> None:
    text = dump_config(parse_config(SMALL), full=True)
    for key in Config.model_fields:
        assert f"\n{key}:" in f"\n{text}"
    assert "channels_last: false" in text
    assert "tile: null" in text


@settings(max_examples=40, deadline=None)
@given(lr=st.floats(min_value=5e-324, allow_nan=False, allow_infinity=False, exclude_min=False))
def test_every_float_loads_back_equal(tmp_path_factory: pytest.TempPathFactory, lr: float) -> None:
    config = parse_config({**SMALL, "optimizer": {"name": "adamw", "lr": lr}})
    path = tmp_path_factory.mktemp("floats") / "s.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


@settings(max_examples=40, deadline=None)
@given(
    word=st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=20).filter(
        lambda word: word != "ignore"
    )
)
@example("?0").via("ruamel writes it unquoted within brackets, and cannot read that")
@example("- a: b # c").via("a word that is full of YAML")
def test_every_word_loads_back_equal(tmp_path_factory: pytest.TempPathFactory, word: str) -> None:
    splits = {"train": word, "val": "v", f"{word}x": "w"}
    config = parse_config({**SMALL, "data": {"root": word, "classes": [word, f"x{word}"], "splits": splits}})
    path = tmp_path_factory.mktemp("words") / "s.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
