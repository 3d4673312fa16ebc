"""One bot: a prompt becomes four pictures by HTTP, and by `darkroom imagine` with and without it. Then its engine is
killed, it is killed itself, and it shuts down cleanly.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from end_to_end.process import DRAW_TIMEOUT, PROMPT, DarkroomProcess, run_darkroom, wait_until
from shared.web_server import FLAGS

pytestmark = pytest.mark.timeout(600)


def _sizes(paths: Sequence[Path]) -> set[tuple[int, int]]:
    sizes = set()
    for path in paths:
        with Image.open(path) as picture:
            sizes.add(picture.size)
    return sizes


def _read_parameter(path: Path | str, name: str) -> str:
    """Reads one of the parameters in a PNG."""
    with Image.open(path) as picture:
        match = re.search(rf"\b{name}: ([^,]+)", picture.info["parameters"])
    assert match is not None
    return match[1]


@pytest.fixture
def idle_data(calibration: Path, tmp_path: Path) -> Path:
    """A data folder that no bot uses."""
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(calibration, folder)
    return folder


def _imagine(data: Path, tmp_path: Path, *options: str) -> dict[str, Any]:
    """Run `darkroom imagine` with seed 7; a bot that uses the data folder draws it."""
    process = run_darkroom(
        "imagine", *options, "--seed", "7", "--json", "--out", str(tmp_path / "out"), "--data", str(data)
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.slow
def test_a_prompt_becomes_four_pictures(shared_bot: DarkroomProcess, tmp_path: Path) -> None:
    job = shared_bot.imagine(steps=12)
    view = shared_bot.wait_for_end(job)
    assert view["state"] == "finished", view["reason"]
    assert (view["steps"], view["seed"], view["count"]) == (12, 7, 4)
    paths = []
    for n in range(1, 5):
        status, content = shared_bot.send_request("GET", f"/api/jobs/{job}/pictures/{n}.png")
        assert status == 200
        paths.append(tmp_path / f"{n}.png")
        paths[-1].write_bytes(content)
    assert len({path.read_bytes() for path in paths}) == 4
    assert _sizes(paths) == {(256, 256)}
    assert shared_bot.send_request("GET", f"/api/jobs/{job}/film.webp")[0] == 200


def test_up_prints_its_address_its_folder_and_a_warm_model(shared_bot: DarkroomProcess) -> None:
    log = wait_until(lambda: ((text := shared_bot.log.read_text()) and "is loaded" in text and text) or None, 10)
    assert shared_bot.read_announcement()["url"] in log
    assert str(shared_bot.data) in log
    assert "Traceback" not in log


def test_a_second_bot_on_the_same_folder_is_refused(shared_bot: DarkroomProcess) -> None:
    process = run_darkroom("up", "--port", "0", "--data", str(shared_bot.data))
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert "already runs" in process.stderr


def test_a_taken_port_is_refused(shared_bot: DarkroomProcess, tmp_path: Path) -> None:
    port = shared_bot.read_announcement()["url"].rpartition(":")[2]
    process = run_darkroom("up", "--port", port, "--data", str(tmp_path))
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == f"darkroom: Port {port} is taken on 127.0.0.1: choose another with --port.\n"


@pytest.mark.slow
def test_a_picture_is_steered_on_the_page(shared_bot: DarkroomProcess, find_program: Callable[..., str]) -> None:
    """The real engine makes what is moved on the mixing desk, and says from which step on."""
    program = find_program("chromium", "chromium-browser", "google-chrome")
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=program, args=FLAGS) as browser:
        page = browser.new_page()
        page.goto(shared_bot.read_announcement()["url"])
        page.locator("#prompt").fill("a fox:: a terrier --steps 1000 --count 2 --seed 7")
        page.keyboard.press("Enter")
        card = page.locator("article.job").last
        expect(card.locator(".tile-tools")).to_have_count(2, timeout=DRAW_TIMEOUT * 1000)
        card.get_by_label("Weight of a fox").press("End")
        expect(card.locator(".concepts .knob-status").first).to_have_text(re.compile(r"step \d+"), timeout=60_000)
        card.get_by_role("button", name="Keep picture 2 alone").click()
        expect(card.locator(".said li").first).to_have_text(re.compile(r"keeps image 2\s*step \d+"), timeout=60_000)
        expect(card.locator(".tile")).to_have_count(1)
        card.get_by_role("button", name="Cancel").click()
        expect(card).to_have_attribute("data-state", "cancelled", timeout=60_000)
        job = shared_bot.get_job(str(card.get_attribute("id")).removeprefix("job-"))
    assert [concept["weight"] for concept in job["steering"]["concepts"]] == pytest.approx([0.99, 0.01], abs=1e-3)
    assert (job["images"], job["steered"]) == ([2], 2)


@pytest.mark.slow
def test_imagine_joins_a_running_bot(shared_bot: DarkroomProcess, tmp_path: Path) -> None:
    process = run_darkroom(
        "imagine",
        PROMPT,
        "--steps",
        "12",
        "--seed",
        "7",
        "--film",
        "--json",
        "--out",
        str(tmp_path / "out"),
        "--data",
        str(shared_bot.data),
    )
    assert process.returncode == 0, process.stderr
    (line,) = process.stdout.splitlines()
    result = json.loads(line)
    assert list(result) == [
        "id",
        "seed",
        "steps",
        "evaluations",
        "sampler",
        "pictures",
        "width",
        "height",
        "film",
        "previews",
        "seconds",
        "ms_per_step",
    ]
    assert (result["seed"], result["steps"]) == (7, 12)
    assert _sizes([Path(path) for path in result["pictures"]]) == {(256, 256)}
    assert len(result["pictures"]) == 4
    with Image.open(result["film"]) as film:
        assert getattr(film, "n_frames", 1) > 1
    assert shared_bot.get_job(result["id"])["state"] == "finished"  # the bot's own queue ran it


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_alone_and_in_a_running_bot(
    shared_bot: DarkroomProcess, idle_data: Path, tmp_path: Path
) -> None:
    """Twice alone, once beside other jobs in a running bot: twelve files, four contents."""
    other_jobs = [shared_bot.imagine(prompt="red apple", seed=index, steps=40) for index in range(2)]
    options = ["red apple:: blue::-0.5", "--steps", "8", "--sampler", "dpmpp_2m"]
    results = [_imagine(folder, tmp_path, *options) for folder in (shared_bot.data, idle_data, idle_data)]
    assert len({one["id"] for one in results}) == 3
    for paths in zip(*(one["pictures"] for one in results), strict=True):
        assert len({Path(path).read_bytes() for path in paths}) == 1
    for job in other_jobs:
        shared_bot.wait_for_end(job)


@pytest.mark.slow
def test_the_best_pictures_are_the_same_alone_and_in_a_running_bot_and_vary_by_their_own_noise(
    shared_bot: DarkroomProcess, idle_data: Path, tmp_path: Path
) -> None:
    options = ["red apple", "--best", "--count", "2", "--steps", "4"]
    results = [_imagine(folder, tmp_path, *options) for folder in (shared_bot.data, idle_data)]
    contents = [[Path(path).read_bytes() for path in result["pictures"]] for result in results]
    assert contents[0] == contents[1]
    job = results[0]["id"]
    seeds = [_read_parameter(path, "Seed") for path in results[0]["pictures"]]
    assert len(set(seeds)) == 2
    assert {int(seed) for seed in seeds} < {7, 8, 9, 10}
    assert (shared_bot.get_job(job)["count"], shared_bot.get_job(job)["candidates"]) == (2, 4)
    for n, seed in enumerate(seeds, 1):
        status, body = shared_bot.send_request("POST", f"/api/jobs/{job}/vary/{n}")
        assert status == 201, body
        variation = shared_bot.wait_for_end(json.loads(body)["id"])
        assert variation["state"] == "finished", variation["reason"]
        _, content = shared_bot.send_request("GET", f"/api/jobs/{variation['id']}/pictures/1.png")
        path = tmp_path / "variation.png"
        path.write_bytes(content)
        assert _read_parameter(path, "Variation of") == f"{seed}@0.2"


def test_a_cancelled_job_stops(shared_bot: DarkroomProcess) -> None:
    job = shared_bot.imagine(steps=1000)
    wait_until(lambda: shared_bot.get_job(job)["state"] == "running" or None, DRAW_TIMEOUT)
    status, body = shared_bot.send_request("DELETE", f"/api/jobs/{job}")
    assert status == 200, body
    assert shared_bot.wait_for_end(job)["state"] == "cancelled"


# Kills and restarts, each during a job


@pytest.mark.slow
def test_a_killed_engine_goes_on_from_a_snapshot(warm_bot: DarkroomProcess) -> None:
    job = warm_bot.start_long_job()
    engine = wait_until(warm_bot.find_engine, 5)
    engine.kill()
    old_pid = engine.pid
    view = warm_bot.wait_for_end(job)
    assert view["state"] == "finished", view["reason"]
    assert len(view["pictures"]) == 2
    new_engine = wait_until(warm_bot.find_engine, 5)
    assert new_engine.pid != old_pid
    first, *later_starts = warm_bot.list_start_steps(job)
    assert first == 0
    assert later_starts[-1] > 0  # not from the start
    assert warm_bot.list_end_states(job) == ["finished"]  # once


@pytest.mark.slow
def test_a_killed_engine_changes_nothing_about_which_pictures_are_the_best(warm_bot: DarkroomProcess) -> None:
    """One picture of two candidates, with and without a kill: the same choice, and the same pixels."""
    killed_job = warm_bot.start_long_job(count=1, best=True)
    wait_until(warm_bot.find_engine, 5).kill()
    killed_view = warm_bot.wait_for_end(killed_job)
    assert killed_view["state"] == "finished", killed_view["reason"]
    assert warm_bot.list_start_steps(killed_job)[-1] > 0  # not from the start
    quiet_job = warm_bot.imagine(steps=killed_view["steps"], count=1, best=True)
    assert warm_bot.wait_for_end(quiet_job)["state"] == "finished"
    pictures = [warm_bot.send_request("GET", f"/api/jobs/{job}/pictures/1.png")[1] for job in (killed_job, quiet_job)]
    pixels = [Image.open(io.BytesIO(content)).convert("RGB").tobytes() for content in pictures]
    assert pixels[0] == pixels[1]


@pytest.mark.slow
def test_a_killed_bot_comes_back_with_its_jobs(warm_bot: DarkroomProcess) -> None:
    """Its broker and its engine don't stay behind to spoil the next start."""
    job = warm_bot.start_long_job()
    child_processes = warm_bot.list_children()
    assert warm_bot.process is not None
    warm_bot.process.kill()
    warm_bot.process.wait()
    warm_bot.start()
    warm_bot.wait_until_warm()
    view = warm_bot.wait_for_end(job)
    assert view["state"] == "finished", view["reason"]
    assert warm_bot.list_end_states(job) == ["finished"]
    wait_until(lambda: not any(child.is_running() for child in child_processes) or None, 30)


@pytest.mark.slow
def test_history_survives_a_restart_and_a_running_job_continues(warm_bot: DarkroomProcess) -> None:
    first = warm_bot.imagine(steps=8)
    assert warm_bot.wait_for_end(first)["state"] == "finished"
    before = warm_bot.send_request("GET", f"/api/jobs/{first}/pictures/1.png")[1]
    second = warm_bot.start_long_job()
    family = warm_bot.list_children()
    stopped_at = time.monotonic()
    assert warm_bot.stop() == 0
    assert time.monotonic() - stopped_at < 15
    assert not any(child.is_running() for child in family)
    assert not (warm_bot.data / "running.json").exists()
    warm_bot.start()
    assert warm_bot.get_job(first)["state"] == "finished"
    assert warm_bot.send_request("GET", f"/api/jobs/{first}/pictures/1.png")[1] == before
    assert warm_bot.wait_for_end(second)["state"] == "finished"  # the bot finishes every accepted job
