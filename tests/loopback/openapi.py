"""Discord's own description of its API as a judge: each request is held against it, strictly.

A property that the description does not know is a finding. Findings are values, counted, without what varies (ids,
texts). Knows JSON and the description; what the description leaves out is `unwritten`, what discord.py always does
against it is `habits`.
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

from loopback import unwritten
from loopback.strict import Description, Validator

FILE = Path(__file__).parents[1] / "discord-api" / "openapi.json"
HERE = "urn:discord"
VERBS = ("get", "put", "post", "patch", "delete")
JSON = "application/json"


@dataclass(frozen=True, order=True)
class Finding:
    """What is wrong with some request: an operation, the place in its body (`[]` for any item), and what is said."""

    operation: str
    where: str
    said: str

    def __str__(self) -> str:
        return f"{self.operation}: {self.where or 'the body'}: {self.said}"


class Book:
    """A description, read and made strict; its validators are compiled when they are first needed."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._registry = Registry().with_resource(HERE, Resource(Description(description).strict(), DRAFT202012))
        self._operations: dict[tuple[str, int], list[Operation]] = {}
        for one in _operations(description):
            self._operations.setdefault((one.method, one.name.count("/")), []).append(one)
        self._compiled: dict[str, Any] = {}

    def operation(self, method: str, path: str) -> Operation | None:
        """The operation with the most literal parts that fits."""
        fitting = [one for one in self._operations.get((method, path.count("/")), ()) if one.pattern.fullmatch(path)]
        return max(fitting, key=lambda one: -one.name.count("{"), default=None)

    def validator(self, pointer: str) -> Any:
        if pointer not in self._compiled:
            self._compiled[pointer] = Validator({"$ref": f"{HERE}#{pointer}"}, registry=self._registry)
        return self._compiled[pointer]


@cache
def discord() -> Book:
    """Discord's own description; read once."""
    return Book(json.loads(FILE.read_text()))


class Judge:
    """Holds requests against a description, and counts what it finds."""

    def __init__(self, book: Book | None = None) -> None:
        self._book = book or discord()
        self.findings: Counter[Finding] = Counter()

    def hear(self, method: str, path: str, query: Mapping[str, str], body: Any, files: int = 0) -> list[Finding]:
        """What is wrong with this request; also counted in `findings`."""
        operation = self._book.operation(method, path)
        if operation is None:
            name = re.sub(r"/[\d]{5,}", "/{id}", path)
            found = [Finding(f"{method} {name}", "", "there is no such operation")]
        else:
            found = list(self._judge(operation, query, body, files))
        self.findings.update(found)
        return found

    def _judge(self, operation: Operation, query: Mapping[str, str], body: Any, files: int) -> Iterator[Finding]:
        for name, value in query.items():
            if name not in operation.query:
                yield Finding(operation.name, f"?{name}", "there is no such parameter")
            elif said := _coerced(operation.query[name], value):
                yield Finding(operation.name, f"?{name}", said)
        if operation.body is None:
            if body is not None:
                yield Finding(operation.name, "", "takes no body")
            return
        if body is None and not files:
            if operation.required:
                yield Finding(operation.name, "", "needs a body")
            return
        for error in self._book.validator(operation.body).iter_errors(body):
            yield from (Finding(operation.name, where, said) for where, said in _told(error))
        for where, said in unwritten.findings(operation.name, body, files):
            yield Finding(operation.name, where, said)


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
            told = item[verb]
            parameters = [*item.get("parameters", ()), *told.get("parameters", ())]
            query = {each["name"]: each.get("schema", {}) for each in parameters if each["in"] == "query"}
            content = told.get("requestBody", {}).get("content", {})
            kind = JSON if JSON in content else next(iter(content), None)
            pointer = f"/paths/{_escaped(path)}/{verb}/requestBody/content/{_escaped(kind)}/schema" if kind else None
            required = bool(told.get("requestBody", {}).get("required"))
            yield Operation(verb.upper(), f"{verb.upper()} {path}", pattern, query, pointer, required)


def _escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1").replace("{", "%7B").replace("}", "%7D")


def _coerced(schema: Mapping[str, Any], value: str) -> str:
    """What is wrong with a parameter: it comes as text."""
    kind = schema.get("type")
    if kind == "integer" and not re.fullmatch(r"-?\d+", value):
        return "is no integer"
    if kind == "boolean" and value not in ("true", "false"):
        return "is neither true nor false"
    return ""


def _told(error: ValidationError) -> Iterator[tuple[str, str]]:
    """Place and words of an error, without what varies from request to request."""
    where = "".join("[]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    given: Any = error.instance
    rule: Any = error.validator_value
    if error.validator == "additionalProperties" and isinstance(given, dict):
        known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        for name in sorted(given.keys() - known):
            yield f"{where}.{name}".lstrip("."), "there is no such property"
    elif error.validator == "type":
        yield where, f"{type(given).__name__} is not {rule}"
    elif error.validator == "byType":
        yield where, error.message
    elif error.validator == "required":
        yield where, f"{' '.join(sorted(set(rule) - given.keys()))} is missing"
    else:
        yield where, f"{error.validator} {json.dumps(rule)[:120]} does not hold"
