"""Validates each request strictly against Discord's own OpenAPI description.

A property that the description does not know is a finding. Findings are counted values without ids and texts.
`unwritten_rules` has the rules that the description leaves out; `known_deviations` has discord.py's.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import ValidationError
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from tools.loopback import unwritten_rules
from tools.loopback.strict_schema import Description, Validator

FILE = Path(__file__).parent / "discord-api" / "openapi.json"
ROOT_URI = "urn:discord"
VERBS = ("get", "put", "post", "patch", "delete")
JSON = "application/json"


@dataclass(frozen=True, order=True)
class Finding:
    """A fault of a request: the operation, the place in its body (`[]` for any item), and the problem."""

    operation: str
    location: str
    problem: str

    def __str__(self) -> str:
        return f"{self.operation}: {self.location or 'the body'}: {self.problem}"


class StrictDescription:
    """An OpenAPI description, made strict. Validators are compiled on first use."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._registry = Registry().with_resource(
            ROOT_URI, Resource(Description(description).make_strict(), DRAFT202012)
        )
        self._operations: dict[tuple[str, int], list[Operation]] = {}
        for one in _operations(description):
            self._operations.setdefault((one.method, one.name.count("/")), []).append(one)
        self._compiled: dict[str, Any] = {}

    def operation(self, method: str, path: str) -> Operation | None:
        """The matching operation with the most literal parts."""
        matches = [one for one in self._operations.get((method, path.count("/")), ()) if one.pattern.fullmatch(path)]
        return max(matches, key=lambda one: -one.name.count("{"), default=None)

    def validator(self, pointer: str) -> Any:
        if pointer not in self._compiled:
            self._compiled[pointer] = Validator({"$ref": f"{ROOT_URI}#{pointer}"}, registry=self._registry)
        return self._compiled[pointer]


@cache
def load_discord_description() -> StrictDescription:
    """Discord's own description, read once."""
    return StrictDescription(json.loads(FILE.read_text()))


class RequestValidator:
    """Validates requests against a description, and counts the findings."""

    def __init__(self, description: StrictDescription | None = None) -> None:
        self._description = description or load_discord_description()
        self.findings: Counter[Finding] = Counter()

    def check_request(
        self, method: str, path: str, query: Mapping[str, str], body: Any, files: int = 0
    ) -> list[Finding]:
        """Returns the faults of this request, and counts them in `findings`."""
        operation = self._description.operation(method, path)
        if operation is None:
            name = re.sub(r"/[\d]{5,}", "/{id}", path)
            faults = [Finding(f"{method} {name}", "", "there is no such operation")]
        else:
            faults = list(self._find_faults(operation, query, body, files))
        self.findings.update(faults)
        return faults

    def _find_faults(self, operation: Operation, query: Mapping[str, str], body: Any, files: int) -> Iterator[Finding]:
        for name, value in query.items():
            if name not in operation.query:
                yield Finding(operation.name, f"?{name}", "there is no such parameter")
            elif problem := _check_parameter(operation.query[name], value):
                yield Finding(operation.name, f"?{name}", problem)
        if operation.body is None:
            if body is not None:
                yield Finding(operation.name, "", "takes no body")
            return
        if body is None and not files:
            if operation.required:
                yield Finding(operation.name, "", "needs a body")
            return
        for error in self._description.validator(operation.body).iter_errors(body):
            yield from (Finding(operation.name, location, problem) for location, problem in _describe_error(error))
        for location, problem in unwritten_rules.findings(operation.name, body, files):
            yield Finding(operation.name, location, problem)


@dataclass(frozen=True, eq=False)
class Operation:
    """One method of one path."""

    method: str
    name: str
    pattern: re.Pattern[str]
    query: Mapping[str, Any]
    body: str | None  # JSON pointer to the schema
    required: bool


def _operations(description: Mapping[str, Any]) -> Iterator[Operation]:
    for path, item in description["paths"].items():
        pattern = re.compile("/".join("[^/]+" if part.startswith("{") else re.escape(part) for part in path.split("/")))
        for verb in VERBS:
            if verb not in item:
                continue
            spec = item[verb]
            parameters = [*item.get("parameters", ()), *spec.get("parameters", ())]
            query = {each["name"]: each.get("schema", {}) for each in parameters if each["in"] == "query"}
            content = spec.get("requestBody", {}).get("content", {})
            kind = JSON if JSON in content else next(iter(content), None)
            pointer = f"/paths/{_escape(path)}/{verb}/requestBody/content/{_escape(kind)}/schema" if kind else None
            required = bool(spec.get("requestBody", {}).get("required"))
            yield Operation(verb.upper(), f"{verb.upper()} {path}", pattern, query, pointer, required)


def _escape(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1").replace("{", "%7B").replace("}", "%7D")


def _check_parameter(schema: Mapping[str, Any], value: str) -> str:
    """The problem with a query parameter, which arrives as text; empty if there is none."""
    kind = schema.get("type")
    if kind == "integer" and not re.fullmatch(r"-?\d+", value):
        return "is no integer"
    if kind == "boolean" and value not in ("true", "false"):
        return "is neither true nor false"
    return ""


def _describe_error(error: ValidationError) -> Iterator[tuple[str, str]]:
    """Place and text of an error, without what varies from request to request."""
    location = "".join("[]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    instance: Any = error.instance
    rule: Any = error.validator_value
    if error.validator == "additionalProperties" and isinstance(instance, dict):
        known_names = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        for name in sorted(instance.keys() - known_names):
            yield f"{location}.{name}".lstrip("."), "there is no such property"
    elif error.validator == "type":
        yield location, f"{type(instance).__name__} is not {rule}"
    elif error.validator == "byType":
        yield location, error.message
    elif error.validator == "required":
        yield location, f"{' '.join(sorted(set(rule) - instance.keys()))} is missing"
    else:
        yield location, f"{error.validator} {json.dumps(rule)[:120]} does not hold"
