"""The JSON Schema with which editors complete and check training files."""

from __future__ import annotations

import json
from typing import Any

from segtrain.config.schema import Config


def json_schema() -> dict[str, Any]:
    """Return the schema of a training file for editors (JSON Schema 2020-12, as plain JSON types).

    An editor sees one file, never its `base:`, its overrides or its name. So what these may supply is not required
    here: no key of the sections is, and a section of several kinds need not name its kind. Entries of lists are
    whole in every file, and keep what they require. `load_config` stays the judge of the merged result.
    """
    schema = _without_titles(Config.model_json_schema())
    _accept_plain_class_names(schema["$defs"]["ClassConfig"])
    whole = _defined_in_lists(schema)
    for name, section in schema["$defs"].items():
        if name not in whole:
            _make_partial(section)
    _make_partial(schema)
    base = {
        "type": "string",
        "description": "one parent file, relative to this file; this file's keys replace its keys",
    }
    schema["properties"] = {"base": base, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "segtrain training file", **schema}


def json_schema_text() -> str:
    """Return the schema as it is committed in segtrain/config/schema.json."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def _without_titles(value: Any) -> Any:
    """Drop the titles that pydantic derives from field names: they say nothing that the keys do not."""
    if isinstance(value, list):
        return [_without_titles(child) for child in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _without_titles(child) for key, child in value.items() if not (key == "title" and isinstance(child, str))
    }


def _accept_plain_class_names(section: dict[str, Any]) -> None:
    """A class may be written as its name alone."""
    whole = dict(section)
    section.clear()
    section["anyOf"] = [{"type": "string", "minLength": 1}, whole]


def _make_partial(section: dict[str, Any]) -> None:
    """Require nothing, and let a section without its kind match more than one kind."""
    section.pop("required", None)
    for field in section.get("properties", {}).values():
        _any_kind(field)


def _any_kind(field: dict[str, Any]) -> None:
    if "oneOf" in field:
        field["anyOf"] = field.pop("oneOf")
        field.pop("discriminator", None)
    for branch in field.get("anyOf", ()):
        _any_kind(branch)


def _defined_in_lists(schema: dict[str, Any]) -> set[str]:
    """Names of the definitions that stand, at any depth, within the items of a list."""
    names: set[str] = set()
    queue = [child["items"] for child in _nested(schema) if "items" in child]
    while queue:
        for child in _nested(queue.pop()):
            name = str(child.get("$ref", "")).rpartition("/")[2]
            if name and name not in names:
                names.add(name)
                queue.append(schema["$defs"][name])
    return names


def _nested(value: Any) -> list[dict[str, Any]]:
    """All mappings within a value, itself included."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [value] if isinstance(value, dict) else []
    for child in children:
        found += _nested(child)
    return found
