"""Reads training files: `base:` parents, `key.path=value` overrides, and every problem told at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from segtrain.config.annotations import kind_names, of_field, section_type, union_members
from segtrain.config.explain import explain
from segtrain.config.merge import apply_overrides, merge
from segtrain.config.nearby import missing_file
from segtrain.config.schema import Config
from segtrain.config.source import MAX_BYTES, Node, Place, Problem, node_from_plain, read_yaml
from segtrain.errors import ConfigError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a training file, its chain of `base:` files and the overrides, and check all of it.

    - `base: other.yaml` names one parent file, relative to the file that says so. Mappings merge deeply; lists and
      scalars replace. A section that names another kind than its base (`name`, or `scheme` of class weights)
      replaces the base's section as a whole. `train.epochs` and `train.steps` replace each other, and so do
      `loss.ohem.top_k` and `threshold` with `min_kept`. The run's `name` is never inherited: two experiments
      with one base do not share a folder.
    - An override is `key.path=value`, its value is YAML, and numbers in the path index into lists:
      `train.epochs=5`, `loss.terms.0.weight=2`, `data.train_transforms=[]`. It sets the value as a whole.
    - `name` defaults to the stem of the file. A section that does not name its kind changes the default one:
      `optimizer: {lr: 1e-4}` is AdamW with that lr.

    Raises ConfigError with one line per problem: `configs/x.yaml:12: train.epoch: unknown key; did you mean 'epochs'?`
    """
    path = Path(path)
    problems: list[Problem] = []
    root = _read_with_bases(path, problems, chain=())
    root = apply_overrides(root, overrides, problems=problems)
    if "name" not in root.value:
        root.value["name"] = Node(path.stem, Place(str(path), 1))
    return _validate(root, problems)


def parse_config(mapping: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Check a plain mapping, such as the configuration in a checkpoint; the same error texts, without lines."""
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"the configuration is of type {type(mapping).__name__}; expected a mapping of sections")
    problems: list[Problem] = []
    root = apply_overrides(node_from_plain(dict(mapping)), overrides, problems=problems)
    return _validate(root, problems)


def _complete_kinds(root: Node, section: type[BaseModel]) -> None:
    """Lay sections that do not say their kind over the default one: `optimizer: {lr: 0.1}` changes AdamW's lr."""
    if not isinstance(root.value, dict):
        return
    for key, field in section.model_fields.items():
        node = root.value.get(key)
        if node is None or not isinstance(node.value, dict):
            continue
        members = union_members(of_field(field))
        default = field.get_default()
        if len(members) > 1 and isinstance(default, BaseModel) and "name" not in node.value:
            given = default.model_dump(include=default.model_fields_set)
            node.value = {**node_from_plain(given, node.place).value, **node.value}
        name = node.value["name"].value if "name" in node.value else None
        kinds = [member for member in members if len(members) == 1 or name in kind_names(member)]
        for kind in kinds:
            inner = section_type(kind)
            if inner is not None:
                _complete_kinds(node, inner)


def _validate(root: Node, problems: list[Problem]) -> Config:
    _complete_kinds(root, Config)
    try:
        config = Config.model_validate(root.plain())
    except ValidationError as error:
        problems = problems + explain(error, root, schema=Config)
    else:
        if not problems:
            return config
    problems = sorted(dict.fromkeys(problems), key=_order)
    raise ConfigError("\n".join(str(problem) for problem in problems))


def _order(problem: Problem) -> tuple[str, int]:
    return (problem.place.source, problem.place.line or 0) if problem.place is not None else ("", 0)


def _read_with_bases(path: Path, problems: list[Problem], *, chain: tuple[Path, ...]) -> Node:
    resolved = path.resolve()
    if resolved in chain:
        names = " -> ".join(str(link.name) for link in (*chain, resolved))
        raise ConfigError(f"{path}: base files form a circle: {names}")
    root = _read_file(path, problems)
    base = root.value.pop("base", None)
    if base is None:
        return root
    if not isinstance(base.value, str) or not base.value:
        problems.append(Problem(base.place, f"base: found {base.plain()!r}; expected the path of one file"))
        return root
    parent = path.parent / base.value
    if not parent.exists():
        problems.append(Problem(base.place, f"base: {missing_file(parent)}"))
        return root
    inherited = _read_with_bases(parent, problems, chain=(*chain, resolved))
    inherited.value.pop("name", None)
    return merge(inherited, root)


def _read_file(path: Path, problems: list[Problem]) -> Node:
    """Read one file as a mapping of nodes; raises ConfigError when that is impossible."""
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; expected a YAML file")
    if not path.exists():
        raise ConfigError(missing_file(path))
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None
    root = read_yaml(text, str(path), problems=problems)
    if root.value is None:
        raise ConfigError(f"{path}: is empty; expected a mapping of sections (data:, train:, ...)")
    if not isinstance(root.value, dict):
        kind = "a list" if isinstance(root.value, list) else "a single value"
        raise ConfigError(f"{root.place}: found {kind} at the top; expected a mapping of sections (data:, train:, ...)")
    return root
