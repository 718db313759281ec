"""The model card: a README with the table of classes, what the model takes and gives, its training, its limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segtrain.config import Config, dump_config
from segtrain.config.loss_terms import DistillationTerm
from segtrain.data import ClassFrequencies
from segtrain.export.description import Description
from segtrain.report.numbers import RATIO_NAMES, UNDEFINED, percent

RATIOS = ("iou", "dice", "recall", "precision")
MEANS = {
    "miou": "mean IoU",
    "miou_tail": "mean IoU of the rarest classes",
    "miou_selected": "mean IoU without evaluate.exclude",
    "fwiou": "IoU weighted by pixels",
    "pixel_accuracy": "pixel accuracy",
}
# how a run is started and watched says nothing about the model
NOT_RECIPE = {
    "resume": "none",
    "overwrite": False,
    "save_every_seconds": 600.0,
    "log_every": 10,
    "validation_samples": 4,
}


def model_card(
    description: Description, config: Config, *, frequencies: ClassFrequencies, overrides: Sequence[str] = ()
) -> str:
    """Return the card as Markdown; the same for the same checkpoint: no date, no path, no name of a machine.

    Args:
        description: of the run. config: of the run.
        frequencies: of the training data.
        overrides: settings changed after training, which the scores know nothing of.
    """
    sections = [
        _head(description),
        _use(description),
        _classes(description, config, frequencies),
        _recipe(config, frequencies),
        _limits(description, config, overrides),
    ]
    return "\n\n".join(sections) + "\n"


def _head(description: Description) -> str:
    model = description.model
    network = "a network given in code" if model is None else f"{model.arch} with encoder {model.encoder}"
    names = ", ".join(_cell(name) for name in description.class_names)
    return (
        "---\nlibrary_name: segtrain\npipeline_tag: image-segmentation\n---\n\n"
        f"# {description.name}\n\n"
        f"Semantic segmentation by segtrain {description.segtrain}: {network}, step {description.step} of its training."
        f"\n\nClasses, in the order of their numbers: {names}."
    )


def _use(description: Description) -> str:
    about = description.preprocessing
    several = description.labels == "multi_label"
    shape = "[K, H, W] of 0 and 1" if several else "[H, W] of class numbers"
    size = (
        "at their own size"
        if about.input_size is None
        else "resized to {}x{} (height x width)".format(*about.input_size)
    )
    norm = about.normalize
    lines = [
        "## Use",
        "",
        "```python",
        "import segtrain",
        "",
        'model = segtrain.load_model("path/to/this/folder")',
        f'prediction = model.predict("image.png")  # or an array [H, W, {description.in_channels}]; {shape}',
        "```",
        "",
        f"- Channels: {about.channels}; uint8 or uint16 as stored, {size}.",
        f"- Normalised as (value / largest value of the type - mean) / std, mean {list(norm.mean)}, std "
        f"{list(norm.std)}.",
    ]
    if several:
        lines.append("- A class is present where its probability (sigmoid) reaches its threshold, see the table.")
    elif description.prior is None:
        lines.append("- The class of the largest logit is predicted.")
    else:
        lines.append(
            f"- The class of the largest logit is predicted after {description.prior.tau:g} x log(share of the class "
            "in the training pixels) is taken off (post-hoc logit adjustment)."
        )
    return "\n".join(lines)


def _classes(description: Description, config: Config, frequencies: ClassFrequencies) -> str:
    scores, support = description.results.scores, description.results.support
    several = description.thresholds is not None
    ratios = [RATIO_NAMES.get(ratio, ratio) for ratio in RATIOS]
    header = ["class", *ratios, "pixels in val", "share of train pixels", *(["threshold"] if several else [])]
    rows = []
    for index, name in enumerate(description.class_names):
        row = [_cell(name), *(_ratio(scores.get(f"{ratio}/{name}")) for ratio in RATIOS)]
        row += [str(support.get(name, UNDEFINED)), f"{percent(frequencies.share[index])} %"]
        rows.append([*row, *([f"{description.thresholds[index]:g}"] if description.thresholds is not None else [])])
    lines = ["## Results on val", "", _row(header), _row(["---"] * len(header)), *map(_row, rows), ""]
    lines += [f"- {label}: {_ratio(scores.get(key))}" for key, label in MEANS.items() if key in scores]
    if not scores:
        lines.append("The checkpoint holds no scores: it was kept without an evaluation.")
    if several and config.evaluate.tune_thresholds:
        lines.append("- The ratios are those at the threshold 0.5; the thresholds were chosen on val afterwards.")
    return "\n".join(lines)


def _recipe(config: Config, frequencies: ClassFrequencies) -> str:
    data = config.data
    sizes = "as stored" if data.input_size is None else f"resized to {data.input_size[0]}x{data.input_size[1]}"
    parts = {
        "model": config.model.model_copy(
            update={key: _name(getattr(config.model, key)) for key in ("encoder_weights", "init_from")}
        ),
        "optimizer": config.optimizer,
        "train": config.train.model_copy(update=NOT_RECIPE),
    }
    text = "".join(f"{key}:\n{_indented(dump_config(section))}" for key, section in parts.items())
    transforms = ", ".join(step.name for step in data.train_transforms) or "none"
    return (
        f"## Training\n\n{frequencies.num_images} images, {sizes}; augmentation: {transforms}; sampling: "
        f"{data.sampling.name}; seed {config.seed}. What differs from the defaults of segtrain:\n\n"
        f"```yaml\n{text}{_loss(config)}```"
    )


def _loss(config: Config) -> str:
    if config.loss == "auto":
        return "loss: auto\n"
    terms = tuple(
        term.model_copy(update={"teacher": _name(term.teacher)}) if isinstance(term, DistillationTerm) else term
        for term in config.loss.terms
    )
    return f"loss:\n{_indented(dump_config(config.loss.model_copy(update={'terms': terms})))}"


def _limits(description: Description, config: Config, overrides: Sequence[str]) -> str:
    best = config.train.best_metric
    lines = [
        "## Limits",
        "",
        f"- The checkpoint was chosen by {best} on val, so that the table flatters: measure on images that had no part "
        "in training or choice.",
        "- It knows the classes above and nothing else: whatever it is shown, it answers with these.",
        "- Other cameras, places, resolutions or seasons than those of the training data are untested here.",
    ]
    if any(description.results.support.get(name) == 0 for name in description.class_names):
        lines.append("- Classes without pixels in val have not been measured at all.")
    if overrides:
        lines.append(f"- Changed after training, and unknown to the table: {', '.join(overrides)}.")
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(name: str) -> str:
    """A class name as the text of a cell, whatever characters it holds."""
    plain = " ".join(name.split())
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|~&" else letter for letter in plain)


def _ratio(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.4f}"


def _name(path: Any) -> Any:
    """The last part of a path: where files lay on somebody's machine is nobody's business."""
    return path if path is None else Path(path).name


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
