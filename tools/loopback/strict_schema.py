"""Makes Discord's description strict: forbids properties that it does not name, and decides unions by `type`.

JSON Schema 2020-12 reports every branch of a union that does not match. A request has one `type`, so only that
branch's errors matter. Knows schemas, no requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator, ValidationError, validators


class Description:
    """Turns a description into a strict one."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._description = description

    def make_strict(self) -> Any:
        return self._schema(self._description)

    def _schema(self, schema: Any) -> Any:
        if isinstance(schema, list):
            return [self._schema(each) for each in schema]
        if not isinstance(schema, dict):
            return schema
        result = {name: self._schema(value) for name, value in schema.items()}
        if isinstance(schema.get("properties"), dict) and not {"additionalProperties", "allOf"} & schema.keys():
            result["additionalProperties"] = False
        if "enum" in result:
            result.pop("allOf", None)  # it repeats the values of the whole family
        for union in ("oneOf", "anyOf"):
            if isinstance(schema.get(union), list) and all(isinstance(each, dict) for each in schema[union]):
                self._decide(result, union, schema[union])
        return result

    def _decide(self, result: dict[str, Any], union: str, branches: list[dict[str, Any]]) -> None:
        """Keeps one branch for each `type`, one list for constants: one error instead of one for each branch."""
        if all("const" in each for each in branches):
            del result[union]
            result["enum"] = [each["const"] for each in branches]
            return
        non_null = [each for each in branches if each != {"type": "null"}]
        by_type = self._map_types(non_null)
        if len(non_null) == 1 and len(branches) == 2:
            decided_schema: dict[str, Any] = self._schema(non_null[0])
        elif by_type:
            decided_schema = {"byType": by_type}
        else:
            return
        del result[union]
        result["nullOr" if len(non_null) < len(branches) else "decided"] = decided_schema

    def _map_types(self, branches: list[dict[str, Any]]) -> dict[str, Any]:
        kinds_by_name: dict[str, Any] = {}
        for each in branches:
            target = self._description["components"]["schemas"].get(str(each.get("$ref", "")).rpartition("/")[2], {})
            for value in target.get("properties", {}).get("type", {}).get("enum", ()):
                kinds_by_name[str(value)] = each
        return kinds_by_name if len(kinds_by_name) >= len(branches) > 1 else {}


def _check_null_or(validator: Any, schema: Any, value: Any, _root: Any) -> Iterator[ValidationError]:
    if value is not None:
        yield from validator.descend(value, schema)


def _check_decided(validator: Any, schema: Any, value: Any, _root: Any) -> Iterator[ValidationError]:
    yield from validator.descend(value, schema)


def _check_by_type(validator: Any, branches: Any, value: Any, _root: Any) -> Iterator[ValidationError]:
    kind = value.get("type") if isinstance(value, dict) else None
    if str(kind) in branches:
        yield from validator.descend(value, branches[str(kind)])
    else:
        yield ValidationError(f"type {kind!r} is none of {', '.join(branches)}", validator="byType")


Validator: Any = validators.extend(
    Draft202012Validator, {"nullOr": _check_null_or, "decided": _check_decided, "byType": _check_by_type}
)
