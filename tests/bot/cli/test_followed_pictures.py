"""`--control NAME:FILE` and `--reference FILE` of `darkroom imagine`: what they mean, and the request of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot.cli.imagine.job_inputs import JobInputs, split_arguments, split_controls, split_references
from bot.domain.errors import UserError
from bot.prompt import parse


@pytest.mark.parametrize(
    ("argument", "value", "files"),
    [
        ("canny:sketch.png", "canny", ["sketch.png"]),
        ("canny:sketch.png:0.8:0-0.6", "canny:0.8:0-0.6", ["sketch.png"]),
        ("canny:0.8:out/a:b.png:none", "canny:0.8:none", ["out/a:b.png"]),
        ("canny", "canny", []),
        ("canny:2", "canny:2", []),
        ("canny:./2", "canny", ["2"]),
    ],
)
def test_a_control_is_split_into_its_flag_and_its_file(argument: str, value: str, files: list[str]) -> None:
    assert split_controls([argument]) == ([value], [Path(name) for name in files])
    (parsed,) = parse("a cat", None, options={"control": [value]}).prompts
    assert parsed.controls
    assert parsed.controls[0].name == "canny"


@pytest.mark.parametrize(
    ("arguments", "images", "files"),
    [
        (["canny", "depth:d.png"], ["a.png", "b.png"], ["a.png", "d.png"]),
        (["canny:c.png", "depth"], ["a.png"], ["c.png", "a.png"]),
        (["canny", "depth"], ["a.png"], []),
        (["canny", "depth:d.png"], [], ["d.png"]),
    ],
)
def test_a_control_without_a_file_follows_the_init_image(
    arguments: list[str], images: list[str], files: list[str]
) -> None:
    values, found = split_controls(arguments, [Path(name) for name in images])
    assert ([value.split(":")[0] for value in values], found) == (["canny", "depth"], [Path(name) for name in files])


@pytest.mark.parametrize(
    ("arguments", "values", "files"),
    [
        (["face.png"], [], ["face.png"]),
        (["face.png:0.5"], ["0.5"], ["face.png"]),
        (["ip-face:face.png:0.5"], ["ip-face:0.5"], ["face.png"]),
        (["ip-face:me"], ["ip-face"], ["me"]),
        (["a.png", "b.png:1"], ["0.6", "1"], ["a.png", "b.png"]),
        (["a.png", "b.png"], [], ["a.png", "b.png"]),
    ],
)
def test_a_reference_is_split_into_its_flag_and_its_file(
    arguments: list[str], values: list[str], files: list[str]
) -> None:
    assert split_references(arguments) == (values, [Path(name) for name in files])
    assert parse("a cat", None, options={"reference": values}).prompts


def test_a_file_without_a_control_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Say what of sketch\.png is followed, as in --control canny:sketch\.png"):
        split_controls(["sketch.png"])
    with pytest.raises(UserError, match="--branch starts from a job and takes no picture"):
        split_arguments(["a", "cat"], [], None, False, "0" * 26 + ":4", [tmp_path / "sketch.png"])
    with pytest.raises(UserError, match="cannot be read"):
        JobInputs(controls=(tmp_path / "gone.png",)).build_request("a cat", {})


def test_the_request_to_a_running_darkroom_has_the_files(tmp_path: Path) -> None:
    for name in ("sketch", "face"):
        (tmp_path / name).write_bytes(name.encode())
    prompt, inputs = split_arguments(["a", "cat"], [], None, False, None, [tmp_path / "sketch"], [tmp_path / "face"])
    request = inputs.build_request(prompt, {"control": ["canny"]})
    assert (request.path, request.body["control"]) == ("/api/jobs", ["canny"])
    assert request.files == (("control", b"sketch"), ("reference", b"face"))
    assert not inputs.has_any, "a prompt still needs words"
