"""What the types of the schema say, read at run time: branches of unions, constraints, and both in words."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

import annotated_types
from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo

_SIMPLE = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "null",
    Any: "anything",
}
_BOUNDS = (
    (annotated_types.Ge, "ge", "of at least"),
    (annotated_types.Gt, "gt", "above"),
    (annotated_types.Le, "le", "at most"),
    (annotated_types.Lt, "lt", "below"),
)


@dataclass(frozen=True)
class Whole:
    """A union of which no branch is meant: described as a whole."""

    annotation: Any


def describe(annotation: Any) -> str:
    """Say in words what a type of the schema accepts."""
    members = union_members(annotation, keep_none=True)
    words = list(dict.fromkeys(_describe_one(member) for member in members))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _describe_one(annotation: Any) -> str:
    kind, bounds = bare_type(annotation), _bounds(annotation)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
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
    section = section_type(kind)
    if section is None:
        return f"{_SIMPLE.get(kind, getattr(kind, '__name__', str(kind)))}{bounds}"
    required = ", ".join(name for name, field in section.model_fields.items() if field.is_required())
    return f"a section with {required}" if required else f"a section (of: {', '.join(section.model_fields)})"


def _bounds(annotation: Any) -> str:
    words = []
    for extra in _extras(annotation):
        words += [f"{word} {getattr(extra, key)}" for kind, key, word in _BOUNDS if isinstance(extra, kind)]
        if isinstance(extra, annotated_types.MinLen):
            words.append("not empty" if extra.min_length == 1 else f"of at least {extra.min_length}")
        if getattr(extra, "pattern", None):
            words.append(f"matching {extra.pattern}")
    return f" {' and '.join(words)}" if words else ""


def of_field(field: FieldInfo) -> Any:
    """Return a field's annotation together with what Field() says about it."""
    annotation: Any = field.annotation
    for extra in field.metadata:
        annotation = Annotated[annotation, extra]
    return annotation


def bare_type(annotation: Any) -> Any:
    """Return the type inside any number of Annotated[...]."""
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return annotation


def section_type(annotation: Any) -> type[BaseModel] | None:
    """Return the section that the annotation is, if it is one."""
    kind = bare_type(annotation)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def union_members(annotation: Any, *, keep_none: bool = False) -> list[Any]:
    """Return the branches of a union, without None unless it is asked for; any other type is its only branch."""
    annotation = annotation.annotation if isinstance(annotation, Whole) else annotation
    kind = bare_type(annotation)
    if typing.get_origin(kind) not in (Union, types.UnionType):
        return [annotation]
    found: list[Any] = []
    for member in typing.get_args(kind):
        found += union_members(member, keep_none=keep_none)
    return [member for member in found if keep_none or member is not type(None)]


def kind_names(member: Any) -> tuple[Any, ...]:
    """Return the names by which pydantic reports this branch: tags, and the words of a section's `name`."""
    names = tuple(extra.tag for extra in _extras(member) if isinstance(extra, Tag))
    section = section_type(member)
    if section is None or "name" not in section.model_fields:
        return names
    return names + literal_words(section.model_fields["name"].annotation)


def literal_words(member: Any) -> tuple[Any, ...]:
    """Return the fixed words that a Literal accepts, or nothing."""
    kind = bare_type(member)
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def _extras(annotation: Any) -> list[Any]:
    """Return the constraints of an Annotated type; those of a nested FieldInfo count too."""
    if typing.get_origin(annotation) is not Annotated:
        return []
    inner, *extras = typing.get_args(annotation)
    flat: list[Any] = []
    for extra in extras:
        flat += extra.metadata if isinstance(extra, FieldInfo) else [extra]
    return _extras(inner) + flat
