"""`darkroom train`: errors are one sentence; a run's folder belongs to one run and one process."""

from __future__ import annotations

import json
from datetime import UTC
from pathlib import Path

import pytest
import torch

from training.__main__ import main
from training.commands.options import TrainOptions, default_cache_folder, next_clock_time
from training.commands.session import open_session, trim_log
from training.core import checkpoint


def expect_refusal(capfd: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """Runs a command that must fail with exit code 2; returns its one line on the error output."""
    assert main([str(word) for word in words]) == 2
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["diffusion"], "Missing option '--out'"),
        (["diffusion", "--out", "x"], "Say when to end"),
        (["diffusion", "--out", "x", "--until", "25:00"], "a time like 15:25, and '25:00' is none"),
        (["diffusion", "--out", "x", "--steps", "0"], "greater than or equal to 1"),
        (["diffusion", "--out", "x", "--steps", "many"], "--steps"),
        (["diffusion", "--out", "file", "--steps", "1"], "file is a file"),
        (["diffusion", "--out", "full", "--steps", "1"], "full is not empty and holds no run"),
        (["diffusion", "--out", "x", "--steps", "1", "--from", "full"], "no unet and no vae and no scheduler"),
        (["diffusion", "--out", "x", "--steps", "1", "--bogus"], "No such option: --bogus"),
        (["diffusion", "--out", "x", "--steps", "1", "--data", "gone"], "gone is not a folder of pictures"),
        (["diffusion", "--out", "x", "--steps", "1", "--data", "file"], "file is a file and not a folder of pictures"),
        (["diffusion", "--out", "x", "--steps", "1", "--data", "full"], "full has no picture that can be used"),
        (["lora", "--out", "x", "--steps", "1"], "Missing option '--data'"),
        (["lora", "--out", "x", "--steps", "1", "--data", "full", "--rank", "0"], "greater than or equal to 1"),
        (["lora", "--out", "x", "--steps", "1", "--data", "full", "--precision", "fp8"], "--precision"),
        (["lora", "--out", "x", "--steps", "1", "--data", "full"], "full has no picture that can be used"),
        (["turbo", "--out", "x", "--steps", "1", "--rank", "0"], "greater than or equal to 1"),
        (["turbo", "--out", "x", "--steps", "1", "--guidance", "0.5"], "--guidance"),
        (["turbo", "--out", "x", "--steps", "1", "--interval", "0.8-0.3"], "like 0.3-0.8, not '0.8-0.3'"),
        (["turbo", "--out", "x", "--steps", "1", "--data", "full"], "full has no picture that can be used"),
        (["turbo", "--out", "x", "--steps", "1", "--model", "full"], "no unet and no vae and no scheduler"),
        (["judge", "--out", "x", "--steps", "1", "--widths", "64,many"], "--widths takes one to 5 numbers of channels"),
        (["judge", "--out", "x", "--steps", "1", "--widths", "64,,128"], "like 48,96,192,320, not '64,,128'"),
        (["judge", "--out", "x", "--steps", "1", "--widths", "64,0"], "from 1 to 4096"),
        (["judge", "--out", "x", "--steps", "1", "--widths", "8,8,8,8,8,8"], "--widths takes one to 5 numbers"),
        (["judge", "--out", "x", "--steps", "1", "--widths", ""], "--widths takes one to 5 numbers"),
        (["nonsense"], "No such command 'nonsense'"),
        (["export", "full", "--to", "y"], "holds no run"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("full").mkdir()
    Path("full/letter.txt").touch()
    assert message in expect_refusal(capfd, *words)


def test_help_exits_with_zero(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main(["diffusion", "--help"]) == main([]) == 0
    assert "--data FOLDER" in capfd.readouterr().out


def test_only_one_process_trains_in_a_folder(tmp_path: Path) -> None:
    options = TrainOptions(tmp_path / "out", steps=1)
    with (
        open_session("diffusion", options) as first,
        pytest.raises(ValueError, match="Another process is training"),
        open_session("diffusion", options),
    ):
        pass
    with open_session("diffusion", options) as second:
        assert first.position is second.position is None


def test_a_damaged_checkpoint_is_refused_and_fresh_starts_over(tmp_path: Path) -> None:
    with open_session("x", TrainOptions(tmp_path, steps=1)):
        (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"rubbish")
    with (
        pytest.raises(ValueError, match="not a complete checkpoint"),
        open_session("x", TrainOptions(tmp_path, steps=1)),
    ):
        pass
    with open_session("x", TrainOptions(tmp_path, steps=1, fresh=True)) as session:
        assert session.position is None


def test_another_programs_folder_named_run_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.png").write_bytes(b"mine")
    assert "holds no run" in expect_refusal(capfd, "diffusion", "--out", tmp_path, "--steps", "1", "--fresh")
    both_options = ["--out", tmp_path, "--data", tmp_path, "--steps", "1", "--fresh"]
    assert "inside the other" in expect_refusal(capfd, "diffusion", *both_options)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["a.png"]


def test_fresh_keeps_the_old_run_until_all_options_are_valid(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output_folder = tmp_path / "out"
    old = tmp_path / "out" / "run" / "checkpoint.safetensors"
    with open_session("diffusion", TrainOptions(output_folder, steps=1)):
        old.write_bytes(b"precious")
    words = ["--out", output_folder, "--steps", "1", "--fresh"]
    assert "not a folder of pictures" in expect_refusal(capfd, "diffusion", *words, "--data", tmp_path / "typo")
    assert "no unet" in expect_refusal(capfd, "diffusion", *words, "--from", str(tmp_path))
    other = expect_refusal(capfd, "lora", *words, "--data", tmp_path / "typo")
    assert "holds a run of `darkroom train diffusion`: take another folder" in other
    assert old.read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("content", "message"), [(None, "is no text file"), (b"\xff", "is no text file"), (b"\n", "names no label")]
)
def test_a_list_of_labels_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    focus = tmp_path / "focus.txt"
    if content is not None:
        focus.write_bytes(content)
    options = ["--steps", "1", "--focus", str(focus), "--out", str(tmp_path / "run")]
    assert main(["diffusion", *options]) == 2
    assert message in capfd.readouterr().err


def test_a_list_of_labels_does_not_go_with_pictures_of_ones_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "1", "--focus", str(tmp_path / "focus.txt"), "--data", str(tmp_path)]
    assert main(["diffusion", *options, "--out", str(tmp_path / "run")]) == 2
    assert "leave it out with --data" in capfd.readouterr().err


def test_a_share_without_a_list_of_drawings_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--steps", "1", "--focus-share", "0.5", "--out", tmp_path / "run"]
    assert "name a file with --focus, too" in expect_refusal(capfd, "diffusion", *words)


def test_a_file_of_missed_labels_is_checked_before_anything_is_drawn(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    missed = tmp_path / "missed.txt"
    assert "needs the check of labels" in expect_refusal(capfd, "evaluate", "--missed", missed, "--only", "hues")
    sheet = tmp_path / "sheet.webp"
    assert "needs the check of labels" in expect_refusal(capfd, "evaluate", "--missed", missed, "--sheet", sheet)
    for path in (tmp_path / "typo" / "missed.txt", tmp_path):
        assert "cannot be written" in expect_refusal(capfd, "evaluate", "--missed", path)
    assert "needs a check that draws labels" in expect_refusal(
        capfd, "evaluate", "--style", "flat design", "--only", "hues"
    )


def test_export_refuses_a_folder_without_a_diffusion_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run" / "checkpoint.safetensors"
    checkpoint.save(path, {"network:average.x": torch.zeros(1)}, {"steps": 1})
    words = ["export", tmp_path, "--to", tmp_path / "to"]
    assert "holds no run of `darkroom train diffusion`" in expect_refusal(capfd, *words)
    path.write_bytes(b"rubbish")
    assert "not a complete checkpoint" in expect_refusal(capfd, *words)


def test_links_in_a_run_folder_are_not_followed(tmp_path: Path) -> None:
    linked_folder = tmp_path / "victim"
    linked_folder.write_text("mine")
    for number, name in enumerate(("lock", "log.jsonl")):
        output_folder = tmp_path / str(number)
        (output_folder / "run").mkdir(parents=True)
        (output_folder / "run" / name).symlink_to(linked_folder)
        with pytest.raises(ValueError, match="is a link"), open_session("x", TrainOptions(output_folder, steps=1)):
            pass
    (tmp_path / "run").symlink_to(tmp_path / "1")
    with pytest.raises(ValueError, match="is a link"), open_session("x", TrainOptions(tmp_path, steps=1)):
        pass
    assert linked_folder.read_text() == "mine"


def test_a_truncated_log_is_rewound_to_the_checkpoint(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"samples": 8}\n{"samples": 16}\n{"samples": 24}\n{"samp')
    trim_log(log, 16)
    assert [json.loads(line)["samples"] for line in log.read_text().splitlines()] == [8, 16]


def test_a_past_time_of_day_means_tomorrow() -> None:
    from datetime import datetime

    noon = datetime(2026, 5, 4, 12, tzinfo=UTC)
    assert next_clock_time("12:30", lambda: noon) - noon.timestamp() == 30 * 60
    assert next_clock_time("11:30", lambda: noon) - noon.timestamp() == 23.5 * 3600


def test_the_default_cache_follows_xdg_cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "darkroom" / "training"
