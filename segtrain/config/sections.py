"""What the configuration sections have in common: a base that is frozen, strict and knows all its keys."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


def _tuples(value: Any) -> Any:
    """Turn lists into tuples, at any depth: of a frozen section only what is inside its dicts could still change."""
    if isinstance(value, list | tuple):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


class Section(BaseModel):
    """Base of every section: unknown keys and loosely typed values are errors."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _freeze_lists(cls, values: Any) -> Any:
        return _tuples(values) if isinstance(values, dict) else values

    def changed_keys(self) -> set[str]:
        """Names of the fields that differ from their defaults: a default that is written out changes nothing."""
        fields = type(self).model_fields
        return {
            key
            for key in self.model_fields_set
            if getattr(self, key) != fields[key].get_default(call_default_factory=True)
        }
