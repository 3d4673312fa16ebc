"""A ComfyUI without its models: the routes of its `server.py` that a worker uses, with answers of the same shape.

It checks an order as ComfyUI does (`execution.validate_prompt`): known classes, all required inputs, listed choices.
Its pictures have one colour, by the seed. As in ComfyUI, one workflow runs at a time, and its history is written only
after the message of its end.
"""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from typing import Any, cast

from aiohttp import web
from PIL import Image

from shared.picture_files import encode_picture

MODELS = ["sd15.safetensors", "folder/sdxl base.safetensors"]
SAMPLERS = ["euler", "euler_ancestral", "dpmpp_2m", "ddim", "uni_pc", "dpm_2"]
SCHEDULERS = ["normal", "karras", "ddim_uniform"]
LINK = "LINK"
TEXT = "STRING"
INT = "INT"
FLOAT = "FLOAT"
CLASSES: dict[str, dict[str, Any]] = {
    "CheckpointLoaderSimple": {"ckpt_name": MODELS},
    "CLIPTextEncode": {"text": TEXT, "clip": LINK},
    "EmptyLatentImage": {"width": INT, "height": INT, "batch_size": INT},
    "KSampler": {
        "model": LINK,
        "positive": LINK,
        "negative": LINK,
        "latent_image": LINK,
        "seed": INT,
        "steps": INT,
        "cfg": FLOAT,
        "sampler_name": SAMPLERS,
        "scheduler": SCHEDULERS,
        "denoise": FLOAT,
    },
    "VAEDecode": {"samples": LINK, "vae": LINK},
    "VAEEncode": {"pixels": LINK, "vae": LINK},
    "LoadImage": {"image": TEXT},
    "LoadImageMask": {"image": TEXT, "channel": ["alpha", "red", "green", "blue"]},
    "SetLatentNoiseMask": {"samples": LINK, "mask": LINK},
    "PreviewImage": {"images": LINK},
    "SaveImage": {"images": LINK, "filename_prefix": TEXT},
}


class ComfyUiStandIn:
    """`orders`: what was posted to `/prompt`. `uploads`: files by name. `interrupted`, `forgotten`: ids.

    `hold`: the workflow, counted from 0, that runs until it is interrupted, and all after it. `stranger`: runs before
    the first order, sends its previews to everyone, and ends with the event.
    """

    def __init__(self) -> None:
        self.orders: list[dict[str, Any]] = []
        self.uploads: dict[str, bytes] = {}
        self.interrupted: list[str] = []
        self.dequeued: list[str] = []
        self.forgotten: list[str] = []
        self.picture: bytes | None = None  # in place of the one by seed
        self.hold: int | None = None
        self.stranger: asyncio.Event | None = None
        self.forgets = True  # else it answers a request to forget a picture with an error
        self.busy_answers = 0  # to the next orders: come again
        self._sockets: dict[str, web.WebSocketResponse] = {}
        self._running: dict[str, asyncio.Event] = {}
        self._waiting: list[str] = []
        self._history: dict[str, Any] = {}
        self._unwritten: dict[str, Any] = {}
        self._files: dict[str, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.app = web.Application(client_max_size=64 * 1024 * 1024)
        self.app.on_shutdown.append(self._close_sockets)
        self.app.add_routes(
            [
                web.get("/ws", self._open_socket),
                web.post("/prompt", self._take_order),
                web.get("/object_info/{name}", self._describe),
                web.get("/queue", self._list_queue),
                web.post("/queue", self._dequeue),
                web.post("/interrupt", self._interrupt),
                web.get("/history/{id}", self._show_history),
                web.post("/history", self._forget),
                web.get("/view", self._view),
                web.post("/upload/image", self._upload),
            ]
        )

    async def _close_sockets(self, app: web.Application) -> None:
        for socket in list(self._sockets.values()):
            await socket.close()

    async def _open_socket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self._sockets[request.query["clientId"]] = socket
        await socket.send_json({"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}}})
        async for _ in socket:
            pass
        return socket

    async def _take_order(self, request: web.Request) -> web.Response:
        order = await request.json()
        if self.busy_answers:
            self.busy_answers -= 1
            return web.Response(status=429, headers={"Retry-After": "0"})
        self.orders.append(order)
        if errors := list(self._find_errors(order["prompt"])):
            error = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"}
            return web.json_response({"error": error, "node_errors": dict(errors)}, status=400)
        prompt_id = order.get("prompt_id") or str(uuid.uuid4())
        self._waiting.append(prompt_id)
        task = asyncio.create_task(self._run_in_turn(prompt_id, order, len(self.orders) - 1))
        self._tasks.add(task)
        return web.json_response({"prompt_id": prompt_id, "number": len(self.orders), "node_errors": {}})

    def _find_errors(self, nodes: dict[str, Any]) -> Any:
        for number, node in nodes.items():
            for name, kind in CLASSES[node["class_type"]].items():
                value = node["inputs"].get(name)
                is_link = isinstance(value, list) and cast(Any, value)[0] in nodes
                types: dict[str, Any] = {TEXT: str, INT: int, FLOAT: (int, float)}
                fits = value in kind if isinstance(kind, list) else is_link or isinstance(value, types.get(kind, ()))
                if node["class_type"].startswith("LoadImage") and name == "image":
                    fits = str(node["inputs"].get(name)).removesuffix(" [temp]") in self.uploads
                if not fits:
                    yield number, {"errors": [{"type": "value_not_in_list", "details": f"{name}: {value}"}]}

    async def _run_in_turn(self, prompt_id: str, order: dict[str, Any], number: int) -> None:
        if self.stranger is not None:
            await self._run_stranger(order, self.stranger)
        if prompt_id in self._waiting:
            self._waiting.remove(prompt_id)
            self._running[prompt_id] = asyncio.Event()
            await self._run(prompt_id, order, is_held=self.hold is not None and number >= self.hold)

    async def _run_stranger(self, order: dict[str, Any], end: asyncio.Event) -> None:
        """A workflow that was queued without a client."""
        data = {"value": 3, "max": 4, "prompt_id": "of-a-stranger", "node": "sampling"}
        for socket in self._sockets.values():
            await socket.send_json({"type": "progress", "data": data})
            await socket.send_bytes(
                struct.pack(">II", 1, 1) + encode_picture(Image.new("RGB", (64, 64), "blue"), "JPEG")
            )
        await end.wait()

    async def _run(self, prompt_id: str, order: dict[str, Any], *, is_held: bool) -> None:
        sampling = next(node["inputs"] for node in order["prompt"].values() if node["class_type"] == "KSampler")
        size = next((node["inputs"] for node in order["prompt"].values() if "width" in node["inputs"]), None)
        await self._send(order, "execution_start", {"prompt_id": prompt_id, "timestamp": 1})
        for step in range(1, sampling["steps"] + 1):
            data = {"value": step, "max": sampling["steps"], "prompt_id": prompt_id, "node": "sampling"}
            await self._send(order, "progress", data)
            preview = encode_picture(Image.new("RGB", (64, 64), (step, 0, 0)), "JPEG")
            await self._sockets[order["client_id"]].send_bytes(struct.pack(">II", 1, 1) + preview)
            if is_held:
                await self._running[prompt_id].wait()
                await self._send(order, "execution_interrupted", {"prompt_id": prompt_id, "node_id": "sampling"})
                return
        colour = (sampling["seed"] % 256, 99, 0)
        width, height = (size["width"], size["height"]) if size else (64, 64)
        self._files[f"{prompt_id}.png"] = self.picture or encode_picture(
            Image.new("RGB", (width, height), colour), "PNG"
        )
        image = {"filename": f"{prompt_id}.png", "subfolder": "", "type": "temp"}
        self._unwritten[prompt_id] = {
            "prompt": [1, prompt_id, order["prompt"]],
            "outputs": {"picture": {"images": [image]}},
            "status": {"status_str": "success", "completed": True, "messages": []},
        }
        del self._running[prompt_id]
        await self._send(order, "execution_success", {"prompt_id": prompt_id, "timestamp": 2})
        await self._send(order, "executing", {"node": None, "prompt_id": prompt_id})

    async def _send(self, order: dict[str, Any], kind: str, data: dict[str, Any]) -> None:
        await self._sockets[order["client_id"]].send_json({"type": kind, "data": data})

    async def _describe(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in CLASSES:
            return web.json_response({})
        kinds: dict[str, Any] = {field: [kind, {}] for field, kind in CLASSES[name].items()}
        return web.json_response({name: {"input": {"required": kinds}, "name": name}})

    async def _list_queue(self, request: web.Request) -> web.Response:
        running: list[Any] = [[1, prompt_id, {}, {}, []] for prompt_id in self._running]
        waiting: list[Any] = [[2, prompt_id, {}, {}, []] for prompt_id in self._waiting]
        return web.json_response({"queue_running": running, "queue_pending": waiting})

    async def _interrupt(self, request: web.Request) -> web.Response:
        prompt_id = json.loads(await request.text())["prompt_id"]
        self.interrupted.append(prompt_id)
        self._running.pop(prompt_id).set()
        return web.Response()

    async def _dequeue(self, request: web.Request) -> web.Response:
        for prompt_id in (await request.json())["delete"]:
            self._waiting.remove(prompt_id)
            self.dequeued.append(prompt_id)
        return web.Response()

    async def _forget(self, request: web.Request) -> web.Response:
        if not self.forgets:
            return web.Response(status=500)
        for prompt_id in (await request.json())["delete"]:
            del self._history[prompt_id]
            self.forgotten.append(prompt_id)
        return web.Response()

    async def _show_history(self, request: web.Request) -> web.Response:
        prompt_id = request.match_info["id"]
        answer = {prompt_id: self._history[prompt_id]} if prompt_id in self._history else {}
        self._history |= self._unwritten  # only after the first question
        self._unwritten.clear()
        return web.json_response(answer)

    async def _view(self, request: web.Request) -> web.Response:
        content = self._files.get(request.query["filename"])
        return web.Response(status=404) if content is None else web.Response(body=content, content_type="image/png")

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        image: Any = form["image"]
        self.uploads[image.filename] = image.file.read()
        return web.json_response({"name": image.filename, "subfolder": "", "type": form.get("type", "input")})
