"""AUTOMATIC1111's API as a backend (`/sdapi/v1/…`), as the web UI and programs like it serve it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, cast

from engine.backends.a1111 import BACKEND
from engine.contract import SAMPLER_TITLES, JobRejected, Lora, Sampler
from engine.process.settings import BackendSettings
from engine.remote.drawing import (
    KARRAS,
    BackendModel,
    BackendSampler,
    BackendUnreachable,
    DrawProgress,
    DrawRequest,
    OnProgress,
    choose_multiple,
    guess_size,
    make_name,
    name_models,
    sort_samplers,
)
from engine.remote.http_client import BackendHttp, BackendRefusal, as_object, decode_base64, make_headers

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5  # between two questions for its progress
STOP_SECONDS = 5.0
MAX_LORAS = 256
MAX_CLIP_SKIP = 11  # left out, as diffusers counts; its own number is one more
LACKING_STATUSES = (404, 405, 501)  # of a route that a server lacks
ROOT = "sdapi/v1"
TASK_PROGRESS = "internal/progress"  # of one task, as the web UI's own page asks
API_PROGRESS = f"{ROOT}/progress"  # of whatever is drawn, with its task since 1.9
NETWORK_WORDS = re.compile(r"<\w+:[^>]*>|<(?=\w+:)")  # load a network beside the checkpoint, whatever its kind


async def open_backend(settings: BackendSettings, wanted: Sequence[str]) -> Automatic1111:
    """Return the client."""
    http = BackendHttp(BACKEND.title, settings.url, make_headers(settings.key.get_secret_value()))
    return Automatic1111(http, settings.size)


class Automatic1111:
    """`size`: the native side of its models in pixels; 0: by name."""

    def __init__(
        self, http: BackendHttp, size: int = 0, make_id: Callable[[], str] = lambda: f"darkroom-{uuid.uuid4()}"
    ) -> None:
        self.concurrency = 1
        self._http = http
        self._size = size
        self._make_id = make_id
        self._samplers: dict[Sampler, BackendSampler] = {}
        self._lora_titles: dict[str, str] = {}
        self._has_task_progress = True

    async def close(self) -> None:
        await self._http.close()

    async def list_models(self) -> tuple[BackendModel, ...]:
        """Return its checkpoints, each with all of its samplers and LoRAs."""
        models = _list_objects(await self._http.get_json(f"{ROOT}/sd-models"))
        samplers = {str(each.get("name")) for each in _list_objects(await self._http.get_json(f"{ROOT}/samplers"))}
        schedulers = {str(each.get("name")) for each in await self._list_optional("schedulers")}
        self._samplers = match_a1111_samplers(samplers, schedulers)
        if not self._samplers or not models:
            raise JobRejected("This AUTOMATIC1111 has no model or no sampler that Darkroom knows.", "worker")
        loras = [str(each["name"]) for each in await self._list_optional("loras") if each.get("name")]
        self._lora_titles = {make_name(title): title for title in loras[:MAX_LORAS]}
        by_title = {str(each.get("title")): each for each in models}  # requests name a model by its title
        names = name_models(str(each.get("model_name") or title) for title, each in by_title.items())
        return tuple(
            self._describe_model(name, title, each)
            for name, (title, each) in zip(names, by_title.items(), strict=False)  # of too many models the first ones
        )

    async def draw(self, request: DrawRequest, on_progress: OnProgress) -> bytes:
        """Draw a picture and ask for its progress meanwhile. Without an answer, it interrupts what is drawn."""
        task = self._make_id()
        route = "txt2img"
        body = self._make_body(request) | {"force_task_id": task}
        if request.picture is not None:
            route = "img2img"
            body = body | _make_start(request)
        watch = asyncio.create_task(self._watch_progress(task, on_progress))
        try:
            answer = await self._http.post_drawing(f"{ROOT}/{route}", body)
        except JobRejected:  # it answers: it draws no longer
            raise
        except BaseException:
            await self._stop(task)
            raise
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        images = cast(dict[str, Any], answer).get("images") if isinstance(answer, dict) else None
        if not isinstance(images, list) or not images:
            raise JobRejected("AUTOMATIC1111 sent no picture; somebody may have interrupted it.", "worker")
        return decode_base64(cast(list[object], images)[0], "AUTOMATIC1111")

    def _describe_model(self, name: str, title: str, info: dict[str, Any]) -> BackendModel:
        size = self._size or guess_size(title)
        return BackendModel(
            name=name,
            title=title,
            size=size,
            multiple=choose_multiple(size),
            max_pixels=2 * size * size,
            samplers=sort_samplers(self._samplers),
            steps=20,
            guidance=7.0,
            version=hashlib.sha256(str(info.get("sha256") or title).encode()).hexdigest(),
            loras=tuple(Lora(name) for name in self._lora_titles),
            max_clip_skip=MAX_CLIP_SKIP,
        )

    def _make_body(self, request: DrawRequest) -> dict[str, Any]:
        sampler = self._samplers.get(request.sampler)
        if sampler is None:
            raise JobRejected(f"This AUTOMATIC1111 has no sampler {request.sampler}.", "worker")
        loras = [f"<lora:{self._lora_titles.get(each.name, each.name)}:{each.weight:g}>" for each in request.loras]
        # Both stay set after a picture, so each picture sets both.
        settings = {"sd_model_checkpoint": request.model.title, "CLIP_stop_at_last_layers": request.clip_skip + 1}
        body: dict[str, Any] = {
            "prompt": " ".join((strip_networks(request.prompt), *loras)),
            "negative_prompt": strip_networks(request.negative),
            "seed": request.seed,
            "steps": request.steps,
            "cfg_scale": request.guidance,
            "width": request.width,
            "height": request.height,
            "sampler_name": sampler.name,
            "n_iter": 1,
            "batch_size": 1,
            "send_images": True,
            "save_images": False,
            "override_settings": settings,
            "override_settings_restore_afterwards": False,  # loading a model takes long
        }
        return (
            body
            | ({"scheduler": sampler.scheduler} if sampler.scheduler else {})
            | ({"tiling": True} if request.tile else {})
        )

    async def _list_optional(self, route: str) -> list[dict[str, Any]]:
        """Return a list that older servers and other programs lack."""
        try:
            return _list_objects(await self._http.get_json(f"{ROOT}/{route}"))
        except BackendRefusal as error:
            if error.status not in LACKING_STATUSES:
                raise
            return []

    async def _watch_progress(self, task: str, on_progress: OnProgress) -> None:
        """Report progress and previews until cancelled, of this task alone. A question that fails is skipped."""
        is_waiting = False
        shown = -1
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                answer = await self._ask_progress(task, shown)
                is_waiting = is_waiting or answer.get("queued") is True
                if answer.get("active") is not True:
                    continue
                image = answer.get("live_preview")
                shown = int(answer.get("id_live_preview", -1))
                preview = decode_base64(image, "AUTOMATIC1111") if image else None
                fraction = min(1.0, max(0.0, float(answer.get("progress") or 0)))
                on_progress(DrawProgress(fraction, preview, begins=is_waiting))
                is_waiting = False
            except BackendRefusal as error:
                if error.status in LACKING_STATUSES:
                    log.debug("AUTOMATIC1111 tells no progress of one task: %s", error)
                    return
            except (BackendUnreachable, JobRejected, TypeError, ValueError) as error:
                log.debug("no progress of AUTOMATIC1111: %s", error)

    async def _ask_progress(self, task: str, shown: int = -1) -> dict[str, Any]:
        """Return a task's state, with its newest preview unless that is the one called `shown`.

        A server without the web UI's page is asked for what it draws; that counts only if it is this task.
        """
        if self._has_task_progress:
            question = {"id_task": task, "id_live_preview": shown, "live_preview": True}
            try:
                return as_object(await self._http.post_json(TASK_PROGRESS, question))
            except BackendRefusal as error:
                if error.status not in LACKING_STATUSES:
                    raise
                self._has_task_progress = False
        answer = as_object(await self._http.get_json(API_PROGRESS))
        current_task = answer.get("current_task")
        if current_task != task:
            return {"queued": bool(current_task)}
        return {"active": True, "progress": answer.get("progress"), "live_preview": answer.get("current_image")}

    async def _stop(self, task: str) -> None:
        """Interrupt the task. One behind other pictures is interrupted if its turn comes soon: else it hits theirs."""
        try:
            async with asyncio.timeout(STOP_SECONDS):
                while (state := await self._find_state(task)) == "queued":
                    await asyncio.sleep(POLL_SECONDS)
                if state != "completed":
                    await self._http.post_json(f"{ROOT}/interrupt", {})
        except (BackendUnreachable, JobRejected, TimeoutError) as error:
            log.info("AUTOMATIC1111 was not asked to stop: %s", error)

    async def _find_state(self, task: str) -> str:
        """Return "active", "queued" or "completed"; "" where the server does not tell."""
        try:
            answer = await self._ask_progress(task)
        except BackendRefusal as error:
            if error.status not in LACKING_STATUSES:
                raise
            return ""
        return next((state for state in ("active", "queued", "completed") if answer.get(state) is True), "")


def strip_networks(text: str) -> str:
    """Return a member's text without words such as `<lora:name:1>`: the recipe alone names what is loaded."""
    return NETWORK_WORDS.sub(" ", text)


def _make_start(request: DrawRequest) -> dict[str, Any]:
    """Return what img2img takes beside the settings. White in our masks is painted anew, as in its own."""
    assert request.picture is not None
    start: dict[str, Any] = {
        "init_images": [base64.b64encode(request.picture).decode()],
        "denoising_strength": request.strength,
    }
    if request.mask is None:
        return start
    keep = {"mask_blur": 4, "inpainting_fill": 1, "inpaint_full_res": False, "inpainting_mask_invert": 0}
    return start | keep | {"mask": base64.b64encode(request.mask).decode()}


def _list_objects(value: object) -> list[dict[str, Any]]:
    """Return the objects in a list. Raises `JobRejected` where it is none."""
    if not isinstance(value, list):
        raise JobRejected("AUTOMATIC1111 answers with no list.", "worker")
    return [cast(dict[str, Any], each) for each in cast(list[object], value) if isinstance(each, dict)]


def match_a1111_samplers(names: Collection[str], schedulers: Collection[str]) -> dict[Sampler, BackendSampler]:
    """Return ours that an AUTOMATIC1111 has, by the titles that both use; Karras may be a scheduler of its own."""
    return dict(_match_titles(names, schedulers))


def _match_titles(names: Collection[str], schedulers: Collection[str]) -> Iterator[tuple[Sampler, BackendSampler]]:
    for sampler, title in SAMPLER_TITLES.items():
        base = title.removesuffix(" Karras")
        if title in names or sampler in names:
            yield sampler, BackendSampler(title if title in names else sampler)
        elif base != title and base in names and KARRAS in schedulers:
            yield sampler, BackendSampler(base, KARRAS)
