"""A bot that nobody kills: a prompt becomes four pictures by HTTP, and by `darkroom imagine` with and without it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from end_to_end.process import DRAWING, PROMPT, Up, darkroom, until

pytestmark = pytest.mark.timeout(600)


def _sizes(paths: Sequence[Path]) -> set[tuple[int, int]]:
    sizes = set()
    for path in paths:
        with Image.open(path) as picture:
            sizes.add(picture.size)
    return sizes


@pytest.mark.slow
def test_a_prompt_becomes_four_pictures(calibrated: Up, tmp_path: Path) -> None:
    job = calibrated.imagine(steps=12)
    view = calibrated.over(job)
    assert view["state"] == "finished", view["reason"]
    assert (view["steps"], view["seed"], view["count"]) == (12, 7, 4)
    paths = []
    for n in range(1, 5):
        status, png = calibrated.call("GET", f"/api/jobs/{job}/pictures/{n}.png")
        assert status == 200
        paths.append(tmp_path / f"{n}.png")
        paths[-1].write_bytes(png)
    assert len({path.read_bytes() for path in paths}) == 4
    assert _sizes(paths) == {(256, 256)}
    assert calibrated.call("GET", f"/api/jobs/{job}/film.webp")[0] == 200


def test_up_prints_its_address_its_folder_and_a_warm_model(calibrated: Up) -> None:
    log = until(lambda: ((text := calibrated.log.read_text()) and "is loaded" in text and text) or None, 10)
    assert calibrated._announced()["url"] in log
    assert str(calibrated.data) in log
    assert "Traceback" not in log


def test_a_second_bot_on_the_same_folder_is_refused(calibrated: Up) -> None:
    process = darkroom("up", "--port", "0", "--data", str(calibrated.data))
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert "already runs" in process.stderr


def test_a_taken_port_is_refused(calibrated: Up, tmp_path: Path) -> None:
    port = calibrated._announced()["url"].rpartition(":")[2]
    process = darkroom("up", "--port", port, "--data", str(tmp_path))
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == f"darkroom: Port {port} is taken on 127.0.0.1: choose another with --port.\n"


@pytest.mark.slow
def test_imagine_joins_a_running_bot(calibrated: Up, tmp_path: Path) -> None:
    process = darkroom(
        "imagine", PROMPT, "--steps", "12", "--seed", "7", "--film", "--json",
        "--out", str(tmp_path / "out"), "--data", str(calibrated.data),
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    (line,) = process.stdout.splitlines()
    result = json.loads(line)
    assert list(result) == [
        "id", "seed", "steps", "sampler", "pictures", "width", "height", "film", "previews", "seconds", "ms_per_step"
    ]  # fmt: skip
    assert (result["seed"], result["steps"]) == (7, 12)
    assert _sizes([Path(path) for path in result["pictures"]]) == {(256, 256)}
    assert len(result["pictures"]) == 4
    with Image.open(result["film"]) as film:
        assert getattr(film, "n_frames", 1) > 1
    assert calibrated.job(result["id"])["state"] == "finished"  # it went through the bot's own queue


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_alone_and_in_a_running_bot(
    calibrated: Up, calibration: Path, tmp_path: Path
) -> None:
    """Twice alone, once beside other jobs in a running bot: twelve files, four contents."""
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(calibration, data)
    others = [calibrated.imagine(prompt="red apple", seed=index, steps=40) for index in range(2)]
    results = []
    for folder in (calibrated.data, data, data):
        process = darkroom(
            "imagine", "red apple:: blue::-0.5", "--steps", "8", "--sampler", "dpmpp_2m", "--seed", "7", "--json",
            "--out", str(tmp_path / "out"), "--data", str(folder),
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        results.append(json.loads(process.stdout))
    assert len({one["id"] for one in results}) == 3
    for shots in zip(*(one["pictures"] for one in results), strict=True):
        assert len({Path(shot).read_bytes() for shot in shots}) == 1
    for job in others:
        calibrated.over(job)


def test_a_cancelled_job_stops(calibrated: Up) -> None:
    job = calibrated.imagine(steps=1000)
    until(lambda: calibrated.job(job)["state"] == "running" or None, DRAWING)
    status, body = calibrated.call("DELETE", f"/api/jobs/{job}")
    assert status == 200, body
    assert calibrated.over(job)["state"] == "cancelled"
