"""ComfyUI as a backend: fills a workflow, queues it, follows its websocket, and fetches the picture.

Its routes are those of ComfyUI's server: `/prompt`, `/ws`, `/history`, `/view`, `/object_info`, `/interrupt`, `/queue`
and `/upload/image`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import aiohttp

from engine.backends.comfyui import BACKEND
from engine.backends.comfyui.workflow import SlotPlace, SlotValue, Workflow, WrongWorkflow, parse_workflow
from engine.contract import Feature, JobRejected, Sampler
from engine.contract.fields import SAMPLER_ROWS
from engine.process.settings import BackendSettings, SettingError
from engine.remote.drawing import (
    BackendModel,
    BackendSampler,
    BackendUnreachable,
    DrawProgress,
    DrawRequest,
    OnProgress,
    choose_multiple,
    guess_size,
    name_models,
    sort_samplers,
)
from engine.remote.http_client import (
    MAX_PICTURE_BYTES,
    BackendHttp,
    as_object,
    clean_line,
    make_headers,
    parse_object,
    read_body,
)

log = logging.getLogger(__name__)

BUILT_IN = Path(__file__).parent / "workflows"
MAX_WORKFLOW_BYTES = 4 * 1024 * 1024
MAX_MESSAGE_BYTES = 8 * 1024 * 1024  # of its websocket
MAX_ANSWER_BYTES = 64 * 1024  # to an upload
STOP_SECONDS = 5.0
# it tells of the end a moment before it can be asked for the picture
HISTORY_TRIES = 50
HISTORY_PAUSE_SECONDS = 0.1
PREVIEW_IMAGE = 1  # its binary message: event and format as big-endian integers, then a JPEG or PNG
USUAL_STEPS = 20
USUAL_GUIDANCE = 7.0
OWN_SAMPLER = BackendSampler("")

# ComfyUI names the method and the spacing of its noise levels apart. It lacks DPM++ 3M without noise.
COMFYUI_SAMPLERS: Mapping[Sampler, BackendSampler] = MappingProxyType(
    {row.name: BackendSampler(*row.comfyui) for row in SAMPLER_ROWS if row.comfyui}
)


async def open_backend(settings: BackendSettings, wanted: Sequence[str]) -> ComfyUi:
    """Return the client. Raises `SettingError` for a workflow that it cannot fill."""
    workflows = await asyncio.to_thread(load_workflows, settings)
    http = BackendHttp(BACKEND.title, settings.url, make_headers(settings.key.get_secret_value()))
    return ComfyUi(http, workflows, settings.size)


def load_workflows(settings: BackendSettings) -> tuple[Workflow, ...]:
    """Return the workflows, those of the settings or the built-in ones. Blocks. Raises `SettingError`."""
    workflows = tuple(_load_workflow(path) for path in settings.workflows) or load_built_in_workflows()
    kinds = {(workflow.has_slot("picture"), workflow.has_slot("mask")) for workflow in workflows}
    if len(kinds) < len(workflows) or (False, True) in kinds:
        raise SettingError("--workflow: give at most one for text, one with %picture%, one with %picture% and %mask%.")
    return workflows


def _load_workflow(path: Path) -> Workflow:
    try:
        if path.stat().st_size > MAX_WORKFLOW_BYTES:
            raise SettingError(f"The workflow {path.name} is too large.")
        return parse_workflow(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"The workflow {path.name} cannot be read: {type(error).__name__}.") from error
    except WrongWorkflow as error:
        raise SettingError(f"{path.name}: {error}") from error


def load_built_in_workflows() -> tuple[Workflow, ...]:
    """Return the workflows for text, for a picture, and for a picture with a mask. Blocks for a moment."""
    return tuple(parse_workflow((BUILT_IN / f"{name}.json").read_text()) for name in ("text", "picture", "mask"))


class ComfyUi:
    """`workflows`: at most one for text alone, one with a picture, one with picture and mask. `size`: 0: by name."""

    def __init__(
        self,
        http: BackendHttp,
        workflows: Sequence[Workflow],
        size: int = 0,
        make_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self.concurrency = 1
        self._http = http
        self._size = size
        self._make_id = make_id
        self._workflows = {(each.has_slot("picture"), each.has_slot("mask")): each for each in workflows}
        self._samplers: dict[Sampler, BackendSampler] = {}

    async def close(self) -> None:
        await self._http.close()

    async def list_models(self) -> tuple[BackendModel, ...]:
        """Return one model for each file that the workflow's model slot may hold; one for a workflow without it."""
        workflow = next(iter(self._workflows.values()))
        titles = await self._list_choices(workflow.places.get("model", ()))
        if workflow.has_slot("model") and not titles:
            raise JobRejected("ComfyUI has no model file that this workflow could load.", "worker")
        self._samplers = await self._match_samplers(workflow)
        named = name_models(titles) if titles else {"comfyui": ""}
        return tuple(self._describe_model(name, title, workflow) for name, title in named.items())

    async def draw(self, request: DrawRequest, on_progress: OnProgress) -> bytes:
        """Queue the workflow and wait for its picture. If the call is cancelled, ComfyUI drops or interrupts it."""
        workflow = self._workflows.get((request.picture is not None, request.mask is not None))
        if workflow is None:
            raise JobRejected("This ComfyUI has no workflow for such a picture.", "model")
        values = self._make_values(request)
        for slot, content in (("picture", request.picture), ("mask", request.mask)):
            if content is not None:
                values[slot] = await self._upload(content)
        client = self._make_id()
        prompt_id = self._make_id()
        async with self._http.open_websocket(f"ws?clientId={client}", MAX_MESSAGE_BYTES) as websocket:
            try:
                filled = {"prompt": workflow.fill(values), "client_id": client, "prompt_id": prompt_id}
                answer = await self._http.post_json("prompt", filled)
                if isinstance(answer, dict) and "prompt_id" in answer:  # older ones choose it themselves
                    prompt_id = str(cast(dict[str, Any], answer)["prompt_id"])
                await self._follow(websocket, prompt_id, on_progress)
            except BaseException:
                await self._stop(prompt_id)
                raise
        return await self._fetch_picture(prompt_id)

    def _describe_model(self, name: str, title: str, workflow: Workflow) -> BackendModel:
        width = workflow.usual.get("width")
        size = self._size or (width if isinstance(width, int) and 64 <= width <= 2048 else guess_size(title))
        with_picture = self._workflows.get((True, False))
        return BackendModel(
            name=name,
            title=title,
            size=size,
            multiple=choose_multiple(size),
            max_pixels=2 * size * size,
            samplers=sort_samplers(self._samplers),
            steps=_read_usual(workflow, "steps", USUAL_STEPS, 1, 1000),
            guidance=_read_usual(workflow, "guidance", USUAL_GUIDANCE, 1, 30),
            lacks=self._list_lacks(workflow),
            version="".join(each.version for each in self._workflows.values()),
            edits=with_picture is not None and not with_picture.has_slot("strength"),
            needs_picture=(False, False) not in self._workflows,
        )

    def _list_lacks(self, workflow: Workflow) -> tuple[Feature, ...]:
        slots: tuple[Feature, ...] = ("negative", "steps", "guidance")
        lacks: list[Feature] = ["tile", *(name for name in slots if not workflow.has_slot(name))]
        with_picture = self._workflows.get((True, False))
        if with_picture is None and (True, True) not in self._workflows:
            lacks.append("picture")
        if (True, True) not in self._workflows:
            lacks.append("mask")
        if with_picture is None or not with_picture.has_slot("strength"):
            lacks.append("strength")
        return tuple(lacks)

    async def _match_samplers(self, workflow: Workflow) -> dict[Sampler, BackendSampler]:
        """Return our samplers that the workflow can name. Without a slot for them it has its own."""
        if not workflow.has_slot("sampler"):
            return {"native": OWN_SAMPLER}
        names = await self._list_choices(workflow.places["sampler"])
        schedulers = await self._list_choices(workflow.places.get("scheduler", ()))
        samplers = match_comfyui_samplers(names, schedulers)
        if not samplers:
            raise JobRejected("This ComfyUI has no sampler that Darkroom knows.", "worker")
        return samplers

    async def _list_choices(self, places: Sequence[SlotPlace]) -> tuple[str, ...]:
        """Return what a node's input may be, from its description."""
        if not places:
            return ()
        place = places[0]
        info = await self._http.get_json(f"object_info/{place.class_type}")
        try:
            inputs = cast(dict[str, Any], info)[place.class_type]["input"]
            kind, *options = {**inputs.get("optional", {}), **inputs["required"]}[place.input]
            choices = cast(list[object], kind if isinstance(kind, list) else options[0]["options"])
            return tuple(str(choice) for choice in choices)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            sentence = f"ComfyUI has no node {clean_line(place.class_type)[:60]} with an input {place.input[:40]}."
            raise JobRejected(sentence, "worker") from error

    def _make_values(self, request: DrawRequest) -> dict[str, SlotValue]:
        """Return the slots' values. Its denoising runs all of its steps, ours run their share."""
        sampler = self._samplers.get(request.sampler)
        if sampler is None:
            raise JobRejected(f"This ComfyUI has no sampler {request.sampler}.", "worker")
        return {
            "prompt": request.prompt,
            "negative": request.negative,
            "seed": request.seed,
            "steps": max(1, int(request.steps * request.strength)),
            "guidance": request.guidance,
            "width": request.width,
            "height": request.height,
            "sampler": sampler.name,
            "scheduler": sampler.scheduler,
            "model": request.model.title,
            "strength": request.strength,
        }

    async def _upload(self, content: bytes) -> str:
        """Send a picture into its folder for temporary files; return it as a node names it."""
        form = aiohttp.FormData()
        form.add_field("image", content, filename=f"darkroom-{self._make_id()}.png", content_type="image/png")
        form.add_field("type", "temp")
        async with self._http.request("POST", "upload/image", data=form) as response:
            answer = parse_object(await read_body(response, MAX_ANSWER_BYTES), "ComfyUI")
        if "name" not in answer:
            raise JobRejected("ComfyUI did not say where it put a picture.", "worker")
        folder = f"{answer['subfolder']}/" if answer.get("subfolder") else ""
        return f"{folder}{answer['name']} [{answer.get('type', 'temp')}]"

    async def _follow(
        self, websocket: aiohttp.ClientWebSocketResponse, prompt_id: str, on_progress: OnProgress
    ) -> None:
        """Return when the workflow has run. Raises `JobRejected` for its failure.

        Previews bear no name. Those of workflows that others queue without a client go to every websocket, too.
        """
        fraction = 0.0
        is_ours = False
        async for message in websocket:
            if message.type is aiohttp.WSMsgType.BINARY:
                if is_ours and (preview := read_preview(message.data)):
                    on_progress(DrawProgress(fraction, preview))
            elif message.type is aiohttp.WSMsgType.TEXT:
                kind, data = _read_message(message.data)
                if "prompt_id" in data:
                    is_ours = data["prompt_id"] == prompt_id
                if not is_ours or "prompt_id" not in data:
                    continue
                if kind == "execution_start":
                    on_progress(DrawProgress(0.0, begins=True))
                elif kind == "progress":
                    fraction = max(fraction, _read_fraction(data))
                    on_progress(DrawProgress(fraction))
                elif kind == "execution_success" or (kind == "executing" and data.get("node") is None):
                    return
                elif kind in ("execution_error", "execution_interrupted"):
                    raise _describe_failure(kind, data)
        raise BackendUnreachable("ComfyUI closed its connection while it drew.")

    async def _stop(self, prompt_id: str) -> None:
        """Interrupt the workflow if it runs, else take it from the queue: an interrupt hits whatever runs."""

        async def stop() -> None:
            queue = await self._http.get_json("queue")
            running = {str(item[1]) for item in queue.get("queue_running", ())}
            if prompt_id in running:
                await self._http.post_json("interrupt", {"prompt_id": prompt_id})
            else:
                await self._http.post_json("queue", {"delete": [prompt_id]})

        try:
            async with asyncio.timeout(STOP_SECONDS):
                await stop()
        except (BackendUnreachable, JobRejected, TimeoutError, AttributeError, TypeError, IndexError) as error:
            log.info("ComfyUI was not asked to stop: %s", error)

    async def _fetch_picture(self, prompt_id: str) -> bytes:
        """Return the first picture of the finished workflow, and let ComfyUI forget the workflow."""
        entry = await self._read_history(prompt_id)
        try:
            outputs = entry["outputs"].values()
            images = [image for output in outputs for image in output.get("images", ())]
            image = next((each for each in images if each["type"] == "output"), images[0])
            query = {name: str(image[name]) for name in ("filename", "subfolder", "type")}
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise JobRejected("ComfyUI's workflow ended without a picture.", "model") from error
        async with self._http.request("GET", "view", params=query) as response:
            picture = await read_body(response, MAX_PICTURE_BYTES)
        try:
            await self._http.post_json("history", {"delete": [prompt_id]})
        except (BackendUnreachable, JobRejected) as error:
            log.info("ComfyUI keeps a drawn picture in its history: %s", error)
        return picture

    async def _read_history(self, prompt_id: str) -> dict[str, Any]:
        """Return what the workflow gave; {} where ComfyUI still knows nothing of it after some seconds."""
        for _ in range(HISTORY_TRIES):
            history = as_object(await self._http.get_json(f"history/{prompt_id}"))
            if prompt_id in history:
                return as_object(history[prompt_id])
            await asyncio.sleep(HISTORY_PAUSE_SECONDS)
        return {}


def read_preview(message: bytes) -> bytes | None:
    """Return the preview in a binary message; None if it is something else."""
    if len(message) <= 8 or struct.unpack_from(">I", message)[0] != PREVIEW_IMAGE:
        return None
    return message[8:]


def _read_message(text: str) -> tuple[str, Mapping[str, Any]]:
    """Return a message's kind and data; ("", {}) for something else."""
    try:
        message = json.loads(text)
        kind = message["type"]
        data = message["data"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", {}
    return (str(kind), cast(dict[str, Any], data)) if isinstance(data, dict) else ("", {})


def _read_fraction(data: Mapping[str, Any]) -> float:
    value = data.get("value")
    total = data.get("max")
    if not isinstance(value, int | float) or not isinstance(total, int | float) or not total > 0:
        return 0.0
    return min(1.0, max(0.0, value / total))


def _read_usual(workflow: Workflow, slot: str, default: Any, least: float, most: float) -> Any:
    value = workflow.usual.get(slot, default)
    return value if isinstance(value, int | float) and least <= value <= most else default


def _describe_failure(kind: str, data: Mapping[str, Any]) -> JobRejected:
    if kind == "execution_interrupted":
        return JobRejected("Somebody interrupted the picture in ComfyUI.", "worker")
    return JobRejected(f"ComfyUI failed: {clean_line(str(data.get('exception_message', '')))}"[:300], "model")


def match_comfyui_samplers(names: Collection[str], schedulers: Collection[str]) -> dict[Sampler, BackendSampler]:
    """Return ours that a ComfyUI with these samplers and schedulers has. No schedulers: it has none to choose."""
    return {
        sampler: own
        for sampler, own in COMFYUI_SAMPLERS.items()
        if own.name in names and (not schedulers or own.scheduler in schedulers)
    }
