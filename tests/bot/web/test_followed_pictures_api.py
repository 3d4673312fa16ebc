"""Control and reference pictures over HTTP: in a make_form, by the names of finished pictures, and what is refused."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING

import msgspec
import pytest
import pytest_asyncio
from rich.console import Console

from bot.cli.imagine import http_client
from bot.cli.imagine.job_inputs import JobInputs, split_controls, split_references
from bot.cli.imagine.progress_display import ProgressDisplay
from bot.web.auth import terminal_key
from engine.contract import Recipe
from shared.clock import wait_until
from shared.model_parts import MODEL_PARTS
from shared.picture_files import make_png
from shared.web_server import make_form, send_form

if TYPE_CHECKING:
    from pathlib import Path

    from shared.web_server import WebServer

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def controlled(server: WebServer) -> WebServer:
    """A web page whose worker has control networks and further parts."""
    (worker,) = server.workers
    worker.model = msgspec.structs.replace(worker.model, **MODEL_PARTS)
    await wait_until(lambda: bool(server.services.catalog.find_entry(None).profile.controls))
    return server


async def test_a_form_carries_pictures_that_the_images_follow(controlled: WebServer) -> None:
    request = {"prompt": "a lamp by moebius", "control": ["canny:0.8:0-0.5"], "vae": "mse", "clip_skip": 2, "count": 1}
    files = (("control", make_png(colour="#333")), ("reference", make_png(32, 32, "#c33", "JPEG")))
    status, reply = await send_form(controlled, "/api/jobs", make_form(request, *files))
    assert status == 201, reply
    job = await controlled.wait_for_end(reply["id"])
    assert (job["state"], job["start"]) == ("finished", None)
    assert job["controls"] == [{"name": "canny", "scale": 0.8, "start": 0.0, "stop": 0.5}]
    assert job["references"] == [{"name": "face", "scale": 0.6}]
    assert (job["embeddings"], job["vae"], job["clip_skip"], job["quantization"]) == (["moebius"], "mse", 2, "int8")
    assert "control canny ×0.8 · reference face ×0.6 · VAE mse · clip skip 2" in job["footer"]
    _, workers = await controlled.request_json("GET", "/api/workers")
    (model,) = workers["workers"][0]["models"]
    assert (model["controls"], model["references"], model["vaes"]) == (["canny", "tile"], ["face"], ["mse"])
    finished = {"prompt": "a cat", "control": "tile", "control_images": [f"{job['id']}/1"]}
    status, reply = await controlled.request_json("POST", "/api/jobs", finished)
    assert status == 201, reply
    assert (await controlled.wait_for_end(reply["id"]))["controls"][0]["name"] == "tile"
    files = (("mask", make_png(colour="white")), ("control", make_png()))
    status, reply = await send_form(controlled, f"/api/jobs/{job['id']}/edit/1", make_form({}, *files))
    assert (status, "The form needs" in reply["error"]) == (400, True)


async def test_the_terminal_sends_its_files_to_a_running_darkroom(controlled: WebServer, tmp_path: Path) -> None:
    for name, colour in (("sketch.png", "#333"), ("face.png", "#c33")):
        await asyncio.to_thread((tmp_path / name).write_bytes, make_png(colour=colour))
    controls = split_controls([f"canny:{tmp_path / 'sketch.png'}:0.5"])
    references = split_references([f"{tmp_path / 'face.png'}:0.9"])
    inputs = JobInputs(controls=tuple(controls[1]), references=tuple(references[1]))
    options = {"control": controls[0], "reference": references[0]}
    request = await asyncio.to_thread(inputs.build_request, "a lamp --count 1", options)
    key = await asyncio.to_thread(terminal_key, controlled.settings.data)
    with ProgressDisplay(Console(file=io.StringIO()), 1) as display:
        result = await http_client.generate(controlled.url, key, request, film=False, display=display)
    assert len(result.pictures) == 1
    job = await controlled.services.job_views.load_view(result.id)
    assert isinstance(job.task, Recipe)
    assert [(each.name, each.scale) for each in (*job.task.controls, *job.task.references)] == [
        ("canny", 0.5),
        ("face", 0.9),
    ]
    assert job.task.bucket, "the terminal asks for exact jobs"


async def test_what_cannot_be_followed_is_refused_over_http(controlled: WebServer) -> None:
    sketch = ("control", make_png())
    for request, files, status, words in (
        ({"prompt": "a lamp"}, (sketch,), 422, "as --control NAME: canny, tile"),
        ({"prompt": "a lamp", "control": "depth"}, (sketch,), 422, "--control takes: canny, tile"),
        ({"prompt": "a lamp", "control": "canny"}, 4 * (sketch,), 400, "3 `control`"),
        ({"prompt": "a lamp", "control": "canny", "control_images": ["x/1"]}, (sketch,), 422, "not both at once"),
        ({"prompt": "a lamp", "clip_skip": 9}, (), 422, "takes --clip-skip 1 to 3"),
        ({"prompt": "a lamp"}, (("reference", b"no picture"),), 422, "The reference picture has a format"),
    ):
        answered, reply = await send_form(controlled, "/api/jobs", make_form(request, *files))
        assert (answered, words in reply["error"]) == (status, True), reply
