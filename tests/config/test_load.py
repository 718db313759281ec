"""Loading: base files, overrides, and what replaces what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from segtrain.config import load_config, parse_config
from segtrain.config.optimizer import SGD, AdamW, PolySchedule
from segtrain.errors import ConfigError

Write = Callable[..., str]


def test_name_defaults_to_the_stem_of_the_file(training_file: Write) -> None:
    assert load_config(training_file()).name == "experiment"
    assert load_config(training_file(more="name: other\n")).name == "other"


def test_numbers_and_words_are_read_as_yaml_1_2(training_file: Write) -> None:
    path = training_file(
        "name: no\ndata: {root: on, classes: [yes, 2020-01-01]}\n"
        "train: {epochs: 1_000}\noptimizer: {name: adamw, lr: 1e-3, weight_decay: 5}\n"
    )
    config = load_config(path)
    assert config.name == "no"
    assert config.data.class_names == ("yes", "2020-01-01")
    assert config.train.epochs == 1000
    assert config.optimizer.lr == 1e-3
    assert type(config.optimizer.weight_decay) is float


def test_values_are_plain_python_types(training_file: Write) -> None:
    config = load_config(training_file(more="model: {params: {a: 1, b: [x, 1.5], c: {d: null}}}\n"))
    params = config.model.params
    assert type(params) is dict
    assert type(params["a"]) is int
    assert [type(item) for item in params["b"]] == [str, float]
    assert params["c"] == {"d": None}


def test_mappings_merge_deeply_and_lists_replace(training_file: Write) -> None:
    training_file(
        more="seed: 7\nmodel: {arch: fpn, in_channels: 1}\n",
        name="base.yaml",
        text=_with_transforms("crop, size: [8, 8]"),
    )
    child = training_file(
        "base: base.yaml\nmodel: {arch: unet}\ndata: {train_transforms: [], normalize: {mean: [0], std: [1]}}\n"
    )
    config = load_config(child)
    assert (config.seed, config.model.arch, config.model.in_channels) == (7, "unet", 1)
    assert config.data.train_transforms == ()
    assert config.data.root == "data/x"


def _with_transforms(transform: str) -> str:
    return (
        "data:\n  root: data/x\n  classes: [background, crack]\n"
        f"  train_transforms: [{{name: {transform}}}]\ntrain: {{epochs: 3}}\n"
    )


def test_bases_may_chain_and_are_relative_to_the_file_that_names_them(training_file: Write) -> None:
    training_file(more="seed: 1\noutput: far\n", name="shared/deep/root.yaml")
    training_file("base: deep/root.yaml\nseed: 2\n", name="shared/middle.yaml")
    config = load_config(training_file("base: ../shared/middle.yaml\n", name="configs/leaf.yaml"))
    assert (config.seed, config.output, config.name) == (2, "far", "leaf")


def test_a_circle_of_bases_is_refused(training_file: Write) -> None:
    training_file("base: b.yaml\n", name="a.yaml")
    training_file("base: a.yaml\n", name="b.yaml")
    with pytest.raises(ConfigError, match=r"circle: a\.yaml -> b\.yaml -> a\.yaml"):
        load_config("a.yaml")


def test_a_missing_base_is_told_with_the_line_that_names_it(training_file: Write) -> None:
    training_file(name="common.yaml")
    path = training_file("seed: 1\nbase: comon.yaml\n")
    with pytest.raises(
        ConfigError, match=r"experiment\.yaml:2: base: comon\.yaml: no such file; did you mean '.*common\.yaml'"
    ):
        load_config(path)


def test_two_parents_are_refused(training_file: Write) -> None:
    with pytest.raises(ConfigError, match="expected the path of one file"):
        load_config(training_file(more="base: [a.yaml, b.yaml]\n"))


def test_the_name_is_not_inherited(training_file: Write) -> None:
    training_file(more="name: parent\n", name="base.yaml")
    assert load_config(training_file("base: base.yaml\n")).name == "experiment"


def test_errors_in_a_base_are_told_with_its_own_lines(training_file: Write) -> None:
    training_file(more="seed: -1\n", name="base.yaml")
    path = training_file("base: base.yaml\ndevice: tpu\n")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    lines = str(error.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["base.yaml:6", "experiment.yaml:2"]


def test_a_section_of_another_kind_replaces_that_of_its_base(training_file: Write) -> None:
    base = "optimizer: {name: adamw, lr: 0.1, betas: [0.5, 0.5], schedule: {name: poly, power: 2}}\n"
    training_file(more=base, name="base.yaml")
    config = load_config(training_file("base: base.yaml\noptimizer: {name: sgd, lr: 1}\n"))
    assert config.optimizer == SGD(name="sgd", lr=1.0)
    config = load_config(training_file("base: base.yaml\noptimizer: {name: adamw, lr: 1}\n"))
    assert config.optimizer == AdamW(
        name="adamw", lr=1.0, betas=(0.5, 0.5), schedule=PolySchedule(name="poly", power=2.0)
    )


def test_another_weight_scheme_replaces_the_settings_of_the_old_one(training_file: Write) -> None:
    loss = (
        "loss: {terms: [{name: dice}, {name: cross_entropy}], class_weights: {scheme: effective_number, beta: 0.9}}\n"
    )
    training_file(more=loss, name="base.yaml")
    config = load_config(training_file("base: base.yaml\nloss: {class_weights: {scheme: enet}}\n"))
    assert config.loss != "auto"
    assert config.loss.class_weights.scheme == "enet"
    assert config.loss.class_weights.beta == "auto"


@pytest.mark.parametrize("layer", ["child", "override"])
def test_steps_take_the_place_of_inherited_epochs_and_the_other_way_round(training_file: Write, layer: str) -> None:
    training_file(name="base.yaml")
    child, overrides = ("train: {steps: 9}\n", []) if layer == "child" else ("", ["train.steps=9"])
    config = load_config(training_file(f"base: base.yaml\n{child}"), overrides)
    assert (config.train.epochs, config.train.steps) == (None, 9)
    assert load_config("experiment.yaml", ["train.epochs=4"]).train.steps is None


def test_epochs_and_steps_together_are_refused(training_file: Write) -> None:
    with pytest.raises(ConfigError, match=r"experiment\.yaml:4: train: give either epochs or steps"):
        load_config(training_file(more="  steps: 4\n"))
    with pytest.raises(ConfigError, match="either epochs or steps"):
        load_config(training_file(), ["train.epochs=1", "train.steps=1"])


def test_overrides_are_yaml_and_reach_into_lists(training_file: Write) -> None:
    path = training_file(_with_transforms("horizontal_flip"))
    config = load_config(
        path,
        [
            "train.epochs=5",
            "optimizer.lr=1e-4",
            "data.train_transforms.0.p=0.25",
            "data.label_map={0: background}",
            "data.label_map.255=crack",
            "train.early_stopping.patience=3",
            "device=cuda:0",
            "output=a=b",
        ],
    )
    assert config.train.epochs == 5
    assert config.optimizer.lr == 1e-4
    assert config.data.train_transforms[0].p == 0.25  # type: ignore[union-attr]
    assert config.data.label_map == {0: "background", 255: "crack"}
    assert config.train.early_stopping is not None
    assert config.train.early_stopping.patience == 3
    assert (config.device, config.output) == ("cuda:0", "a=b")


def test_an_override_of_the_kind_may_stand_before_or_after_its_keys(training_file: Write) -> None:
    path = training_file(more="optimizer: {name: adamw, lr: 0.1, betas: [0.5, 0.5]}\n")
    expected = SGD(name="sgd", lr=0.2)
    assert load_config(path, ["optimizer.name=sgd", "optimizer.lr=0.2"]).optimizer == expected
    assert load_config(path, ["optimizer.lr=0.2", "optimizer.name=sgd"]).optimizer == expected


def test_a_section_without_its_kind_changes_the_default_one(training_file: Write) -> None:
    path = training_file()
    assert load_config(path, ["optimizer.weight_decay=0.5"]).optimizer == AdamW(name="adamw", lr=1e-3, weight_decay=0.5)
    schedule = load_config(path, ["optimizer.schedule.power=2"]).optimizer.schedule
    assert schedule == PolySchedule(name="poly", power=2.0)
    path = training_file(more="optimizer: {name: sgd, lr: 1, schedule: {warmup_steps: 5}}\n")
    assert load_config(path).optimizer.schedule == PolySchedule(name="poly", warmup_steps=5)


def test_overriding_the_runs_name_or_a_classs_name_keeps_all_else(training_file: Write) -> None:
    path = training_file("data: {root: r, classes: [a, {name: b, color: [1, 2, 3]}]}\ntrain: {epochs: 1}\n")
    config = load_config(path, ["name=new", "data.classes.1.name=c"])
    assert config.name == "new"
    assert config.data.classes[1].color == (1, 2, 3)


def test_the_last_of_two_overrides_wins(training_file: Write) -> None:
    assert load_config(training_file(), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "expected key.path=value"),
        ("=5", "empty part in the key"),
        ("train..epochs=5", "empty part in the key"),
        ("train.epoch=5", "override train.epoch=5: train.epoch: unknown key; did you mean 'epochs'?"),
        ("train.epochs.x=5", "train.epochs is the single value 3 (set in experiment.yaml:5)"),
        ("data.classes.7=x", "expected a position (0 to 1), found 7"),
        ("data.classes.crack=x", "expected a position (0 to 1), found 'crack'"),
        ("data.train_transforms.0.p=1", "data.train_transforms"),
        ("seed=[1", "override seed=[1: not valid YAML"),
        ("base=x.yaml", "base: only a file can name its base"),
        ("model={arch: fpn, arch: unet}", "arch: given twice"),
    ],
)
def test_wrong_overrides_are_told_as_they_were_written(training_file: Write, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(training_file(), [override])
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_overrides_do_not_change_the_file(training_file: Write) -> None:
    path = training_file()
    before = Path(path).read_bytes()
    load_config(path, ["seed=5"])
    assert Path(path).read_bytes() == before


def test_a_plain_mapping_is_checked_with_the_same_words() -> None:
    data = {"root": "r", "classes": ("a", "b")}
    assert parse_config({"name": "x", "data": data, "train": {"epochs": 1}}).data.class_names == ("a", "b")
    with pytest.raises(ConfigError, match=r"^train\.epoch: unknown key; did you mean 'epochs'\?$"):
        parse_config({"name": "x", "data": data, "train": {"epochs": 1, "epoch": 1}})
    with pytest.raises(ConfigError, match="expected a mapping"):
        parse_config([1])  # type: ignore[arg-type]
