"""A house that nobody kills: a prompt becomes four pictures, in it, beside it and by it."""

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


def test_a_prompt_becomes_four_pictures(calibrated: Up, tmp_path: Path) -> None:
    job = calibrated.imagine(steps=12)
    shown = calibrated.over(job)
    assert shown["state"] == "finished", shown["reason"]
    assert (shown["steps"], shown["seed"], shown["count"]) == (12, 7, 4)
    paths = []
    for n in range(1, 5):
        status, png = calibrated.call("GET", f"/api/jobs/{job}/pictures/{n}.png")
        assert status == 200
        paths.append(tmp_path / f"{n}.png")
        paths[-1].write_bytes(png)
    assert len({path.read_bytes() for path in paths}) == 4
    assert _sizes(paths) == {(256, 256)}
    assert calibrated.call("GET", f"/api/jobs/{job}/film.webp")[0] == 200


def test_it_says_where_it_is_and_what_it_has(calibrated: Up) -> None:
    said = until(lambda: ((text := calibrated.log.read_text()) and "is warm" in text and text) or None, 10)
    assert calibrated._announced()["url"] in said
    assert str(calibrated.data) in said
    assert "Traceback" not in said


def test_a_second_house_on_the_same_folder_is_refused(calibrated: Up) -> None:
    done = darkroom("up", "--port", "0", "--data", str(calibrated.data))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "already runs" in done.stderr


def test_a_taken_port_is_refused(calibrated: Up, tmp_path: Path) -> None:
    port = calibrated._announced()["url"].rpartition(":")[2]
    done = darkroom("up", "--port", port, "--data", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"darkroom: Port {port} is taken on 127.0.0.1: choose another with --port.\n"


def test_imagine_joins_a_running_house(calibrated: Up, tmp_path: Path) -> None:
    done = darkroom(
        "imagine", PROMPT, "--steps", "12", "--seed", "7", "--film", "--json",
        "--out", str(tmp_path / "out"), "--data", str(calibrated.data),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    said = json.loads(line)
    assert list(said) == [
        "id", "seed", "steps", "sampler", "pictures", "width", "height", "film", "frames", "seconds", "ms_per_step"
    ]  # fmt: skip
    assert (said["seed"], said["steps"]) == (7, 12)
    assert _sizes([Path(path) for path in said["pictures"]]) == {(256, 256)}
    assert len(said["pictures"]) == 4
    with Image.open(said["film"]) as film:
        assert getattr(film, "n_frames", 1) > 1
    assert calibrated.job(said["id"])["state"] == "finished"  # it went through the house's own queue


def test_alone_and_in_a_house_the_same_seed_gives_the_same_bytes(
    calibrated: Up, calibration: Path, tmp_path: Path
) -> None:
    """Twice alone, once beside other jobs in a running house: twelve files, four contents."""
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(calibration, data)
    others = [calibrated.imagine(prompt="red apple", seed=index, steps=40) for index in range(2)]
    told = []
    for folder in (calibrated.data, data, data):
        done = darkroom(
            "imagine", "red apple:: blue::-0.5", "--steps", "8", "--sampler", "dpmpp_2m", "--seed", "7", "--json",
            "--out", str(tmp_path / "out"), "--data", str(folder),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout))
    assert len({one["id"] for one in told}) == 3
    for shots in zip(*(one["pictures"] for one in told), strict=True):
        assert len({Path(shot).read_bytes() for shot in shots}) == 1
    for job in others:
        calibrated.over(job)


def test_a_cancelled_job_stops(calibrated: Up) -> None:
    job = calibrated.imagine(steps=1000)
    until(lambda: calibrated.job(job)["state"] == "running" or None, DRAWING)
    status, body = calibrated.call("DELETE", f"/api/jobs/{job}")
    assert status == 200, body
    assert calibrated.over(job)["state"] == "cancelled"
