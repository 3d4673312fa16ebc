"""Discord's description made strict: nothing is allowed that it does not name, and unions are decided by `type`.

JSON Schema 2020-12 would report every branch of a union that does not fit; a request has one `type`, so one branch is
meant, and its errors are the ones to read. Knows schemas, no requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator, ValidationError, validators


class Description:
    """The description, with nothing allowed that it does not name, and with unions decided by their `type`."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._description = description

    def strict(self) -> Any:
        return self._schema(self._description)

    def _schema(self, schema: Any) -> Any:
        if isinstance(schema, list):
            return [self._schema(each) for each in schema]
        if not isinstance(schema, dict):
            return schema
        made = {name: self._schema(value) for name, value in schema.items()}
        if isinstance(schema.get("properties"), dict) and not {"additionalProperties", "allOf"} & schema.keys():
            made["additionalProperties"] = False
        if "enum" in made:
            made.pop("allOf", None)  # it says once more which values the whole family has
        for union in ("oneOf", "anyOf"):
            if isinstance(schema.get(union), list) and all(isinstance(each, dict) for each in schema[union]):
                self._decide(made, union, schema[union])
        return made

    def _decide(self, made: dict[str, Any], union: str, branches: list[dict[str, Any]]) -> None:
        """One branch for each `type`, one list for constants: one plain error instead of one for each branch."""
        if all("const" in each for each in branches):
            del made[union]
            made["enum"] = [each["const"] for each in branches]
            return
        given = [each for each in branches if each != {"type": "null"}]
        by_type = self._by_type(given)
        if len(given) == 1 and len(branches) == 2:
            decided: dict[str, Any] = self._schema(given[0])
        elif by_type:
            decided = {"byType": by_type}
        else:
            return
        del made[union]
        made["nullOr" if len(given) < len(branches) else "decided"] = decided

    def _by_type(self, branches: list[dict[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for each in branches:
            target = self._description["components"]["schemas"].get(str(each.get("$ref", "")).rpartition("/")[2], {})
            for value in target.get("properties", {}).get("type", {}).get("enum", ()):
                found[str(value)] = each
        return found if len(found) >= len(branches) > 1 else {}


def _null_or(validator: Any, schema: Any, value: Any, _whole: Any) -> Iterator[ValidationError]:
    if value is not None:
        yield from validator.descend(value, schema)


def _decided(validator: Any, schema: Any, value: Any, _whole: Any) -> Iterator[ValidationError]:
    yield from validator.descend(value, schema)


def _by_type(validator: Any, branches: Any, value: Any, _whole: Any) -> Iterator[ValidationError]:
    kind = value.get("type") if isinstance(value, dict) else None
    if str(kind) in branches:
        yield from validator.descend(value, branches[str(kind)])
    else:
        yield ValidationError(f"type {kind!r} is none of {', '.join(branches)}", validator="byType")


Validator: Any = validators.extend(Draft202012Validator, {"nullOr": _null_or, "decided": _decided, "byType": _by_type})
