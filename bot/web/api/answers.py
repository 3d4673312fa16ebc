"""The shapes of the API's answers, as JSON Schema: what `bot.web.serializers` and the handlers return.

`tests/bot/web/test_openapi.py` checks answers against them. Answers may have more fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]


def type_of(name: str) -> Schema:
    """Return the schema of a type: `string`, or `number?` for a number or null."""
    return {"type": [name[:-1], "null"]} if name.endswith("?") else {"type": name}


def object_of(**fields: str | Schema) -> Schema:
    """Return the schema of an object that has all these fields."""
    properties = {name: type_of(field) if isinstance(field, str) else field for name, field in fields.items()}
    return {"type": "object", "properties": properties, "required": list(properties)}


def list_of(items: str | Schema) -> Schema:
    return {"type": "array", "items": type_of(items) if isinstance(items, str) else items}


def map_of(values: str) -> Schema:
    return {"type": "object", "additionalProperties": type_of(values)}


def reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


PICTURE = object_of(
    n="integer",
    url="string",
    sha256="string",
    width="integer",
    height="integer",
    held="string",
    dissolve="string?",
    round_trip="string?",
    branch="string?",
)
JOB = object_of(
    id="string",
    state="string",
    action="string",
    kind="string",
    prompt="string",
    prompt_text="string",
    author=object_of(name="string", you="boolean"),
    can_cancel="boolean",
    can_review="boolean",
    created="number",
    started="number?",
    finished="number?",
    seconds="number?",
    ms_per_step="number?",
    jobs_ahead="integer?",
    eta="number?",
    step="integer",
    total_steps="integer",
    percent="integer",
    cost="number",
    has_worker="boolean",
    startup_notice="string",
    cancelling="boolean",
    reason="string",
    wait_reason="string",
    notes=list_of("string"),
    parent="object?",
    footer="string",
    count="integer",
    images=list_of("integer"),
    pictures=list_of(PICTURE),
    chosen={**list_of("integer"), **type_of("array?")},
    grid="string?",
    film="string?",
    films=map_of("string"),
    keyframes="string?",
    walk_films=map_of("string"),
)
AMENDMENT = object_of(
    number="integer",
    state="string",
    step="integer?",
    total_steps="integer",
    reason="string",
    author=object_of(name="string", you="boolean"),
    kind="string",
    text="string",
    at="number",
)
ACCEPTED_JOB = object_of(
    id="string",
    prompt="string",
    jobs_ahead="integer",
    eta="number?",
    has_worker="boolean",
    startup_notice="string",
    notes=list_of("string"),
    steps="integer",
    evaluations="integer",
    sampler="string",
    seed="integer",
    count="integer",
    cost="number",
    url="string",
)
WORKER = object_of(
    name="string",
    device="string",
    rows="integer",
    free="integer",
    models=list_of(
        object_of(
            name="string",
            loaded="boolean",
            samplers=list_of("string"),
            loras=list_of("string"),
            controls=list_of("string"),
            references=list_of("string"),
            embeddings=list_of("string"),
            vaes=list_of("string"),
            quantization="string",
        )
    ),
)
SCHEMAS: Mapping[str, Schema] = {
    "Error": object_of(error="string"),
    "Path": object_of(path="string"),
    "Health": object_of(status="string", workers="integer", app="string"),
    "Sentence": object_of(id="string", sentence="string"),
    "Job": JOB,
    "Jobs": object_of(jobs=list_of(reference("Job"))),
    "Accepted": {"allOf": [ACCEPTED_JOB, object_of(ids=list_of("string"), jobs=list_of(ACCEPTED_JOB))]},
    "Workers": object_of(
        online="boolean",
        engine_loading="boolean",
        workers=list_of(WORKER),
        models=list_of("string"),
        loaded=list_of("string"),
        sentence="string",
    ),
    "Amendments": object_of(
        id="string", amendments=list_of(AMENDMENT), steering="object?", left="integer", obstacle="string"
    ),
    "Steps": object_of(steps=list_of("integer")),
    "Keyframes": object_of(
        keyframes=list_of(object_of(step="integer", url="string")),
        captions=list_of(object_of(step="integer", text="string", speaker="string")),
    ),
    "WaitReason": object_of(
        id="string", state="string", wait_reason="string", jobs_ahead="integer?", eta="number?", step="integer"
    ),
    "Rejections": object_of(rejections=list_of(object_of(sender="string", reason="string", count="integer"))),
}
