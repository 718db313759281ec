"""What the schema's errors mean, in words: what was found, what was expected, at which key."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union

import annotated_types
from pydantic import BaseModel, Tag, ValidationError
from pydantic.fields import FieldInfo

from segtrain.config.source import Node, Place, Problem

_SIMPLE = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "null",
    Any: "anything",
}
_BOUNDS = ((annotated_types.Ge, "ge", "of at least"), (annotated_types.Gt, "gt", "above"))
_UPPER = ((annotated_types.Le, "le", "at most"), (annotated_types.Lt, "lt", "below"))
_MAX_SHOWN = 60
_MAX_NAMES = 30


@dataclass(frozen=True)
class _Spot:
    """A place in the tree: its keys, the node there (None where the key is missing) and what the schema wants."""

    path: tuple[Any, ...]
    node: Node | None
    place: Place | None
    annotation: Any
    owner: type[BaseModel] | None = None
    key_annotation: Any = Any


def explain(error: ValidationError, root: Node, schema: type[BaseModel]) -> list[Problem]:
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
    return [texts[path] for path in paths if not _has_deeper(path, paths, root)]


def _has_deeper(path: tuple[Any, ...], paths: Iterable[tuple[Any, ...]], root: Node) -> bool:
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
    bare = _bare(spot.annotation)
    path = (*spot.path, part)
    if isinstance(bare, type) and issubclass(bare, BaseModel):
        field = bare.model_fields.get(part) if isinstance(part, str) else None
        annotation = _of_field(field) if field is not None else None
        node = value.get(part) if isinstance(value, dict) else None
        if node is None and not missing:
            return None
        return _Spot(path, node, node.place if node is not None else spot.place, annotation, bare)
    arguments = typing.get_args(bare)
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
    members = _members(spot.annotation)
    if len(members) < 2:
        return (members[0] if members else spot.annotation), 0
    if isinstance(spot.annotation, _Whole):
        return spot.annotation, 0
    if len(parts) == 1 and isinstance(parts[0], str):
        return _Whole(spot.annotation), 1
    for member in members:
        if parts[0] in _tags(member):
            return member, 1
    value = spot.node.value if spot.node is not None else None
    for member in members:
        if _fits_container(member, value):
            return member, 1
    return _Whole(spot.annotation), 1


@dataclass(frozen=True)
class _Whole:
    """A union of which no branch is meant: described as a whole."""

    annotation: Any


def _fits_container(member: Any, value: Any) -> bool:
    origin = typing.get_origin(_bare(member))
    return (isinstance(value, list) and origin is tuple) or (isinstance(value, dict) and origin is dict)


def _tags(member: Any) -> tuple[Any, ...]:
    tags = tuple(extra.tag for extra in _extras(member) if isinstance(extra, Tag))
    bare = _bare(member)
    if isinstance(bare, type) and issubclass(bare, BaseModel) and "name" in bare.model_fields:
        tags += typing.get_args(bare.model_fields["name"].annotation)
    return tags


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
    names = [str(tag) for member in _members(spot.annotation) for tag in _tags(member)]
    value = spot.node.value if spot.node is not None else None
    node = value.get("name") if isinstance(value, dict) else None
    path = (*spot.path, "name")
    if node is None:
        return path, f"missing; expected one of: {', '.join(names)}"
    if not isinstance(node.value, str):
        return path, f"found {show(node)}; expected one of: {', '.join(names)}"
    return path, f"unknown name {node.value!r}{suggest(node.value, names)}; valid names: {', '.join(names)}".replace(
        "?;", "?"
    )


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
        for member in _members(_of_field(field)):
            bare = _bare(member)
            if isinstance(bare, type) and issubclass(bare, BaseModel):
                keys += _all_keys(bare, f"{prefix}{name}.")
    return list(dict.fromkeys(keys))


def suggest(word: str, known: Sequence[str]) -> str:
    """Return "; did you mean 'x'?" for the closest of `known`, or nothing."""
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower().replace("-", "_"), list(lower), n=1, cutoff=0.6)
    return f"; did you mean {lower[close[0]]!r}?" if close else ""


def wrong_value(value: Any, annotation: Any) -> str:
    """Say that a value is not what the schema wants there; of fixed words, which one is closest."""
    whole = annotation.annotation if isinstance(annotation, _Whole) else annotation
    words = [word for member in _members(whole) for word in _literals(member)]
    hint = suggest(value, [str(word) for word in words]) if isinstance(value, str) and words else ""
    return f"found {show(Node(value))}, expected {describe(whole)}{hint}"


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


def describe(annotation: Any) -> str:
    """Say in words what a type of the schema accepts."""
    annotation = annotation.annotation if isinstance(annotation, _Whole) else annotation
    members = _members(annotation, keep_none=True)
    if len(members) > 1:
        words = list(dict.fromkeys(_describe_one(member) for member in members))
        return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    return _describe_one(annotation)


def _describe_one(annotation: Any) -> str:
    bare, bounds = _bare(annotation), _bounds(annotation)
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    if origin is Literal:
        words = ", ".join(str(word) for word in arguments)
        return words if len(arguments) == 1 else f"one of: {words}"
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list{bounds}, each {describe(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}, each {describe(arguments[0])}"
    if origin is dict:
        values = "" if arguments[1] is Any else f", each value {describe(arguments[1])}"
        return f"a mapping (keys: {describe(arguments[0])}{values})"
    if isinstance(bare, type) and issubclass(bare, BaseModel):
        required = [name for name, field in bare.model_fields.items() if field.is_required()]
        return (
            f"a section with {', '.join(required)}" if required else f"a section (of: {', '.join(bare.model_fields)})"
        )
    return f"{_SIMPLE.get(bare, getattr(bare, '__name__', str(bare)))}{bounds}"


def _bounds(annotation: Any) -> str:
    words = []
    for extra in _extras(annotation):
        for group in (_BOUNDS, _UPPER):
            words += [f"{word} {getattr(extra, key)}" for kind, key, word in group if isinstance(extra, kind)]
        if isinstance(extra, annotated_types.MinLen):
            words.append("not empty" if extra.min_length == 1 else f"of at least {extra.min_length}")
        if getattr(extra, "pattern", None):
            words.append(f"matching {extra.pattern}")
    return f" {' and '.join(words)}" if words else ""


def _of_field(field: FieldInfo) -> Any:
    """A field's annotation together with what Field() says about it."""
    annotation: Any = field.annotation
    for extra in field.metadata:
        annotation = Annotated[annotation, extra]
    return annotation


def _bare(annotation: Any) -> Any:
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def _extras(annotation: Any) -> list[Any]:
    """Constraints of an Annotated type; those of a nested FieldInfo count too."""
    if typing.get_origin(annotation) is not Annotated:
        return []
    inner, *extras = typing.get_args(annotation)
    flat: list[Any] = []
    for extra in extras:
        flat += extra.metadata if isinstance(extra, FieldInfo) else [extra]
    return _extras(inner) + flat


def _members(annotation: Any, *, keep_none: bool = False) -> list[Any]:
    """Branches of a union, without None unless it is asked for; a type by itself is its only branch."""
    annotation = annotation.annotation if isinstance(annotation, _Whole) else annotation
    bare = _bare(annotation)
    if typing.get_origin(bare) not in (Union, types.UnionType):
        return [annotation]
    members: list[Any] = []
    for member in typing.get_args(bare):
        members += _members(member, keep_none=keep_none)
    return [member for member in members if keep_none or member is not type(None)]


def _literals(member: Any) -> tuple[Any, ...]:
    bare = _bare(member)
    return typing.get_args(bare) if typing.get_origin(bare) is Literal else ()
