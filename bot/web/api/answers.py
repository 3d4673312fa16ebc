"""The shapes of the API's answers, as JSON Schema: what `bot.web.serializers` and the handlers return.

`tests/bot/web/test_openapi.py` checks answers against them. Answers may have more fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]


def _type(name: str) -> Schema:
    """Return the schema of a type: `string`, or `number?` for a number or null."""
    return {"type": [name[:-1], "null"]} if name.endswith("?") else {"type": name}


def _object(**fields: str | Schema) -> Schema:
    """Return the schema of an object that has all these fields."""
    properties = {name: _type(field) if isinstance(field, str) else field for name, field in fields.items()}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: str | Schema) -> Schema:
    return {"type": "array", "items": _type(items) if isinstance(items, str) else items}


def _map(values: str) -> Schema:
    return {"type": "object", "additionalProperties": _type(values)}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


PICTURE = _object(
    n="integer", url="string", sha256="string", width="integer", height="integer", held="string", dissolve="string?",
    round_trip="string?", branch="string?",
)  # fmt: skip
JOB = _object(
    id="string", state="string", action="string", kind="string", prompt="string", prompt_text="string",
    author=_object(name="string", you="boolean"), can_cancel="boolean", can_review="boolean",
    created="number", started="number?", finished="number?", seconds="number?", ms_per_step="number?",
    jobs_ahead="integer?", eta="number?", step="integer", total_steps="integer", percent="integer", cost="number",
    has_worker="boolean", startup_notice="string", cancelling="boolean", reason="string", wait_reason="string",
    notes=_list("string"), parent="object?", footer="string", count="integer", images=_list("integer"),
    pictures=_list(PICTURE), chosen={**_list("integer"), **_type("array?")},
    grid="string?", film="string?", films=_map("string"), keyframes="string?", walk_films=_map("string"),
)  # fmt: skip
AMENDMENT = _object(
    number="integer", state="string", step="integer?", total_steps="integer", reason="string",
    author=_object(name="string", you="boolean"), kind="string", text="string", at="number",
)  # fmt: skip
ACCEPTED_JOB = _object(
    id="string", prompt="string", jobs_ahead="integer", eta="number?", has_worker="boolean", startup_notice="string",
    notes=_list("string"), steps="integer", evaluations="integer", sampler="string", seed="integer",
    count="integer", cost="number", url="string",
)  # fmt: skip
WORKER = _object(
    name="string", device="string", rows="integer", free="integer",
    models=_list(
        _object(
            name="string", loaded="boolean", samplers=_list("string"), loras=_list("string"), controls=_list("string"),
            references=_list("string"), embeddings=_list("string"), vaes=_list("string"), quantization="string",
        )
    ),
)  # fmt: skip
WEBHOOK = _object(
    id="string",
    url="string",
    key="string",
    events=_list("string"),
    created="number",
    enabled="boolean",
    reason="string",
)
WEBHOOK_COUNTS = _object(waiting="integer", delivered="integer", dead="integer")
SUGGESTION = _object(prompt="string", error_reduction="number")
OPENAI_MODEL = _object(id="string", object="string", created="integer", owned_by="string")
OPENAI_USAGE = _object(
    input_tokens="integer", output_tokens="integer", total_tokens="integer",
    input_tokens_details=_object(text_tokens="integer", image_tokens="integer"),
)  # fmt: skip
SCHEMAS: Mapping[str, Schema] = {
    "Error": _object(error="string"),
    "Path": _object(path="string"),
    "Health": _object(status="string", workers="integer", app="string"),
    "Sentence": _object(id="string", sentence="string"),
    "Job": JOB,
    "Jobs": _object(jobs=_list(_ref("Job"))),
    "Accepted": {"allOf": [ACCEPTED_JOB, _object(ids=_list("string"), jobs=_list(ACCEPTED_JOB))]},
    "Workers": _object(
        online="boolean", engine_loading="boolean", workers=_list(WORKER), models=_list("string"),
        loaded=_list("string"), sentence="string",
    ),
    "Amendments": _object(
        id="string", amendments=_list(AMENDMENT), steering="object?", left="integer", obstacle="string"
    ),
    "Steps": _object(steps=_list("integer")),
    "Keyframes": _object(
        keyframes=_list(_object(step="integer", url="string")),
        captions=_list(_object(step="integer", text="string", speaker="string")),
    ),
    "FlagAliases": _object(options=_map("string")),
    "Suggestions": _object(
        model="string", tried_texts="integer", prompts=_list(SUGGESTION), sentence="string", notes=_list("string")
    ),
    "WaitReason": _object(
        id="string", state="string", wait_reason="string", jobs_ahead="integer?", eta="number?", step="integer"
    ),
    "OpenAIError": _object(error=_object(message="string", type="string", param="string?", code="string?")),
    "OpenAIModel": OPENAI_MODEL,
    "OpenAIModels": _object(object="string", data=_list(OPENAI_MODEL)),
    "OpenAIImages": _object(
        created="integer", data=_list("object"), background="string", output_format="string", quality="string",
        size="string", usage=OPENAI_USAGE, darkroom=_object(jobs=_list("object")),
    ),
    "WebuiError": _object(error="string", detail="string", body="string", errors="string"),
    "WebuiPictures": _object(images=_list("string"), parameters="object", info="string"),
    "WebuiPicture": _object(image="string", html_info="string"),
    "WebuiEnlarged": _object(images=_list("string"), html_info="string"),
    "WebuiParameters": _object(info="string", items=_map("string"), parameters=_map("string")),
    "WebuiCaption": _object(caption="string"),
    "WebuiProgress": _object(
        progress="number", eta_relative="number", state="object", current_image="string?", textinfo="string?",
        current_task="string?",
    ),
    "WebuiOptions": _object(
        sd_model_checkpoint="string", sd_checkpoint_hash="string", sd_vae="string", CLIP_stop_at_last_layers="integer",
        samples_format="string", live_previews_enable="boolean", show_progress_every_n_steps="integer",
    ),
    "WebuiModels": _list(_object(title="string", model_name="string", hash="string?", sha256="string?")),
    "WebuiSamplers": _list(_object(name="string", aliases=_list("string"), options="object")),
    "WebuiSchedulers": _list(_object(name="string", label="string")),
    "WebuiNames": _list(_object(name="string")),
    "WebuiAutoencoders": _list(_object(model_name="string", filename="string")),
    "WebuiEmbeddings": _object(loaded="object", skipped="object"),
    "WebuiScripts": _object(txt2img=_list("string"), img2img=_list("string")),
    "WebuiControlVersion": _object(version="integer"),
    "WebuiControlModels": _object(model_list=_list("string")),
    "WebuiControlModules": _object(module_list=_list("string")),
    "WebuiNothing": {"type": ["null", "object"]},
    "Webhooks": _object(webhooks=_list({"allOf": [WEBHOOK, WEBHOOK_COUNTS]})),
    "NewWebhook": {"allOf": [WEBHOOK, _object(secret="string")]},  # noqa: S106 - the name of a type
    "DeadLetters": _object(
        dead=_list(_object(id="string", event="string", job="string", at="number", tries="integer", error="string"))
    ),
    "OpenAIResponse": _object(
        id="string", object="string", created_at="integer", status="string", model="string", output=_list("object"),
        error="object?", usage="object?",
    ),
    "Rejections": _object(rejections=_list(_object(sender="string", reason="string", count="integer"))),
}  # fmt: skip
