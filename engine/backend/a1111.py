"""AUTOMATIC1111's API as a backend (`/sdapi/v1/…`), as the web UI and programs like it serve it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from contextlib import suppress
from typing import Any, cast

from engine.backend.drawing import BackendModel, BackendUnreachable, DrawProgress, DrawRequest, OnProgress
from engine.backend.http_client import MAX_PICTURE_BYTES, BackendHttp, BackendRefusal, decode_base64
from engine.backend.model_names import choose_multiple, guess_size, make_name, name_models
from engine.backend.sampler_titles import BackendSampler, match_a1111_samplers, sort_samplers
from engine.contract import Feature, Lora, Sampler
from engine.contract.rejection import JobRejected

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5  # between two questions for its progress
STOP_SECONDS = 5.0
MAX_LORAS = 256
MAX_CLIP_SKIP = 11  # left out, as diffusers counts; its own number is one more
ROOT = "sdapi/v1"
NEVER: tuple[Feature, ...] = ("weights", "interval", "variation", "blend", "branch", "stop", "mix", "walk")


class Automatic1111:
    """`size`: the native side of its models in pixels; 0: by name."""

    def __init__(self, http: BackendHttp, size: int = 0) -> None:
        self.concurrency = 1
        self._http, self._size = http, size
        self._samplers: dict[Sampler, BackendSampler] = {}
        self._lora_titles: dict[str, str] = {}

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
        """Draw a picture and ask for its progress meanwhile. If the call is cancelled, it interrupts what is drawn."""
        route, body = "txt2img", self._make_body(request)
        if request.picture is not None:
            route, body = "img2img", body | _make_start(request)
        watch = asyncio.create_task(self._watch_progress(on_progress))
        try:
            answer = await self._http.post_json(f"{ROOT}/{route}", body, MAX_PICTURE_BYTES)
        except asyncio.CancelledError:
            await self._interrupt()
            raise
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch
        images = cast(dict[str, Any], answer).get("images") if isinstance(answer, dict) else None
        if not isinstance(images, list) or not images:
            raise JobRejected("AUTOMATIC1111 sent no picture; somebody may have interrupted it.", "worker")
        return decode_base64(cast(list[object], images)[0], "AUTOMATIC1111")

    def _describe_model(self, name: str, title: str, info: dict[str, Any]) -> BackendModel:
        size = self._size or guess_size(title)
        return BackendModel(
            name=name, title=title, size=size, multiple=choose_multiple(size),
            max_pixels=min(2 * size * size, 4096 * 4096), samplers=sort_samplers(self._samplers), steps=20,
            guidance=7.0, lacks=NEVER, version=hashlib.sha256(str(info.get("sha256") or title).encode()).hexdigest(),
            loras=tuple(Lora(name) for name in self._lora_titles), max_clip_skip=MAX_CLIP_SKIP,
        )  # fmt: skip

    def _make_body(self, request: DrawRequest) -> dict[str, Any]:
        sampler = self._samplers.get(request.sampler)
        if sampler is None:
            raise JobRejected(f"This AUTOMATIC1111 has no sampler {request.sampler}.", "worker")
        loras = [f"<lora:{self._lora_titles.get(each.name, each.name)}:{each.weight:g}>" for each in request.loras]
        settings: dict[str, Any] = {"sd_model_checkpoint": request.model.title}
        if request.clip_skip:
            settings["CLIP_stop_at_last_layers"] = request.clip_skip + 1
        body: dict[str, Any] = {
            "prompt": " ".join((request.prompt, *loras)), "negative_prompt": request.negative, "seed": request.seed,
            "steps": request.steps, "cfg_scale": request.guidance, "width": request.width, "height": request.height,
            "sampler_name": sampler.name, "n_iter": 1, "batch_size": 1, "send_images": True, "save_images": False,
            "override_settings": settings, "override_settings_restore_afterwards": False,  # loading a model takes long
        }  # fmt: skip
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
            if error.status not in (404, 405, 501):
                raise
            return []

    async def _watch_progress(self, on_progress: OnProgress) -> None:
        """Report progress and previews until cancelled. A question that fails is skipped."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                answer = await self._http.get_json(f"{ROOT}/progress", {"skip_current_image": "false"})
                progress, image = answer["progress"], answer.get("current_image")
                preview = decode_base64(image, "AUTOMATIC1111") if image else None
                on_progress(DrawProgress(min(1.0, max(0.0, float(progress))), preview))
            except (BackendUnreachable, JobRejected, KeyError, TypeError, ValueError, AttributeError) as error:
                log.debug("no progress of AUTOMATIC1111: %s", error)

    async def _interrupt(self) -> None:
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._http.post_json(f"{ROOT}/interrupt", {})
        except (BackendUnreachable, JobRejected, TimeoutError) as error:
            log.info("AUTOMATIC1111 was not asked to stop: %s", error)


def _make_start(request: DrawRequest) -> dict[str, Any]:
    """Return what img2img takes beside the settings. White in our masks is painted anew, as in its own."""
    assert request.picture is not None
    start: dict[str, Any] = {
        "init_images": [base64.b64encode(request.picture).decode()], "denoising_strength": request.strength,
    }  # fmt: skip
    if request.mask is None:
        return start
    keep = {"mask_blur": 4, "inpainting_fill": 1, "inpaint_full_res": False, "inpainting_mask_invert": 0}
    return start | keep | {"mask": base64.b64encode(request.mask).decode()}


def _list_objects(value: object) -> list[dict[str, Any]]:
    """Return the objects in a list. Raises `JobRejected` where it is none."""
    if not isinstance(value, list):
        raise JobRejected("AUTOMATIC1111 answers with no list.", "worker")
    return [cast(dict[str, Any], each) for each in cast(list[object], value) if isinstance(each, dict)]
