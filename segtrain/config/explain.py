"""What the schema's errors mean, in words: what was found, what was expected, at which key."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from segtrain.config.annotations import (
    Whole,
    bare_type,
    describe,
    kind_names,
    literal_words,
    of_field,
    section_type,
    union_members,
)
from segtrain.config.source import Node, Place, Problem
from segtrain.errors import suggest

_MAX_SHOWN = 60


@dataclass(frozen=True)
class _Spot:
    """A place in the tree: its keys, the node there (None where the key is missing) and what the schema wants."""

    path: tuple[Any, ...]
    node: Node | None
    place: Place | None
    annotation: Any
    owner: type[BaseModel] | None = None
    key_annotation: Any = Any


def explain(error: ValidationError, root: Node, *, schema: type[BaseModel]) -> list[Problem]:
    """Turn a validation error into one problem per key, in words and with the place of that key."""
    texts: dict[tuple[Any, ...], Problem] = {}
    for item in error.errors(include_url=False, include_input=False):
        spot = _locate(item["loc"], root, schema, missing=item["type"] in ("missing", "extra_forbidden", "invalid_key"))
        path, text = _word(item, spot, schema)
        place = _own_place(text, spot, root) if item["type"] == "value_error" else spot.place
        key = (*path, text) if item["type"] == "value_error" else path
        texts.setdefault(key, Problem(place, f"{dotted(path)}: {text}" if path else text))
    # A union reports each branch that did not fit: the report that went deepest into the value is the useful one.
    paths = list(texts)
    return [texts[path] for path in paths if not _has_deeper(path, paths)]


def _has_deeper(path: tuple[Any, ...], paths: Iterable[tuple[Any, ...]]) -> bool:
    return any(len(other) > len(path) > 0 and other[: len(path)] == path for other in paths)


def dotted(path: Sequence[Any]) -> str:
    """Write a key path as users write it in overrides."""
    return ".".join(str(part) for part in path)


def _locate(loc: Sequence[Any], root: Node, schema: type[BaseModel], *, missing: bool) -> _Spot:
    """Follow pydantic's location through the tree and the schema, leaving out its names of union branches."""
    spot = _Spot((), root, root.place, schema)
    parts = list(loc)
    while parts:
        annotation, used = _choose_branch(spot, parts)
        parts = parts[used:]
        spot = replace(spot, annotation=annotation)
        if not parts:
            break
        inner = _step(spot, parts[0], missing=missing and len(parts) == 1)
        if inner is None:
            break
        spot, parts = inner, parts[1:]
    return spot


def _step(spot: _Spot, part: Any, *, missing: bool) -> _Spot | None:
    value = spot.node.value if spot.node is not None else None
    path = (*spot.path, part)
    section = section_type(spot.annotation)
    if section is not None:
        field = section.model_fields.get(part) if isinstance(part, str) else None
        annotation = of_field(field) if field is not None else None
        node = value.get(part) if isinstance(value, dict) else None
        if node is None and not missing:
            return None
        return _Spot(path, node, node.place if node is not None else spot.place, annotation, section)
    arguments = typing.get_args(bare_type(spot.annotation))
    if isinstance(value, dict) and part in value:
        key_annotation, annotation = arguments if len(arguments) == 2 else (Any, Any)
        return _Spot(path, value[part], value[part].place, annotation, key_annotation=key_annotation)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        repeats = len(arguments) == 2 and arguments[1] is Ellipsis
        annotation = arguments[0] if repeats else arguments[part] if part < len(arguments) else Any
        return _Spot(path, value[part], value[part].place, annotation)
    return None


def _choose_branch(spot: _Spot, parts: Sequence[Any]) -> tuple[Any, int]:
    """Return the branch of a union that the value belongs to, and how many parts of the location name it."""
    members = union_members(spot.annotation)
    if len(members) < 2:
        return (members[0] if members else spot.annotation), 0
    if isinstance(spot.annotation, Whole):
        return spot.annotation, 0
    if len(parts) == 1 and isinstance(parts[0], str):
        return Whole(spot.annotation), 1
    for member in members:
        if parts[0] in kind_names(member):
            return member, 1
    value = spot.node.value if spot.node is not None else None
    for member in members:
        if _fits_container(member, value):
            return member, 1
    return Whole(spot.annotation), 1


def _fits_container(member: Any, value: Any) -> bool:
    origin = typing.get_origin(bare_type(member))
    return (isinstance(value, list) and origin is tuple) or (isinstance(value, dict) and origin is dict)


def _own_place(text: str, spot: _Spot, root: Node) -> Place | None:
    """A check of a whole section may open with the key it is about: then that key's line is shown."""
    for start in (spot.node, root):
        node = start
        for part in text.split(":")[0].split(" ")[0].replace("[", ".").rstrip("]").split("."):
            inner = node.value.get(part) if node is not None and isinstance(node.value, dict) else None
            if inner is None:
                break
            node = inner
        if node is not None and node is not start and node.place is not None:
            return node.place
    return spot.place


def _word(item: Any, spot: _Spot, schema: type[BaseModel]) -> tuple[tuple[Any, ...], str]:
    kind = item["type"]
    if item["loc"] and item["loc"][-1] == "[key]":
        return spot.path, f"found the key {show(Node(spot.path[-1]))}, expected {describe(spot.key_annotation)}"
    if kind == "value_error":
        return spot.path, str(item["ctx"]["error"])
    if kind in ("extra_forbidden", "invalid_key"):
        return spot.path, _unknown_key(spot, schema)
    if kind == "missing":
        return spot.path, f"missing; expected {describe(spot.annotation)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _wrong_name(spot)
    return spot.path, wrong_value(spot.node.value if spot.node is not None else None, spot.annotation)


def _wrong_name(spot: _Spot) -> tuple[tuple[Any, ...], str]:
    names = [str(tag) for member in union_members(spot.annotation) for tag in kind_names(member)]
    value = spot.node.value if spot.node is not None else None
    node = value.get("name") if isinstance(value, dict) else None
    path = (*spot.path, "name")
    if node is None:
        return path, f"missing; expected one of: {', '.join(names)}"
    if not isinstance(node.value, str):
        return path, f"found {show(node)}; expected one of: {', '.join(names)}"
    return path, f"unknown name {node.value!r}; valid names: {', '.join(names)}{suggest(node.value, names)}"


def _unknown_key(spot: _Spot, schema: type[BaseModel]) -> str:
    key = spot.path[-1]
    if key == "base" and len(spot.path) == 1:
        return "only a file can name its base: it is no setting"
    known = list(spot.owner.model_fields) if spot.owner is not None else []
    hint = suggest(str(key), known)
    if not hint:
        elsewhere = [path for path in _all_keys(schema) if path.rpartition(".")[2] == key]
        hint = (
            f"; did you mean {' or '.join(elsewhere[:3])}?" if elsewhere else f"; expected one of: {', '.join(known)}"
        )
    return f"unknown key{hint}"


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(f"{prefix}{name}")
        for member in union_members(of_field(field)):
            section = section_type(member)
            if section is not None:
                keys += _all_keys(section, f"{prefix}{name}.")
    return list(dict.fromkeys(keys))


def wrong_value(value: Any, annotation: Any) -> str:
    """Say that a value is not what the schema wants there; of fixed words, which one is closest."""
    words = [word for member in union_members(annotation) for word in literal_words(member)]
    hint = suggest(value, [str(word) for word in words]) if isinstance(value, str) and words else ""
    return f"found {show(Node(value))}, expected {describe(annotation)}{hint}"


def show(node: Node) -> str:
    """Return a value and its type as a user would name them."""
    value = node.plain()
    text = repr(value)
    text = text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
    if value is None:
        return "null (nothing)"
    if isinstance(value, bool):
        return f"{str(value).lower()} (true or false)"
    names = {str: "text", int: "a whole number", float: "a number", dict: "a mapping", list: "a list"}
    if isinstance(value, list):
        return f"{text} (a list of {len(value)})"
    return f"{text} ({names.get(type(value), type(value).__name__)})"
