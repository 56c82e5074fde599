"""What a service may set for a playbook, in words, from the model of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, get_args

from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import PydanticSerializationError

from remediator.model.views import ParameterView
from remediator.playbook.base import Parameters

Schema = Mapping[str, Any]


def parameters_of(model: type[Parameters]) -> list[ParameterView]:
    """Describe every key of ``model``, in its order; a type without a schema is ``anything``."""
    try:
        schema: Schema = model.model_json_schema()
        defaults = model.model_construct().model_dump(mode="json")
    except (PydanticInvalidForJsonSchema, PydanticSerializationError):
        schema, defaults = {}, {}
    properties: Schema = schema.get("properties", {})
    return [
        ParameterView(
            name=name,
            type="duration"
            if timedelta in (field.annotation, *get_args(field.annotation))
            else _named(properties.get(name, {}), schema.get("$defs", {})),
            default=defaults.get(name),
            description=_described(model, name),
        )
        for name, field in model.model_fields.items()
    ]


def _described(model: type[Parameters], name: str) -> str:
    """Return what is said of a key, by the model itself or by the one that it overrides."""
    bases = (cls for cls in model.__mro__ if issubclass(cls, Parameters))
    said = (cls.model_fields[name].description for cls in bases if name in cls.model_fields)
    return " ".join((next(filter(None, said), None) or "").replace("``", "`").split())


def _named(schema: Schema, defs: Schema) -> str:
    """Name a type of a JSON schema in words; a missing value is left to the default."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        found = defs[name]
        return _named(found, defs) if "enum" in found else name
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        names = (_named(choice, defs) for choice in choices if choice.get("type") != "null")
        return " | ".join(dict.fromkeys(names))
    if "enum" in schema or "const" in schema:
        return " | ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_named(schema.get('items', {}), defs)}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map of {_named(schema['additionalProperties'], defs)}"
    return str(schema.get("type", "anything"))
