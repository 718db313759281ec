"""The committed JSON Schema is that of the code, and accepts what a base or the file's name may complete."""

from __future__ import annotations

import json
from typing import Any

from segtrain.config import schema_json
from segtrain.config.schema import Config


def test_the_committed_schema_is_that_of_the_code() -> None:
    with open(schema_json.__file__.replace("schema_json.py", "schema.json"), encoding="utf-8") as file:  # noqa: PTH123
        committed = file.read()
    assert committed == schema_json.json_schema_text(), "run: segtrain schema --out segtrain/config/schema.json"


def test_it_knows_the_keys_of_the_code_and_base() -> None:
    assert list(schema_json.json_schema()["properties"]) == ["base", *Config.model_fields]


def test_sections_require_nothing_and_entries_of_lists_stay_whole() -> None:
    definitions: dict[str, Any] = schema_json.json_schema()["$defs"]
    assert "required" not in schema_json.json_schema()
    for partial in ("DataConfig", "TrainConfig", "AdamW", "SGD", "PolySchedule", "ClassWeightsConfig", "LossConfig"):
        assert "required" not in definitions[partial], partial
    assert definitions["Crop"]["required"] == ["name", "size"]
    assert definitions["DiceTerm"]["required"] == ["name"]


def test_a_section_without_its_kind_may_match_several() -> None:
    assert "oneOf" not in schema_json.json_schema()["properties"]["optimizer"]
    assert "oneOf" not in json.dumps(schema_json.json_schema()["$defs"]["AdamW"])


def test_a_class_may_be_its_name_alone() -> None:
    kinds = [branch["type"] for branch in schema_json.json_schema()["$defs"]["ClassConfig"]["anyOf"]]
    assert kinds == ["string", "object"]
