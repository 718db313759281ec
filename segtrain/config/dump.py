"""Writes configurations: as compact YAML that loads back equal, and as plain dictionaries for checkpoints."""

from __future__ import annotations

import io
import re
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from segtrain.config.schema import Config

_WIDTH = 110
# Anything else is quoted by us: within [] and {} ruamel writes some words, such as ?0, that it cannot read back.
_PLAIN_WORDS = re.compile(r"[\w./][\w./ -]*")


def config_to_dict(config: BaseModel) -> dict[str, Any]:
    """Return all settings as dicts, lists and scalars; `parse_config` of it gives an equal configuration.

    Keys of `label_map` are whole numbers, so write it as YAML or within a checkpoint, not as JSON.
    """
    plain: dict[str, Any] = _plain(config.model_dump())
    return plain


def dump_config(config: BaseModel, *, full: bool = False) -> str:
    """Return a section (a whole Config, or a part such as its loss) as compact YAML that loads back equal.

    Only what differs from the defaults is written, or all of it with `full`.
    """
    plain = config_to_dict(config) if full else _changed(config)
    if isinstance(config, Config):
        plain = {"name": config.name, **plain}
    yaml = YAML(pure=True)
    yaml.width = _WIDTH
    yaml.Representer = _Representer
    yaml.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    yaml.dump(_styled(plain, top=True), stream)
    return stream.getvalue()


class _Representer(RoundTripRepresenter):
    """ruamel's, but with a written null."""


_Representer.add_representer(
    type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def inline(value: Any) -> str:
    """Return one setting as a training file would have it, on a line, to be read and not to be loaded."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {inline(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline, value)) + "]"
    return str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value, key=lambda key: key != "name")}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    return value


def _changed(section: BaseModel) -> dict[str, Any]:
    """Return what must be written so that the defaults complete it; a name that chooses the kind always is."""
    written: dict[str, Any] = {}
    fields = type(section).model_fields
    for key, field in sorted(fields.items(), key=lambda entry: entry[0] != "name"):
        value = getattr(section, key)
        default = field.get_default(call_default_factory=True)
        if default is PydanticUndefined or value != default:
            written[key] = _changed_value(value)
    return written


def _changed_value(value: Any) -> Any:
    if isinstance(value, BaseModel):
        short = value.model_dump()  # a section may stand for itself in a shorter form, as a class without a colour does
        return _changed(value) if isinstance(short, dict) else short
    if isinstance(value, tuple | list):
        return [_changed_value(child) for child in value]
    if isinstance(value, dict):
        return {key: _changed_value(child) for key, child in value.items()}
    return value


def _styled(value: Any, *, top: bool = False) -> Any:
    """Choose the layout: lists of scalars and small mappings stand in one line, all else in blocks."""
    if isinstance(value, dict):
        mapping = CommentedMap((_styled(key), _styled(child)) for key, child in value.items())
        if not top and _fits_a_line(value):
            mapping.fa.set_flow_style()
        return mapping
    if isinstance(value, list):
        sequence = CommentedSeq(_styled(child) for child in value)
        if not value or not any(isinstance(child, dict) for child in value):
            sequence.fa.set_flow_style()
        return sequence
    if isinstance(value, str) and not _PLAIN_WORDS.fullmatch(value):
        return DoubleQuotedScalarString(value)
    return value


def _fits_a_line(value: dict[Any, Any]) -> bool:
    """A mapping without mappings inside that is short once written, such as a term or a class."""
    if any(isinstance(child, dict) or _holds_mappings(child) for child in value.values()):
        return False
    return sum(len(str(key)) + len(str(child)) + 4 for key, child in value.items()) <= _WIDTH - 20


def _holds_mappings(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(child, dict | list) for child in value)
