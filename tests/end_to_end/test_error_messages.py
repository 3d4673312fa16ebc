"""Any error on the command line or in the environment is one sentence and exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from end_to_end.process import run_darkroom


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["imagine", "x --steps 5000"], "--steps 5000 is not possible"),
        (["imagine", "x", "--steps", "many"], "--steps"),
        (["imagine", ""], "prompt"),
        (["imagine", "{a,b}"], "2 jobs"),
        (["imagine", "x --stepz 5"], "--steps"),
        (["imagine", "x", "--sampler", "plms"], "sampler"),
        (["imagine", "x", "--out", "/proc/nowhere"], "cannot be written"),
        (["up", "--port", "-1"], "--port"),
        (["up", "--nats", "http://x"], "nats://"),
        (["nonsense"], "nonsense"),
    ],
)
def test_a_bad_value_is_one_sentence(args: list[str], words: str, tmp_path: Path) -> None:
    process = run_darkroom(*args, DARKROOM_DATA=str(tmp_path / "data"))
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("darkroom: ")
    assert process.stderr.count("\n") == 1
    assert words in process.stderr


def test_a_bad_environment_is_one_sentence(tmp_path: Path) -> None:
    process = run_darkroom("up", DARKROOM_DATA=str(tmp_path), DARKROOM_PORT="many")
    assert process.returncode == 2
    assert process.stderr.startswith("darkroom: DARKROOM_PORT is not valid")
    assert process.stderr.count("\n") == 1
