"""`docs/api-reference.md` is made from the API's description, and is never older than it.

`PYTHONPATH=tests:. python tests/bot/web/test_api_reference.py > docs/api-reference.md` writes it anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bot.web.api import openapi
from bot.web.app import list_routes

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "api-reference.md"
HEAD = """# API reference

Every address of the [HTTP API](api.md), made from its description: `GET /openapi.json` (OpenAPI 3.1). A `?` marks what
may be left out. An error is `{"error": "sentence"}`. Fields of requests and answers are under [Schemas](#schemas).
"""


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == render_page(load_description()), (
        "Write it anew: PYTHONPATH=tests:. python tests/bot/web/test_api_reference.py > docs/api-reference.md"
    )


def test_the_page_has_every_operation_and_schema() -> None:
    description = load_description()
    page = PAGE.read_text()
    for path, item in description["paths"].items():
        for method in item:
            assert f"### {method.upper()} `{path}`" in page
    assert [name for name in description["components"]["schemas"] if f"### {name} schema\n" not in page] == []


def load_description() -> dict[str, Any]:
    """The description of all routes; no server runs."""
    return openapi.describe_routes(list_routes())


def render_page(description: Mapping[str, Any]) -> str:
    lines = [HEAD]
    for tag in [tag["name"] for tag in description["tags"]]:
        operations = [
            (method, path, operation)
            for path, item in description["paths"].items()
            for method, operation in item.items()
            if tag in operation["tags"]
        ]
        lines += [f"## {tag}\n"] if operations else []
        lines += [line for found in operations for line in render_operation(*found)]
    lines.append("## Schemas\n")
    for name, schema in sorted(description["components"]["schemas"].items()):
        lines += [f"### {name} schema\n", *render_schema(schema)]
    return "\n".join(lines)


def render_operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {method.upper()} `{path}`\n"
    yield operation["summary"] + (" Needs no key." if operation.get("security") == [] else "") + "\n"
    parameters = [each["name"] for each in operation["parameters"] if each["in"] == "header"]
    if parameters:
        yield "Headers: " + ", ".join(f"`{name}`?" for name in parameters) + ".\n"
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"Request, `{media_type}`: {name_type(content['schema'])}.\n"
    for status, response in operation["responses"].items():
        if status != "4XX":
            types = response.get("content", {})
            described = [f"`{kind}`" + (f": {name_type(one['schema'])}" if one else "") for kind, one in types.items()]
            yield f"Answer {status}: {', '.join(described) or 'no content'}.\n"


def name_type(schema: Mapping[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()}-schema)"
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(name_type(each) for each in schema.get("anyOf") or schema["oneOf"])
    if schema.get("type") == "object" and "properties" in schema:
        required = schema.get("required", [])
        fields = [f"`{name}`" + ("" if name in required else "?") for name in schema["properties"]]
        return "{" + ", ".join(fields) + "}"
    if schema.get("type") == "array":
        return f"list of {name_type(schema.get('items', {}))}"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "anything")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def render_schema(schema: Mapping[str, Any]) -> Iterator[str]:
    if "allOf" in schema:
        merged = {name: field for part in schema["allOf"] for name, field in part.get("properties", {}).items()}
        schema = {"properties": merged, "required": [name for part in schema["allOf"] for name in part["required"]]}
    if text := schema.get("description", ""):
        yield " ".join(text.split()) + "\n"
    if not schema.get("properties"):
        yield f"{name_type(schema)}\n"
        return
    yield "| field | type | range |\n|---|---|---|"
    for name, field in schema["properties"].items():
        mark = "" if name in schema.get("required", ()) else "?"
        yield f"| `{name}`{mark} | {name_type(field).replace('|', ' or ')} | {describe_range(field)} |"
    yield ""


def describe_range(field: Mapping[str, Any]) -> str:
    low = field.get("minimum", field.get("exclusiveMinimum"))
    high = field.get("maximum")
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"at most {field['maxItems']}" if "maxItems" in field else ""


if __name__ == "__main__":
    sys.stdout.write(render_page(load_description()))
