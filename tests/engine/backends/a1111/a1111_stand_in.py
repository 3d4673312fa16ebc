"""An AUTOMATIC1111 without its models: the routes of its `modules/api/api.py` and `modules/progress.py` that we use.

It draws one picture at a time, red ones. `/internal/progress` tells of one task, as its own page asks.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from aiohttp import web

from shared.picture_files import make_png


def encode_picture(colour: str) -> str:
    return base64.b64encode(make_png(colour=colour)).decode()


class A1111StandIn:
    """`bodies`: what was posted to draw. `finish`: lets pictures end. `stranger`: what it draws meanwhile, if set.

    `questions`: the tasks whose progress was asked for. `knows_tasks`: whether it has `/internal/progress`.
    `names_current_task`: whether its `/progress` does, as since 1.9.
    """

    def __init__(self, *, knows_tasks: bool = True, names_current_task: bool = False) -> None:
        self.names_current_task = names_current_task
        self.bodies: list[dict[str, Any]] = []
        self.finish = asyncio.Event()
        self.stranger = False
        self.questions: list[str] = []
        self.interrupts = 0
        self.answers_progress = asyncio.Event()
        self.answers_progress.set()
        self.answers_lists = asyncio.Event()
        self.answers_lists.set()
        self.app = web.Application()
        self.app.add_routes(
            [
                web.get("/sdapi/v1/sd-models", self._list_models),
                web.get("/sdapi/v1/samplers", self._list_samplers),
                web.post("/sdapi/v1/txt2img", self._draw),
                web.post("/sdapi/v1/interrupt", self._interrupt),
                web.get("/sdapi/v1/progress", self._show_progress),
            ]
        )
        if knows_tasks:
            self.app.router.add_post("/internal/progress", self._show_task)

    async def _list_models(self, request: web.Request) -> web.Response:
        await self.answers_lists.wait()
        return web.json_response([{"title": "sd15.safetensors [abc]", "model_name": "sd15", "sha256": "abc"}])

    async def _list_samplers(self, request: web.Request) -> web.Response:
        return web.json_response([{"name": "Euler"}])

    async def _draw(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        await self.finish.wait()
        return web.json_response({"images": [encode_picture("red")]})

    async def _interrupt(self, request: web.Request) -> web.Response:
        self.interrupts += 1
        self.finish.set()
        return web.json_response({})

    async def _show_progress(self, request: web.Request) -> web.Response:
        """Whatever it draws."""
        self.questions.append("")
        await self.answers_progress.wait()
        answer: dict[str, Any] = {"progress": 0.9, "current_image": encode_picture("blue")}
        if self.names_current_task:
            is_ours = bool(self.bodies) and not self.stranger
            answer["current_task"] = self.bodies[-1]["force_task_id"] if is_ours else "task(of another)"
        return web.json_response(answer)

    async def _show_task(self, request: web.Request) -> web.Response:
        question = await request.json()
        self.questions.append(question["id_task"])
        await self.answers_progress.wait()
        is_known = bool(self.bodies) and self.bodies[-1].get("force_task_id") == question["id_task"]
        answer: dict[str, Any] = {"active": False, "queued": is_known and self.stranger, "completed": False}
        if is_known and not self.stranger:
            preview = f"data:image/png;base64,{encode_picture('red')}"
            answer |= {"active": True, "progress": 0.5, "live_preview": preview, "id_live_preview": 1}
        return web.json_response(answer)
