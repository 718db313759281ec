"""What is decided by whether classes exclude each other fits together, or the message says what does not."""

from __future__ import annotations

from typing import Any

import pytest

from segtrain.config import Config, config_to_dict, parse_config
from segtrain.errors import ConfigError

SIGMOID = {"activation": "sigmoid", "terms": [{"name": "cross_entropy"}]}
SOFTMAX = {"terms": [{"name": "cross_entropy"}]}
BINARY = {"root": "d", "classes": ["crack"], "label_map": {0: "none", 255: "crack"}}
SEVERAL = {
    "root": "d",
    "classes": ["crack", "stain"],
    "labels": "multi_label",
    "label_map": {0: "none", 1: "crack", 2: "stain"},
}


def config(data: dict[str, Any], **sections: Any) -> Config:
    return parse_config({"name": "run", "data": data, "train": {"steps": 1}, **sections})


@pytest.mark.parametrize("data", [BINARY, SEVERAL])
@pytest.mark.parametrize("loss", ["auto", SIGMOID])
def test_one_class_and_overlapping_classes_are_asked_yes_or_no(data: dict[str, Any], loss: Any) -> None:
    found = config(data, loss=loss)
    assert found.data.multi_label
    assert parse_config(config_to_dict(found)) == found


def test_several_classes_exclude_each_other_unless_the_file_says_otherwise() -> None:
    assert not config({"root": "d", "classes": ["a", "b"]}).data.multi_label
    assert not config({"root": "d", "classes": ["a", "b"]}, loss=SIGMOID).data.multi_label


def test_thresholds_stand_in_the_order_of_the_classes() -> None:
    assert config(SEVERAL).evaluate.thresholds(("crack", "stain")) == (0.5, 0.5)
    assert config(SEVERAL, evaluate={"threshold": 0.3}).evaluate.thresholds(("crack", "stain")) == (0.3, 0.3)
    named = config(SEVERAL, evaluate={"threshold": {"stain": 0.2}})
    assert named.evaluate.thresholds(("crack", "stain")) == (0.5, 0.2)


@pytest.mark.parametrize(
    ("data", "sections", "message"),
    [
        (BINARY, {"loss": SOFTMAX}, "one class leaves nothing to tell apart with a softmax: set loss.activation: sigm"),
        (SEVERAL, {"loss": SOFTMAX}, "multi_label goes with loss.activation: sigmoid, and it is softmax"),
        (BINARY, {"evaluate": {"prior_tau": 1.0}}, "prior_tau adjusts classes that exclude each other"),
        (SEVERAL, {"evaluate": {"threshold": {"crak": 0.2}}}, "evaluate.threshold: crak not among the classes"),
        (SEVERAL, {"evaluate": {"threshold": 1.0}}, "expected a number above 0 and below 1"),
        (SEVERAL, {"evaluate": {"threshold": 0.4, "tune_thresholds": True}}, "tune_thresholds chooses another one"),
        ({"root": "d", "classes": ["a", "b"]}, {"evaluate": {"threshold": 0.4}}, "the most probable one is predicted"),
        ({"root": "d", "classes": ["a", "b"]}, {"evaluate": {"tune_thresholds": True}}, "set data.labels: multi_label"),
        (SEVERAL | {"label_map": None}, {}, "multi_label with one mask for each image needs label_map"),
        (
            SEVERAL | {"classes": ["none", "stain"], "label_map": {0: 1}},
            {},
            "'none' is the word for pixels of none of the classes",
        ),
        (SEVERAL | {"ignore_index": 2}, {}, "ignore_index must lie in 3"),
        (BINARY | {"label_map": {0: "background", 1: "crack"}}, {}, "or 'ignore' or 'none'"),
        ({"root": "d", "classes": ["a", "b"], "label_map": {0: "none"}}, {}, "'none' is not a class"),
        (SEVERAL | {"classes": [f"c{c}" for c in range(255)], "label_map": {0: 1}}, {}, "254 classes at most"),
    ],
)
def test_what_does_not_go_together_is_refused(data: dict[str, Any], sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        config(data, **sections)
